"""The cursor's file: one good checkpoint is there at any moment, and none older than the newest durable one."""

import errno
import itertools
from pathlib import Path
from typing import Literal

import pytest

from agent.errors import StorageError
from agent.queue.cursor import SLOT_BYTES, CursorState, Span, decode_slot
from agent.queue.cursor_file import CursorFile
from tests.support.fault_filesystem import (
    Chooser,
    Crash,
    FaultFilesystem,
    KeepAll,
    LoseAll,
    RandomChooser,
    failing,
    no_errors,
)
from tests.support.queue_files import failing_times

PATH = Path("/queue/cursor")
WHEN: tuple[Literal["before", "after"], ...] = ("before", "after")


def state(position: int) -> CursorState:
    return CursorState(position, position, 1, [], {"delivered": position - 1}, {}, None)


@pytest.fixture
def disk() -> FaultFilesystem:
    disk = FaultFilesystem()
    disk.make_directory(PATH.parent)
    return disk


def recovered(disk: FaultFilesystem) -> int | None:
    """Return the position that a restart finds."""
    file = CursorFile(disk, PATH)
    file.close()
    return file.recovered.position if file.recovered is not None else None


def slots(disk: FaultFilesystem) -> tuple[bytes, bytes]:
    data = disk.read_bytes(PATH)
    return data[:SLOT_BYTES], data[SLOT_BYTES:]


def positions(disk: FaultFilesystem) -> list[int | None]:
    """Return the position in each slot."""
    found = [decode_slot(slot) for slot in slots(disk)]
    return [checkpoint.state.position if checkpoint is not None else None for checkpoint in found]


