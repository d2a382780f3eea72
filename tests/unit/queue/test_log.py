"""The log on its own: what an append promises, what recovery finds, what a failure leaves."""

import copy
import errno
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.queue.log import AppendError
from agent.queue.record import encode_frame
from agent.queue.segment import HEADER_BYTES
from tests.support.fault_filesystem import Chooser, Crash, FaultFilesystem, KeepAll, LoseAll, failing, no_errors
from tests.support.queue_files import (
    LOG,
    contents,
    entry,
    failing_times,
    open_log,
    quarantined,
    segment_path,
    segments,
)


@pytest.fixture
def disk() -> FaultFilesystem:
    return FaultFilesystem()


class TestAppend:
    def test_items_are_numbered_from_one(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        assert log.append([entry("a", 3), entry("b")], 0.0) == 1
        assert log.append([entry("c")], 0.0) == 5
        assert contents(disk, log) == [(1, "a"), (4, "b"), (5, "c")]

    def test_a_group_is_one_write_and_one_sync(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        log.append([entry("first")], 0.0)
        before = disk.calls
        log.append([entry(str(n)) for n in range(50)], 0.0)
        assert [call.operation for call in disk.log[before:]] == ["has_name", "pwrite", "sync"]

    def test_what_is_appended_survives_a_power_loss(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("kept")], 0.0)
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk)) == [(1, "kept")]

    def test_a_full_segment_is_followed_by_another(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=100)
        for text in "abcd":
            log.append([entry(text * 20)], 0.0)
        assert segments(disk) == [1, 2, 3, 4]
        assert log.view.size == sum(len(disk.read_bytes(segment_path(n))) for n in segments(disk))

    def test_an_entry_larger_than_a_segment_gets_its_own(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=100)
        log.append([entry("x" * 500)], 0.0)
        log.append([entry("y")], 0.0)
        assert segments(disk) == [1, 2]
        assert contents(disk, log) == [(1, "x" * 500), (2, "y")]

    def test_segments_know_when_they_were_begun(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a")], 1234.5)
        assert open_log(disk).view.segments[0].created_at == 1234.5


class TestFailure:
    def test_a_failed_sync_sends_the_group_to_a_new_segment(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        disk.errors = failing_times("sync", 1)
        assert log.append([entry("b")], 0.0) == 2
        disk.crash(LoseAll())
        assert segments(disk) == [1, 2]
        assert contents(disk, open_log(disk)) == [(1, "a"), (2, "b")]

    def test_a_segment_whose_sync_failed_is_never_synced_again(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        disk.errors = failing_times("sync", 1)
        log.append([entry("b")], 0.0)
        log.append([entry("c")], 0.0)
        log.seal()
        assert [call.path for call in disk.log if call.operation == "sync"].count(segment_path(1)) == 3

    def test_a_segment_that_somebody_has_deleted_gets_nothing_more(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        disk.unlink(segment_path(1))
        assert log.append([entry("b")], 0.0) == 2
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk), 2) == [(2, "b")]

    def test_what_was_refused_does_not_come_back_after_a_kill(self, disk: FaultFilesystem) -> None:
        """A refused append may have written whole frames before the disk was full."""
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        disk.capacity = disk.used + 100
        with pytest.raises(AppendError, match="No space left") as refusal:
            log.append([entry("b" * 20), entry("c" * 200)], 0.0)
        assert refusal.value.full
        disk.capacity = None
        disk.kill()
        log = open_log(disk)
        assert contents(disk, log) == [(1, "a")]
        assert log.append([entry("d")], 0.0) == 2

    def test_there_is_room_again_after_a_full_disk(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        used = disk.used
        disk.capacity = used + 10
        with pytest.raises(AppendError):
            log.append([entry("b" * 100)], 0.0)
        assert disk.used == used
        disk.capacity = None
        assert log.append([entry("c")], 0.0) == 2
        assert contents(disk, log) == [(1, "a"), (2, "c")]

    def test_a_broken_disk_is_no_full_one(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        disk.errors = failing("sync", errno.EIO)
        with pytest.raises(AppendError, match="Input/output error") as refusal:
            log.append([entry("a")], 0.0)
        assert not refusal.value.full
        assert (log.view.next_seq, disk.open_files) == (1, 0)

    @pytest.mark.parametrize("operation", ["unlink", "create", "pwrite", "sync", "sync_directory"])
    def test_a_refused_append_leaves_nothing_open(self, disk: FaultFilesystem, operation: str) -> None:
        log = open_log(disk)
        disk.errors = failing(operation, errno.EROFS)
        with pytest.raises(AppendError, match=str(LOG)):
            log.append([entry("a")], 0.0)
        assert disk.open_files == 0
        disk.errors = no_errors
        assert log.append([entry("b")], 0.0) == 1
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk)) == [(1, "b")]

    def test_a_failed_directory_sync_costs_one_attempt(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        disk.errors = failing_times("sync_directory", 1)
        log.append([entry("a")], 0.0)
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk)) == [(1, "a")]

    def test_leftovers_of_a_failed_sync_are_not_read_twice(self, disk: FaultFilesystem) -> None:
        """The group is whole in both segments where the first could not be cut back."""
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        failing_sync, failing_truncate = failing_times("sync", 1), failing_times("truncate", 1)
        disk.errors = lambda operation, path: failing_sync(operation, path) or failing_truncate(operation, path)
        disk.partial = KeepAll()
        log.append([entry("b"), entry("c")], 0.0)
        disk.crash(KeepAll())
        log = open_log(disk)
        assert disk.read_bytes(segment_path(1)).count(b"b") == 1
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, "c")]
        assert quarantined(disk) == []


