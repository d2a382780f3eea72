"""A disk in memory that can fail, fill up, and lose whatever nobody synced: the fake of agent.queue.filesystem.

What survives `crash()`, where the chooser decides among all that is allowed:

- *Contents.* `sync` makes a file's data and length durable. Each write and truncation since then survives or not by itself,
  in any order: nothing of it, only its length (zeros in place of data), a prefix, some of its 512-byte sectors, or all.
- *Names.* A name created, renamed or removed is durable after `sync_directory` of its parent, never through `File.sync`.
  Operations on one name survive in order; operations on different names are independent, which is all that POSIX promises.
  `ordered_names=True` adds what ext4's journal does: a directory keeps a prefix of its operations. A rename is always
  atomic, between directories too. `make_directory` is durable on return, so directories always survive, and so do removals:
  `remove_directory` is durable too.
- *A failed sync* marks the pages clean, as Linux does: what was written before is still read back, a later sync succeeds,
  and yet the data is gone after a crash; where the file grew, zeros stand in its place.
  (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020.)

`kill()` ends the process but not the machine: handles and locks die, unsynced data stays visible and stays unsynced.

Room is counted in bytes of file length (a hole counts, a name does not), and comes back when a file has neither a name
nor an open handle. Use it from one thread at a time. `copy.deepcopy` of it is an equal disk to crash in another way.
"""

import contextlib
import copy
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Never, Self, TypeVar

from agent.queue.filesystem import DIRECTORY_MODE, FILE_MODE
from tests.support.crash_model import (
    Chooser,
    Inode,
    KeepAll,
    LoseAll,
    NameChange,
    Names,
    RandomChooser,
    Resize,
    ScriptedChooser,
    Write,
    every_outcome,
    os_error,
)

__all__ = [
    "MUTATING",
    "Call",
    "Chooser",
    "Crash",
    "FaultFile",
    "FaultFilesystem",
    "FaultLock",
    "KeepAll",
    "LoseAll",
    "RandomChooser",
    "ScriptedChooser",
    "every_outcome",
    "failing",
    "no_errors",
]

T = TypeVar("T")
ErrorRule = Callable[[str, Path], OSError | None]
When = Literal["before", "after"]

UNLIMITED: Final = 1 << 40
MUTATING: Final = frozenset(
    {
        *("create", "lock", "make_directory", "pwrite", "remove_directory", "rename"),
        *("set_mode", "sync", "sync_directory", "truncate", "unlink"),
    }
)
"""The operations that change what a crash may leave; crash points around the others only repeat these."""


class Crash(BaseException):
    """The process died here. Every call raises it again, cleanups included, until `crash()` or `kill()`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its index from 0, the operation (the method's name), and the path it was opened or called with."""

    index: int
    operation: str
    path: Path

    def __deepcopy__(self, _: object) -> Self:
        """Return itself: nothing of it can change, and disks are copied often."""
        return self


def no_errors(_operation: str, _path: Path) -> OSError | None:
    """Answer that the disk is healthy: the rule to put back after a fault."""
    return None


def failing(operation: str, code: int, path: Path | None = None) -> ErrorRule:
    """Return the rule under which every such operation (on `path`, if given) fails with errno `code`."""

    def rule(called: str, called_path: Path) -> OSError | None:
        return os_error(code, called_path) if called == operation and path in {None, called_path} else None

    return rule


