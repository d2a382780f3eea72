"""The file system that the soak's queue is on, and what can be done to it. It must never know what is stored there.

The best that the machine allows: a loop-mounted ext4, which can also fail and freeze; a tmpfs; or a plain directory.
"""

import errno
import fcntl
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 16 * 1024**2
_CHUNK = 64 * 1024
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h


class Disk:
    """A directory that nothing can be done to. `missing` says why something better could not be had."""

    name = "a plain directory"

    def __init__(self, path: Path, missing: str = "", size: int = SIZE) -> None:
        self.path = path
        self.missing = missing
        self.size = size
        self._mounted = False
        path.mkdir(parents=True)

    def mount(self) -> None:
        """Make it usable. Raises OSError if the machine does not allow it."""

    def unmount(self) -> None:
        """Leave nothing behind; what had it open must have ended."""

    def used(self) -> int:
        """Return how many bytes are in use there."""
        stat = os.statvfs(self.path)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


class SmallDisk(Disk):
    """A tmpfs: it can be filled up, and be read-only when a daemon starts."""

    name = "a tmpfs"

    @property
    def command(self) -> tuple[str, ...]:
        """Return what mounts it."""
        return ("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs")

    @property
    def _balloon(self) -> Path:
        return self.path / "balloon"

    def mount(self) -> None:
        _run(*self.command, str(self.path))
        self._mounted = True

    def unmount(self) -> None:
        if self._mounted:
            _run("umount", str(self.path))
            self._mounted = False

    def fill(self) -> None:
        """Leave no room at all."""
        with self._balloon.open("wb", buffering=0) as balloon:
            for size in (_CHUNK, 1):
                while _has_taken(balloon.fileno(), bytes(size)):
                    pass

    def free(self) -> None:
        """Give the room back."""
        self._balloon.unlink(missing_ok=True)

    def set_read_only(self, read_only: bool) -> None:
        """Mount it again, while no file is open for writing."""
        _run("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", str(self.path))


class LoopDisk(SmallDisk):
    """An ext4 in a file: it can also go read-only under a running daemon, as after an error of the device, and freeze."""

    name = "an ext4 on a loop device"

    def __init__(self, path: Path, missing: str = "", size: int = SIZE) -> None:
        super().__init__(path, missing, size)
        self._images = (path.with_name(f"{path.name}-{number}.img") for number in itertools.count())
        self._image = next(self._images)

    @property
    def command(self) -> tuple[str, ...]:
        """Return what mounts it."""
        return ("mount", "-o", "loop", str(self._image))

    def mount(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(self.size)
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))
        super().mount()

    def fail(self) -> None:
        """Abort the journal: what is not durable is lost, and nothing can be written until `mend`.

        No sync may be under way: Linux (6.18) reports success for one whose transaction ends by the abort, although its data
        is lost; a loop of writes and fdatasyncs shows it, about once in fifteen times. No program can do anything about that.
        """
        _run("mount", "-o", "remount,abort", str(self.path))

    def mend(self) -> None:
        """Mount a copy of the image, which replays the journal; nothing may have a file open.

        A process that has left for a mount namespace of its own keeps the failed file system there, for as long as it likes,
        and a mount of the same image would find that one, still read-only.
        """
        self.unmount()
        failed, self._image = self._image, next(self._images)
        shutil.copyfile(failed, self._image)
        failed.unlink()
        SmallDisk.mount(self)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let every write wait while the block lasts."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _FIFREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(descriptor, _FITHAW, 0)
        finally:
            os.close(descriptor)


@contextmanager
def best_disk(directory: Path, size: int = SIZE) -> Iterator[Disk]:
    """Mount the best disk of that many bytes that the machine allows below `directory`, for as long as the block lasts."""
    kinds: list[Callable[[Path, str, int], Disk]] = [LoopDisk, SmallDisk, Disk]
    missing = ""
    for number, kind in enumerate(kinds):
        disk = kind(directory / f"disk-{number}", missing, size)
        try:
            disk.mount()
        except OSError as error:
            missing += f"(not {disk.name}: {error}) "
            continue
        try:
            yield disk
        finally:
            disk.unmount()
        return


def _has_taken(descriptor: int, data: bytes) -> bool:
    """Write; False if there is no room for any of it."""
    try:
        return os.write(descriptor, data) > 0
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return False
        raise


def _run(*command: str) -> None:
    """Run a system's command. Raises OSError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip().partition(chr(10))[0]}")
