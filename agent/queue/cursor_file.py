"""The file that holds a cursor's checkpoints: two slots, written in turn, so that one always survives.

A checkpoint is written at once, where it survives the process, and made durable by `sync`. Until then it overwrites only the
slot that does not hold the newest durable one. The file has its full length from the start, so that a full disk does not keep
checkpoints from being written. After a failed sync the file is replaced, never synced again.
"""

import errno
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from agent.errors import StorageError
from agent.queue.atomic import replace_file
from agent.queue.cursor import SLOT_BYTES, SLOTS, Checkpoint, CursorState, decode_slot, encode_slot
from agent.queue.filesystem import FOREIGN, File, Filesystem, put_aside

T = TypeVar("T")

_FILE_BYTES = SLOTS * SLOT_BYTES

# What says that this is no file of ours, or one that the disk has lost.
_UNREADABLE = FOREIGN | {errno.EACCES, errno.EPERM, errno.EIO, errno.EUCLEAN}


class CursorFile:
    """An open cursor file; `recovered` is the newest checkpoint that it held, None if it is new or none was readable."""

    def __init__(self, fs: Filesystem, path: Path) -> None:
        """Open or create the file. Raises StorageError if that fails.

        A file that cannot be read, or holds something and no checkpoint, is put aside, where a person can look at it.
        """
        self._fs = fs
        self._path = path
        self._dirty = False
        self._file: File | None = None
        try:
            self._file = self._open_or_create()
            slots = _slots_of(self._file)
            newest = newest_in(slots)
            if newest is None and any(slot.strip(b"\0") for slot in slots):
                self._file.close()
                self._file = self._put_aside_and_create()
                slots = [b""] * SLOTS
        except OSError as error:
            raise self._translate(error) from error
        self.recovered: CursorState | None = newest.state if newest else None
        self._generation = newest.generation if newest else 0
        self._durable_slot = [decode_slot(slot) for slot in slots].index(newest)
        try:
            self._make_durable(self._file, slots[self._durable_slot])
        except OSError:
            self.close()  # the next write makes a new file

    def write(self, state: CursorState) -> None:
        """Write a checkpoint; it survives the process, but not yet the machine. Raises StorageError."""
        try:
            if self._file is None or not self._file.has_name():
                self._replace(state)
            else:
                self._generation += 1
                slot = encode_slot(self._generation, state)
                self._dirty = False  # if this fails, the slot holds nothing that a sync could make durable
                self._file.pwrite(slot, (1 - self._durable_slot) * SLOT_BYTES)
                self._dirty = True
        except (OSError, ValueError) as error:
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

    def _open_or_create(self) -> File:
        try:
            return _insist(lambda: self._fs.open(self._path, writable=True))
        except FileNotFoundError:
            return self._fs.create(self._path)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
        return self._put_aside_and_create()

    def _put_aside_and_create(self) -> File:
        put_aside(self._fs, self._path)
        return self._fs.create(self._path)

    def _make_durable(self, file: File, slot: bytes) -> None:
        """Do again what a killed process may not have got to: its last write, the file's full length, its name.

        The slot is written anew, with the bytes that are there: if its sync had failed, another would make nothing durable.
        """
        file.pwrite(slot, self._durable_slot * SLOT_BYTES)
        size = file.size()
        if size < _FILE_BYTES:
            file.pwrite(bytes(_FILE_BYTES - size), size)
        file.sync()
        self._fs.sync_directory(self._path.parent)

    def _replace(self, state: CursorState) -> None:
        """Put a new file, with this checkpoint durable in its first slot, in the place of one whose sync failed."""
        self.close()
        self._fs.make_directory(self._path.parent)  # somebody may have deleted it
        self._generation += 1
        slot = encode_slot(self._generation, state)
        self._file = replace_file(self._fs, self._path, slot.ljust(_FILE_BYTES, b"\0"))
        self._durable_slot, self._dirty = 0, False

    def _translate(self, error: OSError | ValueError) -> StorageError:
        reason = error.strerror if isinstance(error, OSError) else None
        return StorageError(f"{self._path}: the cursor cannot be kept: {reason or error}")


def read_slots(fs: Filesystem, path: Path) -> list[bytes]:
    """Return what the slots of a cursor file hold, changing nothing; [] if there is no file. Raises StorageError."""
    try:
        file = fs.open(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path}: the cursor cannot be read: {error.strerror or error}") from error
    try:
        return _slots_of(file)
    finally:
        file.close()


def newest_in(slots: Iterable[bytes]) -> Checkpoint | None:
    """Return the newest checkpoint of these slots; None if none is readable."""
    found = (decode_slot(slot) for slot in slots)
    return max((c for c in found if c is not None), key=attrgetter("generation"), default=None)


def _slots_of(file: File) -> list[bytes]:
    return [_read_slot(file, slot) for slot in range(SLOTS)]


def _read_slot(file: File, slot: int) -> bytes:
    """Read a slot; one that the disk does not give back is as good as empty."""
    try:
        return _insist(lambda: file.pread(SLOT_BYTES, slot * SLOT_BYTES))
    except OSError:
        return b""


def _insist(call: Callable[[], T]) -> T:
    """Return what `call` does, if need be at the second attempt: an error that passes must not cost the ledger."""
    try:
        return call()
    except OSError:
        return call()
