"""Bits that flip on the disk, anywhere: the queue opens, loses at most the record that was touched, and accounts for all."""

import copy
from pathlib import Path

import pytest

from agent.queue.cursor import Outcome, Span
from agent.queue.segment import Gap
from agent.queue.store import Limits
from tests.support.fault_filesystem import FaultFilesystem
from tests.support.open_queue import OpenQueue
from tests.support.queue_model import ROOT, QueueModel, entry_of

LIMITS = Limits(segment_bytes=700, max_age=1e9)
EVENTS = 14


def built(*, killed: bool) -> FaultFilesystem:
    """Return a queue of 14 events in 8 records and three segments, the first of them in part delivered.

    A killed daemon's cursor does not know how many events the last commit brought.
    """
    model = QueueModel(LIMITS)
    model.append((2, 150), (1, 60))
    model.append((3, 200))
    model.append((1, 300), (2, 90))
    model.append((2, 40))
    model.settle([Span(1, 3), Span(4, 5)])
    model.append((2, 500), (1, 33))
    if killed:
        model.die(None)
    else:
        model.close()
    return model.disk


DISK = built(killed=False)
KILLED = built(killed=True)
FILES = [path for path in DISK.paths() if path.suffix == ".seg" or path.name == "cursor"]


def sampled(path: Path) -> list[tuple[int, int]]:
    """Return offsets and bits that cover every field of a segment, and of a cursor what it uses."""
    data = DISK.read_bytes(path)
    offsets = [offset for offset in range(len(data)) if any(data[offset - 1 : offset + 2])]
    return [(offset, offset % 8) for offset in offsets] + [(offset, (offset + 3) % 8) for offset in offsets[::3]]


def read_out(queue: OpenQueue) -> tuple[dict[int, tuple[int, int]], list[Span]]:
    """Read the queue as the worker does; return what came under which number, and the gaps."""
    events, gaps = {}, []
    for item in queue.items(250):
        if isinstance(item, Gap):
            queue.cursor.settle([item.span], Outcome.CORRUPT)
            gaps.append(item.span)
            continue
        for number in range(item.first_seq, item.next_seq):
            events[number] = (entry_of(item.payload), number - item.first_seq)
    return events, gaps


HEALTHY, _ = read_out(OpenQueue(copy.deepcopy(DISK), ROOT, LIMITS))
COUNT = range(len(DISK.read_bytes(FILES[-1])) - 39, len(DISK.read_bytes(FILES[-1])) - 35)
"""Where the last frame says how many events it has: before a payload of 35 bytes."""
RECORD = {number: entry for number, (entry, _) in HEALTHY.items()}


def test_the_example_is_what_it_says() -> None:
    assert len(FILES) == 4
    assert len(DISK.paths()) == 4
    assert set(HEALTHY) == set(range(3, EVENTS + 1))
    assert len(set(RECORD.values())) == 7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("original", [DISK, KILLED], ids=["closed", "killed"])
def test_a_flipped_bit_costs_at_most_its_record(original: FaultFilesystem, path: Path) -> None:
    for offset, bit in sampled(path):
        if not (original is KILLED and path == FILES[-1] and offset in COUNT):
            check_with_a_flipped_bit(original, path, offset, bit)


@pytest.mark.parametrize("offset", COUNT)
def test_the_count_of_the_last_frame_is_found_by_its_crc(offset: int) -> None:
    """Nothing but the frame itself knows how many events the last commit before a kill brought."""
    for bit in range(8):
        check_with_a_flipped_bit(KILLED, FILES[-1], offset, bit)


def check_with_a_flipped_bit(original: FaultFilesystem, path: Path, offset: int, bit: int) -> None:
    disk = copy.deepcopy(original)
    disk.flip(path, offset, bit)
    queue = OpenQueue(disk, ROOT, LIMITS)
    events, _ = read_out(queue)
    missing = HEALTHY.keys() - events.keys()
    assert all(events[number] == HEALTHY[number] for number in events.keys() & HEALTHY.keys())
    assert len({RECORD[number] for number in missing}) <= (0 if path.name == "cursor" else 1)
    ledger, lost = queue.cursor.ledger(), len(missing - {4})
    where = f"byte {offset}, bit {bit}"
    assert ledger.accepted == EVENTS, where
    assert ledger.dropped == ({Outcome.CORRUPT: lost} if lost else {}), where
    if missing:
        assert [each.parent.name for each in disk.paths()].count("quarantine") == 1, where


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.name)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_a_file_that_lost_its_end_costs_no_other(path: Path, share: float) -> None:
    disk = copy.deepcopy(DISK)
    disk.truncate_durable(path, int(len(DISK.read_bytes(path)) * share))
    queue = OpenQueue(disk, ROOT, LIMITS)
    events, _ = read_out(queue)
    first, following = int(path.stem), [int(each.stem) for each in FILES[1:] if each > path]
    stop = min([*following, EVENTS + 1])
    assert {number for number in HEALTHY if not first <= number < stop} <= events.keys()
    ledger = queue.cursor.ledger()
    assert ledger.accepted == EVENTS
    assert ledger.queued == len(events.keys() - {4})


@pytest.mark.parametrize("path", FILES[1:], ids=lambda path: path.name)
def test_a_deleted_segment_costs_no_other(path: Path) -> None:
    disk = copy.deepcopy(DISK)
    disk.unlink(path)
    queue = OpenQueue(disk, ROOT, LIMITS)
    events, gaps = read_out(queue)
    assert queue.cursor.ledger().accepted == EVENTS
    assert events.items() <= HEALTHY.items()
    assert sum(gap.length for gap in gaps) == len(HEALTHY) - len(events)


def test_a_lost_cursor_repeats_events_and_loses_none() -> None:
    disk = copy.deepcopy(DISK)
    disk.unlink(ROOT / "cursor")
    queue = OpenQueue(disk, ROOT, LIMITS)
    events, gaps = read_out(queue)
    assert (events | HEALTHY, gaps) == (events, [])
    assert (queue.cursor.ledger().accepted, queue.cursor.queued) == (EVENTS, EVENTS)
