"""What was settled otherwise than delivered, by numbers: a small file beside the segments.

With it, segments that are settled say what became of each of their events. FORMAT.md has its form. Rows are durable before the
checkpoint that settles their events is written, unless the disk refuses them: then the next commit tries again. Rows of forwarded
events alone are not synced, as there are as many as batches: a power cut may have them count as delivered in a session's report.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.queue.atomic import replace_file
from agent.queue.cursor import Cursor, Outcome, Span
from agent.queue.filesystem import SHORTAGE, File, Filesystem, put_aside

FILE_NAME = "undelivered.ndjson"
MAX_BYTES = 64 * 1024 * 1024
"""No such file is longer; what it has beyond that is not looked at."""
COMPACTED_BYTES = 64 * 1024
"""A file is written anew, without the numbers of what is gone, when it has grown by so much and to twice its size."""


class Undelivered(NamedTuple):
    """Events that came to another end than delivery, forwarding included; `outcome` is one of `Outcome`, or a later version's."""

    start: int
    stop: int
    outcome: str

    @property
    def span(self) -> Span:
        """The numbers of the events."""
        return Span(self.start, self.stop)


_decode = msgspec.json.Decoder(Undelivered).decode


class UndeliveredLog:
    """What one open queue has settled and not delivered: a watcher of its cursor. `pending` is not in the file yet."""

    def __init__(self) -> None:
        self.pending: list[Undelivered] = []

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """See `agent.queue.cursor.Watcher`."""
        if outcome is not Outcome.DELIVERED:
            self.pending += [Undelivered(span.start, span.stop, outcome) for span in spans]

    @property
    def passed(self) -> bool:
        """See `agent.queue.cursor.Watcher`: nothing waits for it."""
        return True


class UndeliveredFile:
    """The file of an open queue. Its calls block."""

    def __init__(self, fs: Filesystem, path: Path, settled: Cursor, *, durable: bool) -> None:
        """Read it, and leave out what the checkpoint `settled` does not know of: that will be settled again.

        What is no file, or cannot be read, is put aside. Raises OSError.
        """
        self._fs = fs
        self._path = path
        self._durable = durable
        self._file: File | None = None
        try:
            data = _read(fs, path)
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            data = b""
            with contextlib.suppress(FileNotFoundError):
                put_aside(fs, path)
        rows = rows_in(data)
        known = [row for row in rows if not settled.unsettled(row.span)]
        self._found: list[Undelivered] | None = known
        self._size = self._compacted_size = len(data)
        if len(known) < len(rows):
            with contextlib.suppress(OSError):  # the next row that is added does it
                self._replace(known)

    def append(self, rows: Iterable[Undelivered]) -> None:
        """Add rows. Raises OSError: then none is in the file for sure, and they are to be added again."""
        added = _joined(rows)
        if not added:
            return
        if self._file is None:  # the first time, or after an error: what was torn goes
            found = rows_in(_read(self._fs, self._path)) if self._found is None else self._found
            self._replace([*found, *added])
            return
        data = _encode(added)
        try:
            self._file.pwrite(data, self._size)
            if self._durable and any(row.outcome != Outcome.FORWARDED for row in added):
                self._file.sync()
        except OSError:
            self.close()
            raise
        self._size += len(data)

    def forget_before(self, seq: int) -> None:
        """Give the room of rows back that are all below a number, once it is worth it."""
        if self._size < max(COMPACTED_BYTES, 2 * self._compacted_size):
            return
        with contextlib.suppress(OSError):  # the next time
            self._replace([row for row in rows_in(_read(self._fs, self._path)) if row.stop > seq])
        self._compacted_size = self._size

    def close(self) -> None:
        """Close the file; the next row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replace(self, rows: Sequence[Undelivered]) -> None:
        data = _encode(_joined(sorted(rows)))
        self.close()
        self._file = replace_file(self._fs, self._path, data)
        self._size, self._found = len(data), None


def read_undelivered(fs: Filesystem, directory: Path) -> list[Undelivered]:
    """Return the rows of a queue's file; [] if there is none. Raises OSError."""
    return rows_in(_read(fs, directory / FILE_NAME))


def rows_in(data: bytes) -> list[Undelivered]:
    """Return the rows among these lines, without what is none: a torn end, or damage."""
    rows = []
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(msgspec.DecodeError):
            row = _decode(line)
            if 0 < row.start < row.stop:
                rows.append(row)
    return rows


def _encode(rows: Sequence[Undelivered]) -> bytes:
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _joined(rows: Iterable[Undelivered]) -> list[Undelivered]:
    """Return the rows with those that follow one another as one."""
    joined: list[Undelivered] = []
    for row in rows:
        if joined and (joined[-1].stop, joined[-1].outcome) == (row.start, row.outcome):
            joined[-1] = joined[-1]._replace(stop=row.stop)
        else:
            joined.append(row)
    return joined


def _read(fs: Filesystem, path: Path) -> bytes:
    """Return what the file holds; nothing if there is none."""
    try:
        file = fs.open(path)
    except FileNotFoundError:
        return b""
    try:
        return file.pread(min(file.size(), MAX_BYTES), 0)
    finally:
        file.close()
