"""An export whose writing fails: the file is whole or not there."""

import copy
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.cli.queue.export import EventWriter, Export, writer
from agent.errors import AgentError
from agent.events import Event
from agent.queue.maintenance.browse import Origin
from tests.support.fault_filesystem import Crash, FaultFilesystem, KeepAll, LoseAll, RandomChooser, failing


class Kept(NamedTuple):
    """An event that waits."""

    context: Origin
    event: Event


EVENT = Kept(Origin(None, None), Event("s", "LOCAL", "MISS", "h"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond that; a write that would is cut short, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def export(target: Path, events: int) -> None:
    with writer(str(target), force=True, whole=False, noun="event") as made:
        for _ in range(events):
            made.add(EVENT)


def test_an_export_that_finds_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "copy.ndjson"
    export(target, 10)
    before = target.read_bytes()
    with (
        files_of_at_most(100_000),
        pytest.raises(AgentError, match="cannot write: File too large: nothing was exported"),
    ):
        export(target, 10_000)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == before
    assert before.count(b'"hash"') == 10


DISK, TARGET = Path("/exports"), Path("/exports/copy.ndjson")


def disk() -> FaultFilesystem:
    fs = FaultFilesystem()
    fs.make_directory(DISK)
    return fs


def export_to(fs: FaultFilesystem, events: int, *, force: bool = True) -> None:
    with Export(fs, TARGET, force=force) as made:
        lines = EventWriter(made.sink, whole=False)
        for _ in range(events):
            lines.add(EVENT)
        made.finish()


def test_an_export_that_was_reported_survives_a_power_cut() -> None:
    fs = disk()
    export_to(fs, 10)
    fs.crash(LoseAll())
    assert fs.paths() == [TARGET]
    assert fs.read_bytes(TARGET).count(b'"hash"') == 10


def test_a_crash_at_any_call_leaves_the_old_export_or_the_new_one_whole() -> None:
    first = disk()
    export_to(first, 3)
    before = first.calls
    export_to(copied := copy.deepcopy(first), 7)
    for index in range(before, copied.calls):
        for chooser in (LoseAll(), KeepAll(), RandomChooser(index)):
            fs = copy.deepcopy(first)
            fs.crash_at(index, "after")
            with pytest.raises(Crash):
                export_to(fs, 7)
            fs.crash(chooser)
            assert fs.read_bytes(TARGET).count(b'"hash"') in {3, 7}


@pytest.mark.parametrize("operation", ["create", "pwrite", "sync", "rename", "sync_directory", "names"])
def test_an_export_that_the_disk_refuses_is_an_error_and_leaves_nothing_unfinished(operation: str) -> None:
    fs = disk()
    fs.errors = failing(operation, errno.EIO)
    with pytest.raises(AgentError, match=f"{TARGET}: cannot write"):
        export_to(fs, 3, force=operation != "names")
    assert set(fs.paths()) <= ({TARGET} if operation == "sync_directory" else set())


def test_an_export_never_takes_a_name_that_is_taken_unless_it_may() -> None:
    fs = disk()
    export_to(fs, 3)
    with pytest.raises(AgentError, match="already exists"):
        export_to(fs, 4, force=False)
    assert fs.paths() == [TARGET]
    assert fs.read_bytes(TARGET).count(b'"hash"') == 3


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("precious")
    path.symlink_to("elsewhere")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize("make", [make_link, make_socket, os.mkfifo, Path.mkdir])
def test_only_a_regular_file_is_replaced(tmp_path: Path, make: Callable[[Path], object]) -> None:
    target = tmp_path / "copy.ndjson"
    make(target)
    before = target.lstat()
    with pytest.raises(AgentError, match="is not a regular file, so --force does not replace it"):
        export(target, 1)
    assert target.lstat() == before
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".new"]
