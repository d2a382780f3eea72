"""Mending and emptying an open queue, and giving dead letters another try: the order in which each must become durable.

It knows what has to be on disk before what may go. It must never know who has the queue open, a daemon or a command, or how
that was asked for.
"""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from agent.errors import DeadlineError, StorageError
from agent.events import Block
from agent.queue.cursor import Outcome, Span
from agent.queue.dead_letters import (
    DeadLetters,
    Removed,
    Repeats,
    StoredDeadLetter,
    dead_letters_in,
    pieces_in,
    unopened_in,
)
from agent.queue.filesystem import Filesystem
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter
from agent.queue.maintenance.repair import account, restore_modes
from agent.queue.snapshot import LogSnapshot, snapshot_of
from agent.queue.store import Store

T = TypeVar("T")

RETRY_EVENTS = 500
RETRY_BYTES = 256 * 1024


class QueueHandle(Protocol):
    """Whoever has a queue open."""

    @property
    def fs(self) -> Filesystem:
        """The disk."""

    @property
    def store(self) -> Store:
        """The queue; its cursor belongs to this thread."""

    @property
    def dead_letters(self) -> DeadLetters:
        """Its dead letters."""

    async def run_blocking(self, call: Callable[[], T]) -> T:
        """Run a blocking call."""

    def wall_clock(self) -> float:
        """Return the time in seconds since the epoch."""

    async def checkpoint(self) -> None:
        """Write what the cursor says. Raises StorageError."""

    async def put_back(self, block: Block) -> Outcome | None:
        """Queue events of dead letters; return when they are committed, or why they are not. It pushes nothing out."""

    async def purge(self, seconds: float) -> int | None:
        """Settle all that is queued as purged; None if that was not possible in time."""


class Repaired(msgspec.Struct, frozen=True):
    """What a repair did.

    `corrupt` events are settled as that; `quarantined` pieces of damage were kept, `not_kept` were not; `dead_letters` are
    damaged and gone but for their bytes; `removed` are leftovers, `restored` files whose permissions were wrong.
    """

    corrupt: int
    quarantined: int
    not_kept: int
    dead_letters: int
    removed: list[str]
    restored: list[str]


class Purged(msgspec.Struct, frozen=True):
    """What a purge did: the events that are settled as purged, the bytes that came back, and why not all of them did."""

    purged: int
    freed_bytes: int
    problem: str | None


class Retried(msgspec.Struct, frozen=True):
    """What a retry did: letters whose events are queued again, those that are left because the queue `refused` them, and why.

    `problem` says why the letters that were put back could not be removed: another retry would put them back again. `damaged`
    letters went with them, but for their bytes; `unreadable` ones are left, and nobody knows whether they were meant.
    """

    retried: int
    left: int
    refused: str | None
    problem: str | None
    damaged: int = 0
    unreadable: int = 0


class DeadLettersPurged(msgspec.Struct, frozen=True):
    """What a purge of dead letters did; `damaged` ones went with them, but for their bytes; `unreadable` ones are left."""

    purged: int
    damaged: int
    unreadable: int = 0


async def repair(host: QueueHandle) -> Repaired:
    """Account for all damage: kept in quarantine, settled, a fresh cursor. Raises StorageError; it can then be done again."""
    store, quarantine = host.store, host.store.quarantine
    restored = await host.run_blocking(partial(restore_modes, host.fs, store.directory))
    kept, lost = quarantine.kept, quarantine.lost
    queue = snapshot_of(host.fs, store)
    spans = await host.run_blocking(partial(account, queue, quarantine))
    corrupt = store.cursor.settle(spans, Outcome.CORRUPT)
    await host.checkpoint()
    await host.run_blocking(store.refresh)
    letters = await host.run_blocking(partial(host.dead_letters.repair, host.wall_clock()))
    removed = await host.run_blocking(store.tidy) + await host.run_blocking(host.dead_letters.tidy)
    names = [str(path.relative_to(store.directory)) for path in removed]
    return Repaired(corrupt, quarantine.kept - kept, quarantine.lost - lost, letters.damaged, names, restored)


async def purge(host: QueueHandle, seconds: float) -> Purged:
    """Settle all that is queued as purged, durably, and give the room back.

    Raises DeadlineError if that was not possible within `seconds`, and StorageError if it cannot be made durable: the events may
    then come back with a crash.
    """
    before = host.store.log.view.size
    count = await host.purge(seconds)
    if count is None:
        what = f"requests were under way for {seconds:g} s, and may deliver what is queued"
        raise DeadlineError(f"{what}: nothing was purged; try again, or stop the daemon first")
    await host.checkpoint()
    problem = None
    try:
        await host.run_blocking(partial(host.store.reclaim, host.wall_clock()))
    except StorageError as error:
        problem = str(error)
    return Purged(count, max(before - host.store.log.view.size, 0), problem)


