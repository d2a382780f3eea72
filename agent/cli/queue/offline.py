"""The queue while no daemon is running: read and changed by the command itself, under the queue's lock.

The functions are those behind the control socket's requests.
"""

import errno
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from agent.cli.queue.owner import as_owner, denied
from agent.config import Config
from agent.daemon.settings import limits_of, queue_directory
from agent.errors import QueueLockedError, StorageError
from agent.queue.cursor_file import read_slots
from agent.queue.dead_letters import DeadLetters, weigh
from agent.queue.filesystem import Lock, OsFilesystem
from agent.queue.lock import lock_queue
from agent.queue.maintenance.audit import Audit, audit
from agent.queue.maintenance.browse import EventFilter, EventPage, Listing, event_page, list_segments
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter, DeadLetterPage, dead_letter_page
from agent.queue.maintenance.offline import OfflineQueue, at_once, opened
from agent.queue.maintenance.purge import DeadLettersPurged, Purged, purge, purge_dead_letters
from agent.queue.maintenance.repair import Repaired, repair
from agent.queue.maintenance.retry import Retried, retry
from agent.queue.snapshot import QueueSnapshot, read_queue
from agent.spools.identity import DESTINATION

T = TypeVar("T")


@contextmanager
def offline(settings: Config, destination: str, reason: str) -> Iterator["Offline"]:
    """Yield a destination's queue, locked; `reason` says why no daemon was asked. Raises QueueLockedError or StorageError."""
    directory = queue_directory(settings, destination)
    with as_owner(directory):
        lock = _lock(directory, reason)
    try:
        yield Offline(settings, directory)
    finally:
        if lock is not None:
            lock.release()


class Offline:
    """The queue, for whoever holds its lock: see `agent.cli.queue.access.Access`.

    What is done to files is done as their owner, and nothing else is: a module might be readable for root alone.
    """

    def __init__(self, settings: Config, directory: Path) -> None:
        self._fs = OsFilesystem()
        self._root = directory
        self._directory = self._root / DESTINATION
        self._limits = limits_of(settings)
        self._letters = DeadLetters.beside(self._fs, self._directory, self._limits)

    @cached_property
    def _queue(self) -> QueueSnapshot:
        """The queue as it is until something is changed, which a command does at its end."""
        return read_queue(self._fs, self._directory)

    def listing(self) -> Listing:
        with as_owner(self._root):
            return list_segments(self._queue)

    def event_page(self, wanted: EventFilter, start: int, limit: int) -> EventPage:
        with as_owner(self._root):
            return event_page(self._queue, wanted, start, limit)

    def audit(self) -> Audit:
        with as_owner(self._root):
            slots = read_slots(self._fs, self._directory / "cursor")
            log, repeats = self._letters.read(lambda *found: found)
            return audit(read_queue(self._fs, self._directory), slots, log, partial(weigh, repeats))

    def dead_letter_page(self, wanted: DeadLetterFilter, start: int, limit: int) -> DeadLetterPage:
        with as_owner(self._root):
            return self._letters.read(lambda log, repeats: dead_letter_page(log, repeats, wanted, start, limit))

    def repair(self) -> Repaired:
        return self._change(repair)

    def purge(self) -> Purged:
        return self._change(partial(purge, seconds=0.0))

    def retry(self, wanted: DeadLetterFilter) -> Retried:
        return self._change(partial(retry, wanted=wanted))

    def purge_dead_letters(self, wanted: DeadLetterFilter) -> DeadLettersPurged:
        return self._change(partial(purge_dead_letters, wanted=wanted))

    def _change(self, change: Callable[[OfflineQueue], Coroutine[None, None, T]]) -> T:
        with as_owner(self._root), opened(self._fs, self._directory, self._limits, time.time) as host:
            return at_once(change(host))


def _lock(directory: Path, reason: str) -> Lock | None:
    """Become the queue's only user; None on a file system that is read-only, where no daemon can run either."""
    try:
        return lock_queue(OsFilesystem(), directory)
    except QueueLockedError as error:
        raise QueueLockedError(
            f"{directory}: a daemon has locked this queue, but does not answer on its control socket ({reason}): "
            "check listen.control, the daemon's process and its logs; or stop the daemon, and try again"
        ) from error
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EROFS:
            return None
        if isinstance(cause, PermissionError):
            raise denied(directory, cause) from error
        raise
