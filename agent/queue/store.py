"""The queue of one destination as the event loop sees it: what is settled, what the log holds, and what the limits say must go.

A commit goes through `plan`, then `Writer.commit` in a thread, then `apply`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from agent.queue import record, segment
from agent.queue.cursor import Cursor, CursorState, Outcome, Span
from agent.queue.filesystem import Filesystem
from agent.queue.log import Entry, LogView
from agent.queue.ownership import OneThread
from agent.queue.reader import Reader
from agent.queue.segment import Segment
from agent.queue.undelivered import Undelivered, UndeliveredLog

# A segment takes events for this part of their greatest age, so that what it holds can expire together, soon enough.
SEGMENTS_PER_AGE = 24


@dataclass(frozen=True)
class Limits:
    """What bounds a queue: sizes in bytes, ages in seconds.

    `sync` says when what is written becomes durable: at each commit, at each `Writer.sync`, or when the system likes. Settled
    segments are kept up to `history_bytes`, and for `history_age`.
    """

    segment_bytes: int = 8 * 1024**2
    max_bytes: int = 1024**3
    max_age: float = 7 * 86400
    overflow: Literal["drop-oldest", "drop-newest"] = "drop-oldest"
    min_free_bytes: int = 0
    sync: Literal["commit", "interval", "off"] = "commit"
    history_bytes: int = 0
    history_age: float = math.inf


class Plan(NamedTuple):
    """What a commit is to write: the cursor's checkpoint, and the entries unless `refused` says why not.

    `new` of their events come from clients, `retried` from dead letters. `undelivered` is what the checkpoint has settled and not
    delivered, as far as no commit has written it yet. With `keep_segments` no segment is deleted: somebody reads them. With
    `reclaim` all that is settled is deleted, even the last segment.
    """

    entries: Sequence[Entry]
    new: int
    retried: int
    checkpoint: CursorState
    refused: Outcome | None = None
    undelivered: Sequence[Undelivered] = ()
    keep_segments: bool = False
    reclaim: bool = False


class Committed(NamedTuple):
    """What became of a plan: the log after it, why its entries were refused, and what the disk refused otherwise.

    A refused append lost its entries; a failed checkpoint or deletion is tried again, and so is writing what was not delivered.
    `append_error` says why events cannot be kept now, even if there were none in the plan.
    """

    view: LogView
    refused: Outcome | None = None
    append_error: str | None = None
    checkpoint_error: str | None = None
    delete_error: str | None = None
    undelivered_error: str | None = None


class Recovered(NamedTuple):
    """What was found when a queue was opened."""

    view: LogView
    checkpoint: CursorState


def recovered_cursor(checkpoint: CursorState | None, view: LogView) -> Cursor:
    """Return the cursor of a log that was found with this checkpoint; without one, all of the log is queued."""
    oldest = view.segments[0].first_seq if view.segments else view.next_seq
    cursor = Cursor(oldest) if checkpoint is None else Cursor.from_state(checkpoint)
    cursor.next_seq = view.next_seq
    return cursor


class Store(OneThread):
    """One thread's side of an open queue; it makes no blocking calls, `agent.queue.writer.Writer` does.

    `cursor` says what is settled, `view` what the log holds; from `first_own_seq` on this process wrote it. While there are
    `readers`, segments stay for them although all in them is settled, as long as the disk has room.
    """

    def __init__(self, fs: Filesystem, directory: Path, limits: Limits, recovered: Recovered) -> None:
        super().__init__()
        self._fs = fs
        self._limits = limits
        self._view = recovered.view
        self._cursor = Cursor.from_state(recovered.checkpoint)
        self._undelivered = UndeliveredLog()
        self._cursor.watchers.append(self._undelivered)
        self.directory = directory
        self.first_own_seq = recovered.view.next_seq
        self.readers: set[object] = set()

    @property
    def cursor(self) -> Cursor:
        """What is settled."""
        self.check()
        return self._cursor

    @property
    def view(self) -> LogView:
        """What the log holds; replaced by each commit, never changed."""
        self.check()
        return self._view

    @property
    def undelivered(self) -> tuple[Undelivered, ...]:
        """What was settled otherwise than delivered, as far as no commit has written it yet."""
        self.check()
        return tuple(self._undelivered.pending)

    def plan(self, entries: Sequence[Entry], now: float, *, reclaim: bool = False) -> Plan:
        """Settle what is too old or must make room for `entries`, and say what the next commit has to write."""
        self.check()
        cursor = self._cursor
        oldest, span = now - self._limits.max_age, self._limits.max_age / SEGMENTS_PER_AGE
        expired = segment.expired_before(self._view.segments, oldest, span)
        if expired > cursor.position:
            cursor.settle([Span(cursor.position, expired)], Outcome.EXPIRED)
        excess = self._excess(entries) if entries else 0
        refused = None
        if excess > 0 and self._limits.overflow == "drop-newest":
            refused = Outcome.OVERFLOW
        elif excess > 0:
            room = segment.overflow_before(self._in_use(), excess)
            if room > cursor.position:
                cursor.settle([Span(cursor.position, room)], Outcome.OVERFLOW)
        new = retried = 0
        for entry in entries:
            if entry.retried:
                retried += entry.item_count
            else:
                new += entry.item_count
        return Plan(entries, new, retried, cursor.state(), refused, self.undelivered, bool(self.readers), reclaim)

    def checkpoint(self, *, reclaim: bool = False) -> Plan:
        """Say what a commit has to write that settles nothing by itself."""
        self.check()
        return Plan((), 0, 0, self._cursor.state(), undelivered=self.undelivered, reclaim=reclaim)

    def apply(self, plan: Plan, committed: Committed) -> None:
        """Take over what became of a plan: what is queued now, and the counts that its checkpoint on the disk has already."""
        self.check()
        cursor = self._cursor
        self._view = committed.view
        if committed.undelivered_error is None:
            del self._undelivered.pending[: len(plan.undelivered)]
        cursor.next_seq = committed.view.next_seq
        if committed.refused is None:
            cursor.retried += plan.retried
        elif plan.new:
            cursor.shed(plan.new, committed.refused)

    def has_room(self, entries: Sequence[Entry]) -> bool:
        """Tell whether entries would push nothing out of the queue."""
        self.check()
        return self._excess(entries) <= 0

    def reader(self, start: int = 0) -> Reader:
        """Return a reader that begins at the first event that is not settled, or at `start` if that is later."""
        return Reader(self._fs, self.directory / "segments", max(self.cursor.position, start))

    def _in_use(self) -> tuple[Segment, ...]:
        """Return the segments that hold something unsettled. The others can go, the last of them once another one follows."""
        position, segments = self._cursor.position, self._view.segments
        return segments[segment.deletable(segments, position) :] if position < self._view.next_seq else ()

    def _excess(self, entries: Sequence[Entry]) -> int:
        """Return by how many bytes the queue would be too large with `entries`, if they begin a new segment."""
        size = segment.HEADER_BYTES
        for each in self._in_use():
            size += each.size
        for entry in entries:
            size += record.HEADER_BYTES + len(entry.payload)
        return size - self._limits.max_bytes
