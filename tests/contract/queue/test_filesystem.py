"""What the queue may rely on from any Filesystem: the same promises held by the real disk and by the fake."""

import errno
import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.queue.filesystem import (
    BLOCK_BYTES,
    FOREIGN,
    File,
    Filesystem,
    OsFile,
    OsFilesystem,
    read_around,
    remove_unfinished,
)
from tests.support.fault_filesystem import FaultFilesystem

FILESYSTEMS: tuple[Callable[[], Filesystem], ...] = (OsFilesystem, FaultFilesystem)
HOLD_LOCK = """
import fcntl, sys
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Disk:
    """A filesystem and an empty directory on it."""

    filesystem: Filesystem
    root: Path

    def put(self, name: str, data: bytes) -> Path:
        """Create a file of that name and contents."""
        path = self.root / name
        file = self.filesystem.create(path)
        file.pwrite(data, 0)
        file.close()
        return path

    def get(self, path: Path) -> bytes:
        """Read a whole file."""
        file = self.filesystem.open(path)
        data = file.pread(file.size(), 0)
        file.close()
        return data


@pytest.fixture(params=FILESYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    filesystem: Filesystem = request.param()
    filesystem.make_directory(tmp_path)
    return Disk(filesystem, tmp_path)


@pytest.fixture
def file(disk: Disk) -> Iterator[File]:
    file = disk.filesystem.create(disk.root / "file")
    yield file
    file.close()


class TestFiles:
    def test_create_makes_an_empty_file(self, file: File) -> None:
        assert (file.size(), file.pread(10, 0)) == (0, b"")

    def test_create_refuses_a_name_that_is_taken(self, disk: Disk) -> None:
        path = disk.put("taken", b"mine")
        with pytest.raises(FileExistsError):
            disk.filesystem.create(path)
        assert disk.get(path) == b"mine"

    def test_open_refuses_a_missing_name(self, disk: Disk) -> None:
        with pytest.raises(FileNotFoundError):
            disk.filesystem.open(disk.root / "missing")

    @pytest.mark.parametrize("operation", ["create", "open", "lock"])
    def test_a_missing_directory_is_an_error(self, disk: Disk, operation: str) -> None:
        with pytest.raises(FileNotFoundError):
            getattr(disk.filesystem, operation)(disk.root / "missing" / "file")

    def test_a_file_is_read_only_unless_opened_writable(self, disk: Disk) -> None:
        path = disk.put("file", b"before")
        file = disk.filesystem.open(path)
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.pwrite(b"after", 0)
        with pytest.raises(OSError, match="Invalid argument"):
            file.truncate(0)
        file.close()
        assert disk.get(path) == b"before"

    def test_a_file_opened_writable_is_changed_in_place(self, disk: Disk) -> None:
        path = disk.put("file", b"before")
        file = disk.filesystem.open(path, writable=True)
        file.pwrite(b"AF", 1)
        file.close()
        assert disk.get(path) == b"bAFore"

    def test_handles_of_one_file_see_each_other(self, disk: Disk, file: File) -> None:
        reader = disk.filesystem.open(disk.root / "file")
        file.pwrite(b"seen", 0)
        assert reader.pread(4, 0) == b"seen"
        reader.close()

    @pytest.mark.parametrize(("size", "offset", "data"), [(3, 0, b"abc"), (3, 4, b"ef"), (3, 6, b""), (0, 0, b"")])
    def test_pread_is_short_only_at_the_end(self, file: File, size: int, offset: int, data: bytes) -> None:
        file.pwrite(b"abcdef", 0)
        assert file.pread(size, offset) == data

    def test_pwrite_fills_holes_with_zeros(self, file: File) -> None:
        file.pwrite(b"end", 4)
        assert (file.size(), file.pread(10, 0)) == (7, b"\0\0\0\0end")

    def test_pwrite_of_nothing_changes_nothing(self, file: File) -> None:
        file.pwrite(b"", 100)
        assert file.size() == 0

    @pytest.mark.parametrize(("size", "data"), [(0, b""), (2, b"ab"), (3, b"abc"), (5, b"abc\0\0")])
    def test_truncate_sets_the_size(self, file: File, size: int, data: bytes) -> None:
        file.pwrite(b"abc", 0)
        file.truncate(size)
        assert (file.size(), file.pread(10, 0)) == (size, data)

    def test_sync_keeps_what_was_written(self, disk: Disk, file: File) -> None:
        file.pwrite(b"kept", 0)
        file.sync()
        assert disk.get(disk.root / "file") == b"kept"

    def test_a_closed_file_is_of_no_use(self, disk: Disk) -> None:
        file = disk.filesystem.create(disk.root / "closed")
        file.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.size()


class TestReadAround:
    def test_a_healthy_file_is_read_as_it_is(self, file: File) -> None:
        data = bytes(range(256)) * 40
        file.pwrite(data, 0)
        assert read_around(file, 10_000, 100) == (data[100:10_100], 0)
        assert read_around(file, 20_000, 10_000) == (data[10_000:], 0)
        assert read_around(file, 5, 20_000) == (b"", 0)

    def test_bad_blocks_read_as_zeros(self) -> None:
        bad = FaultFilesystem()
        bad.write_bytes(Path("/file"), b"x" * 3 * BLOCK_BYTES)
        file = bad.open(Path("/file"))
        bad.fail_at(bad.calls + 2, OSError(errno.EIO, "bad block"))  # size, one block, and then this one
        data, lost = read_around(file, 3 * BLOCK_BYTES, 0)
        assert data == b"x" * BLOCK_BYTES + bytes(BLOCK_BYTES) + b"x" * BLOCK_BYTES
        assert lost == 1


class TestNames:
    def test_names_are_sorted_and_include_directories(self, disk: Disk) -> None:
        disk.put("c", b"")
        disk.put("a", b"")
        disk.filesystem.make_directory(disk.root / "b")
        assert disk.filesystem.names(disk.root) == ["a", "b", "c"]

    @pytest.mark.parametrize("operation", ["names", "sync_directory", "free_bytes"])
    def test_a_missing_directory_is_an_error(self, disk: Disk, operation: str) -> None:
        with pytest.raises(FileNotFoundError):
            getattr(disk.filesystem, operation)(disk.root / "missing")

    @pytest.mark.parametrize("operation", ["names", "sync_directory"])
    def test_a_file_is_no_directory(self, disk: Disk, operation: str) -> None:
        path = disk.put("file", b"")
        with pytest.raises(NotADirectoryError):
            getattr(disk.filesystem, operation)(path)

    def test_make_directory_is_nested_and_idempotent(self, disk: Disk) -> None:
        nested = disk.root / "one" / "two"
        disk.filesystem.make_directory(nested)
        disk.put("one/two/file", b"stays")
        disk.filesystem.make_directory(nested)
        assert disk.filesystem.names(nested) == ["file"]

    def test_rename_moves_a_file_between_directories(self, disk: Disk) -> None:
        disk.filesystem.make_directory(disk.root / "other")
        source, target = disk.put("source", b"moved"), disk.root / "other" / "target"
        disk.filesystem.rename(source, target)
        assert disk.filesystem.names(disk.root) == ["other"]
        assert disk.get(target) == b"moved"

    def test_rename_replaces_the_target(self, disk: Disk) -> None:
        source, target = disk.put("source", b"new"), disk.put("target", b"old")
        disk.filesystem.rename(source, target)
        assert disk.filesystem.names(disk.root) == ["target"]
        assert disk.get(target) == b"new"

    def test_rename_onto_itself_changes_nothing(self, disk: Disk) -> None:
        path = disk.put("file", b"same")
        disk.filesystem.rename(path, path)
        assert disk.get(path) == b"same"

    def test_rename_of_a_missing_file_is_an_error(self, disk: Disk) -> None:
        target = disk.put("target", b"stays")
        with pytest.raises(FileNotFoundError):
            disk.filesystem.rename(disk.root / "missing", target)
        assert disk.get(target) == b"stays"

    def test_rename_looks_for_both_directories_first(self, disk: Disk) -> None:
        file = disk.put("file", b"")
        with pytest.raises(NotADirectoryError):
            disk.filesystem.rename(disk.root / "missing", file / "target")

    @pytest.mark.parametrize(("source", "code"), [("file", errno.EISDIR), ("sub/file", errno.ENOTEMPTY)])
    def test_rename_replaces_no_directory(self, disk: Disk, source: str, code: int) -> None:
        disk.filesystem.make_directory(disk.root / "sub")
        path = disk.put(source, b"stays")
        with pytest.raises(OSError, match=r"directory|empty") as refusal:
            disk.filesystem.rename(path, disk.root / "sub")
        assert refusal.value.errno == code
        assert disk.get(path) == b"stays"

    def test_an_open_file_outlives_its_name(self, disk: Disk, file: File) -> None:
        disk.filesystem.unlink(disk.root / "file")
        file.pwrite(b"still here", 0)
        assert file.pread(10, 0) == b"still here"
        assert disk.filesystem.names(disk.root) == []

    def test_an_open_file_knows_whether_it_still_has_a_name(self, disk: Disk, file: File) -> None:
        assert file.has_name()
        disk.filesystem.rename(disk.root / "file", disk.root / "other")
        assert file.has_name()
        disk.filesystem.unlink(disk.root / "other")
        assert not file.has_name()

    def test_unlink_of_a_missing_file_is_fine(self, disk: Disk) -> None:
        disk.filesystem.unlink(disk.root / "missing")

    def test_sync_directory_keeps_the_names(self, disk: Disk) -> None:
        disk.put("file", b"")
        disk.filesystem.sync_directory(disk.root)
        assert disk.filesystem.names(disk.root) == ["file"]

    def test_files_and_directories_are_their_owners_alone_and_that_can_be_set_right(self, disk: Disk) -> None:
        path, directory = disk.put("file", b""), disk.root / "sub"
        disk.filesystem.make_directory(directory)
        assert (disk.filesystem.mode(path), disk.filesystem.mode(directory)) == (0o600, 0o700)
        disk.filesystem.set_mode(path, 0o644)
        assert disk.filesystem.mode(path) == 0o644
        disk.filesystem.set_mode(path, 0o600)
        assert disk.filesystem.mode(path) == 0o600

    def test_a_missing_file_has_no_mode(self, disk: Disk) -> None:
        with pytest.raises(FileNotFoundError):
            disk.filesystem.mode(disk.root / "missing")
        with pytest.raises(FileNotFoundError):
            disk.filesystem.set_mode(disk.root / "missing", 0o600)

    def test_what_interrupted_writes_left_is_removed_and_nothing_else(self, disk: Disk) -> None:
        disk.put("a.new", b"half")
        disk.put("b", b"whole")
        assert remove_unfinished(disk.filesystem, disk.root) == [disk.root / "a.new"]
        assert disk.filesystem.names(disk.root) == ["b"]
        assert remove_unfinished(disk.filesystem, disk.root / "missing") == []

    def test_free_bytes_are_there(self, disk: Disk) -> None:
        assert disk.filesystem.free_bytes(disk.root) > 0


class TestDirectories:
    def test_a_directory_is_told_from_a_file_and_from_nothing(self, disk: Disk) -> None:
        disk.filesystem.make_directory(disk.root / "one")
        found = [
            disk.filesystem.is_directory(path) for path in (disk.root / "one", disk.put("file", b""), disk.root / "no")
        ]
        assert found == [True, False, False]

    def test_an_empty_directory_is_removed_and_a_missing_one_is_fine(self, disk: Disk) -> None:
        path = disk.root / "one"
        disk.filesystem.make_directory(path)
        for _ in range(2):
            disk.filesystem.remove_directory(path)
        assert not disk.filesystem.is_directory(path)
        assert "one" not in disk.filesystem.names(disk.root)
        disk.filesystem.make_directory(path)
        assert disk.filesystem.names(path) == []

    def test_a_directory_that_is_not_empty_stays(self, disk: Disk) -> None:
        path = disk.root / "one"
        disk.filesystem.make_directory(path)
        kept = disk.put("one/file", b"kept")
        with pytest.raises(OSError, match="not empty"):
            disk.filesystem.remove_directory(path)
        assert disk.get(kept) == b"kept"
        disk.filesystem.unlink(kept)
        disk.filesystem.remove_directory(path)
        assert disk.filesystem.names(disk.root) == []

    def test_a_file_is_not_removed_as_a_directory(self, disk: Disk) -> None:
        path = disk.put("file", b"kept")
        with pytest.raises(NotADirectoryError):
            disk.filesystem.remove_directory(path)
        assert disk.get(path) == b"kept"


class TestLocks:
    def test_a_lock_is_exclusive_until_released(self, disk: Disk) -> None:
        path = disk.root / "lock"
        first = disk.filesystem.lock(path)
        assert first is not None
        assert disk.filesystem.lock(path) is None
        first.release()
        second = disk.filesystem.lock(path)
        assert second is not None
        second.release()

    def test_a_missing_lock_file_is_not_made_unless_it_is_wanted(self, disk: Disk) -> None:
        path = disk.root / "lock"
        with pytest.raises(FileNotFoundError):
            disk.filesystem.lock(path, create=False)
        assert disk.filesystem.names(disk.root) == []
        disk.put("lock", b"")
        lock = disk.filesystem.lock(path, create=False)
        assert lock is not None
        assert disk.filesystem.lock(path, create=False) is None
        lock.release()

    def test_the_lock_file_stays_and_keeps_its_contents(self, disk: Disk) -> None:
        path = disk.put("lock", b"pid")
        lock = disk.filesystem.lock(path)
        assert lock is not None
        lock.release()
        assert disk.get(path) == b"pid"

    def test_locks_on_different_files_do_not_meet(self, disk: Disk) -> None:
        locks = [disk.filesystem.lock(disk.root / name) for name in ("one", "two")]
        for lock in locks:
            assert lock is not None
            lock.release()


class TestOperatingSystem:
    """Promises that only a real disk can hold."""

    def test_several_may_make_the_same_directories_at_once(self, tmp_path: Path) -> None:
        def make(number: int) -> None:
            OsFilesystem().make_directory(tmp_path / "a" / "b" / "c" / str(number))

        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                list(pool.map(make, range(8)))
                assert len(OsFilesystem().names(tmp_path / "a/b/c")) == 8
                shutil.rmtree(tmp_path / "a")

    def test_a_link_to_a_directory_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "one")
        assert not OsFilesystem().is_directory(tmp_path / "link")
        with pytest.raises(NotADirectoryError):
            OsFilesystem().remove_directory(tmp_path / "link")

    def test_a_lock_on_a_file_that_was_removed_meanwhile_keeps_nobody_out_so_the_new_one_is_locked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "lock"
        flocks: list[int] = []

        def removed_before(fd: int, operation: int) -> None:
            if not flocks:
                path.unlink()
            flocks.append(fd)
            real(fd, operation)

        real = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", removed_before)
        lock = OsFilesystem().lock(path)
        assert lock is not None
        assert path.exists()
        assert OsFilesystem().lock(path) is None
        lock.release()

    def test_files_and_directories_are_private(self, tmp_path: Path) -> None:
        filesystem = OsFilesystem()
        filesystem.make_directory(tmp_path / "one" / "two")
        filesystem.create(tmp_path / "one" / "file").close()
        lock = filesystem.lock(tmp_path / "one" / "lock")
        assert lock is not None
        lock.release()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
        assert modes == {"one": 0o700, "two": 0o700, "file": 0o600, "lock": 0o600}

    def test_a_directory_may_be_in_one_that_cannot_be_opened(self, tmp_path: Path) -> None:
        """Root is refused nothing, so the refusal is said here."""

        class Refused(OsFilesystem):
            def sync_directory(self, path: Path) -> None:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))

        (tmp_path / "ours").mkdir()
        Refused().make_directory(tmp_path / "ours")
        with pytest.raises(PermissionError):
            Refused().make_directory(tmp_path / "new")

    def test_a_sync_asks_the_system(self) -> None:
        """What no test can see is whether it reaches the disk; but a pipe and /proc refuse what the system is asked."""
        reading, writing = os.pipe()
        with closing(OsFile(writing, nullcontext)) as pipe, pytest.raises(OSError, match="Invalid argument"):
            pipe.sync()
        os.close(reading)
        with pytest.raises(OSError, match="Invalid argument"):
            OsFilesystem().sync_directory(Path("/proc"))

    def test_syncs_say_that_they_wait(self, tmp_path: Path) -> None:
        said: list[str] = []

        @contextmanager
        def waiting() -> Iterator[None]:
            said.append("begun")
            yield
            said.append("over")

        fs = OsFilesystem(waiting)
        with closing(fs.create(tmp_path / "file")) as file:
            file.pwrite(b"a", 0)
            assert not said
            file.sync()
        fs.sync_directory(tmp_path)
        with closing(fs.open(tmp_path / "file", writable=True)) as file:
            file.sync()
        assert said == ["begun", "over"] * 3

    def test_a_lock_refuses_a_symbolic_link(self, tmp_path: Path) -> None:
        (tmp_path / "lock").symlink_to("elsewhere")
        with pytest.raises(OSError, match="symbolic links"):
            OsFilesystem().lock(tmp_path / "lock")
        assert not (tmp_path / "elsewhere").exists()

    def test_a_descriptor_is_closed_once(self, tmp_path: Path) -> None:
        file = OsFilesystem().create(tmp_path / "file")
        file.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.close()

    @pytest.mark.parametrize("writable", [False, True])
    def test_open_refuses_a_symbolic_link(self, tmp_path: Path, *, writable: bool) -> None:
        (tmp_path / "target").write_bytes(b"secret")
        (tmp_path / "link").symlink_to("target")
        with pytest.raises(OSError, match="symbolic links") as refusal:
            OsFilesystem().open(tmp_path / "link", writable=writable)
        assert refusal.value.errno == errno.ELOOP

    @pytest.mark.parametrize("target", ["existing", "missing"])
    def test_create_refuses_a_symbolic_link(self, tmp_path: Path, target: str) -> None:
        (tmp_path / "existing").touch()
        (tmp_path / "link").symlink_to(target)
        with pytest.raises(FileExistsError):
            OsFilesystem().create(tmp_path / "link")

    @pytest.mark.parametrize("writable", [False, True])
    def test_what_is_no_regular_file_is_not_opened_and_hangs_nobody(self, tmp_path: Path, writable: bool) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "directory").mkdir()
        (tmp_path / "link").symlink_to(tmp_path)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket"))
            for path in tmp_path.iterdir():
                with pytest.raises(OSError) as refusal:  # noqa: PT011 - the errno says it
                    OsFilesystem().open(path, writable=writable)
                assert refusal.value.errno in FOREIGN, path.name

    def test_a_lock_is_held_against_other_processes_and_dies_with_them(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        command = [sys.executable, "-c", HOLD_LOCK, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert OsFilesystem().lock(path) is None
            holder.kill()
        lock = OsFilesystem().lock(path)
        assert lock is not None
        lock.release()


@dataclass(frozen=True)
class Step:
    """One action of a random process; each action uses the fields it needs."""

    action: str
    name: str
    other: str
    size: int
    offset: int


@dataclass
class Process:
    """A disk and the handles a process has open on it, one for each name it opened."""

    disk: Filesystem
    root: Path
    files: dict[str, File] = field(default_factory=dict)

    def hold(self, name: str, file: File) -> None:
        """Keep the handle, in place of an older one."""
        self.close(name)
        self.files[name] = file

    def close(self, name: str) -> None:
        """Close the handle, if there is one."""
        if file := self.files.pop(name, None):
            file.close()

    def do(self, step: Step) -> object:
        """Return what the step answers: a value, an errno, or that there is no such handle."""
        try:
            return ACTIONS[step.action](self, step)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        except KeyError:
            return "not open"

    def contents(self) -> dict[str, bytes]:
        """Return every file by its name."""
        reader = Disk(self.disk, self.root)
        return {name: reader.get(self.root / name) for name in NAMES if self.has(name)}

    def has(self, name: str) -> bool:
        """Tell whether the file is there."""
        path = self.root / name
        return path.name in self.disk.names(path.parent)


NAMES = ("a", "b", "sub/a", "sub/b")
ACTIONS: dict[str, Callable[[Process, Step], object]] = {
    "create": lambda its, step: its.hold(step.name, its.disk.create(its.root / step.name)),
    "open": lambda its, step: its.hold(step.name, its.disk.open(its.root / step.name)),
    "open writable": lambda its, step: its.hold(step.name, its.disk.open(its.root / step.name, writable=True)),
    "close": lambda its, step: its.close(step.name),
    "pread": lambda its, step: its.files[step.name].pread(step.size, step.offset),
    "pwrite": lambda its, step: its.files[step.name].pwrite(bytes(range(1, step.size + 1)), step.offset),
    "truncate": lambda its, step: its.files[step.name].truncate(step.size),
    "sync": lambda its, step: its.files[step.name].sync(),
    "size": lambda its, step: its.files[step.name].size(),
    "names": lambda its, step: its.disk.names((its.root / step.name).parent),
    "names of a file": lambda its, step: its.disk.names(its.root / step.name),
    "rename": lambda its, step: its.disk.rename(its.root / step.name, its.root / step.other),
    "unlink": lambda its, step: its.disk.unlink(its.root / step.name),
    "sync_directory": lambda its, step: its.disk.sync_directory((its.root / step.name).parent),
    "make_directory": lambda its, step: its.disk.make_directory((its.root / step.name).parent),
}
STEPS = st.builds(
    Step,
    action=st.sampled_from(sorted(ACTIONS)),
    name=st.sampled_from(NAMES),
    other=st.sampled_from((*NAMES, "missing/a", "a/b", "sub")),
    size=st.integers(0, 40),
    offset=st.integers(0, 40),
)


@settings(deadline=None)
@given(steps=st.lists(STEPS, max_size=40))
def test_without_crashes_the_fake_cannot_be_told_from_the_real_disk(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        processes = [Process(disk(), Path(directory)) for disk in FILESYSTEMS]
        try:
            for process in processes:
                process.disk.make_directory(process.root / "sub")
            for step in steps:
                real, fake = (process.do(step) for process in processes)
                assert fake == real
            assert processes[1].contents() == processes[0].contents()
        finally:
            for process in processes:
                for name in NAMES:
                    process.close(name)
