"""A queue as it is at one moment, read without changing anything: for the tools that look into it.

It knows segments as bytes, and how recovery would see them. It must never know what an item means, or write a byte.

Opening a queue recovers it: that cuts off torn tails and writes the cursor. So the tools do not open it. Of a queue that a
daemon has open, a snapshot covers what is committed; segments that are deleted meanwhile are left out, and everything that
was in them is settled.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Self

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Cursor, Span
from agent.queue.cursor_file import newest_in, read_slots
from agent.queue.filesystem import SHORTAGE, Filesystem
from agent.queue.log import Log, LogView, contents, end_unread, listing
from agent.queue.record import Frame
from agent.queue.segment import Damage, Segment
from agent.queue.store import Store


@dataclass(frozen=True)
class Contents:
    """What a segment holds: `frames` are those that count, numbered below `limit`, where the next segment begins.

    `damage` is what lies between and after them; `leftover` and `torn` are the bytes after their end that count for nothing: of
    a write that failed and was done again elsewhere, or that was cut short. `error` says why nothing could be read at all.
    """

    path: Path
    segment: Segment
    limit: int
    data: bytes = b""
    frames: tuple[Frame, ...] = ()
    damage: tuple[Damage, ...] = ()
    leftover: int = 0
    torn: int = 0
    lost_blocks: int = 0
    error: str | None = None

    @property
    def header_damaged(self) -> bool:
        """Whether a segment that holds something does not begin as it should; one that was only just begun may be torn."""
        begun = self.segment.first_seq < self.limit
        return begun and not segment.is_header_of(self.data, self.segment.first_seq)


class Hole(NamedTuple):
    """Numbers that no frame holds, and the bytes [start, end) where it should be."""

    span: Span
    start: int
    end: int


@dataclass(frozen=True)
class LogSnapshot:
    """A log at one moment. While it is `live`, somebody may be appending beyond the view."""

    fs: Filesystem
    directory: Path
    view: LogView
    live: bool

    @classmethod
    def of(cls, fs: Filesystem, log: Log) -> Self:
        """Take it of a log that is open."""
        return cls(fs, log.directory, log.view, live=True)

    @classmethod
    def read(cls, fs: Filesystem, directory: Path, next_seq: int = 1) -> Self:
        """Take it of a log that nobody has open, as recovery would see it. Raises StorageError."""
        try:
            with contextlib.suppress(FileNotFoundError):
                return cls(fs, directory, _read_view(fs, directory, next_seq), live=False)
        except OSError as error:
            raise _unreadable(directory, error) from error
        return cls(fs, directory, LogView((), next_seq), live=False)

    def path(self, first_seq: int) -> Path:
        """Return where the segment that begins with `first_seq` is."""
        return self.directory / segment.name(first_seq)

    def index_of(self, seq: int) -> int:
        """Return the index of the segment that `seq` belongs to; 0 if it lies before all of them."""
        return max(bisect_right(self.view.segments, seq, key=attrgetter("first_seq")) - 1, 0)

    def limit(self, index: int) -> int:
        """Return the number at which the segment after this one, or the end of the log, begins."""
        following = self.view.segments[index + 1 : index + 2]
        return following[0].first_seq if following else self.view.next_seq

    def contents(self, index: int, mentioning: bytes = b"") -> Contents | None:
        """Read a segment whole; None if it has been deleted meanwhile, or has not these bytes.

        Raises StorageError for a shortage.
        """
        found = self.view.segments[index]
        path, limit = self.path(found.first_seq), self.limit(index)
        try:
            data, lost = contents(self.fs, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in SHORTAGE:
                raise _unreadable(path, error) from error
            return Contents(path, found, limit, error=error.strerror or str(error))
        if mentioning not in data:
            return None
        is_last = index == len(self.view.segments) - 1
        return _sorted_out(Contents(path, found, limit, data, lost_blocks=lost), is_last=is_last, live=self.live)

    def all_contents(self) -> Iterator[Contents]:
        """Read one segment after another."""
        for index in range(len(self.view.segments)):
            if (found := self.contents(index)) is not None:
                yield found


class QueueSnapshot(NamedTuple):
    """A queue at one moment: `cursor` is a copy, `directory` holds `log` and all the rest."""

    directory: Path
    log: LogSnapshot
    cursor: Cursor

    @property
    def live(self) -> bool:
        """Whether a daemon has the queue open."""
        return self.log.live


def snapshot_of(fs: Filesystem, store: Store) -> QueueSnapshot:
    """Take a snapshot of an open queue, in the thread that the cursor belongs to."""
    log, cursor = LogSnapshot.of(fs, store.log), Cursor.from_state(store.cursor.state())
    cursor.next_seq = log.view.next_seq
    return QueueSnapshot(store.directory, log, cursor)


def read_queue(fs: Filesystem, directory: Path) -> QueueSnapshot:
    """Take a snapshot of a queue that nobody has open: what a daemon would begin with. Raises StorageError."""
    checkpoint = newest_in(read_slots(fs, directory / "cursor"))
    log = LogSnapshot.read(fs, directory / "segments", checkpoint.state.next_seq if checkpoint else 1)
    oldest = log.view.segments[0].first_seq if log.view.segments else log.view.next_seq
    cursor = Cursor.from_state(checkpoint.state) if checkpoint else Cursor(oldest)
    cursor.next_seq = log.view.next_seq
    return QueueSnapshot(directory, log, cursor)


def holes(found: Contents) -> Iterator[Hole]:
    """Yield the numbers that no frame of a segment holds, in order."""
    expected, offset = found.segment.first_seq, segment.HEADER_BYTES
    for frame in found.frames:
        if frame.first_seq > expected:
            yield Hole(Span(expected, frame.first_seq), offset, frame.start)
        expected, offset = max(expected, frame.next_seq), frame.end
    if expected < found.limit:
        yield Hole(Span(expected, found.limit), offset, max(len(found.data), offset))


def _read_view(fs: Filesystem, directory: Path, next_seq: int) -> LogView:
    segments, _ = listing(fs, directory)
    if segments:
        last = segments[-1]
        try:
            data, lost = contents(fs, directory / segment.name(last.first_seq))
            end = segment.end_of(data, last.first_seq, next_seq, all_read=not lost)
        except OSError as error:
            end = end_unread(last, error)
        segments[-1] = last._replace(size=end.size)
        next_seq = max(next_seq, end.next_seq)
    return LogView(tuple(segments), next_seq)


def _sorted_out(raw: Contents, *, is_last: bool, live: bool) -> Contents:
    """Tell frames, damage and what counts for nothing apart, as the queue's reader does."""
    size = min(raw.segment.size or len(raw.data), len(raw.data)) if is_last else len(raw.data)
    data = raw.data[:size]
    found = segment.scan(data, segment.HEADER_BYTES, whole=True)
    frames = tuple(frame for frame in found.frames if frame.next_seq <= raw.limit)
    end = frames[-1].end if frames else segment.HEADER_BYTES
    complete = bool(frames) and frames[-1].next_seq >= raw.limit
    complete = complete or raw.segment.first_seq >= raw.limit
    # What follows the last number of the segment is left of a failed write, and written again elsewhere.
    damage = [each for each in found.damage if each.end <= end or not complete]
    rest = Damage(found.end, size)
    if not complete and rest.start < rest.end:
        damage.append(rest)
    return Contents(
        raw.path,
        raw.segment,
        raw.limit,
        data,
        frames,
        tuple(damage),
        leftover=max(size - end, 0) if complete else 0,
        torn=len(raw.data) - size if is_last and not live else 0,
        lost_blocks=raw.lost_blocks,
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    advice = ": run it as the daemon's user, or as root" if isinstance(error, PermissionError) else ""
    return StorageError(f"{path}: cannot be read: {error.strerror or error}{advice}")
