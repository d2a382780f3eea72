"""Files that are there whole and durable, or not at all: written beside their place under another name, synced, renamed."""

import contextlib
from pathlib import Path

from agent.queue.filesystem import UNFINISHED, File, Filesystem


class Replacement:
    """A file that takes the place of `target` when it is whole. Its methods raise OSError, all but `discard`."""

    def __init__(self, fs: Filesystem, target: Path, temporary: Path | None = None) -> None:
        """Create the file under a temporary name in the same directory, by default the target's with `.new` after it."""
        self._fs = fs
        self._target = target
        self._temporary = temporary or target.with_name(target.name + UNFINISHED)
        fs.unlink(self._temporary)
        self.file = fs.create(self._temporary)

    def commit(self) -> None:
        """Make the contents durable, then give the file its name."""
        self.file.sync()
        self._fs.rename(self._temporary, self._target)
        self._fs.sync_directory(self._target.parent)

    def discard(self) -> None:
        """Close the file, and remove it if it has not got its name."""
        self.file.close()
        with contextlib.suppress(OSError):  # if it stays, the next attempt removes it, or a repair does
            self._fs.unlink(self._temporary)


def replace_file(fs: Filesystem, path: Path, data: bytes) -> File:
    """Put a file with these bytes at `path`, and return it open. Raises OSError: then what was there before still is."""
    replacement = Replacement(fs, path)
    try:
        replacement.file.pwrite(data, 0)
        replacement.commit()
    except OSError:
        replacement.discard()
        raise
    return replacement.file
