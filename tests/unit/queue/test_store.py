"""The queue of one destination: limits, sync modes, the order of log and cursor, and what recovery makes of both."""

import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from agent.errors import StorageError
from agent.events import Context, Event, encode_events
from agent.queue.cursor import SLOT_BYTES, Ledger, Outcome, Pause, Span, decode_slot
from agent.queue.cursor_file import read_slots
from agent.queue.log import Entry
from agent.queue.reader import oldest_enqueued_at
from agent.queue.record import Frame, Record, encode_record
from agent.queue.segment import Gap
from agent.queue.store import Committed, Limits
from tests.support.fault_filesystem import Crash, FaultFilesystem, KeepAll, LoseAll, RandomChooser, failing, no_errors
from tests.support.open_queue import OpenQueue
from tests.support.queue_files import entry

ROOT = Path("/queue")
FIRST = ROOT / "segments" / "00000000000000000001.seg"
T = TypeVar("T")
EVENT = Event("s", "LOCAL", "MISS", "h")
PAUSE = Pause("operator", "paused by an operator", 1.0, float("inf"), 0)


@pytest.fixture
def disk() -> FaultFilesystem:
    return FaultFilesystem()


def deliver(queue: OpenQueue, start: int, stop: int) -> None:
    queue.cursor.settle([Span(start, stop)], Outcome.DELIVERED)


def dropped(queue: OpenQueue) -> dict[str, int]:
    return queue.cursor.ledger().dropped


def numbers(queue: OpenQueue) -> list[int]:
    """Return the first number of every frame that is not settled."""
    return [item.first_seq for item in queue.items(1000) if isinstance(item, Frame)]


class TestOverflow:
    def test_the_oldest_segments_make_room(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=200, max_bytes=600))
        for _ in range(10):
            assert queue.commit([entry("x" * 100)]).refused is None
            assert queue.view.size <= 600
        assert dropped(queue) == {Outcome.OVERFLOW: queue.cursor.position - 1}
        assert numbers(queue) == list(range(queue.cursor.position, 11))

    def test_drop_newest_refuses_what_does_not_fit(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=200, max_bytes=600, overflow="drop-newest"))
        refusals = [queue.commit([entry("x" * 100)]).refused for _ in range(6)]
        assert refusals == [None] * 3 + [Outcome.OVERFLOW] * 3
        assert (numbers(queue), dropped(queue)) == ([1, 2, 3], {Outcome.OVERFLOW: 3})

    def test_drop_newest_takes_more_once_segments_are_delivered(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=200, max_bytes=600, overflow="drop-newest"))
        for _ in range(3):
            queue.commit([entry("x" * 100)])
        deliver(queue, 1, 2)
        assert queue.commit([entry("x" * 300)]).refused is Outcome.OVERFLOW
        assert queue.commit([entry("x" * 100)]).refused is None
        assert queue.view.size <= 600

    def test_a_delivered_queue_always_has_room(self, disk: FaultFilesystem) -> None:
        """The last segment stays on disk though nothing in it is wanted: it must not count against what comes."""
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=200, max_bytes=1000, overflow="drop-newest"))
        queue.commit([entry("x" * 900)])
        deliver(queue, 1, 2)
        for number in range(2, 6):
            assert queue.commit([entry("x" * 500)]).refused is None
            deliver(queue, number, number + 1)

    def test_what_is_larger_than_the_queue_is_refused(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(max_bytes=1000, overflow="drop-newest"))
        assert queue.commit([entry("x" * 2000)]).refused is Outcome.OVERFLOW
        assert queue.commit([entry("x" * 500)]).refused is None

    def test_what_was_delivered_is_not_dropped_as_well(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1, max_bytes=300))
        queue.commit([entry("a", 4)])
        queue.commit([entry("b")])
        deliver(queue, 2, 4)
        queue.commit([entry("x" * 180)])
        assert dropped(queue) == {Outcome.OVERFLOW: 2}
        assert queue.cursor.ledger().delivered == 2


