"""Short ways to build logs and read them, over the fault filesystem."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.queue import segment
from agent.queue.log import Entry, Log
from agent.queue.quarantine import Quarantine
from agent.queue.reader import Reader
from agent.queue.record import Frame
from agent.queue.segment import Gap
from tests.support.fault_filesystem import FaultFilesystem

LOG = Path("/log")
QUARANTINE = Path("/quarantine")


def entry(text: str, count: int = 1) -> Entry:
    """Return an entry with this payload."""
    return Entry(count, text.encode())


def open_log(disk: FaultFilesystem, *, segment_bytes: int = 10_000, durable: bool = True, next_seq: int = 1) -> Log:
    """Recover the log in LOG."""
    quarantine = Quarantine(disk, QUARANTINE)
    return Log.recover(disk, LOG, quarantine, segment_bytes=segment_bytes, durable=durable, next_seq=next_seq)


class LogReader:
    """A reader of a log that follows it; what is damaged goes to QUARANTINE."""

    def __init__(self, disk: FaultFilesystem, log: Log, position: int) -> None:
        self._reader = Reader(disk, LOG, position)
        self._log = log
        self._quarantine = Quarantine(disk, QUARANTINE)

    @property
    def position(self) -> int:
        """The number of the next item to be read."""
        return self._reader.position

    def read(self, max_bytes: int) -> list[Frame | Gap]:
        """Read on."""
        read = self._reader.read(self._log.view, max_bytes)
        for piece in read.damaged:
            self._quarantine.keep(piece)
        return read.items

    def skip(self) -> list[Gap]:
        """Give up what cannot be read."""
        return self._reader.skip(self._log.view)

    def close(self) -> None:
        """Release the open segment."""
        self._reader.close()


def open_reader(disk: FaultFilesystem, log: Log, position: int = 1) -> LogReader:
    """Return a reader of the log."""
    return LogReader(disk, log, position)


def brief(items: Sequence[Frame | Gap]) -> list[tuple[int, str] | tuple[int, int]]:
    """Return each frame as its first number and its payload, each gap as where it starts and stops."""
    return [
        (item.first_seq, item.payload.decode()) if isinstance(item, Frame) else (item.span.start, item.span.stop)
        for item in items
    ]


def contents(disk: FaultFilesystem, log: Log, position: int = 1) -> list[tuple[int, str] | tuple[int, int]]:
    """Read a whole log."""
    reader, everything = open_reader(disk, log, position), []
    while items := reader.read(1000):
        everything += items
    reader.close()
    return brief(everything)


def segment_path(first_seq: int) -> Path:
    """Return where that segment is."""
    return LOG / segment.name(first_seq)


def segments(disk: FaultFilesystem) -> list[int]:
    """Return the first numbers of the segments that are there."""
    return [int(path.stem) for path in disk.paths() if path.parent == LOG]


def quarantined(disk: FaultFilesystem, directory: Path = QUARANTINE) -> list[bytes]:
    """Return what is in quarantine."""
    return [disk.read_bytes(path) for path in disk.paths() if path.parent == directory]


def failing_times(operation: str, times: int, code: int = errno.EIO) -> Callable[[str, Path], OSError | None]:
    """Return the rule under which such an operation fails this many times."""
    left = times

    def rule(called: str, path: Path) -> OSError | None:
        nonlocal left
        if called != operation or left == 0:
            return None
        left -= 1
        return OSError(code, os.strerror(code), str(path))

    return rule
