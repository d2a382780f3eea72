"""Fills a queue on a real disk until that refuses, dies, recovers, delivers, and goes on: in a process of its own.

    python -m tests.support.small_disk DIRECTORY [FILE_BYTES]

FILE_BYTES is the length beyond which no file may grow (RLIMIT_FSIZE). It prints one line of JSON: see `Report`.
"""

import resource
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from agent.queue.cursor import Outcome, Span
from agent.queue.filesystem import OsFilesystem
from agent.queue.log import Entry
from agent.queue.record import Frame
from agent.queue.store import Committed, Limits
from tests.support.open_queue import OpenQueue
from tests.support.queue_model import entry_of, payload

SIZES = [7_000] * 60
HUGE = 2_000_000


class Report(msgspec.Struct, frozen=True):
    """What became of the entries, by number: those that were acked, those refused, by reason, and those found after a kill.

    `huge` is what was said to one that fits nowhere; `again` to one that came after all was delivered.
    """

    acked: list[int]
    refused: dict[str, int]
    huge: str | None
    found: list[int]
    again: str | None
    dropped: dict[str, int]


def main(directory: Path, file_bytes: int | None) -> None:
    """Do it, and print the report."""
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    queue = _open(directory)
    answers = {number: _append(queue, number, size).refused for number, size in enumerate(SIZES)}
    huge = _append(queue, len(SIZES), HUGE).refused
    queue = _open(directory)
    found = _numbers(queue)
    queue.cursor.settle([Span(queue.cursor.position, queue.view.next_seq)], Outcome.DELIVERED)
    _commit(queue, ())
    report = Report(
        acked=[number for number, refused in answers.items() if refused is None],
        refused=Counter(str(refused) for refused in answers.values() if refused is not None),
        huge=huge,
        found=found,
        again=_append(queue, 1000, SIZES[0]).refused,
        dropped=queue.cursor.ledger().dropped,
    )
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _open(directory: Path) -> OpenQueue:
    return OpenQueue(OsFilesystem(), directory, Limits(segment_bytes=1 << 20))


def _append(queue: OpenQueue, number: int, size: int) -> Committed:
    return _commit(queue, [Entry(1, payload(number, size))])


def _commit(queue: OpenQueue, entries: Iterable[Entry]) -> Committed:
    return queue.commit(list(entries))


def _numbers(queue: OpenQueue) -> list[int]:
    return [entry_of(item.payload) if isinstance(item, Frame) else -1 for item in queue.items()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
