"""The real disk without its syncs, for tests that are about bytes: they write the same files, and cut no power."""

from pathlib import Path

from agent.queue.filesystem import File, OsFilesystem


class Unsynced:
    """A real file; `sync` does nothing."""

    def __init__(self, file: File) -> None:
        self._file = file

    def pread(self, size: int, offset: int) -> bytes:
        return self._file.pread(size, offset)

    def pwrite(self, data: bytes, offset: int) -> None:
        self._file.pwrite(data, offset)

    def truncate(self, size: int) -> None:
        self._file.truncate(size)

    def sync(self) -> None:
        """Leave it to the kernel."""

    def size(self) -> int:
        return self._file.size()

    def has_name(self) -> bool:
        return self._file.has_name()

    def close(self) -> None:
        self._file.close()


class UnsyncedFilesystem(OsFilesystem):
    """The operating system's files, and no syncs."""

    def create(self, path: Path) -> File:
        return Unsynced(super().create(path))

    def open(self, path: Path, *, writable: bool = False) -> File:
        return Unsynced(super().open(path, writable=writable))

    def sync_directory(self, path: Path) -> None:
        """Leave it to the kernel."""
