"""Where damaged bytes are kept for a person to look at.

It knows a directory. It must never know why the bytes are damaged. Keeping them is a courtesy: a disk that refuses it
must not stop the queue, so a refusal is counted, not raised.
"""

import contextlib
from pathlib import Path

from agent.queue.filesystem import Filesystem


class Quarantine:
    """Copies of damaged stretches, named by segment and offset; `kept` and `lost` count them since the start."""

    def __init__(self, fs: Filesystem, directory: Path) -> None:
        self._fs = fs
        self.directory = directory
        self.kept = 0
        self.lost = 0

    def keep(self, first_seq: int, offset: int, data: bytes) -> None:
        """Copy `data`, which stood at `offset` of the segment that begins with `first_seq`; once, however often it is read."""
        path = self.directory / f"{first_seq:020d}-{offset:010d}.bin"
        try:
            self._fs.make_directory(self.directory)
            if path.name not in self._fs.names(self.directory):
                self._write(path, data)
        except OSError:
            self.lost += 1
        else:
            self.kept += 1

    def _write(self, path: Path, data: bytes) -> None:
        file = self._fs.create(path)
        try:
            file.pwrite(data, 0)
            file.sync()
        except OSError:
            with contextlib.suppress(OSError):
                self._fs.unlink(path)
            raise
        finally:
            file.close()
        self._fs.sync_directory(self.directory)
