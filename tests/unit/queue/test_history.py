"""Settled segments are kept as long as nothing else needs their room, and whatever goes wrong costs nothing but them."""

import errno
from pathlib import Path

from agent.queue import segment
from agent.queue.cursor import Outcome, Span
from agent.queue.history import DIRECTORY, LOOK_SECONDS, Heir, handed_over, read_handed_over, read_history
from agent.queue.log import Entry
from agent.queue.store import Limits
from tests.support.crash_model import KeepAll
from tests.support.fault_filesystem import FaultFilesystem, LoseAll, failing, no_errors
from tests.support.open_queue import OpenQueue

ROOT = Path("/queue")
HISTORY = ROOT / DIRECTORY
KEPT = Limits(segment_bytes=200, history_bytes=1 << 20)
PAYLOAD = b"x" * 150


def opened(limits: Limits = KEPT) -> tuple[FaultFilesystem, OpenQueue]:
    fs = FaultFilesystem()
    return fs, OpenQueue(fs, ROOT, limits)


def delivered(queue: OpenQueue, count: int, now: float = 0.0) -> None:
    """Queue and deliver so many events, a segment each, and commit that."""
    for _ in range(count):
        queue.commit([Entry(1, PAYLOAD)], now)
    queue.cursor.settle([Span(queue.cursor.position, queue.cursor.next_seq)], Outcome.DELIVERED)
    queue.commit((), now)


def kept(fs: FaultFilesystem) -> list[int]:
    """Return the numbers in the names of what is kept."""
    names = fs.names(HISTORY) if fs.is_directory(HISTORY) else []
    return [seq for name in names if (seq := segment.parse_name(name)) is not None]


def test_settled_segments_move_into_the_history_whole() -> None:
    fs, queue = opened()
    delivered(queue, 4)
    assert kept(fs) == [1, 2, 3]
    assert fs.names(ROOT / "segments") == [segment.name(4)]
    found = read_history(fs, ROOT, 5)
    assert [frame.payload for each in found.all_contents() for frame in each.frames] == [PAYLOAD] * 3
    assert fs.mode(HISTORY) == 0o700


def test_the_oldest_go_when_there_are_too_many_or_they_are_too_old() -> None:
    size = segment.HEADER_BYTES + 24 + len(PAYLOAD)
    fs, queue = opened(Limits(segment_bytes=200, history_bytes=3 * size, history_age=100.0))
    delivered(queue, 6)
    assert kept(fs) == [3, 4, 5]
    delivered(queue, 1, now=90.0)
    assert kept(fs) == [4, 5, 6]
    queue.commit((), 110.0)
    assert kept(fs) == []


def test_a_segment_that_holds_nothing_is_not_kept() -> None:
    fs, queue = opened()
    for _ in range(5):
        fs.kill()
        queue = OpenQueue(fs, ROOT, KEPT)
        queue.commit((), reclaim=True)
    delivered(queue, 1)
    queue.commit((), reclaim=True)
    assert kept(fs) == [1]


def test_it_is_found_again_after_a_restart_and_bounded_as_before() -> None:
    fs, queue = opened()
    delivered(queue, 4)
    fs.kill()
    queue = OpenQueue(fs, ROOT, Limits(segment_bytes=200, history_bytes=1))
    queue.commit()
    assert kept(fs) == []


def test_the_queue_has_all_of_its_room_to_itself() -> None:
    size = segment.HEADER_BYTES + 24 + len(PAYLOAD)
    fs, queue = opened(Limits(segment_bytes=200, max_bytes=5 * size, history_bytes=1 << 20))
    delivered(queue, 4)
    assert kept(fs) == [1, 2, 3]
    for queued in range(1, 6):
        queue.commit([Entry(1, PAYLOAD)])
        assert queue.cursor.queued == queued
        assert (len(kept(fs)) + queued) * size <= 5 * size
    assert kept(fs) == []


def test_it_never_costs_an_event_on_a_full_disk() -> None:
    fs, queue = opened()
    delivered(queue, 8)
    assert kept(fs)
    fs.capacity = fs.used
    committed = queue.commit([Entry(1, PAYLOAD)])
    assert committed.refused is None
    assert (queue.cursor.queued, kept(fs)) == (1, [])


def test_it_goes_before_the_last_of_the_disk_is_used() -> None:
    fs = FaultFilesystem(capacity=100_000)
    queue = OpenQueue(fs, ROOT, Limits(segment_bytes=200, history_bytes=1 << 20, min_free_bytes=1))
    delivered(queue, 8)
    free = fs.free_bytes(ROOT)
    fs.kill()
    queue = OpenQueue(fs, ROOT, Limits(segment_bytes=200, history_bytes=1 << 20, min_free_bytes=free + 1))
    assert queue.commit([Entry(1, PAYLOAD)]).refused is None
    assert kept(fs) == []


def test_what_cannot_be_moved_is_deleted() -> None:
    fs, queue = opened()
    fs.errors = lambda call, path: OSError(errno.EACCES, "no") if call == "rename" else None
    delivered(queue, 4)
    fs.errors = no_errors
    assert fs.names(ROOT / "segments") == [segment.name(4)]
    assert kept(fs) == []


def test_what_cannot_be_deleted_is_tried_again() -> None:
    fs, queue = opened(Limits(segment_bytes=200, history_bytes=1 << 20, history_age=10.0))
    delivered(queue, 3)
    fs.errors = failing("unlink", errno.EIO)
    assert queue.commit((), 20.0).delete_error is None
    assert kept(fs) == [1, 2]
    fs.errors = no_errors
    queue.commit((), 20.0)
    assert kept(fs) == []


