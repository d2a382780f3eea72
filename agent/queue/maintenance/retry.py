"""Gives dead letters another try: their events are queued again, durably, and only then do the dead letters go."""

from functools import partial
from itertools import groupby
from typing import NamedTuple

import msgspec

from agent.errors import StorageError
from agent.events import Block
from agent.queue.cursor import Outcome, Span
from agent.queue.dead_letters import (
    DeadLetters,
    Removed,
    Repeats,
    StoredDeadLetter,
    dead_letters_in,
    items_in,
    unopened_in,
)
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter
from agent.queue.maintenance.handle import QueueHandle
from agent.queue.snapshot import LogSnapshot
from agent.queue.writer import Writer

RETRY_EVENTS = 500
RETRY_BYTES = 256 * 1024


class Retried(msgspec.Struct, frozen=True):
    """What a retry did: dead letters whose events are queued again, those left because the queue `refused` them, and why.

    `problem` says why those that were put back could not be removed: another retry would put them back again. `damaged` ones went
    with them, but for their bytes; `unreadable` ones are left, and nobody knows whether they were meant.
    """

    retried: int
    left: int
    refused: str | None
    problem: str | None
    damaged: int = 0
    unreadable: int = 0


class _Meant(NamedTuple):
    """How many dead letters are meant, how many cannot be read, and the number that the log gives next."""

    meant: int
    unreadable: int
    stop: int


class _Some(NamedTuple):
    """Dead letters to put back together, and where to go on."""

    dead_letters: list[StoredDeadLetter]
    next: int | None


async def retry(handle: QueueHandle, wanted: DeadLetterFilter) -> Retried:
    """Queue the events of the dead letters that are meant once more, and remove these when the events are durable.

    A crash in between leaves both. Dead letters that come meanwhile stay: an event that is refused again is not tried for ever.
    Raises StorageError, before anything is queued, if they could not be removed for a file before them that cannot be read.
    """
    meant = await handle.dead_letters.run(lambda dead_letters: dead_letters.read(partial(_survey, wanted)))
    done: set[int] = set()
    start: int | None = 0
    refused = None
    while start is not None and refused is None:
        read = partial(_read_some, wanted, start, meant.stop)
        some = await handle.dead_letters.run(partial(DeadLetters.read, call=read))
        refused, start = await _put_back(handle, some.dead_letters, done), some.next
    removed, problem = await _remove_retried(handle, done) if done else (None, None)
    damaged, unreadable = (removed.damaged, removed.unreadable) if removed else (0, meant.unreadable)
    return Retried(len(done), meant.meant - len(done), str(refused) if refused else None, problem, damaged, unreadable)


async def _put_back(handle: QueueHandle, some: list[StoredDeadLetter], done: set[int]) -> Outcome | None:
    """Queue the events, one context after another; add the numbers to `done`; return why not all of them."""
    for context, group in groupby(some, lambda stored: stored.dead_letter.context):
        same = list(group)
        lines = b"".join(stored.dead_letter.line for stored in same)
        refused = await handle.put_back(Block(context, len(same), lines))
        if refused is not None:
            return refused
        done.update(stored.number for stored in same)
    return None


async def _remove_retried(handle: QueueHandle, numbers: set[int]) -> tuple[Removed | None, str | None]:
    """Make the events durable whatever `queue.sync` says, then remove their dead letters; return what that did, or why not."""

    def goes(stored: StoredDeadLetter) -> bool:
        return stored.number in numbers

    try:
        await handle.writer.run(Writer.sync)
        return await handle.dead_letters.run(partial(DeadLetters.remove, goes=goes, now=handle.wall_clock())), None
    except StorageError as error:
        return None, str(error)


def _survey(wanted: DeadLetterFilter, log: LogSnapshot, repeats: Repeats) -> _Meant:
    meant = unreadable = 0
    last = -1
    for item in items_in(log, repeats):
        if isinstance(item, Span):
            unreadable += item.length
        elif wanted.means(item.dead_letter):
            meant, last = meant + 1, item.place
    if unreadable and (stuck := unopened_in(log, last)):
        why = "no event was put back, because letters behind this file could not be removed"
        raise StorageError(f"{stuck.path}: cannot be read: {stuck.error}: {why}")
    return _Meant(meant, unreadable, log.view.next_seq)


def _read_some(wanted: DeadLetterFilter, start: int, stop: int, log: LogSnapshot, repeats: Repeats) -> _Some:
    some: list[StoredDeadLetter] = []
    size = 0
    for stored in dead_letters_in(log, repeats, start):
        if stored.number >= stop:
            break
        if not wanted.means(stored.dead_letter):
            continue
        if len(some) >= RETRY_EVENTS or size >= RETRY_BYTES:
            return _Some(some, stored.number)
        some.append(stored)
        size += len(stored.dead_letter.line)
    return _Some(some, None)