class TestSlots:
    def test_a_new_file_holds_nothing_and_has_its_full_length(self, disk: FaultFilesystem) -> None:
        assert recovered(disk) is None
        assert slots(disk) == (bytes(SLOT_BYTES), bytes(SLOT_BYTES))

    def test_a_checkpoint_survives_the_process_when_written(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        for position in (2, 3, 4):
            file.write(state(position))
            disk.kill()
            file = CursorFile(disk, PATH)
            assert file.recovered == state(position)

    def test_a_checkpoint_survives_the_machine_when_synced(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        file.write(state(3))
        disk.crash(LoseAll())
        assert recovered(disk) == 2

    def test_the_newest_durable_slot_is_never_overwritten(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        for position in range(2, 30):
            file.write(state(position))
            if position % 4:
                continue
            file.sync()
            durable = positions(disk).index(position)
            for later in (100, 101, 102):
                file.write(state(later))
                assert positions(disk)[durable] == position

    def test_recovery_makes_what_it_found_durable(self, disk: FaultFilesystem) -> None:
        """A killed process may have written a checkpoint, even renamed a file, and never got to the sync."""
        CursorFile(disk, PATH).write(state(5))
        disk.kill()
        assert recovered(disk) == 5
        disk.crash(LoseAll())
        assert recovered(disk) == 5

    def test_recovery_does_not_trust_a_sync_after_one_that_failed(self, disk: FaultFilesystem) -> None:
        """The kernel has forgotten that the pages are dirty: syncing them again would make nothing durable."""
        file = CursorFile(disk, PATH)
        file.write(state(5))
        disk.errors = failing("sync", errno.EIO)
        with pytest.raises(StorageError):
            file.sync()
        disk.errors = no_errors
        disk.kill()
        assert recovered(disk) == 5
        disk.crash(LoseAll())
        assert recovered(disk) == 5

    @pytest.mark.parametrize(("damaged", "found"), [(2, 3), (3, 2)])
    def test_of_two_slots_the_newest_good_one_counts(self, disk: FaultFilesystem, damaged: int, found: int) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        file.write(state(3))
        file.close()
        disk.flip(PATH, positions(disk).index(damaged) * SLOT_BYTES + 20, 1)
        file = CursorFile(disk, PATH)
        assert file.recovered == state(found)
        file.write(state(4))
        file.close()
        assert recovered(disk) == 4

    def test_nothing_to_sync_is_fine(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        before = disk.calls
        file.sync()
        assert disk.calls == before


class TestFailure:
    def test_what_is_left_of_a_cursor_without_a_checkpoint_is_put_aside(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        for position in (2, 3):
            file.write(state(position))
            file.sync()
        file.close()
        for slot in (0, 1):
            disk.flip(PATH, slot * SLOT_BYTES + 20, 0)
        rotten = disk.read_bytes(PATH)
        assert recovered(disk) is None
        assert disk.read_bytes(PATH.with_name("cursor.unreadable")) == rotten

    def test_a_file_that_somebody_has_deleted_is_replaced(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        disk.unlink(PATH)
        file.write(state(3))
        disk.crash(LoseAll())
        assert recovered(disk) == 3

    def test_after_a_failed_sync_the_file_is_replaced(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        file.write(state(3))
        disk.errors = failing_times("sync", 1)
        with pytest.raises(StorageError, match="the cursor cannot be kept: Input/output error"):
            file.sync()
        with pytest.raises(StorageError, match="its last sync failed"):
            file.sync()
        file.write(state(4))
        disk.crash(LoseAll())
        assert recovered(disk) == 4
        assert disk.paths() == [PATH]

    @pytest.mark.parametrize("operation", ["unlink", "create", "pwrite", "sync", "rename", "sync_directory"])
    def test_a_file_that_cannot_be_replaced_yet_is_replaced_later(self, disk: FaultFilesystem, operation: str) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        file.write(state(3))
        disk.errors = failing("sync", errno.EIO)
        with pytest.raises(StorageError):
            file.sync()
        disk.errors = failing(operation, errno.EIO)
        with pytest.raises(StorageError):
            file.write(state(4))
        assert disk.open_files == 0
        assert disk.paths() == [PATH]
        disk.errors = no_errors
        file.write(state(5))
        file.write(state(6))
        file.sync()
        disk.crash(LoseAll())
        assert recovered(disk) == 6

    @pytest.mark.parametrize("seed", range(20))
    def test_a_write_that_failed_half_way_never_passes_for_durable(self, disk: FaultFilesystem, seed: int) -> None:
        """It tore the slot of a checkpoint that was not synced yet: there is nothing in it that a sync could save."""
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        file.write(state(3))
        disk.errors, disk.partial = failing_times("pwrite", 1), RandomChooser(seed)
        with pytest.raises(StorageError):
            file.write(state(4))
        file.sync()
        disk.errors, disk.partial = failing_times("pwrite", 1), LoseAll()
        with pytest.raises(StorageError):
            file.write(state(5))
        disk.crash_at(disk.calls, "after")
        with pytest.raises(Crash):
            file.write(state(6))
        disk.crash(RandomChooser(seed))
        found = recovered(disk)
        assert found is not None
        assert found >= 2

    def test_a_checkpoint_that_has_outgrown_its_slot_is_refused(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        large = CursorState(2, 10**12, 1, [Span(n, n + 1) for n in range(10**11, 10**11 + 20_000, 2)], {}, {}, None)
        with pytest.raises(StorageError, match="a slot takes 32768"):
            file.write(large)
        file.close()
        assert recovered(disk) == 2

    def test_a_full_disk_does_not_keep_checkpoints_from_being_written(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        disk.capacity = disk.used
        for position in range(2, 10):
            file.write(state(position))
            file.sync()
        disk.crash(LoseAll())
        assert recovered(disk) == 9

    def test_a_new_file_on_a_full_disk_is_made_when_there_is_room(self, disk: FaultFilesystem) -> None:
        disk.capacity = 100
        file = CursorFile(disk, PATH)
        with pytest.raises(StorageError, match="No space left"):
            file.write(state(2))
        disk.capacity = None
        file.write(state(3))
        disk.crash(LoseAll())
        assert recovered(disk) == 3

    def test_every_crash_leaves_a_good_checkpoint(self, disk: FaultFilesystem) -> None:
        """Crash around every call of writes, syncs, a failed sync and the replacement."""
        calls = work(CursorFile(disk, PATH), disk, []) - 1  # the first one made the directory
        points = 0
        choosers: list[Chooser] = [LoseAll(), KeepAll(), *(RandomChooser(seed) for seed in range(4))]
        for index, when, chooser in itertools.product(range(calls), WHEN, choosers):
            fresh = FaultFilesystem()
            fresh.make_directory(PATH.parent)
            durable: list[int] = []
            fresh.crash_at(index + 1, when)
            with pytest.raises(Crash):
                work(CursorFile(fresh, PATH), fresh, durable)
            fresh.crash(chooser)
            assert (recovered(fresh) or 0) >= max(durable, default=0)
            points += 1
        assert points >= 300


def work(file: CursorFile, disk: FaultFilesystem, durable: list[int]) -> int:
    """Write and sync, with one failed sync; append to `durable` what must be found from then on. Returns the calls."""
    for position in range(2, 9):
        file.write(state(position))
        if position == 5:
            disk.errors = failing("sync", errno.EIO, PATH)
            with pytest.raises(StorageError):
                file.sync()
            disk.errors = no_errors
        elif position == 6 or position % 2:
            file.sync()
            durable.append(position)
    return disk.calls


class TestUnreadable:
    @pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ELOOP])
    def test_a_file_that_cannot_be_opened_is_set_aside(self, disk: FaultFilesystem, code: int) -> None:
        disk.write_bytes(PATH, b"foreign")
        disk.errors = failing("open", code)
        file = CursorFile(disk, PATH)
        disk.errors = no_errors
        assert file.recovered is None
        file.write(state(2))
        file.sync()
        disk.crash(LoseAll())
        assert recovered(disk) == 2
        assert disk.read_bytes(PATH.with_suffix(".unreadable")) == b"foreign"

    def test_what_is_set_aside_does_not_replace_what_was_set_aside_before(self, disk: FaultFilesystem) -> None:
        for content in (b"first", b"second", b"third"):
            disk.errors = no_errors
            disk.unlink(PATH)
            disk.write_bytes(PATH, content)
            disk.errors = failing("open", errno.EISDIR)
            CursorFile(disk, PATH).close()
        kept = [disk.read_bytes(path) for path in disk.paths() if ".unreadable" in path.name]
        assert kept == [b"first", b"second", b"third"]

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EROFS])
    def test_a_shortage_is_no_reason_to_give_up_a_cursor(self, disk: FaultFilesystem, code: int) -> None:
        CursorFile(disk, PATH).write(state(2))
        disk.errors = failing("open", code)
        with pytest.raises(StorageError, match=str(PATH)):
            CursorFile(disk, PATH)
        disk.errors = no_errors
        assert recovered(disk) == 2

    def test_a_directory_that_takes_no_file_is_an_error(self, disk: FaultFilesystem) -> None:
        disk.errors = failing("create", errno.EACCES)
        with pytest.raises(StorageError, match="Permission denied"):
            CursorFile(disk, PATH)

    @pytest.mark.parametrize("operation", ["open", "pread"])
    def test_an_error_that_passes_costs_no_checkpoint(self, disk: FaultFilesystem, operation: str) -> None:
        file = CursorFile(disk, PATH)
        for position in (2, 3):
            file.write(state(position))
            file.sync()
        file.close()
        disk.errors = failing_times(operation, 1)
        assert recovered(disk) == 3
        assert disk.paths() == [PATH]

    def test_a_slot_that_cannot_be_read_is_as_good_as_empty(self, disk: FaultFilesystem) -> None:
        file = CursorFile(disk, PATH)
        file.write(state(2))
        file.sync()
        file.write(state(3))
        file.close()
        disk.errors = failing_times("pread", 2)
        assert recovered(disk) in {2, 3}
        disk.errors = failing("pread", errno.EIO)
        assert recovered(disk) is None

    @pytest.mark.parametrize("size", [0, 1, SLOT_BYTES - 1, SLOT_BYTES + 5])
    def test_a_file_that_lost_its_end_is_completed(self, disk: FaultFilesystem, size: int) -> None:
        CursorFile(disk, PATH).write(state(2))
        disk.truncate_durable(PATH, size)
        file = CursorFile(disk, PATH)
        assert file.recovered is None
        assert len(disk.read_bytes(PATH)) == 2 * SLOT_BYTES
        file.write(state(3))
        file.close()
        assert recovered(disk) == 3

    @pytest.mark.parametrize("operation", ["pwrite", "size", "sync", "sync_directory"])
    def test_what_cannot_be_made_durable_at_the_start_is_written_anew(
        self, disk: FaultFilesystem, operation: str
    ) -> None:
        CursorFile(disk, PATH).write(state(2))
        disk.kill()
        disk.errors = failing(operation, errno.EIO)
        file = CursorFile(disk, PATH)
        assert (file.recovered, disk.open_files) == (state(2), 0)
        disk.errors = no_errors
        file.write(state(3))
        disk.crash(KeepAll())
        assert recovered(disk) == 3