def test_one_that_cannot_be_deleted_keeps_no_other_one() -> None:
    fs, queue = opened(Limits(segment_bytes=200, history_bytes=1 << 20, history_age=10.0))
    delivered(queue, 4)
    stuck = HISTORY / segment.name(1)
    fs.errors = lambda call, path: OSError(errno.EPERM, "no") if (call, path) == ("unlink", stuck) else None
    queue.commit((), 20.0)
    assert kept(fs) == [1]
    fs.errors = no_errors
    queue.commit((), 20.0)
    assert kept(fs) == []


def test_a_power_cut_leaves_each_segment_in_one_of_both_places() -> None:
    fs, queue = opened()
    delivered(queue, 4)
    fs.crash(LoseAll())
    names = {*fs.names(ROOT / "segments")}, {*fs.names(HISTORY)}
    assert not names[0] & names[1]
    assert OpenQueue(fs, ROOT, KEPT).cursor.queued == 0


def left_by(fs: FaultFilesystem, name: str, count: int, now: float = 0.0) -> Path:
    """Leave a queue of which so many events are delivered, a segment each."""
    queue = OpenQueue(fs, Path("/spools") / name, KEPT)
    delivered(queue, count, now)
    queue.close()
    return Path("/spools") / name


def test_a_queue_that_is_removed_hands_over_all_that_it_has_and_one_that_stays_all_but_its_last_segment() -> None:
    fs, queue = opened()
    delivered(queue, 2)
    heir = Heir(ROOT, 1 << 20, 100.0)
    heir.inherit(fs, "gone", left_by(fs, "gone", 3), 0.0, removed=True)
    heir.inherit(fs, "stays", left_by(fs, "stays", 3), 0.0, removed=False)
    assert handed_over(fs, ROOT) == {"gone": [1, 2, 3], "stays": [1, 2]}
    assert kept(fs) == [1]
    assert fs.names(Path("/spools/stays/segments")) == [segment.name(3)]
    found = read_handed_over(fs, ROOT, "gone")
    assert [frame.payload for each in found.all_contents() for frame in each.frames] == [PAYLOAD] * 3
    assert [each.first_seq for each in read_history(fs, ROOT, 3).view.segments] == [1]


def test_what_was_handed_over_is_handed_over_again_under_its_own_name() -> None:
    fs, _ = opened()
    first, last = Path("/spools/first"), Heir(ROOT, 1 << 20, 100.0)
    left_by(fs, "first", 1)
    Heir(first, 1 << 20, 100.0).inherit(fs, "second", left_by(fs, "second", 1), 0.0, removed=True)
    last.inherit(fs, "first", first, 0.0, removed=True)
    last.inherit(fs, "first", first, 0.0, removed=True)  # nothing is left
    assert handed_over(fs, ROOT) == {"first": [1], "second": [1]}


def test_what_is_handed_over_is_bounded_as_all_of_the_history_and_by_its_queue_too() -> None:
    size = segment.HEADER_BYTES + 24 + len(PAYLOAD)
    fs, queue = opened(Limits(segment_bytes=200, history_bytes=3 * size, history_age=1000.0))
    heir = Heir(ROOT, 3 * size, 1000.0)
    heir.inherit(fs, "a", left_by(fs, "a", 2, now=10.0), 20.0, removed=True)
    heir.inherit(fs, "b", left_by(fs, "b", 2, now=20.0), 20.0, removed=True)
    assert handed_over(fs, ROOT) == {"a": [2], "b": [1, 2]}
    delivered(queue, 3, now=30.0 + LOOK_SECONDS)
    assert (handed_over(fs, ROOT), kept(fs)) == ({"b": [2]}, [1, 2])
    queue.commit((), 1015.0 + LOOK_SECONDS)
    assert (handed_over(fs, ROOT), kept(fs)) == ({}, [1, 2])


def test_nothing_is_handed_over_without_a_history_or_under_a_name_that_is_no_files() -> None:
    fs, _ = opened()
    place = left_by(fs, "a", 2)
    Heir(ROOT, 0, 100.0).inherit(fs, "a", place, 0.0, removed=True)
    Heir(ROOT, 1 << 20, 100.0).inherit(fs, "../a", place, 0.0, removed=True)
    assert handed_over(fs, ROOT) == {}
    assert fs.names(place / "segments") == [segment.name(2)]


def test_what_was_handed_over_is_durable_before_its_queue_can_go() -> None:
    fs, _ = opened()
    place = left_by(fs, "a", 2)
    fs.crash(KeepAll())
    Heir(ROOT, 1 << 20, 100.0).inherit(fs, "a", place, 0.0, removed=True)
    for directory in ("segments", "history"):
        fs.sync_directory(place / directory)
    fs.crash(LoseAll())
    assert handed_over(fs, ROOT) == {"a": [1, 2]}


def test_a_disk_that_refuses_it_leaves_it_where_it_is() -> None:
    fs, _ = opened()
    place = left_by(fs, "a", 2)
    fs.errors = failing("rename", errno.EXDEV)
    Heir(ROOT, 1 << 20, 100.0).inherit(fs, "a", place, 0.0, removed=True)
    fs.errors = no_errors
    assert handed_over(fs, ROOT) == {}
    assert fs.names(place / "segments") == [segment.name(2)]
