"""The way to a queue: the daemon, where one runs; the queue's own files, under its lock, where none does.

It knows the control socket's requests; `agent.cli.queue.offline`, which is imported only where it is needed, knows the functions
behind them. So both ways give the same answers. It must never know arguments or output.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from agent.config import Config
from agent.control.client import ControlClient, DeniedError
from agent.control.queue_client import QueueClient
from agent.errors import NotRunningError
from agent.queue.maintenance.audit import Audit
from agent.queue.maintenance.browse import MAX_PAGE_EVENTS, EventFilter, EventPage, Listing, QueuedEvent
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter, DeadLetterPage, ListedDeadLetter
from agent.queue.maintenance.purge import DeadLettersPurged, Purged
from agent.queue.maintenance.repair import Repaired
from agent.queue.maintenance.retry import Retried
from agent.rules import DEFAULT

# On top of the time that a request to the API may take: for the disk.
PURGE_GRACE_SECONDS = 30.0


class Access(Protocol):
    """What can be asked of a queue. Everything may raise an AgentError."""

    def listing(self) -> Listing:
        """Return what the segments hold."""

    def event_page(self, wanted: EventFilter, start: int, limit: int) -> EventPage:
        """Return queued events."""

    def audit(self) -> Audit:
        """Check everything."""

    def dead_letter_page(self, wanted: DeadLetterFilter, start: int, limit: int) -> DeadLetterPage:
        """Return dead letters."""

    def repair(self) -> Repaired:
        """Account for all damage."""

    def purge(self) -> Purged:
        """Settle all that is queued."""

    def retry(self, wanted: DeadLetterFilter) -> Retried:
        """Queue the events of dead letters again."""

    def purge_dead_letters(self, wanted: DeadLetterFilter) -> DeadLettersPurged:
        """Remove dead letters."""


@contextmanager
def access(settings: Config, destination: str, control: ControlClient) -> Iterator[Access]:
    """Yield the way to the queue of a destination. Raises QueueLockedError, StorageError or NotRunningError if there is none.

    One that the daemon has not opened is nobody's: it is configured no more and has ended, or cannot be opened.
    """
    try:
        found = control.status().destinations.get(destination)
    except DeniedError:
        raise
    except NotRunningError as error:
        reason = str(error)
    else:
        if destination == DEFAULT or (found is not None and found.state != "failed"):
            timeout = settings.accounts.get(destination, settings.accounts[DEFAULT]).api.timeout
            yield QueueClient(control, timeout + PURGE_GRACE_SECONDS, destination)
            return
        reason = f"the one that answers does not serve {destination!r}"
    from agent.cli.queue.offline import offline

    with offline(settings, destination, reason) as way:
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