class TestExpiry:
    def test_segments_go_when_all_in_them_is_too_old(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1, max_age=96.0))
        for now in (0.0, 50.0, 90.0):
            queue.commit([entry("x")], now)
        for now, left in ((99.0, [1, 2, 3]), (100.0, [2, 3]), (150.0, [3])):
            assert queue.commit((), now) == Committed(queue.view)
            assert numbers(queue) == left
        assert dropped(queue) == {Outcome.EXPIRED: 2}
        assert len(disk.names(ROOT / "segments")) == 1

    def test_the_last_segment_is_left_to_the_reader(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(max_age=100.0))
        queue.commit([entry("x")], 0.0)
        queue.commit((), 1e6)
        assert (numbers(queue), dropped(queue)) == ([1], {})

    def test_a_segment_of_unknown_age_does_not_expire(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1, max_age=100.0))
        for _ in range(2):
            queue.commit([entry("x")], 0.0)
        disk.flip(FIRST, 0, 0)
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1, max_age=100.0))
        queue.commit((), 1e6)
        assert numbers(queue) == [1, 2]

    @pytest.mark.parametrize("restarts", [False, True])
    def test_a_clock_that_was_wrong_for_a_while_makes_no_young_event_expire(
        self, disk: FaultFilesystem, *, restarts: bool
    ) -> None:
        queue = OpenQueue(disk, ROOT, Limits(max_age=96.0))
        for now in (1000.0, 1190.0, 0.0, 1190.0, 0.0, 1200.0):
            queue.commit([entry("x")], now)
            if restarts:
                queue = OpenQueue(disk, ROOT, Limits(max_age=96.0))
        queue.commit((), 1200.0)
        assert numbers(queue)[-1] == 6
        assert {2, 4} <= set(numbers(queue))

    def test_a_segment_takes_events_for_a_part_of_their_greatest_age_only(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(max_age=96.0))
        for now in (0.0, 4.0, 4.1, 8.2, 4.2, 0.0):
            queue.commit([entry("x")], now)
        assert [each.first_seq for each in queue.view.segments] == [1, 3, 4, 6]