class Faults:
    """Numbers and logs the calls, makes the chosen ones fail, and lets the process die around them.

    `calls` is the index of the next call. `errors` is asked before each one and may answer with the error to raise.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.log: list[Call] = []
        self.errors: ErrorRule = no_errors
        self._failures: dict[int, OSError] = {}
        self._crashes: dict[int, When] = {}
        self._dead = False

    def fail_at(self, call_index: int, error: OSError) -> None:
        """Make the call with this index fail."""
        self._failures[call_index] = error

    def crash_at(self, call_index: int, when: When) -> None:
        """Raise Crash in the call with this index: before it does anything, or after all it does, failing included.

        It is for this process: `crash()` and `kill()` forget it.
        """
        self._crashes[call_index] = when

    def perform(
        self, operation: str, path: Path, action: Callable[[], T], spoil: Callable[[], None] = lambda: None
    ) -> T:
        """Do `action` as one call; where an error was ordered, `spoil` and raise that."""
        if self._dead:
            self._die()
        call = Call(self.calls, operation, path)
        self.log.append(call)
        self.calls += 1
        when = self._crashes.get(call.index)
        if when == "before":
            self._die()
        try:
            return self._attempt(call, action, spoil)
        finally:
            if when == "after":
                self._die()

    def _attempt(self, call: Call, action: Callable[[], T], spoil: Callable[[], None]) -> T:
        error = self._failures.get(call.index) or self.errors(call.operation, call.path)
        if error is None:
            return action()
        spoil()
        raise error

    def _die(self) -> Never:
        self._dead = True
        raise Crash(self.log[-1])


class FaultFile:
    """A File of a FaultFilesystem; EBADF once it is closed or its process died."""

    def __init__(self, disk: "FaultFilesystem", path: Path, inode: Inode, *, writable: bool) -> None:
        inode.references += 1
        disk.open_files += 1
        self._disk, self._path, self._inode, self._writable = disk, path, inode, writable
        self._life: int | None = disk.life

    def pread(self, size: int, offset: int) -> bytes:
        return self._disk.perform("pread", self._path, lambda: bytes(self._alive().data[offset : offset + size]))

    def pwrite(self, data: bytes, offset: int) -> None:
        def write(length: int) -> None:
            self._disk.write(self._alive(if_read_only=errno.EBADF), offset, bytes(data[:length]))

        partial = self._disk.partial
        self._disk.perform("pwrite", self._path, lambda: write(len(data)), lambda: write(partial.choose(len(data) + 1)))

    def truncate(self, size: int) -> None:
        self._disk.perform(
            "truncate", self._path, lambda: self._disk.truncate(self._alive(if_read_only=errno.EINVAL), size)
        )

    def sync(self) -> None:
        partial = self._disk.partial
        self._disk.perform("sync", self._path, lambda: self._alive().sync(), lambda: self._alive().fail_sync(partial))

    def size(self) -> int:
        return self._disk.perform("size", self._path, lambda: len(self._alive().data))

    def has_name(self) -> bool:
        return self._disk.perform("has_name", self._path, lambda: self._disk.is_named(self._alive()))

    def close(self) -> None:
        self._disk.perform("close", self._path, self._close)

    def _close(self) -> None:
        self._disk.release(self._alive())
        self._disk.open_files -= 1
        self._life = None

    def _alive(self, *, if_read_only: int | None = None) -> Inode:
        if self._life != self._disk.life:
            raise os_error(errno.EBADF, self._path)
        if if_read_only is not None and not self._writable:
            raise os_error(if_read_only, self._path)
        return self._inode


class FaultLock:
    """A Lock of a FaultFilesystem; EBADF once it is released or its process died."""

    def __init__(self, disk: "FaultFilesystem", path: Path, inode: Inode) -> None:
        inode.references += 1
        self._disk, self._path, self._inode = disk, path, inode
        self._life: int | None = disk.life

    def release(self) -> None:
        self._disk.perform("release", self._path, self._release)

    def _release(self) -> None:
        if self._life != self._disk.life:
            raise os_error(errno.EBADF, self._path)
        self._life = None
        self._disk.unlock(self._inode)


class FaultFilesystem(Faults):
    """A Filesystem in memory, with `/` and `.` as its first directories.

    `capacity` is in bytes, None without a limit, and may be changed at any time. `partial` chooses how much of a write or
    sync that fails by order is done all the same: nothing, unless a test sets another chooser.
    """

    def __init__(self, *, capacity: int | None = None, ordered_names: bool = False) -> None:
        super().__init__()
        self.capacity = capacity
        self.partial: Chooser = LoseAll()
        self.used = 0
        self.open_files = 0
        self.life = 0
        self._names = Names(ordered=ordered_names)
        self._locked: set[Inode] = set()
        self._modes: dict[Path, int] = {}

    def create(self, path: Path) -> FaultFile:
        return self.perform("create", path, lambda: self._create(path))

    def open(self, path: Path, *, writable: bool = False) -> FaultFile:
        return self.perform("open", path, lambda: FaultFile(self, path, self._names.inode(path), writable=writable))

    def make_directory(self, path: Path) -> None:
        self.perform("make_directory", path, lambda: self._names.make_directory(path))

    def names(self, directory: Path) -> list[str]:
        return self.perform("names", directory, lambda: sorted(self._names.entries(directory)))

    def rename(self, source: Path, target: Path) -> None:
        """Move a file; a directory cannot be moved here."""
        self.perform("rename", source, lambda: self._rename(source, target))

    def unlink(self, path: Path) -> None:
        self.perform("unlink", path, lambda: self._unlink(path))

    def sync_directory(self, path: Path) -> None:
        self.perform("sync_directory", path, lambda: self._names.sync(path))

    def is_directory(self, path: Path) -> bool:
        return self.perform("is_directory", path, lambda: self._names.is_directory(path))

    def remove_directory(self, path: Path) -> None:
        self.perform("remove_directory", path, lambda: self._names.remove_directory(path))

    def mode(self, path: Path) -> int:
        """Return what it was created with, or what was set last; permissions survive everything, and keep nobody out."""
        return self.perform("mode", path, lambda: self._mode(path))

    def set_mode(self, path: Path, mode: int) -> None:
        """Change it; durable at once."""
        self.perform("set_mode", path, lambda: self._set_mode(path, mode))

    def free_bytes(self, directory: Path) -> int:
        return self.perform("free_bytes", directory, lambda: self._room_in(directory))

    def lock(self, path: Path, *, create: bool = True) -> FaultLock | None:
        return self.perform("lock", path, lambda: self._lock(path, create=create))

    def crash(self, chooser: Chooser) -> None:
        """Cut the power: keep what is durable and what the chooser spares of the rest, and start a new process."""
        self._names.crash(chooser)
        self.kill()

    def kill(self) -> None:
        """End the process alone and start a new one: handles and locks die, what was unsynced remains so."""
        self.life += 1
        self._dead = False
        self._crashes.clear()
        self.open_files = 0
        self._locked.clear()
        inodes = self._names.files().values()
        for inode in inodes:
            inode.references = 1
        self.used = sum(len(inode.data) for inode in inodes)

    def twin(self) -> Self:
        """Return an equal disk, without the log of calls: that is most of a disk that has worked for long."""
        log, self.log = self.log, []
        try:
            return copy.deepcopy(self)
        finally:
            self.log = log

    def paths(self) -> list[Path]:
        """Return every file's path, sorted, without a call."""
        return sorted(self._names.files())

    def read_bytes(self, path: Path) -> bytes:
        """Return what a process would read, without a call."""
        return bytes(self._names.inode(path).data)

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Put a durable file there, with its directories, without a call; the directory's names become durable too."""
        self._names.make_directory(path.parent)
        inode = self._found_or_added(path)
        self._names.sync(path.parent)
        self.truncate(inode, 0)
        self.write(inode, 0, data)
        inode.sync()

    def flip(self, path: Path, offset: int, bit: int) -> None:
        """Rot one bit of a file, without a call; its contents become durable."""
        inode = self._names.inode(path)
        inode.sync()
        for view in (inode.data, inode.durable):
            view[offset] ^= 1 << bit

    def truncate_durable(self, path: Path, size: int) -> None:
        """Rot a file's length, without a call; its contents become durable."""
        inode = self._names.inode(path)
        self.truncate(inode, size)
        inode.sync()

    def write(self, inode: Inode, offset: int, data: bytes) -> None:
        """Write what there is room for (FaultFile asks); ENOSPC if that is not all."""
        fitting = data[: max(0, len(inode.data) + self._room() - offset)]
        if fitting:
            self._change(inode, Write(offset, fitting))
        if len(fitting) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def truncate(self, inode: Inode, size: int) -> None:
        """Set the length (FaultFile asks); ENOSPC if a longer one finds no room."""
        if size - len(inode.data) > self._room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._change(inode, Resize(size))

    def is_named(self, inode: Inode) -> bool:
        """Tell whether a name means this file (FaultFile asks)."""
        return self._names.has_name(inode)

    def release(self, inode: Inode) -> None:
        """Take one reference away (a handle closes, a name goes), and with the last the room."""
        inode.references -= 1
        if inode.references == 0:
            self.used -= len(inode.data)

    def unlock(self, inode: Inode) -> None:
        """Give the lock on this file up (FaultLock asks)."""
        self._locked.remove(inode)
        self.release(inode)

    def _change(self, inode: Inode, change: Write | Resize) -> None:
        before = len(inode.data)
        inode.change(change)
        self.used += len(inode.data) - before

    def _room(self) -> int:
        return UNLIMITED if self.capacity is None else max(0, self.capacity - self.used)

    def _room_in(self, directory: Path) -> int:
        self._names.entries(directory)
        return self._room()

    def _create(self, path: Path) -> FaultFile:
        if path.name in self._names.entries(path.parent):
            raise os_error(errno.EEXIST, path)
        return FaultFile(self, path, self._add(path), writable=True)

    def _found_or_added(self, path: Path) -> Inode:
        return self._names.inode(path) if path.name in self._names.entries(path.parent) else self._add(path)

    def _add(self, path: Path) -> Inode:
        inode = Inode()
        self._rename_all({path: inode})
        return inode

    def _rename(self, source: Path, target: Path) -> None:
        _, targets = self._names.entries(source.parent), self._names.entries(target.parent)
        inode = self._names.inode(source)
        if targets.get(target.name, inode) is None:
            raise os_error(errno.ENOTEMPTY if target in source.parents else errno.EISDIR, target)
        if target != source:
            self._rename_all({target: inode, source: None})

    def _unlink(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._names.inode(path)
            self._rename_all({path: None})

    def _mode(self, path: Path) -> int:
        try:
            self._names.inode(path)
        except IsADirectoryError:
            return self._modes.get(path, DIRECTORY_MODE)
        return self._modes.get(path, FILE_MODE)

    def _set_mode(self, path: Path, mode: int) -> None:
        self._mode(path)
        self._modes[path] = mode

    def _rename_all(self, change: NameChange) -> None:
        for nameless in self._names.change(change):
            self.release(nameless)

    def _lock(self, path: Path, *, create: bool) -> FaultLock | None:
        inode = self._found_or_added(path) if create else self._names.inode(path)
        if inode in self._locked:
            return None
        self._locked.add(inode)
        return FaultLock(self, path, inode)
