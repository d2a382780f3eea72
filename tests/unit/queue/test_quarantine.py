"""Damaged bytes are kept once, whole, and never at the queue's expense."""

import errno
from pathlib import Path

import pytest

from agent.queue.filesystem import OsFilesystem
from agent.queue.quarantine import DamagedBytes, Quarantine
from tests.support.fault_filesystem import Chooser, Crash, FaultFilesystem, KeepAll, LoseAll, failing, no_errors
from tests.support.queue_files import QUARANTINE, quarantined


@pytest.fixture
def disk() -> FaultFilesystem:
    return FaultFilesystem()


def test_bytes_are_kept_durably_and_named_by_where_they_were(disk: FaultFilesystem) -> None:
    Quarantine(disk, QUARANTINE).keep(DamagedBytes(17, 28, b"rot"))
    disk.crash(LoseAll())
    [path] = disk.paths()
    assert path.name.startswith("00000000000000000017-0000000028-")
    assert quarantined(disk) == [b"rot"]


def test_the_same_damage_is_kept_and_counted_once(disk: FaultFilesystem) -> None:
    for expected in (1, 0):
        quarantine = Quarantine(disk, QUARANTINE)
        for _ in range(3):
            quarantine.keep(DamagedBytes(1, 28, b"rot"))
        assert quarantine.copies == (expected, 0)
    assert quarantined(disk) == [b"rot"]


def test_what_is_no_file_of_ours_keeps_nothing_out(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "directory").mkdir()
    quarantine = Quarantine(OsFilesystem(), tmp_path)
    quarantine.keep(DamagedBytes(17, 28, b"rot"))
    assert quarantine.copies == (1, 0)
    assert [path.read_bytes() for path in tmp_path.glob("*.bin")] == [b"rot"]


def test_other_damage_at_the_same_place_is_kept_too(disk: FaultFilesystem) -> None:
    quarantine = Quarantine(disk, QUARANTINE)
    quarantine.keep(DamagedBytes(1, 28, b"rot"))
    quarantine.keep(DamagedBytes(1, 28, b"more rot"))
    assert quarantine.copies.kept == 2
    assert sorted(quarantined(disk)) == [b"more rot", b"rot"]


def test_beyond_its_size_nothing_more_is_kept_but_counted_whoever_filled_it(disk: FaultFilesystem) -> None:
    Quarantine(disk, QUARANTINE, max_bytes=10).keep(DamagedBytes(1, 28, b"six by"))
    quarantine = Quarantine(disk, QUARANTINE, max_bytes=10)
    for data in (b"fives", b"four", b"x"):
        quarantine.keep(DamagedBytes(2, 28, data))
    assert quarantine.copies == (1, 2)
    assert sorted(quarantined(disk)) == [b"four", b"six by"]


@pytest.mark.parametrize("operation", ["make_directory", "names", "create", "pwrite", "sync", "rename"])
def test_a_disk_that_refuses_is_counted_and_leaves_nothing(disk: FaultFilesystem, operation: str) -> None:
    quarantine = Quarantine(disk, QUARANTINE)
    disk.errors = failing(operation, errno.ENOSPC)
    quarantine.keep(DamagedBytes(1, 28, b"rot"))
    assert (quarantine.copies, disk.paths(), disk.open_files) == ((0, 1), [], 0)
    disk.errors = no_errors
    quarantine.keep(DamagedBytes(1, 28, b"rot"))
    assert (quarantine.copies.kept, quarantined(disk)) == (1, [b"rot"])


@pytest.mark.parametrize("chooser", [LoseAll(), KeepAll()], ids=["lost", "kept"])
@pytest.mark.parametrize("call", range(8))
def test_a_copy_that_a_crash_cut_short_is_made_again(disk: FaultFilesystem, call: int, chooser: Chooser) -> None:
    quarantine = Quarantine(disk, QUARANTINE)
    disk.crash_at(call, "after")
    with pytest.raises(Crash):
        quarantine.keep(DamagedBytes(1, 28, b"rot"))
    disk.crash(chooser)
    Quarantine(disk, QUARANTINE).keep(DamagedBytes(1, 28, b"rot"))
    assert [path.suffix for path in disk.paths()] == [".bin"]
    assert quarantined(disk) == [b"rot"]


def test_it_works_on_a_real_disk(tmp_path: Path) -> None:
    directory = tmp_path / "quarantine"
    quarantine = Quarantine(OsFilesystem(), directory)
    quarantine.keep(DamagedBytes(1, 28, b"rot"))
    assert [path.read_bytes() for path in directory.iterdir()] == [b"rot"]
