"""An append-only log of numbered items in segment files: recover, append, delete. Its calls block.

`view` is replaced, never changed: what reads the log (`agent.queue.reader`) is given one, and may run meanwhile.

Invariants
1. `view` covers only what a checked sync has made durable (with `durable=False`: what has been written).
2. A segment whose write or sync failed is cut back to what is committed, and never written or synced again; the items go,
   once, into a new segment.
3. A segment's name is durable before an item in it is acknowledged.
4. The number of an item is never given to another one: names carry it across a restart, and so does the cursor.
"""

import contextlib
import errno
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Self

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.filesystem import FOREIGN, SHORTAGE, File, Filesystem, put_aside, read_around
from agent.queue.quarantine import DamagedBytes, Quarantine
from agent.queue.record import MAX_SEQ, encode_frame
from agent.queue.segment import End, Segment
from agent.queue.shares import UNNAMED

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Entry(NamedTuple):
    """What is appended as one frame: `item_count` items, encoded in `payload`.

    `retried` says that they are kept elsewhere until they are durable here: refusing them drops nothing. `owner` sent them.
    """

    item_count: int
    payload: bytes
    retried: bool = False
    owner: int = UNNAMED


@dataclass(frozen=True)
class LogView:
    """The log at one moment: its segments, oldest first, and the number that the next item will get."""

    segments: tuple[Segment, ...]
    next_seq: int

    @property
    def size(self) -> int:
        """The bytes of all segments."""
        return sum(s.size for s in self.segments)

    def index_of(self, seq: int) -> int:
        """Return the index of the segment that `seq` belongs to; -1 if it lies before all of them."""
        return bisect_right(self.segments, seq, key=attrgetter("first_seq")) - 1

    def limit(self, index: int) -> int:
        """Return the number with which the segment after this one begins, or the next item after the last one."""
        return self.segments[index + 1].first_seq if index + 1 < len(self.segments) else self.next_seq


class AppendError(StorageError):
    """Nothing of the append is in the log. `full` tells a full disk from a broken one."""

    def __init__(self, directory: Path, error: OSError) -> None:
        super().__init__(f"{directory}: cannot append to the queue: {error.strerror or error}")
        self.full = error.errno in _FULL


