"""A file that is replaced is there whole, as it was or as it is to be, whatever the disk and crashes do."""

import errno
import itertools
from pathlib import Path

import pytest

from agent.queue.atomic import Replacement, replace_file
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

PLACE = Path("/place")
TARGET, UNFINISHED = PLACE / "file", PLACE / "file.new"


@pytest.fixture
def disk() -> FaultFilesystem:
    disk = FaultFilesystem()
    disk.make_directory(PLACE)
    replace_file(disk, TARGET, b"old").close()
    return disk


def test_a_replaced_file_is_durable_on_return_and_open(disk: FaultFilesystem) -> None:
    file = replace_file(disk, TARGET, b"new")
    assert file.pread(9, 0) == b"new"
    file.close()
    disk.crash(LoseAll())
    assert (disk.paths(), disk.read_bytes(TARGET)) == ([TARGET], b"new")


@pytest.mark.parametrize("operation", ["unlink", "create", "pwrite", "sync", "rename"])
def test_a_disk_that_refuses_leaves_what_was_there_and_nothing_else(disk: FaultFilesystem, operation: str) -> None:
    disk.errors = failing(operation, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        replace_file(disk, TARGET, b"new")
    disk.errors = no_errors
    assert (disk.paths(), disk.read_bytes(TARGET), disk.open_files) == ([TARGET], b"old", 0)


def test_a_name_that_is_not_durable_is_an_error_and_the_file_is_whole(disk: FaultFilesystem) -> None:
    disk.errors = failing("sync_directory", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        replace_file(disk, TARGET, b"new")
    disk.errors = no_errors
    assert (disk.paths(), disk.read_bytes(TARGET), disk.open_files) == ([TARGET], b"new", 0)


@pytest.mark.parametrize(
    "chooser", [LoseAll(), KeepAll(), *map(RandomChooser, range(10))], ids=lambda chooser: type(chooser).__name__
)
def test_a_crash_leaves_the_old_file_or_the_new_one_and_the_next_attempt_works(chooser: Chooser) -> None:
    for call in itertools.count():
        disk = FaultFilesystem()
        disk.make_directory(PLACE)
        replace_file(disk, TARGET, b"old").close()
        disk.crash_at(disk.calls + call, "after")
        try:
            replace_file(disk, TARGET, b"new").close()
        except Crash:
            disk.crash(chooser)
            assert disk.read_bytes(TARGET) in (b"old", b"new")
            replace_file(disk, TARGET, b"newer").close()
            assert (disk.paths(), disk.read_bytes(TARGET)) == ([TARGET], b"newer")
        else:
            break
    assert call >= 6


def test_what_is_discarded_leaves_no_trace_and_discarding_what_is_in_place_leaves_it(disk: FaultFilesystem) -> None:
    Replacement(disk, TARGET, PLACE / "other").discard()
    assert (disk.paths(), disk.read_bytes(TARGET)) == ([TARGET], b"old")
    replacement = Replacement(disk, TARGET)
    replacement.file.pwrite(b"new", 0)
    replacement.commit()
    replacement.discard()
    assert (disk.paths(), disk.read_bytes(TARGET), disk.open_files) == ([TARGET], b"new", 0)
