"""Reads a log from a position on, in order, and accounts for every number: either its frame comes, or a gap that covers it.

It knows segments as bytes. It must never know what an item means, or what becomes of it. It may run in another thread than the
one that appends: it reads only what the log's view covers.
"""

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.filesystem import File, Filesystem, read_around
from agent.queue.log import Log, LogView
from agent.queue.quarantine import Quarantine
from agent.queue.record import Frame
from agent.queue.segment import Damage, Segment


class Gap(NamedTuple):
    """Numbers that no readable frame holds: damaged, deleted or unreadable."""

    span: Span


class _Place(NamedTuple):
    """A segment and the number at which the next one, or the end of the log, begins."""

    segment: Segment
    limit: int


@dataclass
class _Open:
    """The segment that is being read, and how far it has been; `file` is None while nothing of it is wanted."""

    first_seq: int
    file: File | None = None
    offset: int = segment.HEADER_BYTES


class Reader:
    """A position in a log that moves forward with every read."""

    def __init__(self, fs: Filesystem, log: Log, quarantine: Quarantine, position: int) -> None:
        self._fs = fs
        self._log = log
        self._quarantine = quarantine
        self._expected = position
        self._open: _Open | None = None
        self._around: int | None = None
        self._failed_in: int | None = None

    @property
    def position(self) -> int:
        """The number of the next item to be read."""
        return self._expected

    def read(self, max_bytes: int) -> list[Frame | Gap]:
        """Return what comes next, in order, reading about `max_bytes` at a time; [] only at the end of the log.

        A frame is returned whole, even where the position lies within it. Raises StorageError if the segment cannot be read;
        the same read can then be tried again, or what cannot be read given up with `skip`.
        """
        view = self._log.view
        items: list[Frame | Gap] = []
        while not items and self._expected < view.next_seq:
            items = self._read_on(view, max_bytes)
        if not items:
            self.close()  # what is deleted while it is open still takes its room on the disk
        return items

    def skip(self) -> list[Frame | Gap]:
        """Give up what cannot be read: read around it from now on. Of a segment that cannot be opened, return the gap."""
        place = _locate(self._log.view, self._expected)
        if place is None or self._expected >= place.limit:
            return []
        if self._failed_in == place.segment.first_seq:
            self._around, self._failed_in = self._failed_in, None
            return []
        return [self._gap(place.limit)]

    def close(self) -> None:
        """Release the open segment; reading may go on where it was."""
        if self._open is not None and self._open.file is not None:
            self._open.file.close()
            self._open.file = None

    def _read_on(self, view: LogView, max_bytes: int) -> list[Frame | Gap]:
        """Read one stretch of a segment; [] if it holds nothing from the position on."""
        place = _locate(view, self._expected)
        if place is None:
            return [self._gap(view.segments[0].first_seq if view.segments else view.next_seq)]
        try:
            source, file = self._opened(place.segment)
            return self._read(place, source, file, max_bytes)
        except FileNotFoundError:
            return [self._gap(place.limit)]
        except OSError as error:
            opened = self._open is not None and self._open.file is not None
            self._failed_in = place.segment.first_seq if opened else None
            self.close()
            path = self._log.path(place.segment.first_seq)
            raise StorageError(f"{path}: cannot read the queue: {error.strerror or error}") from error

    def _read(self, place: _Place, source: _Open, file: File, max_bytes: int) -> list[Frame | Gap]:
        # 0: when the log was opened it could not be read
        size = place.segment.size or min(file.size(), segment.MAX_BYTES)
        left = max(size - source.offset, 0)
        length = min(max_bytes, left)
        data = self._bytes(source, file, length)
        at_end = length == left or len(data) < length  # a file may have lost its end since the log was opened
        found = segment.scan(data, 0, whole=at_end)
        if not found.frames and not at_end:  # a frame longer than the read, or damage: look at all that is left
            data, at_end = self._bytes(source, file, left), True
            found = segment.scan(data, 0, whole=True)
        # Frames beyond the limit are leftovers, and so is one that reaches beyond it: those numbers are the next segment's.
        frames = [frame for frame in found.frames if frame.next_seq <= place.limit]
        items = self._collect(frames)
        if at_end and self._expected < place.limit:
            items.append(self._gap(place.limit))
            self._keep(source, data, Damage(found.end, len(data)))
        for damage in found.damage:
            if frames and damage.end <= frames[-1].end:  # what follows the limit was written again elsewhere
                self._keep(source, data, damage)
        source.offset += len(data) if at_end else found.end
        return items

    def _bytes(self, source: _Open, file: File, length: int) -> bytes:
        if self._around == source.first_seq:
            return read_around(file, length, source.offset)[0]
        return file.pread(length, source.offset)

    def _collect(self, frames: list[Frame]) -> list[Frame | Gap]:
        items: list[Frame | Gap] = []
        for frame in frames:
            if frame.next_seq <= self._expected:
                continue
            if frame.first_seq > self._expected:
                items.append(self._gap(frame.first_seq))
            items.append(frame)
            self._expected = frame.next_seq
        return items

    def _gap(self, stop: int) -> Gap:
        gap = Gap(Span(self._expected, stop))
        self._expected = stop
        return gap

    def _keep(self, source: _Open, data: bytes, damage: Damage) -> None:
        if damage.start < damage.end:
            self._quarantine.keep(source.first_seq, source.offset + damage.start, data[damage.start : damage.end])

    def _opened(self, wanted: Segment) -> tuple[_Open, File]:
        if self._open is None or self._open.first_seq != wanted.first_seq:
            self.close()
            self._open = _Open(wanted.first_seq)
        if self._open.file is None:
            self._open.file = self._fs.open(self._log.path(wanted.first_seq))
        return self._open, self._open.file


def _locate(view: LogView, seq: int) -> _Place | None:
    """Return the segment that `seq` belongs to; None if it lies before all of them."""
    index = bisect_right(view.segments, seq, key=attrgetter("first_seq"))
    if index == 0:
        return None
    limit = view.segments[index].first_seq if index < len(view.segments) else view.next_seq
    return _Place(view.segments[index - 1], limit)