class Log:
    """The segments of one directory. Open it with `recover`."""

    def __init__(
        self,
        fs: Filesystem,
        directory: Path,
        *,
        segment_bytes: int,
        segment_seconds: float,
        durable: bool,
        view: LogView,
        dispose: Callable[[Path, Segment], None] | None = None,
    ) -> None:
        """Use `recover` instead: it finds out what `view` is."""
        self._fs = fs
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._durable = durable
        self._dispose = dispose or (lambda path, _: fs.unlink(path))
        self._active: File | None = None
        self.view = view

    @classmethod
    def recover(
        cls,
        fs: Filesystem,
        directory: Path,
        quarantine: Quarantine,
        *,
        segment_bytes: int,
        segment_seconds: float = float("inf"),
        durable: bool = True,
        next_seq: int = 1,
        dispose: Callable[[Path, Segment], None] | None = None,
    ) -> Self:
        """Open the log, creating its directory; `next_seq` is what the cursor remembers.

        A segment takes items up to `segment_bytes`, and for `segment_seconds` by whatever the clock says. `dispose` puts a
        segment that is to be deleted elsewhere, or deletes it; it may raise OSError.

        Reads every segment's header and the last segment's frames, so the time does not grow with the backlog. A torn
        tail is cut off. New items always go to a new segment. Raises StorageError if the directory cannot be used at
        all; a file that cannot be read is no reason.
        """
        try:
            fs.make_directory(directory)
            segments, foreign = listing(fs, directory)
            for seq in foreign:  # nothing to read, and it could not be deleted; its name says nothing of our numbers
                put_aside(fs, directory / segment.name(seq))
            if segments:
                last = segments[-1]
                end, rest = read_end(fs, directory / segment.name(last.first_seq), last, next_seq)
                if rest is not None:
                    if not segment.is_torn(rest):
                        quarantine.keep(DamagedBytes(last.first_seq, end.size, rest))
                    _mend(fs, directory / segment.name(last.first_seq), end.size)
                segments[-1] = last._replace(size=end.size)
                next_seq = max(next_seq, end.next_seq)
        except OSError as error:
            raise StorageError(f"{directory}: the queue directory cannot be used: {error.strerror or error}") from error
        view = LogView(tuple(segments), next_seq)
        return cls(
            fs,
            directory,
            segment_bytes=segment_bytes,
            segment_seconds=segment_seconds,
            durable=durable,
            view=view,
            dispose=dispose,
        )

    def path(self, first_seq: int) -> Path:
        """Return where the segment that begins with `first_seq` is."""
        return self._directory / segment.name(first_seq)

    def limit_segments(self, size: int) -> None:
        """Let segments take items up to so many bytes from now on; one that is larger takes none."""
        self._segment_bytes = size

    def append(self, entries: Sequence[Entry], now: float) -> int:
        """Write all of `entries`, make them durable, and return the number of the first item.

        `now` is in seconds since the epoch. Raises AppendError if two segments in a row refused; then none is in the
        log.
        """
        first_seq = next_seq = self.view.next_seq
        frames = []
        for entry in entries:
            if next_seq + entry.item_count > MAX_SEQ:  # somebody's file has an absurd name, or frame
                what = f"no numbers are left after {first_seq - 1}"
                raise AppendError(self._directory, OSError(errno.EOVERFLOW, what))
            frames.append(encode_frame(next_seq, entry.item_count, entry.payload))
            next_seq += entry.item_count
        data = b"".join(frames)
        try:
            self._write(data, next_seq, now)
        except (OSError, AppendError):  # AppendError: the segment before could not be sealed
            self._give_up()
            try:
                self._write(data, next_seq, now)
            except OSError as error:
                self._give_up()
                raise AppendError(self._directory, error) from error
        return first_seq

    def sync(self) -> None:
        """Make durable what `durable=False` left in memory. Raises AppendError; the segment is then closed for good."""
        if self._active is None:
            return
        try:
            self._active.sync()
        except OSError as error:
            self._abandon()
            raise AppendError(self._directory, error) from error

    def delete_before(self, position: int) -> int:
        """Delete the segments that hold nothing from `position` on; return how many. Raises StorageError.

        The caller has made the position durable: an item may go only when nobody will ask for it again.
        """
        return self._delete(segment.deletable(self.view.segments, position))

    def _delete(self, count: int) -> int:
        if not count:
            return 0
        try:
            for old in self.view.segments[:count]:
                self._dispose(self.path(old.first_seq), old)
            self._fs.sync_directory(self._directory)
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot delete old segments: {error.strerror or error}") from error
        self.view = replace(self.view, segments=self.view.segments[count:])
        return count

    def truncate_settled(self) -> None:
        """Give the last segment's room back and keep its name, which carries the number. Raises StorageError.

        The caller has made durable that nothing in the log is wanted any more, and what the next number is.
        """
        if not self.view.segments:
            return
        self._abandon()
        *older, last = self.view.segments
        size = min(last.size, segment.HEADER_BYTES)
        try:
            file = self._fs.open(self.path(last.first_seq), writable=True)
            try:
                file.truncate(size)  # not unlinked: a reader may have it open, and the room would stay taken
            finally:
                file.close()
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot make room: {error.strerror or error}") from error
        self.view = replace(self.view, segments=(*older, last._replace(size=size)))

    def seal(self) -> None:
        """End the active segment, syncing what is not durable yet; the next item begins a new one. Raises AppendError."""
        if self._active is None:
            return
        if not self._durable:
            self.sync()
        self._abandon()

    def roll(self, now: float) -> None:
        """Begin a new segment, unless the last one is still empty: whatever is older can then be deleted. Raises AppendError."""
        if self._active is not None and self.view.segments[-1].size == segment.HEADER_BYTES:
            return
        self.seal()
        try:
            self._begin_segment(now)
        except OSError as error:
            raise AppendError(self._directory, error) from error

    def clear(self) -> None:
        """Delete every segment, without writing a byte: that works on a full disk. Raises StorageError.

        Only for a log that keeps nothing else by its numbers: after a restart they begin anew.
        """
        self._abandon()
        self._delete(len(self.view.segments))

    def _write(self, data: bytes, next_seq: int, now: float) -> None:
        file = self._file_for(len(data), now)
        *older, (first_seq, size, created_at) = self.view.segments
        file.pwrite(data, size)
        if self._durable:
            file.sync()
        self.view = LogView((*older, Segment(first_seq, size + len(data), created_at)), next_seq)

    def _file_for(self, size: int, now: float) -> File:
        """Return the active segment's file if it takes so many bytes now, else that of a new one."""
        if self._active is not None:
            active = self.view.segments[-1]
            age = now - active.created_at if active.created_at is not None else 0.0
            fits = active.size + size <= self._segment_bytes and abs(age) <= self._segment_seconds
            if fits and self._active.has_name():
                return self._active
            self.seal()
        return self._begin_segment(now)

    def _begin_segment(self, now: float) -> File:
        """Create a segment named by the next number; name and header are durable before anything else is in it."""
        first_seq = self.view.next_seq
        path = self.path(first_seq)
        self._fs.make_directory(self._directory)  # somebody may have deleted it
        self._fs.unlink(path)  # a segment of this name holds no item that was ever acknowledged
        file = self._fs.create(path)
        try:
            header = segment.encode_header(first_seq, now)
            file.pwrite(header, 0)
            file.sync()  # a segment that has frames tells its age
            self._fs.sync_directory(self._directory)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):  # left behind it is harmless: it holds nothing, and the name is reused
                self._fs.unlink(path)
            raise
        older = tuple(s for s in self.view.segments if s.first_seq != first_seq)
        self.view = replace(self.view, segments=(*older, Segment(first_seq, len(header), now)))
        self._active = file
        return file

    def _give_up(self) -> None:
        """Close the segment after a failure, without what it was not to hold: after a kill that would look appended."""
        if self._active is not None:
            with contextlib.suppress(OSError):
                self._active.truncate(self.view.segments[-1].size)
            self._abandon()

    def _abandon(self) -> None:
        if self._active is not None:
            active, self._active = self._active, None
            active.close()


