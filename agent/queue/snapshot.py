"""A queue as it is at one moment, read without changing anything: for the tools that look into it.

Opening a queue recovers it: that cuts off torn tails and writes the cursor. So the tools do not open it. Of a queue that a
daemon has open, a snapshot covers what is committed; segments that are deleted meanwhile are left out, and everything that
was in them is settled.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Cursor, Span
from agent.queue.cursor_file import newest_in, read_slots
from agent.queue.filesystem import SHORTAGE, Filesystem
from agent.queue.log import LogView, contents, listing, read_end
from agent.queue.record import Frame
from agent.queue.segment import Damage, Gap, Segment
from agent.queue.store import Store, recovered_cursor


@dataclass(frozen=True)
class Contents:
    """What a segment holds; see `segment.Interpretation` for `items`, `frames`, `damage` and `leftover`.

    `limit` is the number with which the next segment begins, `torn` counts the bytes at the end of a write that was cut short.
    `error` says why nothing could be read at all.
    """

    path: Path
    segment: Segment
    limit: int
    data: bytes = b""
    items: Sequence[Frame | Gap] = ()
    frames: Sequence[Frame] = ()
    damage: Sequence[Damage] = ()
    leftover: int = 0
    torn: int = 0
    lost_blocks: int = 0
    error: str | None = None

    @property
    def header_damaged(self) -> bool:
        """Whether a segment that holds something does not begin as it should; one that was only just begun may be torn."""
        begun = self.segment.first_seq < self.limit
        return begun and not segment.is_header_of(self.data, self.segment.first_seq)

    def accounted(self) -> Iterator[tuple[Frame | Gap, Span]]:
        """Yield each item with the numbers that it accounts for: each number of the segment once."""
        expected = self.segment.first_seq
        for item in self.items:
            span = item.span if isinstance(item, Gap) else Span(max(item.first_seq, expected), item.next_seq)
            expected = span.stop
            yield item, span

    @property
    def gaps(self) -> Iterator[Gap]:
        """The numbers that no frame holds."""
        return (item for item in self.items if isinstance(item, Gap))


@dataclass(frozen=True)
class LogSnapshot:
    """A log at one moment. While it is `live`, somebody may be appending beyond the view.

    The names of its segments begin with `prefix`, where there are those of several queues.
    """

    fs: Filesystem
    directory: Path
    view: LogView
    live: bool
    prefix: str = ""

    @classmethod
    def read(cls, fs: Filesystem, directory: Path, next_seq: int = 1, prefix: str = "") -> Self:
        """Take it of a log that nobody has open, as recovery would see it. Raises StorageError."""
        try:
            with contextlib.suppress(FileNotFoundError):
                return cls(fs, directory, _read_view(fs, directory, next_seq, prefix), live=False, prefix=prefix)
        except OSError as error:
            raise _unreadable(directory, error) from error
        return cls(fs, directory, LogView((), next_seq), live=False, prefix=prefix)

    def contents(self, index: int, mentioning: bytes = b"") -> Contents | None:
        """Read a segment whole; None if it has been deleted meanwhile, or has not these bytes.

        Raises StorageError for a shortage.
        """
        found = self.view.segments[index]
        path, limit = self.directory / f"{self.prefix}{segment.name(found.first_seq)}", self.view.limit(index)
        try:
            data, lost = contents(self.fs, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in SHORTAGE:
                raise _unreadable(path, error) from error
            whole = [Gap(Span(found.first_seq, limit))] if found.first_seq < limit else []
            return Contents(path, found, limit, items=whole, error=error.strerror or str(error))
        if mentioning not in data:
            return None
        torn = 0
        if index == len(self.view.segments) - 1 and found.size:  # while it is live, somebody may be writing beyond it
            torn = 0 if self.live else max(len(data) - found.size, 0)
            data = data[: found.size]
        meant = segment.interpret(data, segment.HEADER_BYTES, found.first_seq, limit, whole=True)
        return Contents(
            path, found, limit, data, meant.items, meant.frames, meant.damage, meant.leftover, torn, lost_blocks=lost
        )

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
    cursor = Cursor.from_state(store.cursor.state())
    return QueueSnapshot(store.directory, LogSnapshot(fs, store.directory / "segments", store.view, live=True), cursor)


def read_queue(fs: Filesystem, directory: Path) -> QueueSnapshot:
    """Take a snapshot of a queue that nobody has open: what a daemon would begin with. Raises StorageError."""
    newest = newest_in(read_slots(fs, directory / "cursor"))
    checkpoint = None if newest is None else newest.state
    log = LogSnapshot.read(fs, directory / "segments", checkpoint.next_seq if checkpoint else 1)
    return QueueSnapshot(directory, log, recovered_cursor(checkpoint, log.view))


def _read_view(fs: Filesystem, directory: Path, next_seq: int, prefix: str) -> LogView:
    segments, _ = listing(fs, directory, prefix)
    if segments:
        last = segments[-1]
        end, _ = read_end(fs, directory / f"{prefix}{segment.name(last.first_seq)}", last, next_seq)
        segments[-1] = segments[-1]._replace(size=end.size)
        next_seq = max(next_seq, end.next_seq)
    return LogView(tuple(segments), next_seq)


def _unreadable(path: Path, error: OSError) -> StorageError:
    advice = ": run it as the daemon's user, or as root" if isinstance(error, PermissionError) else ""
    return StorageError(f"{path}: cannot be read: {error.strerror or error}{advice}")
