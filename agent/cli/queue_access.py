"""The way to a queue: the daemon, where one runs; the queue's own files, under its lock, where none does.

It knows the control socket's requests and the functions behind them: both ways give the same answers. It must never know
arguments or output.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

import anyio
import msgspec

from agent import daemon
from agent.cli.control_client import ControlClient, DeniedError
from agent.config import Config
from agent.delivery.dead_letter import DeadLetters, weigh
from agent.delivery.letters import Letter, LetterPage, LetterSelection, letter_page
from agent.errors import NotRunningError, QueueLockedError, StorageError
from agent.queue.audit import Audit, audit
from agent.queue.browse import MAX_PAGE_EVENTS, EventPage, Listing, Queued, Selection, event_page, list_segments
from agent.queue.cursor_file import read_slots
from agent.queue.filesystem import Lock, OsFilesystem
from agent.queue.snapshot import QueueSnapshot, read_queue
from agent.upkeep import changes, offline

# On top of the time that a request to the API may take: for the disk.
PURGE_GRACE_SECONDS = 30.0


class Access(Protocol):
    """What can be asked of a queue. Everything may raise an AgentError."""

    def listing(self) -> Listing:
        """Return what the segments hold."""

    def event_page(self, selection: Selection, start: int, limit: int) -> EventPage:
        """Return queued events."""

    def audit(self) -> Audit:
        """Check everything."""

    def letter_page(self, selection: LetterSelection, start: int, limit: int) -> LetterPage:
        """Return dead letters."""

    def repair(self) -> changes.Repaired:
        """Account for all damage."""

    def purge(self) -> changes.Purged:
        """Settle all that is queued."""

    def retry(self, selection: LetterSelection) -> changes.Retried:
        """Queue the events of dead letters again."""

    def purge_letters(self, selection: LetterSelection) -> changes.LettersPurged:
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
    with _as_owner(settings.queue.directory), _locked(settings.queue.directory, reason):
        yield Offline(settings)


def events(queue: Access, selection: Selection, limit: int | None) -> Iterator[Queued | int]:
    """Yield the queued events that are meant, at most `limit`; now and then, how many cannot be read."""
    start: int | None = 1
    while start is not None and limit != 0:
        page = queue.event_page(selection, start, MAX_PAGE_EVENTS if limit is None else min(limit, MAX_PAGE_EVENTS))
        yield from page.events
        if page.unreadable:
            yield page.unreadable
        start, limit = page.next, None if limit is None else limit - len(page.events)


def letters(queue: Access, selection: LetterSelection, limit: int | None) -> Iterator[Letter]:
    """Yield the letters that are meant, oldest first, at most `limit`."""
    start: int | None = 0
    while start is not None and limit != 0:
        page = queue.letter_page(selection, start, MAX_PAGE_EVENTS if limit is None else min(limit, MAX_PAGE_EVENTS))
        yield from page.letters
        start, limit = page.next, None if limit is None else limit - len(page.letters)


class Online:
    """The queue of a daemon that runs."""

    def __init__(self, control: ControlClient, purge_seconds: float) -> None:
        self._control = control
        self._purge_seconds = purge_seconds

    def listing(self) -> Listing:
        return self._control.ask("GET", "/queue", Listing)

    def event_page(self, selection: Selection, start: int, limit: int) -> EventPage:
        return self._control.ask("GET", f"/queue/events?{_query(selection, start, limit)}", EventPage)

    def audit(self) -> Audit:
        return self._control.ask("GET", "/queue/verify", Audit)

    def letter_page(self, selection: LetterSelection, start: int, limit: int) -> LetterPage:
        return self._control.ask("GET", f"/dead-letters?{_query(selection, start, limit)}", LetterPage)

    def repair(self) -> changes.Repaired:
        return self._control.ask("POST", "/queue/repair", changes.Repaired)

    def purge(self) -> changes.Purged:
        return self._control.ask("POST", f"/queue/purge?deadline={self._purge_seconds!r}", changes.Purged)

    def retry(self, selection: LetterSelection) -> changes.Retried:
        return self._control.ask("POST", "/dead-letters/retry", changes.Retried, body=msgspec.json.encode(selection))

    def purge_letters(self, selection: LetterSelection) -> changes.LettersPurged:
        body = msgspec.json.encode(selection)
        return self._control.ask("POST", "/dead-letters/purge", changes.LettersPurged, body=body)


class Offline:
    """The queue of a daemon that does not run."""

    def __init__(self, settings: Config) -> None:
        self._fs = OsFilesystem()
        self._directory = settings.queue.directory / daemon.DESTINATION
        self._limits = daemon.limits_of(settings)
        self._letters = DeadLetters.beside(self._fs, self._directory, self._limits)

    @cached_property
    def _queue(self) -> QueueSnapshot:
        """The queue as it is until something is changed, which a command does at its end."""
        return read_queue(self._fs, self._directory)

    def listing(self) -> Listing:
        return list_segments(self._queue)

    def event_page(self, selection: Selection, start: int, limit: int) -> EventPage:
        return event_page(self._queue, selection, start, limit)

    def audit(self) -> Audit:
        slots = read_slots(self._fs, self._directory / "cursor")
        log, repeats = self._letters.read(lambda *found: found)
        return audit(read_queue(self._fs, self._directory), slots, log, partial(weigh, repeats))

    def letter_page(self, selection: LetterSelection, start: int, limit: int) -> LetterPage:
        return self._letters.read(lambda log, repeats: letter_page(log, repeats, selection, start, limit))

    def repair(self) -> changes.Repaired:
        with self._opened() as host:
            return anyio.run(changes.repair, host)

    def purge(self) -> changes.Purged:
        with self._opened() as host:
            purged = anyio.run(changes.purge, host, 0.0)
        if purged is None:
            raise AssertionError("nothing is under way offline")
        return purged

    def retry(self, selection: LetterSelection) -> changes.Retried:
        with self._opened() as host:
            return anyio.run(changes.retry, host, selection)

    def purge_letters(self, selection: LetterSelection) -> changes.LettersPurged:
        with self._opened() as host:
            return anyio.run(changes.purge_letters, host, selection)

    @contextmanager
    def _opened(self) -> Iterator[offline.OfflineHost]:
        with offline.opened(self._fs, self._directory, self._limits, time.time) as host:
            yield host


def _query(selection: Selection, start: int, limit: int) -> str:
    wanted: dict[str, object] = msgspec.to_builtins(selection)
    if "numbers" in wanted:
        wanted["numbers"] = ",".join(map(str, msgspec.to_builtins(wanted["numbers"])))
    return urlencode({**wanted, "from": start, "limit": limit})


@contextmanager
def _as_owner(directory: Path) -> Iterator[None]:
    """Let root be the owner of the queue meanwhile: a file that root makes there, the daemon could not open."""
    try:
        owner = directory.stat()
    except FileNotFoundError as error:
        reason = "there is no queue: no daemon has run with this configuration; or correct queue.directory"
        raise StorageError(f"{directory}: {reason}") from error
    except OSError as error:
        raise _denied(directory, error) from error
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


@contextmanager
def _locked(directory: Path, reason: str) -> Iterator[None]:
    lock = _lock(directory, reason)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _lock(directory: Path, reason: str) -> Lock | None:
    """Become the queue's only user; None on a file system that is read-only, where no daemon can run either."""
    try:
        return daemon.lock_queue(OsFilesystem(), directory)
    except QueueLockedError as error:
        raise QueueLockedError(
            f"{directory}: a daemon holds this queue, but does not answer on its control socket ({reason}): "
            "if listen.control is right, look at the daemon's process and its logs; stop it to do this without it"
        ) from error
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EROFS:
            return None
        if isinstance(cause, PermissionError):
            raise _denied(directory, cause) from error
        raise


def _denied(directory: Path, error: OSError) -> StorageError:
    advice = ": run it as the daemon's user, or as root" if isinstance(error, PermissionError) else ""
    return StorageError(f"{directory}: the queue directory cannot be used: {error.strerror}{advice}")