class TestLazyLog:
    """With durable=False."""

    def test_a_kill_loses_nothing_and_a_power_loss_only_what_was_not_synced(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, durable=False)
        log.append([entry("a")], 0.0)
        log.sync()
        log.append([entry("b")], 0.0)
        disk.kill()
        assert contents(disk, open_log(disk, durable=False)) == [(1, "a"), (2, "b")]
        log = open_log(disk, durable=False)
        log.append([entry("c")], 0.0)
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk)) == [(1, "a"), (2, "b")]

    def test_a_segment_is_synced_before_the_next_one_begins(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, durable=False, segment_bytes=100)
        log.append([entry("a" * 50)], 0.0)
        log.append([entry("b" * 50)], 0.0)
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk)) == [(1, "a" * 50)]

    @pytest.mark.parametrize("call", range(7))
    def test_no_segment_begins_before_the_one_before_it_is_durable(self, disk: FaultFilesystem, call: int) -> None:
        log = open_log(disk, durable=False, segment_bytes=100)
        log.append([entry("a" * 50)], 0.0)
        disk.crash_at(disk.calls + call, "after")
        with pytest.raises(Crash):
            log.append([entry("b" * 50)], 0.0)
        disk.crash(LoseAll())
        if segments(disk) == [1, 2]:
            assert contents(disk, open_log(disk)) == [(1, "a" * 50)]

    def test_a_segment_that_cannot_be_sealed_does_not_cost_the_next_group(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, durable=False, segment_bytes=100)
        log.append([entry("a" * 50)], 0.0)
        disk.errors = failing_times("sync", 1)
        assert log.append([entry("b" * 50)], 0.0) == 2
        assert contents(disk, log) == [(1, "a" * 50), (2, "b" * 50)]

    @pytest.mark.parametrize("action", ["sync", "seal"])
    def test_a_failed_sync_is_reported_and_final(self, disk: FaultFilesystem, action: str) -> None:
        log = open_log(disk, durable=False)
        log.append([entry("a")], 0.0)
        disk.errors = failing_times("sync", 1)
        with pytest.raises(AppendError):
            getattr(log, action)()
        log.sync()
        log.append([entry("b")], 0.0)
        assert segments(disk) == [1, 2]

    def test_nothing_to_sync_is_fine(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, durable=False)
        log.sync()
        log.seal()
        assert log.view.segments == ()


class TestDelete:
    def test_segments_go_when_nothing_in_them_is_wanted(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=1)
        for text in "abc":
            log.append([entry(text)], 0.0)
        assert [log.delete_before(position) for position in (1, 2, 2, 4)] == [0, 1, 0, 1]
        disk.crash(LoseAll())
        assert segments(disk) == [3]

    def test_a_failed_deletion_is_tried_again(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=1)
        for text in "abc":
            log.append([entry(text)], 0.0)
        for operation in ("unlink", "sync_directory"):
            disk.errors = failing(operation, errno.EIO)
            with pytest.raises(StorageError, match="cannot delete old segments"):
                log.delete_before(3)
        disk.errors = no_errors
        assert log.delete_before(3) == 2
        disk.crash(LoseAll())
        assert segments(disk) == [3]


