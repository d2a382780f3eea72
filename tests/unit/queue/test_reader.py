"""The reader: every number comes once, in a frame or in a gap, whatever happened to the files."""

import errno
import itertools

import pytest

from agent.errors import StorageError
from agent.queue.cursor import Span
from agent.queue.log import Log
from agent.queue.record import HEADER_BYTES as FRAME_HEADER_BYTES
from agent.queue.record import encode_frame
from agent.queue.segment import HEADER_BYTES, Gap
from tests.support.fault_filesystem import FaultFilesystem, failing, no_errors
from tests.support.queue_files import (
    brief,
    contents,
    entry,
    failing_times,
    open_log,
    open_reader,
    quarantined,
    segment_path,
)


@pytest.fixture
def disk() -> FaultFilesystem:
    return FaultFilesystem()


def written(disk: FaultFilesystem, *texts: str, segment_bytes: int = 10_000) -> Log:
    """Return a log with these payloads, one item each; every text is appended on its own."""
    log = open_log(disk, segment_bytes=segment_bytes)
    for text in texts:
        log.append([entry(text)], 0.0)
    return log


class TestReading:
    def test_the_end_of_the_log_is_empty(self, disk: FaultFilesystem) -> None:
        log = open_log(disk)
        reader = open_reader(disk, log)
        assert (reader.read(100), reader.position) == ([], 1)
        log.append([entry("a")], 0.0)
        assert brief(reader.read(100)) == [(1, "a")]
        assert (reader.read(100), reader.position) == ([], 2)

    def test_a_reader_follows_the_writer_into_new_segments(self, disk: FaultFilesystem) -> None:
        log = open_log(disk, segment_bytes=60)
        reader = open_reader(disk, log)
        for number, text in enumerate("abcdef", 1):
            log.append([entry(text)], 0.0)
            assert brief(reader.read(100)) == [(number, text)]

    @pytest.mark.parametrize("max_bytes", [1, 30, 64, 100_000])
    def test_reads_of_any_size_return_the_same(self, disk: FaultFilesystem, max_bytes: int) -> None:
        """Frames may be longer than a read, and reads end in the middle of frames."""
        texts = ["a" * 5, "b" * 300, "c", "d" * 70]
        log = written(disk, *texts, segment_bytes=250)
        reader, items = open_reader(disk, log), []
        while more := reader.read(max_bytes):
            items += more
        assert brief(items) == list(enumerate(texts, 1))

    def test_about_as_much_is_read_as_was_asked_for(self, disk: FaultFilesystem) -> None:
        log = written(disk, *["x" * 100] * 50)
        assert len(open_reader(disk, log).read(1000)) == 1000 // 124

    @pytest.mark.parametrize("position", [1, 2, 3, 4])
    def test_a_frame_is_returned_whole_for_a_position_within_it(self, disk: FaultFilesystem, position: int) -> None:
        log = open_log(disk)
        log.append([entry("abc", 3), entry("d")], 0.0)
        expected = [(1, "abc"), (4, "d")] if position < 4 else [(4, "d")]
        assert contents(disk, log, position) == expected

    def test_a_position_deep_in_a_segment_is_found_at_once(self, disk: FaultFilesystem) -> None:
        """An empty answer means the end of the log: it must not mean that this stretch was settled before."""
        log = written(disk, *["x" * 100] * 50)
        assert brief(open_reader(disk, log, 49).read(300)) == [(49, "x" * 100), (50, "x" * 100)]

    def test_only_what_is_committed_is_read(self, disk: FaultFilesystem) -> None:
        log = written(disk, "a")
        reader = open_reader(disk, log)
        disk.errors = failing("sync", errno.EIO)
        with pytest.raises(StorageError):
            log.append([entry("refused")], 0.0)
        disk.errors = no_errors
        assert brief(reader.read(100)) == [(1, "a")]
        assert reader.read(100) == []
        log.append([entry("b")], 0.0)
        assert brief(reader.read(100)) == [(2, "b")]

    def test_one_file_is_open_at_a_time(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abcdef", segment_bytes=60)
        log.seal()
        reader = open_reader(disk, log)
        while reader.read(100):
            assert disk.open_files == 1
        reader.close()
        assert disk.open_files == 0

    def test_at_the_end_of_the_log_nothing_is_held_open_and_reading_goes_on_from_there(
        self, disk: FaultFilesystem
    ) -> None:
        """A segment that is deleted while it is open still takes its room, and the disk may be full."""
        log = open_log(disk)
        log.append([entry("a")], 0.0)
        reader = open_reader(disk, log)
        before = disk.open_files
        assert brief(reader.read(1000)) == [(1, "a")]
        assert (reader.read(1000), disk.open_files) == ([], before)
        log.append([entry("b")], 0.0)
        assert brief(reader.read(1000)) == [(2, "b")]

    def test_closing_is_no_end(self, disk: FaultFilesystem) -> None:
        log = written(disk, "a", "b")
        reader = open_reader(disk, log)
        assert brief(reader.read(30)) == [(1, "a")]
        reader.close()
        reader.close()
        assert brief(reader.read(30)) == [(2, "b")]


class TestGaps:
    def frame_offset(self, *before: str) -> int:
        return HEADER_BYTES + sum(FRAME_HEADER_BYTES + len(text) for text in before)

    @pytest.mark.parametrize("max_bytes", [1, 40, 1000])
    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_damage_costs_its_frame_alone(self, disk: FaultFilesystem, number: int, max_bytes: int) -> None:
        texts = ["aaaa", "bbbb", "cccc", "dddd"]
        log = written(disk, *texts)
        start = self.frame_offset(*texts[: number - 1])
        before = disk.read_bytes(segment_path(1))
        disk.flip(segment_path(1), start + FRAME_HEADER_BYTES, 3)
        reader, items = open_reader(disk, log), []
        while more := reader.read(max_bytes):
            items += more
        expected = [(n, n + 1) if n == number else (n, text) for n, text in enumerate(texts, 1)]
        assert brief(items) == expected
        [kept] = quarantined(disk)
        assert len(kept) == FRAME_HEADER_BYTES + 4
        assert sum(a != b for a, b in zip(kept, before[start:], strict=False)) == 1

    @pytest.mark.parametrize("field", range(FRAME_HEADER_BYTES))
    def test_damage_in_a_header_costs_its_frame_alone(self, disk: FaultFilesystem, field: int) -> None:
        log = written(disk, "aaaa", "bbbb", "cccc")
        disk.flip(segment_path(1), self.frame_offset("aaaa") + field, 7)
        assert contents(disk, log) == [(1, "aaaa"), (2, 3), (3, "cccc")]

    def test_a_damaged_segment_header_costs_nothing(self, disk: FaultFilesystem) -> None:
        written(disk, "a")
        for offset in range(HEADER_BYTES):
            disk.flip(segment_path(1), offset, 0)
        assert contents(disk, open_log(disk)) == [(1, "a")]

    @pytest.mark.parametrize("restarted", [False, True])
    def test_a_segment_that_lost_its_end_leaves_a_gap(self, disk: FaultFilesystem, *, restarted: bool) -> None:
        log = written(disk, "a" * 20, "b" * 20, "c" * 20, segment_bytes=130)
        disk.truncate_durable(segment_path(1), self.frame_offset("a" * 20) + 3)
        if restarted:
            log = open_log(disk)
        assert contents(disk, log) == [(1, "a" * 20), (2, 3), (3, "c" * 20)]

    def test_a_deleted_segment_is_a_gap(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abc", segment_bytes=1)
        disk.unlink(segment_path(2))
        assert contents(disk, log) == [(1, "a"), (2, 3), (3, "c")]
        assert contents(disk, open_log(disk)) == [(1, "a"), (2, 3), (3, "c")]

    def test_what_lies_before_the_first_segment_is_a_gap(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abc", segment_bytes=1)
        log.delete_before(3)
        assert contents(disk, log) == [(1, 3), (3, "c")]

    def test_a_log_without_segments_is_a_gap(self, disk: FaultFilesystem) -> None:
        """Only the cursor knows that there was something."""
        assert contents(disk, open_log(disk, next_seq=5)) == [(1, 5)]

    def test_numbers_that_only_the_cursor_knows_are_a_gap(self, disk: FaultFilesystem) -> None:
        """After a power loss with sync = "off", the cursor may have reached the disk and the log may not."""
        written(disk, "a", "b")
        log = open_log(disk, next_seq=7)
        log.append([entry("c")], 0.0)
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, 7), (7, "c")]

    def test_a_segment_of_zeros_is_a_gap(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abc", segment_bytes=1)
        disk.write_bytes(segment_path(2), bytes(500))
        assert contents(disk, log) == [(1, "a"), (2, 3), (3, "c")]


class TestLeftovers:
    """Frames beyond the next segment's name were written again there."""

    @pytest.mark.parametrize("max_bytes", [1, 40, 1000])
    def test_leftovers_are_not_read(self, disk: FaultFilesystem, max_bytes: int) -> None:
        written(disk, "a", "b", "c", segment_bytes=60)
        leftovers = encode_frame(2, 1, b"old b") + encode_frame(3, 1, b"old c")
        disk.write_bytes(segment_path(1), disk.read_bytes(segment_path(1)) + leftovers)
        log = open_log(disk)
        reader, items = open_reader(disk, log), []
        while more := reader.read(max_bytes):
            items += more
        assert brief(items) == [(1, "a"), (2, "b"), (3, "c")]
        assert quarantined(disk) == []

    def test_damage_among_leftovers_is_not_reported(self, disk: FaultFilesystem) -> None:
        written(disk, "a", "b", segment_bytes=60)
        leftovers = b"torn" * 10 + encode_frame(2, 1, b"old b") + b"torn"
        disk.write_bytes(segment_path(1), disk.read_bytes(segment_path(1)) + leftovers)
        assert contents(disk, open_log(disk)) == [(1, "a"), (2, "b")]
        assert quarantined(disk) == []

    def test_damage_before_leftovers_is_a_gap(self, disk: FaultFilesystem) -> None:
        written(disk, "aaaa", "b", segment_bytes=60)
        leftovers = encode_frame(2, 1, b"old b")
        disk.write_bytes(segment_path(1), disk.read_bytes(segment_path(1)) + leftovers)
        disk.flip(segment_path(1), HEADER_BYTES + FRAME_HEADER_BYTES, 0)
        assert contents(disk, open_log(disk)) == [(1, 2), (2, "b")]


class TestUnreadable:
    def test_a_read_that_fails_can_be_tried_again(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abcd", segment_bytes=60)
        reader = open_reader(disk, log)
        for operation, text in (("open", "a"), ("pread", "b")):
            disk.errors = failing_times(operation, 1, errno.EMFILE)
            with pytest.raises(StorageError, match="cannot read the queue: Too many open files") as failure:
                reader.read(100)
            assert isinstance(failure.value.__cause__, OSError)
            assert [payload for _, payload in brief(reader.read(100))] == [text]

    def test_a_segment_that_cannot_be_opened_is_given_up(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abc", segment_bytes=1)
        reader = open_reader(disk, log)
        disk.errors = failing("open", errno.EIO, segment_path(2))
        assert brief(reader.read(100)) == [(1, "a")]
        with pytest.raises(StorageError):
            reader.read(100)
        assert brief(reader.skip()) == [(2, 3)]
        assert brief(reader.read(100)) == [(3, "c")]
        assert reader.skip() == []

    def test_bad_blocks_cost_what_is_in_them(self, disk: FaultFilesystem) -> None:
        texts = [letter * 1500 for letter in "abcdefgh"]
        log = written(disk, *texts, segment_bytes=100_000)
        reader = open_reader(disk, log)
        disk.errors = failing_times("pread", 1)
        with pytest.raises(StorageError):
            reader.read(100_000)
        assert reader.skip() == []
        disk.errors = failing_times("pread", 1)
        items = brief(reader.read(100_000))
        assert items[0] == (1, 4)
        assert items[1:] == [(number, text) for number, text in enumerate(texts, 1) if number > 3]

    def test_a_segment_of_bad_blocks_is_a_gap(self, disk: FaultFilesystem) -> None:
        log = written(disk, *"abc", segment_bytes=60)
        reader = open_reader(disk, log, 2)
        disk.errors = failing("pread", errno.EIO, segment_path(2))
        with pytest.raises(StorageError):
            reader.read(100)
        assert reader.skip() == []
        assert reader.read(100) == [Gap(Span(2, 3))]
        assert brief(reader.read(100)) == [(3, "c")]

    def test_a_segment_that_was_unreadable_at_the_start_is_read_when_it_can_be(self, disk: FaultFilesystem) -> None:
        written(disk, *"abc", segment_bytes=1)
        disk.errors = failing("open", errno.EACCES, segment_path(1))
        log = open_log(disk)
        disk.errors = no_errors
        assert contents(disk, log) == [(1, "a"), (2, "b"), (3, "c")]

    def test_an_error_leaves_nothing_open(self, disk: FaultFilesystem) -> None:
        log = written(disk, "a")
        log.seal()
        disk.errors = failing("pread", errno.EIO)
        for _ in itertools.repeat(None, 3):
            with pytest.raises(StorageError):
                open_reader(disk, log).read(100)
        assert disk.open_files == 0
