"""Where damaged bytes are kept for a person to look at.

Keeping them is a courtesy: a disk that refuses it must not stop the queue, so a refusal is counted, not raised.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

from agent.queue.atomic import replace_file
from agent.queue.filesystem import Filesystem, remove_unfinished

DIRECTORY = "quarantine"
MAX_BYTES = 64 * 1024 * 1024


class DamagedBytes(NamedTuple):
    """What stood at `offset` of the segment that begins with `first_seq`."""

    first_seq: int
    offset: int
    data: bytes

    @property
    def name(self) -> str:
        """The name of their copy."""
        return f"{self.first_seq:020d}-{self.offset:010d}-{zlib.crc32(self.data):08x}.bin"


class Copies(NamedTuple):
    """How many damaged pieces were copied, and how many could not be."""

    kept: int = 0
    lost: int = 0


class Quarantine:
    """Copies of damaged bytes, named by segment, offset and CRC; `copies` counts them since the start.

    Beyond `max_bytes` nothing more is kept.
    """

    def __init__(self, fs: Filesystem, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self._fs = fs
        self._directory = directory
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] | None = None
        self.copies = Copies()

    def keep(self, piece: DamagedBytes) -> None:
        """Copy a piece durably; once, however often it is read."""
        kept, lost = self.copies
        try:
            if self._sizes is None:
                self._fs.make_directory(self._directory)
                self._sizes = {name: self._size(self._directory / name) for name in self._fs.names(self._directory)}
            if piece.name in self._sizes:
                return
            if sum(self._sizes.values()) + len(piece.data) > self._max_bytes:
                self.copies = Copies(kept, lost + 1)
                return
            replace_file(self._fs, self._directory / piece.name, piece.data).close()
        except OSError:
            self.copies = Copies(kept, lost + 1)
        else:
            self._sizes[piece.name] = len(piece.data)
            self.copies = Copies(kept + 1, lost)

    def tidy(self) -> list[Path]:
        """Remove what interrupted copies have left; return it. Raises OSError."""
        return remove_unfinished(self._fs, self._directory)

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