class TestRoom:
    def test_a_floor_of_free_space_is_kept(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(min_free_bytes=1000))
        disk.capacity = disk.used + 1200
        assert queue.commit([entry("x" * 300)]).refused is None
        committed = queue.commit([entry("x" * 300, 2)])
        assert committed.refused is Outcome.DISK_FULL
        assert committed.append_error is not None
        assert "queue.min_free_bytes is 1000" in committed.append_error
        disk.capacity = None
        assert queue.commit([entry("y")]).refused is None
        assert (numbers(queue), dropped(queue)) == ([1, 2], {Outcome.DISK_FULL: 2})

    @pytest.mark.parametrize("floor", [0, 500])
    def test_a_full_disk_takes_events_again_once_all_is_delivered(self, disk: FaultFilesystem, floor: int) -> None:
        """The queue may be all that is on the disk, and its last segment all that the queue holds."""
        queue = OpenQueue(disk, ROOT, Limits(min_free_bytes=floor))
        queue.commit([entry("x" * 1000)])
        reader = queue.store.reader()
        assert [len(reader.read(queue.view, 2000).items) for _ in range(2)] == [1, 0]
        disk.capacity = disk.used + floor
        assert queue.commit([entry("y" * 600)]).refused is Outcome.DISK_FULL
        deliver(queue, 1, 2)
        committed = queue.commit([entry("z" * 400)])
        assert (committed.refused, committed.append_error) == (None, None)
        assert [item.first_seq for item in reader.read(queue.view, 1000).items if isinstance(item, Frame)] == [2]
        disk.crash(LoseAll())
        assert numbers(OpenQueue(disk, ROOT, Limits())) == [2]

    @pytest.mark.parametrize("seed", range(10))
    def test_making_room_gives_no_number_back_and_takes_nothing_that_is_not_durably_settled(self, seed: int) -> None:
        for call in itertools.count():
            disk = FaultFilesystem()
            queue = OpenQueue(disk, ROOT, Limits())
            queue.commit([entry("x" * 1000, 5)])
            deliver(queue, 1, 6)
            disk.capacity = disk.used
            disk.crash_at(disk.calls + call, "after")
            try:
                queue.commit([entry("z" * 400)])
            except Crash:
                disk.crash(RandomChooser(seed))
                queue = OpenQueue(disk, ROOT, Limits())
                assert queue.view.next_seq in {6, 7}
                gaps = [item.span for item in queue.items() if isinstance(item, Gap)]
                assert gaps in ([], [Span(6, 7)])  # the new one was not acked yet
            else:
                break
        assert call > 10

    @pytest.mark.parametrize("operation", ["open", "truncate"])
    def test_room_that_cannot_be_made_is_a_full_disk(self, disk: FaultFilesystem, operation: str) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("x" * 1000)])
        deliver(queue, 1, 2)
        disk.capacity = disk.used
        disk.errors = failing(operation, errno.EIO)
        assert queue.commit([entry("z" * 400)]).refused is Outcome.DISK_FULL
        disk.errors = no_errors
        assert queue.commit([entry("z" * 400)]).refused is None
        assert disk.open_files == 2

    def test_a_floor_that_cannot_be_measured_stops_nothing(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(min_free_bytes=1000))
        disk.errors = failing("free_bytes", errno.EIO)
        assert queue.commit([entry("x")]).refused is None

    @pytest.mark.parametrize(("code", "reason"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "disk_error")])
    def test_a_refusal_says_whether_the_disk_is_full_or_broken(
        self, disk: FaultFilesystem, code: int, reason: str
    ) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        disk.errors = failing("create", code)
        committed = queue.commit([entry("x", 3)])
        assert (committed.refused, committed.checkpoint_error) == (reason, None)
        assert dropped(queue) == {reason: 3}

    def test_without_entries_a_failing_disk_is_tried_again(self, disk: FaultFilesystem) -> None:
        """Whether events can be kept must be known before the next one comes, and a failure is no failure for ever."""
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("a")])
        disk.errors = failing("sync", errno.EIO)
        assert queue.commit([entry("b")]).refused is Outcome.DISK_ERROR
        for _ in range(3):
            committed = queue.commit()
            assert (committed.refused, committed.append_error is None) == (None, False)
        disk.errors = no_errors
        assert queue.commit() == Committed(queue.view)
        queue.commit([entry("c")])
        assert (numbers(queue), dropped(queue)) == ([1, 2], {Outcome.DISK_ERROR: 1})

    @pytest.mark.parametrize(("floor", "room"), [(1000, 900), (0, 0)])
    def test_without_entries_too_little_room_is_reported(self, disk: FaultFilesystem, floor: int, room: int) -> None:
        queue = OpenQueue(disk, ROOT, Limits(min_free_bytes=floor))
        disk.capacity = disk.used + room
        committed = queue.commit()
        assert committed.append_error == f"/queue: {room} bytes are free, queue.min_free_bytes is {floor}"
        assert (committed.refused, dropped(queue)) == (None, {})

    def test_a_kill_does_not_forget_what_was_refused(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=200, max_bytes=300, overflow="drop-newest"))
        queue.commit([entry("x" * 200)])
        queue.commit([entry("x" * 200, 5)])
        disk.errors = failing("create", errno.EIO)
        deliver(queue, 1, 2)
        queue.commit([entry("x" * 200, 2)])
        disk.errors = no_errors
        ledger = queue.cursor.ledger()
        disk.kill()
        assert OpenQueue(disk, ROOT, Limits()).cursor.ledger() == ledger
        assert ledger.dropped == {Outcome.OVERFLOW: 5, Outcome.DISK_ERROR: 2}

    def test_a_kill_forgets_drops_that_no_checkpoint_could_hold(self, disk: FaultFilesystem) -> None:
        """The known limit: what was refused is nowhere but in a checkpoint, and the disk took none."""
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("a")])
        disk.errors = failing("pwrite", errno.EIO)
        committed = queue.commit([entry("b", 5)])
        queue.commit()
        assert (committed.refused, dropped(queue)) == (Outcome.DISK_ERROR, {Outcome.DISK_ERROR: 5})
        disk.errors = no_errors
        disk.kill()
        queue = OpenQueue(disk, ROOT, Limits())
        assert queue.cursor.ledger() == Ledger(1, 0, 0, {}, 1)
        assert numbers(queue) == [1]

    def test_what_was_refused_may_come_back_after_a_power_loss_and_then_counts_as_accepted(self) -> None:
        """The known limit: a disk that fails to sync may also fail to forget. Nothing that was accepted suffers."""
        found = set()
        for seed in range(40):
            disk = FaultFilesystem()
            queue = OpenQueue(disk, ROOT, Limits())
            queue.commit([entry("a")])
            disk.errors, disk.partial = failing("sync", errno.EIO), RandomChooser(seed)
            assert queue.commit([entry("b", 5)]).refused is Outcome.DISK_ERROR
            disk.errors = no_errors
            disk.crash(RandomChooser(seed))
            queue = OpenQueue(disk, ROOT, Limits())
            found.add(tuple(numbers(queue)))
            ledger = queue.cursor.ledger()
            assert ledger.accepted == ledger.queued + sum(ledger.dropped.values())
        assert found == {(1,), (1, 2)}

    def test_segments_are_deleted_on_a_full_disk(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1))
        queue.commit([entry("x" * 500)])
        queue.commit([entry("x")])
        deliver(queue, 1, 2)
        disk.capacity = disk.used
        assert queue.commit([entry("y" * 100)]).refused is None
        assert numbers(queue) == [2, 3]


