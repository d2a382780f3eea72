"""The way to a queue: the daemon, where one runs; the queue's own files, under its lock, where none does.

It knows the control socket's requests; `agent.cli.queue_offline`, which is imported only where it is needed, knows the functions
behind them. So both ways give the same answers. It must never know arguments or output.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import urlencode

import msgspec

from agent.config import Config
from agent.control.client import ControlClient, DeniedError
from agent.errors import NotRunningError
from agent.queue.maintenance import changes
from agent.queue.maintenance.audit import Audit
from agent.queue.maintenance.browse import MAX_PAGE_EVENTS, EventFilter, EventPage, Listing, QueuedEvent
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter, DeadLetterPage, ListedDeadLetter

# On top of the time that a request to the API may take: for the disk.
PURGE_GRACE_SECONDS = 30.0


class Access(Protocol):
    """What can be asked of a queue. Everything may raise an AgentError."""

    def listing(self) -> Listing:
        """Return what the segments hold."""

    def event_page(self, selection: EventFilter, start: int, limit: int) -> EventPage:
        """Return queued events."""

    def audit(self) -> Audit:
        """Check everything."""

    def dead_letter_page(self, selection: DeadLetterFilter, start: int, limit: int) -> DeadLetterPage:
        """Return dead letters."""

    def repair(self) -> changes.Repaired:
        """Account for all damage."""

    def purge(self) -> changes.Purged:
        """Settle all that is queued."""

    def retry(self, selection: DeadLetterFilter) -> changes.Retried:
        """Queue the events of dead letters again."""

    def purge_dead_letters(self, selection: DeadLetterFilter) -> changes.DeadLettersPurged:
        """Remove dead letters."""


@contextmanager
def access(settings: Config) -> Iterator[Access]:
    """Yield the way to the queue. Raises QueueLockedError, StorageError or NotRunningError if there is none."""
    with ControlClient(settings.listen.control) as control:
        try:
            control.status()
        except DeniedError:
            raise
        except NotRunningError as error:
            reason = str(error)
        else:
            yield Online(control, settings.api.timeout + PURGE_GRACE_SECONDS)
            return
    from agent.cli.queue_offline import offline

    with offline(settings, reason) as way:
        yield way


def events(queue: Access, selection: EventFilter, limit: int | None) -> Iterator[QueuedEvent | int]:
    """Yield the queued events that are meant, at most `limit`; now and then, how many cannot be read."""
    start: int | None = 1
    while start is not None and limit != 0:
        page = queue.event_page(selection, start, MAX_PAGE_EVENTS if limit is None else min(limit, MAX_PAGE_EVENTS))
        yield from page.events
        if page.unreadable:
            yield page.unreadable
        start, limit = page.next, None if limit is None else limit - len(page.events)


class DeadLetterPages:
    """The letters that are meant, in the log's order, at most `limit`; `unreadable` counts what lies between them so far."""

    def __init__(self, queue: Access, selection: DeadLetterFilter, limit: int | None = None) -> None:
        self._queue = queue
        self._selection = selection
        self._limit = limit
        self.unreadable = 0

    def __iter__(self) -> Iterator[ListedDeadLetter]:
        self.unreadable = 0
        start: int | None = 0
        limit = self._limit
        while start is not None and limit != 0:
            most = MAX_PAGE_EVENTS if limit is None else min(limit, MAX_PAGE_EVENTS)
            page = self._queue.dead_letter_page(self._selection, start, most)
            self.unreadable += page.unreadable
            yield from page.letters
            start, limit = page.next, None if limit is None else limit - len(page.letters)


class Online:
    """The queue of a daemon that runs."""

    def __init__(self, control: ControlClient, purge_seconds: float) -> None:
        self._control = control
        self._purge_seconds = purge_seconds

    def listing(self) -> Listing:
        return self._control.ask("GET", "/queue", Listing)

    def event_page(self, selection: EventFilter, start: int, limit: int) -> EventPage:
        return self._control.ask("GET", f"/queue/events?{_query(selection, start, limit)}", EventPage)

    def audit(self) -> Audit:
        return self._control.ask("GET", "/queue/verify", Audit)

    def dead_letter_page(self, selection: DeadLetterFilter, start: int, limit: int) -> DeadLetterPage:
        return self._control.ask("GET", f"/dead-letters?{_query(selection, start, limit)}", DeadLetterPage)

    def repair(self) -> changes.Repaired:
        return self._control.ask("POST", "/queue/repair", changes.Repaired)

    def purge(self) -> changes.Purged:
        return self._control.ask("POST", f"/queue/purge?deadline={self._purge_seconds!r}", changes.Purged)

    def retry(self, selection: DeadLetterFilter) -> changes.Retried:
        return self._control.ask("POST", "/dead-letters/retry", changes.Retried, body=msgspec.json.encode(selection))

    def purge_dead_letters(self, selection: DeadLetterFilter) -> changes.DeadLettersPurged:
        body = msgspec.json.encode(selection)
        return self._control.ask("POST", "/dead-letters/purge", changes.DeadLettersPurged, body=body)


def _query(selection: EventFilter, start: int, limit: int) -> str:
    wanted: dict[str, object] = msgspec.to_builtins(selection)
    if "numbers" in wanted:
        wanted["numbers"] = ",".join(map(str, msgspec.to_builtins(wanted["numbers"])))
    return urlencode({**wanted, "from": start, "limit": limit})
