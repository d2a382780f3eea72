"""The file that holds a cursor's checkpoints: two slots, written in turn, so that one always survives.

It knows the order of writes and syncs. It must never know what a checkpoint means.

A checkpoint is written at once, where it survives the process, and made durable by `sync`. Until then it overwrites only the
slot that does not hold the newest durable one. The file has its full length from the start, so that a full disk does not keep
checkpoints from being written. After a failed sync the file is replaced, never synced again.
"""

import contextlib
from pathlib import Path

from agent.errors import StorageError
from agent.queue.cursor import SLOT_BYTES, SLOTS, State, decode_slot, encode_slot
from agent.queue.filesystem import File, Filesystem

_FILE_BYTES = SLOTS * SLOT_BYTES


class CursorFile:
    """An open cursor file; `recovered` is the newest checkpoint that it held, None if it is new or none was readable."""

    def __init__(self, fs: Filesystem, path: Path) -> None:
        """Open or create the file. Raises StorageError if that fails."""
        self._fs = fs
        self._path = path
        self._file: File | None = None
        try:
            file = self._open_or_create()
            found = [decode_slot(file.pread(SLOT_BYTES, slot * SLOT_BYTES)) for slot in range(SLOTS)]
            file.sync()  # what a killed process wrote last may not be durable yet
        except OSError as error:
            raise self._translate(error) from error
        newest = max((c for c in found if c is not None), key=lambda c: c.generation, default=None)
        self.recovered: State | None = newest.state if newest else None
        self._file = file
        self._generation = newest.generation if newest else 0
        self._durable_slot = found.index(newest)
        self._dirty = False

    def write(self, state: State) -> None:
        """Write a checkpoint; it survives the process, but not yet the machine. Raises StorageError."""
        try:
            if self._file is None:
                self._replace(state)
            else:
                self._file.pwrite(self._next_slot(state), (1 - self._durable_slot) * SLOT_BYTES)
                self._dirty = True
        except OSError as error:
            raise self._translate(error) from error

    def sync(self) -> None:
        """Make the last checkpoint durable. Raises StorageError; the next `write` then makes a new file."""
        if self._file is None:
            raise StorageError(f"{self._path}: the cursor is not durable: its last sync failed")
        if not self._dirty:
            return
        try:
            self._file.sync()
        except OSError as error:
            self.close()
            raise self._translate(error) from error
        self._durable_slot = 1 - self._durable_slot
        self._dirty = False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_slot(self, state: State) -> bytes:
        self._generation += 1
        return encode_slot(self._generation, state)

    def _open_or_create(self) -> File:
        try:
            file = self._fs.open(self._path, writable=True)
        except FileNotFoundError:
            file = self._fs.create(self._path)
            self._fs.sync_directory(self._path.parent)
        size = file.size()
        if size < _FILE_BYTES:
            file.pwrite(bytes(_FILE_BYTES - size), size)
        return file

    def _replace(self, state: State) -> None:
        """Put a new file, with this checkpoint durable in its first slot, in the place of one whose sync failed."""
        fresh = self._path.with_suffix(".new")
        self._fs.unlink(fresh)
        file = self._fs.create(fresh)
        try:
            file.pwrite(self._next_slot(state).ljust(_FILE_BYTES, b"\0"), 0)
            file.sync()
            self._fs.rename(fresh, self._path)
            self._fs.sync_directory(self._path.parent)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):  # if it stays, the next attempt removes it
                self._fs.unlink(fresh)
            raise
        self._file, self._durable_slot, self._dirty = file, 0, False

    def _translate(self, error: OSError) -> StorageError:
        return StorageError(f"{self._path}: the cursor cannot be kept: {error.strerror or error}")