class TestCheckpoints:
    def test_a_refreshed_cursor_is_durable_in_both_slots(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("a")])
        queue.writer.sync()
        disk.flip(ROOT / "cursor", SLOT_BYTES + 30, 1)
        disk.flip(ROOT / "cursor", 30, 1)
        queue.writer.refresh()
        disk.crash(LoseAll())
        found = [decode_slot(slot) for slot in read_slots(disk, ROOT / "cursor")]
        assert [each.state.next_seq for each in found if each is not None] == [2, 2]

    def test_the_cursor_is_durable_before_a_segment_goes(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1))
        queue.commit([entry("a")])
        queue.commit([entry("b")])
        deliver(queue, 1, 2)
        before = disk.calls
        queue.commit()
        calls = [(call.operation, call.path.name) for call in disk.log[before:] if call.operation != "has_name"]
        assert calls == [
            ("pwrite", "cursor"),
            ("sync", "cursor"),
            ("unlink", "00000000000000000001.seg"),
            ("sync_directory", "segments"),
            ("free_bytes", "queue"),
        ]

    @pytest.mark.parametrize("operation", ["pwrite", "sync"])
    def test_no_segment_goes_while_the_cursor_cannot_be_made_durable(
        self, disk: FaultFilesystem, operation: str
    ) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1))
        queue.commit([entry("a")])
        queue.commit([entry("b")])
        deliver(queue, 1, 2)
        disk.errors = failing(operation, errno.EIO, ROOT / "cursor")
        committed = queue.commit()
        assert "the cursor cannot be kept" in f"{committed.checkpoint_error} {committed.delete_error}"
        assert len(disk.names(ROOT / "segments")) == 2
        disk.errors = no_errors
        committed = queue.commit()
        assert (committed.checkpoint_error, committed.delete_error) == (None, None)
        assert len(disk.names(ROOT / "segments")) == 1

    def test_events_are_kept_while_the_cursor_cannot_be_written(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        disk.errors = failing("pwrite", errno.EIO, ROOT / "cursor")
        committed = queue.commit([entry("a")])
        assert committed.refused is None
        assert committed.checkpoint_error is not None
        disk.crash(LoseAll())
        assert numbers(OpenQueue(disk, ROOT, Limits())) == [1]

    def test_closing_makes_everything_durable(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(sync="off"))
        queue.commit([entry("a", 5)])
        deliver(queue, 1, 4)
        ledger = queue.cursor.ledger()
        queue.close()
        assert disk.open_files == 0
        disk.crash(LoseAll())
        queue = OpenQueue(disk, ROOT, Limits())
        assert (queue.cursor.ledger(), queue.cursor.position) == (ledger, 4)

    @pytest.mark.parametrize("action", [lambda queue: queue.writer.sync(), OpenQueue.close], ids=["sync", "close"])
    def test_the_cursor_never_knows_of_events_that_a_power_loss_takes_from_the_log(
        self, action: Callable[[OpenQueue], None]
    ) -> None:
        for call in itertools.count():
            disk = FaultFilesystem()
            queue = OpenQueue(disk, ROOT, Limits(sync="off"))
            queue.commit([entry("a", 5)])
            disk.crash_at(disk.calls + call, "after")
            try:
                action(queue)
            except Crash:
                disk.crash(LoseAll())
                assert not any(isinstance(item, Gap) for item in OpenQueue(disk, ROOT, Limits()).items())
            else:
                break
        assert call >= 2

    @pytest.mark.parametrize("path", [ROOT / "cursor", ROOT / "segments" / "00000000000000000001.seg"])
    def test_closing_reports_what_it_could_not_make_durable(self, disk: FaultFilesystem, path: Path) -> None:
        queue = OpenQueue(disk, ROOT, Limits(sync="off"))
        queue.commit([entry("a")])
        disk.errors = failing("sync", errno.EIO, path)
        with pytest.raises(StorageError):
            queue.close()
        assert disk.open_files == 0

    @pytest.mark.parametrize("operation", ["make_directory", "create", "names"])
    def test_a_queue_that_cannot_be_opened_leaves_nothing_open(self, disk: FaultFilesystem, operation: str) -> None:
        disk.errors = failing(operation, errno.EACCES)
        with pytest.raises(StorageError, match="/queue"):
            OpenQueue(disk, ROOT, Limits())
        assert disk.open_files == 0

    def test_a_pause_and_its_end_survive_a_power_cut(self, disk: FaultFilesystem) -> None:
        for pause in (PAUSE, None):
            queue = OpenQueue(disk, ROOT, Limits())
            queue.cursor.pause = pause
            assert queue.commit().checkpoint_error is None
            disk.crash(LoseAll())
            assert OpenQueue(disk, ROOT, Limits()).cursor.pause == pause
            disk.kill()

    def test_a_pause_that_could_not_be_made_durable_is_tried_again(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.cursor.pause = PAUSE
        disk.errors = failing("sync", errno.EIO, ROOT / "cursor")
        assert queue.commit().checkpoint_error is not None
        disk.errors = no_errors
        assert queue.commit().checkpoint_error is None
        disk.crash(LoseAll())
        assert OpenQueue(disk, ROOT, Limits()).cursor.pause == PAUSE


class TestSyncModes:
    def test_off_survives_a_kill(self, disk: FaultFilesystem) -> None:
        OpenQueue(disk, ROOT, Limits(sync="off")).commit([entry("a")])
        disk.kill()
        assert numbers(OpenQueue(disk, ROOT, Limits())) == [1]

    def test_off_syncs_nothing_by_itself(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(sync="off"))
        queue.commit([entry("a")])
        before = disk.calls
        queue.commit([entry("b")])
        assert [call.operation for call in disk.log[before:]] == [
            "free_bytes",
            "has_name",
            "pwrite",
            "has_name",
            "pwrite",
        ]

    def test_interval_keeps_what_was_there_at_the_last_sync(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(sync="interval"))
        queue.commit([entry("a")])
        deliver(queue, 1, 2)
        queue.commit([entry("b")])
        queue.writer.sync()
        queue.commit([entry("c")])
        disk.crash(LoseAll())
        queue = OpenQueue(disk, ROOT, Limits())
        assert numbers(queue) == [2]
        assert queue.cursor.ledger().delivered == 1

    def test_what_a_power_loss_took_from_a_lazy_queue_is_accounted_for(self, disk: FaultFilesystem) -> None:
        """The cursor may reach the disk and the events may not."""
        queue = OpenQueue(disk, ROOT, Limits(sync="off"))
        queue.commit([entry("a", 3)])
        queue.commit()
        disk.errors = failing("sync", errno.EIO, FIRST)
        with pytest.raises(StorageError):
            queue.close()
        disk.errors = no_errors
        disk.crash(LoseAll())
        queue = OpenQueue(disk, ROOT, Limits())
        assert queue.cursor.next_seq == 4
        assert queue.items() == [Gap(Span(1, 4))]
        assert queue.commit([entry("b")]).refused is None
        assert queue.view.segments[-1].first_seq == 4

    def test_a_failed_interval_sync_is_reported(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(sync="interval"))
        queue.commit([entry("a")])
        disk.errors = failing("sync", errno.EIO)
        with pytest.raises(StorageError):
            queue.writer.sync()


class TestRecovery:
    def test_a_lost_cursor_repeats_what_is_there(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1))
        for _ in range(3):
            queue.commit([entry("a", 2)])
        deliver(queue, 1, 4)
        queue.commit()
        disk.unlink(ROOT / "cursor")
        queue = OpenQueue(disk, ROOT, Limits())
        assert (queue.cursor.position, numbers(queue)) == (3, [3, 5])
        assert queue.cursor.ledger().accepted == 4

    def test_deleted_segments_do_not_bring_numbers_back(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("a", 5)])
        queue.close()
        disk.unlink(ROOT / "segments" / "00000000000000000001.seg")
        queue = OpenQueue(disk, ROOT, Limits())
        assert queue.cursor.next_seq == 6
        assert queue.items() == [Gap(Span(1, 6))]

    def test_numbers_are_not_given_again_when_the_last_segment_cannot_be_read_after_a_kill(
        self, disk: FaultFilesystem
    ) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("a", 50)])
        disk.kill()
        disk.errors = failing("open", errno.EACCES, ROOT / "segments" / "00000000000000000001.seg")
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("b", 10)])
        assert (queue.cursor.next_seq, queue.cursor.ledger().accepted) == (61, 60)
        disk.errors = no_errors
        assert numbers(OpenQueue(disk, ROOT, Limits())) == [1, 51]

    def test_a_delivered_queue_remembers_its_numbers_without_a_cursor(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1))
        for _ in range(3):
            queue.commit([entry("a")])
        deliver(queue, 1, 4)
        queue.commit()
        disk.unlink(ROOT / "cursor")
        assert OpenQueue(disk, ROOT, Limits()).cursor.next_seq == 4

    def test_deletions_that_were_undone_are_done_again(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits(segment_bytes=1))
        for _ in range(3):
            queue.commit([entry("a")])
        deliver(queue, 1, 3)
        disk.errors = failing("sync_directory", errno.EIO)
        assert queue.commit().delete_error is not None
        disk.crash(LoseAll())
        disk.errors = no_errors
        assert len(disk.names(ROOT / "segments")) == 3
        queue = OpenQueue(disk, ROOT, Limits())
        assert numbers(queue) == [3]
        queue.commit()
        assert len(disk.names(ROOT / "segments")) == 1