class TestRecovery:
    def test_an_empty_directory_is_a_new_log(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        assert (log.view.segments, log.view.next_seq, log.view.size) == ((), 1, 0)

    def test_a_restart_begins_a_new_segment(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a")], 0.0)
        log = open_log(disk)
        log.append([entry("b")], 0.0)
        assert segments(disk) == [1, 2]

    def test_a_torn_tail_is_cut_off(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a")], 0.0)
        data = disk.read_bytes(segment_path(1))
        for torn in (b"\0" * 700, encode_frame(2, 1, b"torn")[:-1], encode_frame(2, 1, b"torn")[:7]):
            disk.write_bytes(segment_path(1), data + torn)
            log = open_log(disk)
            assert (log.view.next_seq, log.view.size) == (2, len(data))
            assert (disk.read_bytes(segment_path(1)), quarantined(disk)) == (data, [])

    @pytest.mark.parametrize("operation", ["truncate", "sync"])
    def test_a_tail_that_cannot_be_cut_off_costs_nothing(self, disk: FaultFilesystem, operation: str) -> None:
        log = open_log(disk)
        log.append([entry("a"), entry("b"), entry("c")], 0.0)
        disk.write_bytes(segment_path(1), disk.read_bytes(segment_path(1)) + b"\0" * 10)
        disk.errors = failing(operation, errno.EROFS)
        log = open_log(disk)
        disk.errors = no_errors
        assert log.append([entry("d")], 0.0) == 4
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
        assert contents(disk, open_log(disk)) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]

    def test_garbage_at_the_end_is_kept_for_a_person(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a")], 0.0)
        disk.write_bytes(segment_path(1), disk.read_bytes(segment_path(1)) + b"garbage")
        assert open_log(disk).view.next_seq == 2
        assert quarantined(disk) == [b"garbage"]

    @pytest.mark.parametrize("chooser", [LoseAll(), KeepAll()], ids=["lost", "kept"])
    def test_garbage_is_durably_kept_before_it_is_cut_off(self, disk: FaultFilesystem, chooser: Chooser) -> None:
        open_log(disk).append([entry("a")], 0.0)
        disk.write_bytes(segment_path(1), disk.read_bytes(segment_path(1)) + b"garbage")
        disk.kill()
        healthy = copy.deepcopy(disk)
        open_log(healthy)
        assert healthy.calls - disk.calls > 15
        for call in range(disk.calls, healthy.calls):
            crashed = copy.deepcopy(disk)
            crashed.crash_at(call, "after")
            with pytest.raises(Crash):
                open_log(crashed)
            crashed.crash(chooser)
            assert contents(crashed, open_log(crashed)) == [(1, "a")]
            assert quarantined(crashed) == [b"garbage"]

    def test_a_damaged_last_frame_is_accounted_for(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a"), entry("bcd", 3)], 0.0)
        disk.flip(segment_path(1), len(disk.read_bytes(segment_path(1))) - 1, 0)
        assert contents(disk, open_log(disk)) == [(1, "a"), (2, 5)]
        log = open_log(disk)
        assert log.append([entry("e")], 0.0) == 5
        assert contents(disk, log) == [(1, "a"), (2, 5), (5, "e")]
        assert len(quarantined(disk)) == 1

    def test_what_a_killed_process_wrote_is_durable_once_it_is_found(self, disk: FaultFilesystem) -> None:
        """It is delivered from then on, so it must not vanish in a later power loss."""
        log = open_log(disk, durable=False)
        log.append([entry("a")], 0.0)
        disk.kill()
        assert contents(disk, open_log(disk)) == [(1, "a")]
        disk.crash(LoseAll())
        assert contents(disk, open_log(disk)) == [(1, "a")]

    def test_only_the_last_segment_is_read(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=1)
        for text in "abcdef":
            log.append([entry(text)], 0.0)
        before = disk.calls
        open_log(disk)
        reads = [call.path.name for call in disk.log[before:] if call.operation == "pread"]
        assert len(reads) == len(segments(disk)) + 1

    def test_foreign_files_are_left_alone(self, disk: FaultFilesystem) -> None:
        disk.write_bytes(LOG / "README", b"hello")
        disk.write_bytes(LOG / "1.seg", b"hello")
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        assert disk.read_bytes(LOG / "README") == b"hello"
        assert contents(disk, log) == [(1, "a")]

    def test_a_directory_that_cannot_be_used_is_an_error(self, disk: FaultFilesystem) -> None:
        disk.errors = failing("names", errno.EACCES)
        with pytest.raises(StorageError, match="the queue directory cannot be used"):
            open_log(disk)

    def test_a_shortage_at_the_start_is_an_error_rather_than_a_loss(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a"), entry("b")], 0.0)
        disk.errors = failing("open", errno.EMFILE)
        with pytest.raises(StorageError, match="Too many open files"):
            open_log(disk)


class TestUnreadable:
    def test_a_file_with_the_last_name_there_is_leaves_no_number_and_is_said_to(self, disk: FaultFilesystem) -> None:
        """To go on regardless would write what a restart could not find again."""
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        disk.write_bytes(segment_path(2**63 - 1), b"foreign")
        log = open_log(disk)
        with pytest.raises(AppendError, match=f"no numbers are left after {2**63 - 2}"):
            log.append([entry("b")], 0.0)
        assert contents(disk, log)[0] == (1, "a")

    @pytest.mark.parametrize("foreign", [1, 2, 3])
    def test_what_is_no_file_is_put_aside_and_its_numbers_are_a_gap(self, disk: FaultFilesystem, foreign: int) -> None:
        """It could be neither read nor deleted, and would be in the way for ever."""
        log = open_log(disk, segment_bytes=1)
        for text in "abc":
            log.append([entry(text)], 0.0)
        disk.errors = failing("open", errno.EISDIR, segment_path(foreign))
        log = open_log(disk, next_seq=4)
        disk.errors = no_errors
        left = [(number, text) for number, text in ((1, "a"), (2, "b"), (3, "c")) if number != foreign]
        assert log.append([entry("d")], 0.0) == 4
        assert contents(disk, log) == sorted([*left, (foreign, foreign + 1), (4, "d")])
        assert disk.paths()[foreign - 1].name == f"{segment_path(foreign).name}.unreadable"
        assert log.delete_before(4) == 2

    def test_a_frame_with_numbers_below_its_segments_name_gives_no_number_again(self, disk: FaultFilesystem) -> None:
        """As in a file that was copied to another's name."""
        open_log(disk).append([entry("a"), entry("b")], 0.0)
        disk.write_bytes(segment_path(50), disk.read_bytes(segment_path(1)))
        log = open_log(disk)
        assert log.append([entry("c")], 0.0) == 50
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, 50), (50, "c")]

    def test_no_file_stops_the_start(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=1)
        for text in "abc":
            log.append([entry(text)], 0.0)
        disk.errors = failing("open", errno.EACCES)
        log = open_log(disk)
        assert [s.first_seq for s in log.view.segments] == [1, 2, 3]
        disk.errors = no_errors
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, "c")]

    def test_a_last_segment_that_cannot_be_opened_keeps_its_number(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a"), entry("b")], 0.0)
        disk.errors = failing("open", errno.EIO, segment_path(1))
        log = open_log(disk)
        assert log.append([entry("c")], 0.0) == 2
        assert segments(disk) == [1, 2]

    def test_the_cursor_knows_the_numbers_of_a_segment_that_cannot_be_opened(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a"), entry("b")], 0.0)
        disk.errors = failing("open", errno.EIO, segment_path(1))
        log = open_log(disk, next_seq=3)
        assert log.append([entry("c")], 0.0) == 3
        disk.errors = no_errors
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, "c")]

    def test_what_later_comes_back_does_not_hide_newer_items(self, disk: FaultFilesystem) -> None:
        """Numbers 2 and 3 were given again while segment 1 could not be opened: theirs is segment 2."""
        open_log(disk).append([entry("abc", 3)], 0.0)
        disk.errors = failing("open", errno.EIO, segment_path(1))
        log = open_log(disk)
        log.append([entry("d"), entry("e")], 0.0)
        disk.errors = no_errors
        assert contents(disk, log) == [(1, 2), (2, "d"), (3, "e")]

    def test_a_bad_block_in_the_last_segment_costs_what_is_in_it(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=100_000)
        log.append([entry(text * 3000) for text in "abcdef"], 0.0)
        size = len(disk.read_bytes(segment_path(1)))
        disk.errors = failing_times("pread", 3)  # the header, the whole, and then the first block
        log = open_log(disk)
        disk.errors = no_errors
        assert log.append([entry("g")], 0.0) == 7
        assert len(disk.read_bytes(segment_path(1))) == size
        assert [text[0] for _, text in contents(disk, log) if isinstance(text, str)] == list("abcdefg")

    def test_what_cannot_be_read_is_never_cut_off(self, disk: FaultFilesystem) -> None:
        open_log(disk).append([entry("a"), entry("b")], 0.0)
        data = disk.read_bytes(segment_path(1))
        disk.errors = failing("pread", errno.EIO)
        assert open_log(disk).view.next_seq == 2
        assert disk.read_bytes(segment_path(1)) == data

    @pytest.mark.parametrize("size", [0, 5, HEADER_BYTES - 1, HEADER_BYTES])
    def test_a_segment_that_was_never_begun_gives_its_number_back(self, disk: FaultFilesystem, size: int) -> None:
        open_log(disk).append([entry("a")], 0.0)
        disk.truncate_durable(segment_path(1), size)
        log = open_log(disk)
        assert log.append([entry("b")], 0.0) == 1
        assert (segments(disk), contents(disk, log)) == ([1], [(1, "b")])

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
    def test_nothing_stays_open_after_recovery(self, disk: FaultFilesystem, code: int) -> None:
        open_log(disk, segment_bytes=1).append([entry("a"), entry("b")], 0.0)
        disk.kill()
        for operation in ("pread", "size", "truncate", "sync"):
            disk.errors = failing(operation, code)
            open_log(disk)
        assert disk.open_files == 0


def test_a_segment_is_where_its_name_says() -> None:
    assert open_log(FaultFilesystem()).path(7) == Path("/log/00000000000000000007.seg")
