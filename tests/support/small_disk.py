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
from agent.queue.store import Committed, Limits, Store
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
    store = _open(directory)
    answers = {number: _append(store, number, size).refused for number, size in enumerate(SIZES)}
    huge = _append(store, len(SIZES), HUGE).refused
    store = _open(directory)
    found = _numbers(store)
    store.cursor.settle([Span(store.cursor.position, store.log.view.next_seq)], Outcome.DELIVERED)
    _commit(store, ())
    report = Report(
        acked=[number for number, refused in answers.items() if refused is None],
        refused=Counter(str(refused) for refused in answers.values() if refused is not None),
        huge=huge,
        found=found,
        again=_append(store, 1000, SIZES[0]).refused,
        dropped=store.cursor.ledger().dropped,
    )
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


def _open(directory: Path) -> Store:
    return Store(OsFilesystem(), directory, Limits(segment_bytes=1 << 20))


def _append(store: Store, number: int, size: int) -> Committed:
    return _commit(store, [Entry(1, payload(number, size))])


def _commit(store: Store, entries: Iterable[Entry]) -> Committed:
    """Plan and commit, as the committer does."""
    entries = list(entries)
    committed = store.commit(store.plan(entries, 0.0), 0.0)
    store.published()
    if committed.refused is not None:
        store.cursor.shed(len(entries), committed.refused)
    return committed


def _numbers(store: Store) -> list[int]:
    reader, numbers = store.reader(), []
    while items := reader.read(1 << 20):
        numbers += [entry_of(item.payload) if isinstance(item, Frame) else -1 for item in items]
    reader.close()
    return numbers


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