async def purge_dead_letters(host: QueueHandle, selection: DeadLetterFilter) -> DeadLettersPurged:
    """Remove the letters that are meant. Raises StorageError: then they are still there."""
    goes = partial(_is_meant, selection)
    removed = await host.run_blocking(partial(host.dead_letters.remove, goes, host.wall_clock()))
    return DeadLettersPurged(removed.letters, removed.damaged, removed.unreadable)


async def retry(host: QueueHandle, selection: DeadLetterFilter) -> Retried:
    """Queue the events of the letters that are meant once more, and remove the letters when those are durable.

    A crash in between leaves both. Letters that come meanwhile stay: an event that is refused again is not tried for ever. Raises
    StorageError, before anything is queued, if the letters could not be removed for a file before them that cannot be read.
    """
    meant = await host.run_blocking(partial(host.dead_letters.read, partial(_survey, selection)))
    done: set[int] = set()
    start: int | None = 0
    refused = None
    while start is not None and refused is None:
        read = partial(_read_some, selection, start, meant.stop)
        some = await host.run_blocking(partial(host.dead_letters.read, read))
        refused, start = await _put_back(host, some.letters, done), some.next
    removed, problem = await _remove_retried(host, done) if done else (None, None)
    damaged, unreadable = (removed.damaged, removed.unreadable) if removed else (0, meant.unreadable)
    left = meant.letters - len(done)
    return Retried(len(done), left, str(refused) if refused else None, problem, damaged, unreadable)


async def _put_back(host: QueueHandle, letters: list[StoredDeadLetter], done: set[int]) -> Outcome | None:
    """Queue the events of letters, one context after another; add the letters' numbers to `done`; return why not all of them."""
    for context, group in groupby(letters, lambda kept: kept.letter.context):
        same = list(group)
        refused = await host.put_back(Block(context, len(same), b"".join(kept.letter.line for kept in same)))
        if refused is not None:
            return refused
        done.update(kept.number for kept in same)
    return None


async def _remove_retried(host: QueueHandle, numbers: set[int]) -> tuple[Removed | None, str | None]:
    """Make the events durable whatever `queue.sync` says, then remove their letters; return what that did, or why not."""
    try:
        await host.run_blocking(host.store.sync)
        goes: Callable[[StoredDeadLetter], bool] = lambda kept: kept.number in numbers  # noqa: E731
        return await host.run_blocking(partial(host.dead_letters.remove, goes, host.wall_clock())), None
    except StorageError as error:
        return None, str(error)


class _Meant(NamedTuple):
    """How many letters are meant, how many cannot be read, and the number that the log gives next."""

    letters: int
    unreadable: int
    stop: int


class _Some(NamedTuple):
    """Letters to put back together, and where to go on."""

    letters: list[StoredDeadLetter]
    next: int | None


def _survey(selection: DeadLetterFilter, log: LogSnapshot, repeats: Repeats) -> _Meant:
    letters = unreadable = 0
    last = -1
    for piece in pieces_in(log, repeats):
        if isinstance(piece, Span):
            unreadable += piece.length
        elif selection.means(piece.letter):
            letters, last = letters + 1, piece.place
    if unreadable and (stuck := unopened_in(log, last)):
        why = "no event was put back, because letters behind this file could not be removed"
        raise StorageError(f"{stuck.path}: cannot be read: {stuck.error}: {why}")
    return _Meant(letters, unreadable, log.view.next_seq)


def _read_some(selection: DeadLetterFilter, start: int, stop: int, log: LogSnapshot, repeats: Repeats) -> _Some:
    some: list[StoredDeadLetter] = []
    size = 0
    for kept in dead_letters_in(log, repeats, start):
        if kept.number >= stop:
            break
        if not selection.means(kept.letter):
            continue
        if len(some) >= RETRY_EVENTS or size >= RETRY_BYTES:
            return _Some(some, kept.number)
        some.append(kept)
        size += len(kept.letter.line)
    return _Some(some, None)


def _is_meant(selection: DeadLetterFilter, kept: StoredDeadLetter) -> bool:
    return selection.means(kept.letter)
