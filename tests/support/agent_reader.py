"""Reads a queue directory as the daemon does when it opens it, but on a copy: opening mends what it finds.

It is one of the readers that `tests.contract.queue.test_readers` holds to the truth.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from agent.events import decode_events
from agent.queue.cursor import Span
from agent.queue.record import Frame, decode_record
from agent.queue.store import Limits
from tests.support.dead_letters import read_dead_letters
from tests.support.open_queue import OpenQueue
from tests.support.unsynced import UnsyncedFilesystem

Queued = tuple[int, float, str | None, int | None, dict[str, Any]]
"""(seq, enqueued_at, ci, interactive, event)"""

Letter = tuple[int, float, int | None, str, str | None, int | None, dict[str, Any]]
"""(seq, rejected_at, status, message, ci, interactive, event)"""


def queued_events(directory: Path) -> list[Queued]:
    """Return what is queued and readable below the directory of a destination, by number."""
    with _opened(directory) as queue:
        return [queued for frame in _frames(queue) for queued in _queued(queue, frame)]


def ledger(directory: Path) -> dict[str, Any]:
    """Return the ledger, with `dropped` by reason."""
    with _opened(directory) as queue:
        found: dict[str, Any] = msgspec.to_builtins(queue.cursor.ledger())
        del found["retried"]  # it is no part of the identity
        return found


def dead_letters(directory: Path) -> list[Letter]:
    """Return the dead letters that count, by number."""
    with _copied(directory) as copy:
        last = {letter.identity: letter for letter in read_dead_letters(copy.parent)}
    return [
        (
            letter.seq,
            letter.rejected_at,
            letter.status,
            letter.message,
            letter.context.ci,
            letter.context.interactive,
            msgspec.to_builtins(letter.event),
        )
        for letter in sorted(last.values(), key=attrgetter("seq"))
    ]


@contextmanager
def _copied(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(shutil.copytree(directory, Path(name) / "default"))


@contextmanager
def _opened(directory: Path) -> Iterator[OpenQueue]:
    with _copied(directory) as copy:
        queue = OpenQueue(UnsyncedFilesystem(), copy, Limits())
        try:
            yield queue
        finally:
            queue.close()


def _frames(queue: OpenQueue) -> Iterator[Frame]:
    yield from (item for item in queue.items() if isinstance(item, Frame))


def _queued(queue: OpenQueue, frame: Frame) -> Iterator[Queued]:
    record = decode_record(frame.payload)
    events = decode_events(record.lines)
    for span in queue.cursor.unsettled(Span(frame.first_seq, frame.next_seq)):
        for seq in range(span.start, span.stop):
            event = msgspec.to_builtins(events[seq - frame.first_seq])
            yield seq, record.enqueued_at, record.context.ci, record.context.interactive, event
