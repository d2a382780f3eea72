"""What the disk said last to commits and syncs, for the status and the log."""

import anyio
import structlog

from agent.queue.cursor import Ledger
from agent.queue.store import Committed
from agent.throttle import Throttle

LOG_INTERVAL = 60.0


class StorageHealth:
    """Takes note of commits and syncs; `error` says why events cannot be persisted just now.

    A trouble that goes on is logged once in LOG_INTERVAL seconds, and so are drops; the end of a trouble is logged too.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._log = structlog.get_logger("agent.pipeline")
        self._throttle = Throttle(LOG_INTERVAL)
        self._dropped = ledger.dropped
        self._commit_error: str | None = None
        self._sync_error: str | None = None

    @property
    def error(self) -> str | None:
        """Why the last commit, or the last sync, failed."""
        return self._commit_error or self._sync_error

    def note_commit(self, committed: Committed, ledger: Ledger) -> None:
        """Take note of a commit, and of the ledger after it."""
        before = self._commit_error
        self._commit_error = committed.append_error or committed.checkpoint_error or committed.delete_error
        self._log_error(before, self._commit_error, ledger)
        if ledger.dropped != self._dropped:
            self._dropped = ledger.dropped
            self._complain("events_dropped", ledger)

    def note_stall(self, error: str, ledger: Ledger) -> None:
        """Take note of a commit that takes long; the next one that ends says whether it still holds."""
        before, self._commit_error = self._commit_error, error
        self._log_error(before, error, ledger)

    def note_sync(self, error: str | None, ledger: Ledger) -> None:
        """Take note of a sync, which failed if there is an error."""
        before, self._sync_error = self._sync_error, error
        self._log_error(before, error, ledger)

    def note_shed(self, count: int, ledger: Ledger) -> None:
        """Take note of events that there was no room for, because the disk does not answer."""
        self._complain("storage_stalled", ledger, events=count)

    def _log_error(self, before: str | None, error: str | None, ledger: Ledger) -> None:
        if error is not None:
            self._complain("storage_failing", ledger, error=error)
        elif before is not None:
            self._log.info("storage_recovered")

    def _complain(self, event: str, ledger: Ledger, **facts: object) -> None:
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.error(event, **facts, ledger_dropped=ledger.dropped, suppressed=held_back)