class TestOldest:
    def test_the_oldest_queued_event_tells_its_age(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        assert oldest_enqueued_at(queue.store.reader(), queue.view) is None
        queue.commit([Entry(1, encode_record(Record(12.5, Context(), encode_events([EVENT]))))])
        queue.commit([Entry(2, encode_record(Record(13.5, Context(), encode_events([EVENT, EVENT]))))])
        assert oldest_enqueued_at(queue.store.reader(), queue.view) == 12.5
        deliver(queue, 1, 3)
        assert oldest_enqueued_at(queue.store.reader(), queue.view) == 13.5
        deliver(queue, 3, 4)
        assert oldest_enqueued_at(queue.store.reader(), queue.view) is None

    @pytest.mark.parametrize("payload", [b"", b"\x93", b"\xa2\xff\xff", b"\x93\x01\x92\xa1\xff\x00\xc4\x00"])
    def test_a_record_that_cannot_be_decoded_has_no_age(self, disk: FaultFilesystem, payload: bytes) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([Entry(1, payload)])
        assert oldest_enqueued_at(queue.store.reader(), queue.view) is None

    def test_an_unreadable_queue_has_no_age(self, disk: FaultFilesystem) -> None:
        queue = OpenQueue(disk, ROOT, Limits())
        queue.commit([entry("a")])
        queue.close()
        queue = OpenQueue(disk, ROOT, Limits())
        files = disk.open_files
        disk.errors = failing("pread", errno.EIO)
        assert oldest_enqueued_at(queue.store.reader(), queue.view) is None
        assert disk.open_files == files


def test_everything_is_there_after_a_crash_that_kept_everything(disk: FaultFilesystem) -> None:
    queue = OpenQueue(disk, ROOT, Limits())
    queue.commit([entry("a")])
    disk.crash(KeepAll())
    assert numbers(OpenQueue(disk, ROOT, Limits())) == [1]
