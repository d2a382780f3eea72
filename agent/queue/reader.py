"""Reads a log from a position on, in order, and accounts for every number: either its frame comes, or a gap that covers it.

It knows segments as bytes. It must never know what an item means, or what becomes of it. It may run in another thread than the
one that appends: it reads only what the log's view covers.
"""

from bisect import bisect_right
from operator import attrgetter
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.filesystem import File, Filesystem
from agent.queue.log import Log, View
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


class Reader:
    """A position in a log that moves forward with every read."""

    def __init__(self, fs: Filesystem, log: Log, quarantine: Quarantine, position: int) -> None:
        self._fs = fs
        self._log = log
        self._quarantine = quarantine
        self._expected = position
        self._open: tuple[int, File] | None = None
        self._offset = 0

    @property
    def position(self) -> int:
        """The number of the next item to be read."""
        return self._expected

    def read(self, max_bytes: int) -> list[Frame | Gap]:
        """Return what comes next, in order, reading about `max_bytes`; [] at the end of the log.

        A frame is returned whole, even where the position lies within it. Raises StorageError if the segment cannot be read;
        the same read can then be tried again, or the segment given up with `skip`.
        """
        view = self._log.view
        if self._expected >= view.next_seq:
            return []
        place = _locate(view, self._expected)
        if place is None:
            return [self._gap(view.segments[0].first_seq if view.segments else view.next_seq)]
        try:
            return self._read(place, max_bytes)
        except FileNotFoundError:
            return [self._gap(place.limit)]
        except OSError as error:
            self.close()
            path = self._log.path(place.segment.first_seq)
            raise StorageError(f"{path}: cannot read the queue: {error.strerror or error}") from error

    def skip(self) -> list[Frame | Gap]:
        """Give up the segment that cannot be read; return the gap that it leaves."""
        place = _locate(self._log.view, self._expected)
        return [] if place is None else [self._gap(place.limit)]

    def close(self) -> None:
        """Release the open segment; reading may go on."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _read(self, place: _Place, max_bytes: int) -> list[Frame | Gap]:
        file, left = self._file(place.segment.first_seq), place.segment.size - self._offset
        data = file.pread(min(max_bytes, left), self._offset)
        found = segment.scan(data, 0, whole=len(data) == left)
        if not found.frames and len(data) < left:  # a frame longer than the read, or damage: look at all that is left
            data = file.pread(left, self._offset)
            found = segment.scan(data, 0, whole=True)
        frames = [frame for frame in found.frames if frame.first_seq < place.limit]
        items = self._collect(frames)
        end = found.end
        if len(data) >= left and self._expected < place.limit:
            items.append(self._gap(place.limit))
            self._keep(place, data, Damage(found.end, len(data)))
            end = len(data)
        for damage in found.damage:
            if frames and damage.end <= frames[-1].end:  # what follows the limit was written again elsewhere
                self._keep(place, data, damage)
        self._offset += end
        return items

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

    def _keep(self, place: _Place, data: bytes, damage: Damage) -> None:
        if damage.start < damage.end:
            offset = self._offset + damage.start
            self._quarantine.keep(place.segment.first_seq, offset, data[damage.start : damage.end])

    def _file(self, first_seq: int) -> File:
        if self._open is None or self._open[0] != first_seq:
            self.close()
            self._open = (first_seq, self._fs.open(self._log.path(first_seq)))
            self._offset = segment.HEADER_BYTES
        return self._open[1]


def _locate(view: View, seq: int) -> _Place | None:
    """Return the segment that `seq` belongs to; None if it lies before all of them."""
    index = bisect_right(view.segments, seq, key=attrgetter("first_seq"))
    if index == 0:
        return None
    limit = view.segments[index].first_seq if index < len(view.segments) else view.next_seq
    return _Place(view.segments[index - 1], limit)
