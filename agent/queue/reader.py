"""Reads a log from a position on, in order, and accounts for every number: either its frame comes, or a gap that covers it.

It reads only what the view that it is given covers, so it may run while the log is written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.filesystem import File, Filesystem, read_around
from agent.queue.log import LogView
from agent.queue.quarantine import DamagedBytes
from agent.queue.record import Frame, decode_record
from agent.queue.segment import Gap, Segment

_OLDEST_BYTES = 256 * 1024


class Read(NamedTuple):
    """What was read: frames and gaps in order, and the bytes of no use that were found among them, for the quarantine."""

    items: list[Frame | Gap]
    damaged: list[DamagedBytes]


@dataclass
class _Open:
    """The segment that is being read, and how far it has been; `file` is None while nothing of it is wanted."""

    first_seq: int
    file: File | None = None
    offset: int = segment.HEADER_BYTES


class Reader:
    """A position in the log of a directory that moves forward with every read."""

    def __init__(self, fs: Filesystem, directory: Path, position: int) -> None:
        self._fs = fs
        self._directory = directory
        self._position = position
        self._open: _Open | None = None
        self._around: int | None = None
        self._failed_in: int | None = None

    @property
    def position(self) -> int:
        """The number of the next item to be read."""
        return self._position

    def read(self, view: LogView, max_bytes: int) -> Read:
        """Return what comes next, reading about `max_bytes` at a time; without items only at the end of the view.

        A frame is returned whole, even where the position lies within it. Raises StorageError if the segment cannot be read;
        the same read can then be tried again, or what cannot be read given up with `skip`.
        """
        damaged: list[DamagedBytes] = []
        while self._position < view.next_seq:
            found = self._read_on(view, max_bytes)
            damaged += found.damaged
            if found.items:
                return Read(found.items, damaged)
        self.close()  # what is deleted while it is open still takes its room on the disk
        return Read([], damaged)

    def skip(self, view: LogView) -> list[Gap]:
        """Give up what cannot be read: read around it from now on. Of a segment that cannot be opened, return the gap."""
        index = view.index_of(self._position)
        if index < 0 or self._position >= view.limit(index):
            return []
        if self._failed_in == view.segments[index].first_seq:
            self._around, self._failed_in = self._failed_in, None
            return []
        return [self._gap(view.limit(index))]

    def close(self) -> None:
        """Release the open segment; reading may go on where it was."""
        if self._open is not None and self._open.file is not None:
            self._open.file.close()
            self._open.file = None

    def _read_on(self, view: LogView, max_bytes: int) -> Read:
        """Read one stretch of a segment; it may hold nothing from the position on."""
        index = view.index_of(self._position)
        limit = view.limit(index)
        if index < 0:
            return Read([self._gap(limit)], [])
        place = view.segments[index]
        try:
            source, file = self._opened(place)
            return self._read(place, limit, source, file, max_bytes)
        except FileNotFoundError:
            return Read([self._gap(limit)], [])
        except OSError as error:
            opened = self._open is not None and self._open.file is not None
            self._failed_in = place.first_seq if opened else None
            self.close()
            path = self._directory / segment.name(place.first_seq)
            raise StorageError(f"{path}: cannot read the queue: {error.strerror or error}") from error

    def _read(self, place: Segment, limit: int, source: _Open, file: File, max_bytes: int) -> Read:
        # 0: when the log was opened it could not be read
        size = place.size or min(file.size(), segment.MAX_BYTES)
        left = max(size - source.offset, 0)
        length = min(max_bytes, left)
        data = self._bytes(source, file, length)
        at_end = length == left or len(data) < length  # a file may have lost its end since the log was opened
        found = segment.interpret(data, 0, self._position, limit, whole=at_end)
        if found.end == 0 and not at_end:  # a frame longer than the read, or damage: look at all that is left
            data, at_end = self._bytes(source, file, left), True
            found = segment.interpret(data, 0, self._position, limit, whole=True)
        damaged = [
            DamagedBytes(source.first_seq, source.offset + each.start, data[each.start : each.end])
            for each in found.damage
        ]
        source.offset += len(data) if at_end else found.end
        self._position = found.next_seq
        items = [
            item if isinstance(item, Frame) else Gap(item.span) for item in found.items
        ]  # offsets in `data` tell nobody
        return Read(items, damaged)

    def _bytes(self, source: _Open, file: File, length: int) -> bytes:
        if self._around == source.first_seq:
            return read_around(file, length, source.offset)[0]
        return file.pread(length, source.offset)

    def _gap(self, stop: int) -> Gap:
        gap = Gap(Span(self._position, stop))
        self._position = stop
        return gap

    def _opened(self, wanted: Segment) -> tuple[_Open, File]:
        if self._open is None or self._open.first_seq != wanted.first_seq:
            self.close()
            self._open = _Open(wanted.first_seq)
        if self._open.file is None:
            self._open.file = self._fs.open(self._directory / segment.name(wanted.first_seq))
        return self._open, self._open.file


def oldest_enqueued_at(reader: Reader, view: LogView) -> float | None:
    """Read when the oldest event that is left was enqueued, in seconds since the epoch; None if none is readable."""
    try:
        while items := reader.read(view, _OLDEST_BYTES).items:
            for item in items:
                if isinstance(item, Frame):
                    return decode_record(item.payload).enqueued_at
    except (StorageError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # the worker meets the same bytes and accounts for them
    finally:
        reader.close()
    return None
