"""The seam between the queue and the disk: a small Protocol, and its only implementation on a real operating system.

Every method may raise OSError, which the callers translate: they know what a path is (segment, cursor, dead letter). Nothing here
retries, above all not a sync.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
BLOCK_BYTES = 4096

SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What says nothing of a file: this process or this machine lacks something, and may have it again in a moment."""


FOREIGN = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL})
"""What `open` says of a name that is not a regular file, so not one of ours: a directory, a link, a FIFO, a socket, a device."""


class File(Protocol):
    """One open file. Offsets and sizes are in bytes."""

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`; fewer only at the end of the file."""

    def pwrite(self, data: bytes, offset: int) -> None:
        """Write all of `data` at `offset`, or raise; after an error any part of it may have been written."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""

    def sync(self) -> None:
        """Make the contents durable (fdatasync). A failure is final for this file: do not call it again."""

    def size(self) -> int:
        """Return the file's length."""

    def has_name(self) -> bool:
        """Tell whether the file is still in a directory. One that somebody has deleted takes bytes, and nobody can find them."""

    def close(self) -> None:
        """Release the descriptor; never reports a failed write (sync did)."""


class Lock(Protocol):
    """An exclusive advisory lock on a file, held until released or until the process ends."""

    def release(self) -> None:
        """Give the lock up."""


class Filesystem(Protocol):
    """What the queue asks of a disk. A name created, renamed or removed is durable only after `sync_directory`."""

    def create(self, path: Path) -> File:
        """Create a file that must not exist yet, mode 0600, for reading and writing."""

    def open(self, path: Path, *, writable: bool = False) -> File:
        """Open an existing regular file. Raises OSError with an errno of FOREIGN for anything else."""

    def make_directory(self, path: Path) -> None:
        """Create a directory, mode 0700, with its parents; one that exists already is fine. Durable on return."""

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, sorted."""

    def rename(self, source: Path, target: Path) -> None:
        """Move a file, replacing the target atomically."""

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is fine."""

    def sync_directory(self, path: Path) -> None:
        """Make the directory's names durable."""

    def is_directory(self, path: Path) -> bool:
        """Tell whether a directory of its own stands there, not a link to one; False for nothing at all."""

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory; one that is gone already is fine."""

    def mode(self, path: Path) -> int:
        """Return a file's or directory's permissions, such as 0o600; of a symbolic link its own."""

    def set_mode(self, path: Path, mode: int) -> None:
        """Change them."""

    def free_bytes(self, directory: Path) -> int:
        """Return how many bytes this process could still write there."""

    def lock(self, path: Path, *, create: bool = True) -> Lock | None:
        """Lock the file at `path`, which it may have to create first; None if another process holds it."""


Waiting = Callable[[], AbstractContextManager[None]]


class OsFile:
    """A File on a real descriptor."""

    __slots__ = ("_fd", "_waiting")

    def __init__(self, fd: int, waiting: Waiting) -> None:
        self._fd = fd
        self._waiting = waiting

    def pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        while data and len(data) < size and (more := os.pread(self._fd, size - len(data), offset + len(data))):
            data += more
        return data

    def pwrite(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._fd, data, offset)
        while written < len(data):
            count = os.pwrite(self._fd, memoryview(data)[written:], offset + written)
            if count == 0:  # POSIX allows it for regular files; looping on it would hang
                raise OSError(errno.EIO, "a write of more than 0 bytes wrote none")
            written += count

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def sync(self) -> None:
        with self._waiting():
            os.fdatasync(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def has_name(self) -> bool:
        return os.fstat(self._fd).st_nlink > 0

    def close(self) -> None:
        try:
            os.close(self._fd)
        except OSError as error:
            if error.errno == errno.EBADF:  # closed twice: a mistake of ours, and perhaps somebody else's file
                raise


class OsLock:
    """A flock; the kernel releases it with the process, so it can never be stale."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        os.close(self._fd)


class OsFilesystem:
    """The operating system's files. `waiting` is entered for as long as a sync waits for the disk."""

    def __init__(self, waiting: Waiting = nullcontext) -> None:
        self._waiting = waiting

    def create(self, path: Path) -> File:
        return OsFile(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE), self._waiting)

    def open(self, path: Path, *, writable: bool = False) -> File:
        # O_NOFOLLOW and O_NONBLOCK: a planted link or FIFO must not redirect or hang the daemon.
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file")
        return OsFile(fd, self._waiting)

    def make_directory(self, path: Path) -> None:
        existed = path.is_dir()
        if not existed:
            if not path.parent.is_dir():
                self.make_directory(path.parent)
            try:
                path.mkdir(mode=DIRECTORY_MODE)
            except FileExistsError:
                if not path.is_dir():  # else another process was faster
                    raise
        try:
            self.sync_directory(path.parent)  # even if it was there: whoever made it may have been killed before this
        except PermissionError:  # the parent may be somebody else's, who then made the directory for us
            if not existed:
                raise

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names are wanted, not paths

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._waiting():
                os.fsync(fd)
        finally:
            os.close(fd)

    def is_directory(self, path: Path) -> bool:
        try:
            return stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            return False

    def remove_directory(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.lstat().st_mode)

    def set_mode(self, path: Path, mode: int) -> None:
        if path.is_symlink():  # chmod would follow it
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        path.chmod(mode)

    def free_bytes(self, directory: Path) -> int:
        room = os.statvfs(directory)
        return room.f_bavail * room.f_frsize

    def lock(self, path: Path, *, create: bool = True) -> Lock | None:
        # Whoever removes a queue removes its lock, perhaps between our opening and locking it: then it keeps nobody out.
        while (fd := self._flocked(path, os.O_CREAT if create else 0)) is not None and not os.fstat(fd).st_nlink:
            os.close(fd)
        return None if fd is None else OsLock(fd)

    def _flocked(self, path: Path, flags: int) -> int | None:
        fd = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return fd


def put_aside(fs: Filesystem, path: Path) -> None:
    """Give what stands at `path` another name, `….unreadable` with a number if need be, so that it is in nobody's way."""
    taken = {*fs.names(path.parent)}
    names = (
        f"{path.name}.unreadable{suffix}" for suffix in ["", *(f"-{number}" for number in range(1, len(taken) + 1))]
    )
    fs.rename(path, path.with_name(next(name for name in names if name not in taken)))


UNFINISHED = ".new"
"""How names end while a file is being written; it gets its own name when it is whole."""


def remove_unfinished(fs: Filesystem, directory: Path) -> list[Path]:
    """Remove what interrupted writes have left in a directory; return it. Nobody may be writing there.

    A power cut may bring it back, where it does no harm.
    """
    try:
        left = [directory / name for name in fs.names(directory) if name.endswith(UNFINISHED)]
    except FileNotFoundError:
        return []
    for path in left:
        fs.unlink(path)
    return left


def is_file(fs: Filesystem, path: Path) -> bool:
    """Tell whether what stands at `path` is a file, or may be one: something keeps it from being opened."""
    try:
        fs.open(path).close()
    except OSError as error:
        return error.errno not in FOREIGN
    return True


def read_around(file: File, size: int, offset: int) -> tuple[bytes, int]:
    """Return what `pread` would, with zeros for the blocks that the disk does not give back, and how many those are."""
    stop = min(offset + size, file.size())
    blocks, lost = [], 0
    while offset < stop:
        length = min(BLOCK_BYTES, stop - offset)
        try:
            blocks.append(file.pread(length, offset))
        except OSError:
            blocks.append(bytes(length))
            lost += 1
        offset += length
    return b"".join(blocks), lost
