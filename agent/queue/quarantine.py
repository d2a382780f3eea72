"""Where damaged bytes are kept for a person to look at.

It knows a directory. It must never know why the bytes are damaged. Keeping them is a courtesy: a disk that refuses it
must not stop the queue, so a refusal is counted, not raised.
"""

import contextlib
import threading
import zlib
from pathlib import Path

from agent.queue.filesystem import Filesystem, remove_unfinished

MAX_BYTES = 64 * 1024 * 1024


def copy_name(first_seq: int, offset: int, data: bytes) -> str:
    """Return the name of the copy of `data`, which stood at `offset` of the segment that begins with `first_seq`."""
    return f"{first_seq:020d}-{offset:010d}-{zlib.crc32(data):08x}.bin"


class Quarantine:
    """Copies of damaged stretches, named by segment, offset and CRC; `kept` and `lost` count them since the start.

    Beyond `max_bytes` nothing more is kept. Several threads may use it.
    """

    def __init__(self, fs: Filesystem, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._fs = fs
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[str, int] | None = None
        self.directory = directory
        self.kept = 0
        self.lost = 0

    def keep(self, first_seq: int, offset: int, data: bytes) -> None:
        """Copy `data`, which stood at `offset` of the segment that begins with `first_seq`; once, however often it is read."""
        name = copy_name(first_seq, offset, data)
        with self._lock:
            try:
                sizes = self._look()
                if name in sizes:
                    return
                if sum(sizes.values()) + len(data) > self._max_bytes:
                    self.lost += 1
                    return
                self._write(self.directory / name, data)
            except OSError:
                self.lost += 1
            else:
                sizes[name] = len(data)
                self.kept += 1

    def tidy(self) -> list[Path]:
        """Remove what interrupted copies have left; return it. Raises OSError."""
        with self._lock:
            return remove_unfinished(self._fs, self.directory)

    def _look(self) -> dict[str, int]:
        """Return the sizes of what is there, by name; looks only once."""
        if self._sizes is None:
            self._fs.make_directory(self.directory)
            self._sizes = {name: self._size(self.directory / name) for name in self._fs.names(self.directory)}
        return self._sizes

    def _size(self, path: Path) -> int:
        """Return the file's size; 0 for what is no file of ours: it must not keep others from being kept."""
        try:
            file = self._fs.open(path)
        except OSError:
            return 0
        try:
            return file.size()
        finally:
            file.close()

    def _write(self, path: Path, data: bytes) -> None:
        """Write under another name first: a copy with its final name is whole."""
        unfinished = path.with_suffix(".new")
        self._fs.unlink(unfinished)
        file = self._fs.create(unfinished)
        try:
            file.pwrite(data, 0)
            file.sync()
            self._fs.rename(unfinished, path)
        except OSError:
            with contextlib.suppress(OSError):
                self._fs.unlink(unfinished)
            raise
        finally:
            file.close()
        self._fs.sync_directory(self.directory)
