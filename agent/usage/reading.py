"""Reads what a queue and its history hold, for counting: while its daemon runs, without its lock, and without changing anything.

A segment is known by its first number and the time when it was begun: a queue that has lost its cursor may give numbers again,
but not to a segment of the same time. It may move from the queue to its history, or be deleted, at any moment.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue.cursor_file import newest_in, read_slots
from agent.queue.filesystem import Filesystem
from agent.queue.history import DIRECTORY as HISTORY
from agent.queue.history import SEGMENTS, handed_over, read_handed_over, read_history
from agent.queue.log import LogView
from agent.queue.record import Record, record_in
from agent.queue.segment import Gap, Segment
from agent.queue.snapshot import Contents, LogSnapshot
from agent.usage.counting import Sessions, Totals, count, events_in, totals_of


class SegmentKey(NamedTuple):
    """Which segment it is; `created_at` in seconds since the epoch, 0.0 if that is not known."""

    first_seq: int
    created_at: float
    queue: str = ""
    """Another queue that it is of, which has handed it over: it has no other segment of this number."""

    @classmethod
    def of(cls, segment: Segment) -> "SegmentKey":
        """Return that of a segment."""
        return cls(segment.first_seq, segment.created_at or 0.0)


class Progress(NamedTuple):
    """Up to which number a segment has been read, and whether that is all that it will ever hold."""

    read_to: int
    complete: bool


class Piece(NamedTuple):
    """What a segment holds beyond what was read of it before. `lost` counts events in damaged bytes."""

    key: SegmentKey
    progress: Progress
    records: list[Record]
    lost: int
    problem: str | None = None


@dataclass(frozen=True)
class KeptEvents:
    """A queue's segments and those of its history at one moment, oldest first.

    Events below `committed` are durable. The numbers began with `origin`; `shed` events were dropped before they got one.
    """

    view: LogView
    places: tuple[LogSnapshot, LogSnapshot]
    origin: int
    committed: int
    shed: int
    others: Mapping[str, Sequence[int]]
    """The first numbers of segments that other queues have handed over."""

    @classmethod
    def read(cls, fs: Filesystem, directory: Path) -> "KeptEvents":
        """Look at the queue of a destination. Raises StorageError."""
        newest = newest_in(read_slots(fs, directory / "cursor"))  # first: what it says is committed is there, then
        known = 1 if newest is None else newest.state.next_seq
        log = LogSnapshot.read(fs, directory / SEGMENTS, known)
        try:
            kept = read_history(fs, directory, log.view.next_seq).view.segments
            others = handed_over(fs, directory)
        except OSError as error:
            raise StorageError(f"{directory / HISTORY}: cannot be read: {error.strerror}") from error
        found = {each.first_seq: each for each in (*kept, *log.view.segments)}
        view = LogView(tuple(found[seq] for seq in sorted(found)), log.view.next_seq)
        oldest = view.segments[0].first_seq if view.segments else view.next_seq
        return cls(
            view,
            (
                LogSnapshot(fs, directory / SEGMENTS, view, live=True),
                LogSnapshot(fs, directory / HISTORY, view, live=True),
            ),
            origin=oldest if newest is None else newest.state.origin,
            committed=view.next_seq if newest is None else min(known, view.next_seq),
            shed=0 if newest is None else sum(newest.state.shed.values()),
            others=others,
        )

    @property
    def size(self) -> int:
        """The bytes of all segments."""
        return self.view.size

    @property
    def complete(self) -> bool:
        """Whether all events since the queue began are here."""
        return bool(self.view.segments) and self.view.segments[0].first_seq <= self.origin

    @property
    def keys(self) -> list[SegmentKey]:
        """The segments, oldest first, and those of others."""
        return [*self.own_keys, *self.other_keys]

    @property
    def own_keys(self) -> list[SegmentKey]:
        """The segments of this queue, oldest first."""
        return [SegmentKey.of(each) for each in self.view.segments]

    @property
    def other_keys(self) -> list[SegmentKey]:
        """Those of others."""
        return [SegmentKey(seq, 0.0, queue) for queue, seqs in self.others.items() for seq in seqs]

    def pieces(self, known: Mapping[SegmentKey, Progress]) -> Iterator[Piece]:
        """Read what is not `known` yet, a segment at a time, oldest first. Raises StorageError for a shortage."""
        yield from self.own_pieces(known)
        for queue, seqs in self.others.items():
            if any(SegmentKey(seq, 0.0, queue) not in known for seq in seqs):
                yield from self._pieces_of(queue, known)

    def own_pieces(self, known: Mapping[SegmentKey, Progress]) -> Iterator[Piece]:
        """Do the same with what is of this queue."""
        for index, key in enumerate(self.own_keys):
            before = known.get(key, Progress(key.first_seq, complete=False))
            stop = min(self.view.limit(index), self.committed)
            if before.complete or (before.read_to >= stop and index == len(self.view.segments) - 1):
                continue
            contents = self._contents(index)
            if contents is not None:
                yield _piece(key, contents, before.read_to, stop, complete=index < len(self.view.segments) - 1)

    def _pieces_of(self, queue: str, known: Mapping[SegmentKey, Progress]) -> Iterator[Piece]:
        """Read what another queue has handed over, and which will not change any more."""
        history = self.places[1]
        log = read_handed_over(history.fs, history.directory.parent, queue)
        for index, each in enumerate(log.view.segments):
            key = SegmentKey(each.first_seq, 0.0, queue)
            if key not in known and (contents := log.contents(index)) is not None:
                yield _piece(key, contents, each.first_seq, log.view.limit(index), complete=True)

    def _contents(self, index: int) -> Contents | None:
        """Read a segment where it is now; None if it has been deleted."""
        for place in self.places:
            if (found := place.contents(index)) is not None:
                return found
        return None


def _piece(key: SegmentKey, contents: Contents, start: int, stop: int, *, complete: bool) -> Piece:
    """Return what is numbered from `start` up to `stop`."""
    if contents.error is not None:  # perhaps it can be read the next time
        return Piece(key, Progress(start, complete=False), [], 0, f"{contents.path}: {contents.error}")
    records, lost = [], 0
    for item, span in contents.accounted():
        first, end = max(span.start, start), min(span.stop, stop)
        if first >= end or (span.stop > stop and not isinstance(item, Gap)):
            continue
        record = None if isinstance(item, Gap) else record_in(item)
        if record is None:
            lost += end - first
        else:
            records.append(record)
    return Piece(key, Progress(max(start, stop), complete), records, lost)


def count_piece(sessions: Sessions, piece: Piece) -> tuple[int, int]:
    """Count a piece's events; return how many they are, and how many cannot be read."""
    number, lost = 0, piece.lost
    for record in piece.records:
        events, others = events_in(record.lines)
        count(sessions, events, record.context.ci, record.enqueued_at, record.context.job)
        number += len(events)
        lost += others
    return number, lost


def count_all(*queues: KeptEvents) -> Totals:
    """Return what all events of some queues and their histories come to, without those of others. Raises StorageError."""
    sessions = Sessions()
    for kept in queues:
        for piece in kept.own_pieces({}):
            count_piece(sessions, piece)
    return totals_of(sessions.values())
