"""The fake disk's own powers: what a crash may take, what it may not, and faults by order."""

import copy
import errno
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fault_filesystem import (
    MUTATING,
    Chooser,
    Crash,
    FaultFile,
    FaultFilesystem,
    KeepAll,
    LoseAll,
    RandomChooser,
    every_outcome,
    failing,
    no_errors,
)

ROOT = Path("/queue")
FILE = ROOT / "file"
OTHER = ROOT / "other"


class Drawn:
    """Lets Hypothesis choose."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def choose(self, n: int) -> int:
        return self._data.draw(st.integers(0, n - 1))


@pytest.fixture
def disk() -> FaultFilesystem:
    """Return a disk with `FILE` durably holding b"old"."""
    disk = FaultFilesystem()
    disk.write_bytes(FILE, b"old")
    return disk


def write(disk: FaultFilesystem, data: bytes, offset: int = 0, path: Path = FILE) -> FaultFile:
    file = disk.open(path, writable=True)
    file.pwrite(data, offset)
    return file


def after_crash(disk: FaultFilesystem, chooser: Chooser) -> FaultFilesystem:
    crashed = copy.deepcopy(disk)
    crashed.crash(chooser)
    return crashed


def every_state(disk: FaultFilesystem) -> set[tuple[tuple[str, bytes], ...]]:
    """Return all that a crash may leave: each state as pairs of name and contents."""
    crashed = (after_crash(disk, chooser) for chooser in every_outcome())
    return {tuple((path.name, each.read_bytes(path)) for path in each.paths()) for each in crashed}


def every_content(disk: FaultFilesystem) -> set[bytes]:
    return {dict(state)["file"] for state in every_state(disk)}


class TestContents:
    @pytest.mark.parametrize(("chooser", "left"), [(LoseAll(), b"old"), (KeepAll(), b"new!")])
    def test_unsynced_data_is_at_the_choosers_mercy(self, disk: FaultFilesystem, chooser: Chooser, left: bytes) -> None:
        write(disk, b"new!")
        disk.crash(chooser)
        assert disk.read_bytes(FILE) == left

    def test_synced_data_is_kept_whatever_is_chosen(self, disk: FaultFilesystem) -> None:
        write(disk, b"new!").sync()
        assert every_content(disk) == {b"new!"}

    def test_a_write_may_be_lost_torn_or_only_lengthen_the_file(self, disk: FaultFilesystem) -> None:
        write(disk, b"XYZ", 3)
        assert every_content(disk) == {b"old", b"oldX", b"oldXY", b"oldXYZ", b"old\0\0\0"}

    def test_writes_survive_in_any_order(self, disk: FaultFilesystem) -> None:
        file = write(disk, b"1", 0)
        file.pwrite(b"2", 1)
        assert every_content(disk) == {b"old", b"1ld", b"o2d", b"12d"}

    def test_sectors_of_one_write_survive_independently(self, disk: FaultFilesystem) -> None:
        disk.write_bytes(FILE, b"." * 1536)
        write(disk, b"X" * 1536)
        sectors = itertools.product((b"." * 512, b"X" * 512), repeat=3)
        assert {b"".join(choice) for choice in sectors} <= every_content(disk)

    def test_sectors_are_those_of_the_file(self, disk: FaultFilesystem) -> None:
        disk.write_bytes(FILE, b"." * 1024)
        write(disk, b"XXXX", 510)
        middles = {content[510:514] for content in every_content(disk)}
        assert middles == {b"....", b"X...", b"XX..", b"XXX.", b"XXXX", b"..XX"}

    def test_a_truncation_survives_whole_or_not_at_all(self, disk: FaultFilesystem) -> None:
        disk.open(FILE, writable=True).truncate(1)
        assert every_content(disk) == {b"old", b"o"}

    def test_files_lose_independently(self, disk: FaultFilesystem) -> None:
        disk.write_bytes(OTHER, b"-")
        write(disk, b"F", 0)
        write(disk, b"O", 0, OTHER)
        combinations = itertools.product((b"old", b"Fld"), (b"-", b"O"))
        assert every_state(disk) == {(("file", file), ("other", other)) for file, other in combinations}

    def test_what_survived_is_durable_from_then_on(self, disk: FaultFilesystem) -> None:
        write(disk, b"new!")
        disk.crash(KeepAll())
        assert every_content(disk) == {b"new!"}

    @given(data=st.data(), seed=st.integers())
    def test_any_chooser_leaves_a_state_that_all_choices_leave(self, data: st.DataObject, seed: int) -> None:
        disk = FaultFilesystem()
        disk.write_bytes(FILE, b"old")
        write(disk, b"XYZ", 2)
        for chooser in (Drawn(data), RandomChooser(seed)):
            assert after_crash(disk, chooser).read_bytes(FILE) in every_content(disk)


class TestNames:
    def test_a_synced_file_is_lost_without_its_name(self, disk: FaultFilesystem) -> None:
        file = disk.create(OTHER)
        file.pwrite(b"data", 0)
        file.sync()
        assert every_state(disk) == {(("file", b"old"),), (("file", b"old"), ("other", b"data"))}

    def test_a_name_is_kept_once_its_directory_is_synced(self, disk: FaultFilesystem) -> None:
        disk.create(OTHER)
        disk.sync_directory(ROOT)
        assert every_state(disk) == {(("file", b"old"), ("other", b""))}

    def test_syncing_another_directory_keeps_no_name_here(self, disk: FaultFilesystem) -> None:
        disk.create(OTHER)
        disk.sync_directory(ROOT.parent)
        disk.crash(LoseAll())
        assert disk.paths() == [FILE]

    def test_an_unlinked_file_may_come_back_until_the_directory_is_synced(self, disk: FaultFilesystem) -> None:
        disk.unlink(FILE)
        assert every_state(disk) == {(), (("file", b"old"),)}
        disk.sync_directory(ROOT)
        assert every_state(disk) == {()}

    def test_a_rename_is_atomic(self, disk: FaultFilesystem) -> None:
        disk.write_bytes(OTHER, b"new")
        disk.rename(OTHER, FILE)
        assert every_state(disk) == {(("file", b"old"), ("other", b"new")), (("file", b"new"),)}

    @pytest.mark.parametrize("synced", [ROOT, ROOT / "sub"])
    def test_a_rename_between_directories_is_atomic(self, disk: FaultFilesystem, synced: Path) -> None:
        disk.make_directory(ROOT / "sub")
        disk.rename(FILE, ROOT / "sub" / "moved")
        assert every_state(disk) == {(("file", b"old"),), (("moved", b"old"),)}
        disk.sync_directory(synced)
        assert every_state(disk) == {(("moved", b"old"),)}

    def test_syncing_the_target_of_a_rename_keeps_the_source_gone(self, disk: FaultFilesystem) -> None:
        disk.make_directory(ROOT / "sub")
        disk.create(OTHER)
        disk.rename(OTHER, ROOT / "sub" / "moved")
        disk.sync_directory(ROOT / "sub")
        assert every_state(disk) == {(("file", b"old"), ("moved", b""))}

    def test_a_name_does_not_make_the_contents_durable(self, disk: FaultFilesystem) -> None:
        """The classic: write a temporary file, rename it over the old one, and find it empty."""
        disk.create(OTHER).pwrite(b"n", 0)
        disk.rename(OTHER, FILE)
        disk.sync_directory(ROOT)
        assert every_content(disk) == {b"", b"\0", b"n"}

    def test_operations_on_one_name_survive_in_order(self, disk: FaultFilesystem) -> None:
        disk.create(OTHER)
        disk.unlink(OTHER)
        disk.rename(FILE, OTHER)
        assert every_state(disk) == {(("file", b"old"),), (("file", b"old"), ("other", b"")), (("other", b"old"),)}

    @pytest.mark.parametrize(("ordered", "survivors"), [(False, {"", "a", "b", "ab"}), (True, {"", "a", "ab"})])
    def test_different_names_survive_independently_unless_ordered(self, *, ordered: bool, survivors: set[str]) -> None:
        disk = FaultFilesystem(ordered_names=ordered)
        for name in "ab":
            disk.create(Path(f"/{name}"))
        assert {"".join(name for name, _ in state) for state in every_state(disk)} == survivors

    def test_a_made_directory_survives(self, disk: FaultFilesystem) -> None:
        disk.make_directory(ROOT / "one" / "two")
        disk.crash(LoseAll())
        assert disk.names(ROOT / "one") == ["two"]


class TestFailedSync:
    def test_the_data_stays_visible_but_never_becomes_durable(self, disk: FaultFilesystem) -> None:
        disk.errors = failing("sync", errno.EIO)
        file = write(disk, b"new")
        with pytest.raises(OSError, match="Input/output error"):
            file.sync()
        disk.errors = no_errors
        file.sync()
        assert disk.read_bytes(FILE) == b"new"
        assert every_content(disk) == {b"old"}

    def test_zeros_stand_where_the_file_grew(self, disk: FaultFilesystem) -> None:
        disk.fail_at(disk.calls + 2, OSError(errno.EIO, "order"))
        file = write(disk, b"++", 3)
        with pytest.raises(OSError, match="order"):
            file.sync()
        assert every_content(disk) == {b"old", b"old\0\0"}
        file.pwrite(b"later", 5)
        file.sync()
        assert every_content(disk) == {b"old\0\0later"}

    def test_a_truncation_is_not_undone(self, disk: FaultFilesystem) -> None:
        disk.fail_at(disk.calls + 3, OSError(errno.EIO, "order"))
        file = disk.open(FILE, writable=True)
        file.truncate(1)
        file.pwrite(b"++", 1)
        with pytest.raises(OSError, match="order"):
            file.sync()
        file.sync()
        assert every_content(disk) == {b"o\0\0"}

    def test_some_pages_may_reach_the_disk_all_the_same(self, disk: FaultFilesystem) -> None:
        disk.errors, disk.partial = failing("sync", errno.EIO, FILE), KeepAll()
        with pytest.raises(OSError, match="Input/output error"):
            write(disk, b"new").sync()
        assert every_content(disk) == {b"new"}


class TestRoom:
    def test_a_write_past_the_room_is_partial(self) -> None:
        disk = FaultFilesystem(capacity=5)
        file = disk.create(Path("/file"))
        with pytest.raises(OSError, match="No space left") as refusal:
            file.pwrite(b"12345678", 0)
        assert refusal.value.errno == errno.ENOSPC
        assert disk.read_bytes(Path("/file")) == b"12345"

    def test_overwriting_in_place_needs_no_room(self, disk: FaultFilesystem) -> None:
        disk.capacity = 0
        write(disk, b"new")
        assert disk.read_bytes(FILE) == b"new"

    def test_lengthening_needs_room(self, disk: FaultFilesystem) -> None:
        disk.capacity = 4
        with pytest.raises(OSError, match="No space left"):
            disk.open(FILE, writable=True).truncate(5)

    @pytest.mark.parametrize(
        "give_back",
        [
            lambda disk: disk.unlink(FILE),
            lambda disk: disk.open(FILE, writable=True).truncate(0),
            lambda disk: disk.rename(OTHER, FILE),
        ],
    )
    def test_room_comes_back(self, disk: FaultFilesystem, give_back: Callable[[FaultFilesystem], None]) -> None:
        disk.write_bytes(OTHER, b"")
        disk.capacity = 10
        assert disk.free_bytes(ROOT) == 7
        give_back(disk)
        assert disk.free_bytes(ROOT) == 10

    def test_room_comes_back_only_when_the_last_handle_closes(self, disk: FaultFilesystem) -> None:
        disk.capacity = 3
        file = disk.open(FILE)
        disk.unlink(FILE)
        assert disk.free_bytes(ROOT) == 0
        file.close()
        assert disk.free_bytes(ROOT) == 3

    def test_a_crash_gives_back_what_it_took(self, disk: FaultFilesystem) -> None:
        disk.capacity = 10
        write(disk, b"12345", 3)
        disk.unlink(FILE)
        disk.crash(LoseAll())
        assert disk.free_bytes(ROOT) == 7


class TestFaults:
    def test_calls_are_numbered_and_logged(self, disk: FaultFilesystem) -> None:
        write(disk, b"new").sync()
        log = [(call.index, call.operation, call.path) for call in disk.log]
        assert log == [(0, "open", FILE), (1, "pwrite", FILE), (2, "sync", FILE)]
        assert disk.calls == 3
        assert {call.operation for call in disk.log} - MUTATING == {"open"}

    def test_reads_fail_by_rule(self, disk: FaultFilesystem) -> None:
        disk.errors = failing("pread", errno.EIO, FILE)
        disk.write_bytes(OTHER, b"fine")
        assert disk.open(OTHER).pread(4, 0) == b"fine"
        with pytest.raises(OSError, match="Input/output error"):
            disk.open(FILE).pread(4, 0)

    def test_a_call_that_fails_does_nothing(self, disk: FaultFilesystem) -> None:
        disk.fail_at(0, OSError(errno.EIO, "order"))
        with pytest.raises(OSError, match="order"):
            disk.unlink(FILE)
        assert disk.paths() == [FILE]

    def test_a_write_that_fails_may_be_partly_done(self, disk: FaultFilesystem) -> None:
        disk.partial = KeepAll()
        disk.fail_at(1, OSError(errno.EIO, "order"))
        with pytest.raises(OSError, match="order"):
            write(disk, b"new")
        assert disk.read_bytes(FILE) == b"new"

    def test_rot_is_durable(self, disk: FaultFilesystem) -> None:
        disk.flip(FILE, 0, 0)
        disk.truncate_durable(FILE, 2)
        assert every_content(disk) == {b"nl"}


class TestDeath:
    def test_a_crash_before_a_call_leaves_it_undone(self, disk: FaultFilesystem) -> None:
        disk.crash_at(0, "before")
        with pytest.raises(Crash):
            disk.unlink(FILE)
        disk.crash(KeepAll())
        assert disk.paths() == [FILE]

    def test_a_crash_after_a_call_leaves_it_done(self, disk: FaultFilesystem) -> None:
        disk.crash_at(0, "after")
        with pytest.raises(Crash):
            disk.unlink(FILE)
        disk.crash(KeepAll())
        assert disk.paths() == []

    def test_a_crash_after_a_call_that_fails_is_a_crash(self, disk: FaultFilesystem) -> None:
        disk.crash_at(0, "after")
        with pytest.raises(Crash):
            disk.create(FILE)

    def test_the_dead_clean_nothing_up(self, disk: FaultFilesystem) -> None:
        disk.crash_at(0, "before")
        with pytest.raises(Crash):
            disk.open(FILE)
        with pytest.raises(Crash):
            disk.unlink(FILE)
        assert (disk.calls, disk.paths()) == (1, [FILE])

    @pytest.mark.parametrize("end", [FaultFilesystem.kill, lambda disk: disk.crash(KeepAll())])
    def test_handles_and_locks_die_with_their_process(
        self, disk: FaultFilesystem, end: Callable[[FaultFilesystem], None]
    ) -> None:
        file, lock = disk.open(FILE), disk.lock(OTHER)
        assert lock is not None
        end(disk)
        assert disk.lock(OTHER) is not None
        for use in (file.size, file.sync, file.close, lock.release):
            with pytest.raises(OSError, match="Bad file descriptor"):
                use()
        assert disk.lock(OTHER) is None

    def test_a_closed_handle_and_a_released_lock_are_of_no_use(self, disk: FaultFilesystem) -> None:
        file, lock = disk.open(FILE), disk.lock(OTHER)
        assert lock is not None
        file.close()
        lock.release()
        for use in (file.size, file.close, lock.release):
            with pytest.raises(OSError, match="Bad file descriptor"):
                use()

    def test_a_kill_leaves_unsynced_data_visible_and_unsynced(self, disk: FaultFilesystem) -> None:
        write(disk, b"new")
        disk.kill()
        assert disk.read_bytes(FILE) == b"new"
        disk.crash(LoseAll())
        assert disk.read_bytes(FILE) == b"old"