def listing(fs: Filesystem, directory: Path, prefix: str = "") -> tuple[list[Segment], list[int]]:
    """Return the segments of a directory, oldest first, and the numbers in names of segments that are no files.

    Their names begin with `prefix`.
    """
    names = [text.removeprefix(prefix) for text in fs.names(directory) if text.startswith(prefix)]
    first_seqs = [seq for text in names if (seq := segment.parse_name(text)) is not None]
    described = {seq: describe(fs, directory / f"{prefix}{segment.name(seq)}", seq) for seq in first_seqs}
    segments = [found for found in described.values() if found is not None]
    return segments, [seq for seq, found in described.items() if found is None]


def describe(fs: Filesystem, path: Path, first_seq: int) -> Segment | None:
    """Read a segment's header; of one that cannot be read now, the size is 0, and the reader will see.

    None for what is no file, whatever its name.
    """
    try:
        file = fs.open(path)
    except OSError as error:
        return None if error.errno in FOREIGN else Segment(first_seq, 0, None)
    try:
        size = min(file.size(), segment.MAX_BYTES)
        return Segment(first_seq, size, segment.decode_header(file.pread(segment.HEADER_BYTES, 0)))
    except OSError:
        return Segment(first_seq, 0, None)
    finally:
        file.close()


def read_end(fs: Filesystem, path: Path, last: Segment, known: int) -> tuple[End, bytes | None]:
    """Find where the log ends whose last segment this is; the bytes beyond count for nothing, None if not all could be read.

    `known` is the next number that the cursor remembers. Raises OSError for a shortage: to go on without knowing the number would
    give up what a moment later can be read.
    """
    try:
        data, lost = contents(fs, path)
    except OSError as error:
        if error.errno in SHORTAGE:
            raise
        return End(last.size, last.first_seq + 1), None
    end = segment.end_of(data, last.first_seq, known, all_read=not lost)
    return end, None if lost else data[end.size :]


def contents(fs: Filesystem, path: Path) -> tuple[bytes, int]:
    """Read a file, around blocks that cannot be read; the second value is how many those are."""
    file = fs.open(path)
    try:
        size = min(file.size(), segment.MAX_BYTES)
        try:
            return file.pread(size, 0), 0
        except OSError:
            return read_around(file, size, 0)
    finally:
        file.close()


def _mend(fs: Filesystem, path: Path, end: int) -> None:
    """Cut a segment at `end`, and make durable what a killed process wrote last.

    A disk that refuses it does no harm: the next segment's name says where this one ends, and nothing that was not
    durable was acknowledged.
    """
    with contextlib.suppress(OSError):
        file = fs.open(path, writable=True)
        try:
            if file.size() > end:
                file.truncate(end)
            file.sync()
        finally:
            file.close()
