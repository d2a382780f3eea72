"""The queue of one destination as the event loop sees it: what is settled, what the log holds, and what the limits say must go.

A commit goes through `admit` and `plan`, then `Writer.commit` in a thread, then `apply`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from agent.queue import record, segment, shares
from agent.queue.cursor import Cursor, CursorState, Outcome, Run, Span
from agent.queue.filesystem import Filesystem
from agent.queue.grouping import Submitted
from agent.queue.log import Entry, LogView
from agent.queue.ownership import OneThread
from agent.queue.reader import Reader
from agent.queue.segment import Segment
from agent.queue.shares import Occupancy, Part, Senders, SharedDisk
from agent.queue.undelivered import Undelivered, UndeliveredLog

S = TypeVar("S", bound=Submitted)


# A segment takes events for this part of their greatest age, so that what it holds can expire together, soon enough.
SEGMENTS_PER_AGE = 24
# Of so many senders it is remembered without looking whether all of them still count.
REMEMBERED_SENDERS = 1024


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
    """What a commit is to write: the cursor's checkpoint, and the entries, of which each owner `holds` so many bytes.

    `new` of their events come from clients, `retried` from dead letters. Whose they are `is_known` where the last run of segments
    is the only owner's, as nearly always. `undelivered` is what the checkpoint has settled and not delivered, as far as no commit
    has written it yet. With `keep_segments` no segment is deleted: somebody reads them. With `reclaim` all that is settled is
    deleted, even the last segment. A segment takes entries up to `segment_bytes`, if that is given.
    """

    entries: Sequence[Entry]
    new: int
    retried: int
    checkpoint: CursorState
    holds: Mapping[int, int]
    is_known: bool = False
    undelivered: Sequence[Undelivered] = ()
    keep_segments: bool = False
    reclaim: bool = False
    segment_bytes: int | None = None


class Committed(NamedTuple):
    """What became of a plan: the log after it, why its entries were refused, and what the disk refused otherwise.

    A refused append lost its entries; a failed checkpoint or deletion is tried again, and so is writing what was not delivered.
    `append_error` says why events cannot be kept now, even if there were none in the plan. `refusals` are of what was not let
    into the plan.
    """

    view: LogView
    refused: Outcome | None = None
    append_error: str | None = None
    checkpoint_error: str | None = None
    delete_error: str | None = None
    undelivered_error: str | None = None
    refusals: Sequence["Refusal"] = ()


class Refusal(NamedTuple):
    """What an owner was refused in one commit, and how many bytes it held, and might have held."""

    owner: int
    reason: Outcome
    events: int
    bytes: int
    held: int
    share: int


class Recovered(NamedTuple):
    """What was found when a queue was opened; `is_new` if it had no readable checkpoint, so that its counting begins anew."""

    view: LogView
    checkpoint: CursorState
    is_new: bool = False


class Admitted(NamedTuple, Generic[S]):
    """What was let into a commit, and what was refused, with the reason; `refusals` sum that up by owner."""

    accepted: Sequence[S]
    refused: Sequence[tuple[S, Outcome]] = ()
    refusals: Sequence[Refusal] = ()


def recovered_cursor(checkpoint: CursorState | None, view: LogView) -> Cursor:
    """Return the cursor of a log that was found with this checkpoint; without one, all of the log is queued."""
    oldest = view.segments[0].first_seq if view.segments else view.next_seq
    cursor = Cursor(oldest) if checkpoint is None else Cursor.from_state(checkpoint)
    if view.segments and cursor.next_seq < view.next_seq:  # events that the checkpoint does not know may be anybody's
        cursor.runs = shares.runs_until(cursor.runs, view.segments[max(view.index_of(cursor.next_seq), 0)].first_seq)
    cursor.next_seq = view.next_seq
    return cursor


def runs_after(plan: Plan, view: LogView) -> tuple[Run, ...]:
    """Return whose segments are whose after the plan's entries have been appended, all of them to one segment."""
    before, last = plan.checkpoint, view.segments[-1].first_seq
    return shares.runs_with(before.runs, last, plan.holds, begun=last >= before.next_seq)


class Store(OneThread):
    """One thread's side of an open queue; it makes no blocking calls, `agent.queue.writer.Writer` does.

    `cursor` says what is settled, `view` what the log holds; from `first_own_seq` on this process wrote it. While there are
    `readers`, segments stay for them although all in them is settled, as long as the disk has room.
    """

    def __init__(
        self, fs: Filesystem, directory: Path, limits: Limits, recovered: Recovered, disk: SharedDisk | None = None
    ) -> None:
        """With a `disk` that it shares with other queues it may use only a part of that; `close` leaves it to them."""
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
        # By segment, how many bytes are whose. What was found is wholly one owner's, or nobody's.
        self._held = {
            each.first_seq: {shares.owner_of(self._cursor.runs, each.first_seq): each.size}
            for each in self._view.segments
        }
        self._senders = Senders({owner for held in self._held.values() for owner in held})
        self._disk = disk
        if disk is not None:
            disk.use(self, self._bytes_in_use())

    def close(self) -> None:
        """Leave the disk to the queues that it is shared with."""
        if self._disk is not None:
            self._disk.leave(self)

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
    def max_bytes(self) -> int:
        """How many bytes the segments may have that are in use."""
        own = self._limits.max_bytes
        return own if self._disk is None else min(own, self._disk.bound(self))

    @property
    def undelivered(self) -> tuple[Undelivered, ...]:
        """What was settled otherwise than delivered, as far as no commit has written it yet."""
        self.check()
        return tuple(self._undelivered.pending)

    def admit(self, submitted: Sequence[S], now: float) -> Admitted[S]:
        """Decide what the next commit takes, count what is refused, and settle what has to make room."""
        self.check()
        senders, size = self._senders.last, segment.HEADER_BYTES + self._bytes_in_use()
        for each in submitted:
            if not each.retried:
                senders[each.owner] = now, each.weight
            size += each.size
        if size <= self.max_bytes // 2 and len(senders) <= REMEMBERED_SENDERS and not self._senders.found:
            admitted = Admitted(submitted)
        else:
            admitted = self._admit_by_shares(submitted, now)
        if self._disk is not None:
            size = sum(each.size for each in admitted.accepted)
            self._disk.use(self, self._bytes_in_use() + size + segment.HEADER_BYTES)
        return admitted

    def plan(self, entries: Sequence[Entry], now: float, *, reclaim: bool = False) -> Plan:
        """Settle what is too old, and say what the next commit has to write."""
        self.check()
        if len(self._view.segments) > 1:  # the last one stays
            self._expire(now)
        if self._disk is not None:
            self._give_way(self._disk)
        new = retried = 0
        holds: dict[int, int] = {}
        for entry in entries:
            if entry.retried:
                retried += entry.item_count
            else:
                new += entry.item_count
            holds[entry.owner] = holds.get(entry.owner, 0) + record.HEADER_BYTES + len(entry.payload)
        runs = self._cursor.runs
        is_known = bool(runs) and len(holds) == 1 and runs[-1].owner in holds
        checkpoint, readers = self._cursor.state(), bool(self.readers)
        return Plan(
            entries,
            new,
            retried,
            checkpoint,
            holds,
            is_known,
            self.undelivered,
            readers,
            reclaim,
            self._segment_bytes,
        )

    def checkpoint(self, *, reclaim: bool = False) -> Plan:
        """Say what a commit has to write that settles nothing by itself."""
        self.check()
        return Plan((), 0, 0, self._cursor.state(), {}, undelivered=self.undelivered, reclaim=reclaim)

    def apply(self, plan: Plan, committed: Committed) -> None:
        """Take over what became of a plan: what is queued now, and the counts that its checkpoint on the disk has already."""
        self.check()
        cursor = self._cursor
        self._view = view = committed.view
        if committed.undelivered_error is None:
            del self._undelivered.pending[: len(plan.undelivered)]
        cursor.next_seq = view.next_seq
        if committed.refused is not None:
            if plan.new:
                cursor.shed(plan.new, committed.refused)
        elif plan.entries:
            cursor.retried += plan.retried
            if not plan.is_known:
                cursor.runs = runs_after(plan, view)
            held = self._held.setdefault(view.segments[-1].first_seq, {})
            for owner, size in plan.holds.items():
                held[owner] = held.get(owner, 0) + size
        if len(self._held) > len(view.segments) and view.segments:
            cursor.runs = shares.runs_from(cursor.runs, view.segments[0].first_seq)
            self._held = {each.first_seq: self._held.get(each.first_seq, {}) for each in view.segments}
        if self._disk is not None:
            self._disk.use(self, self._bytes_in_use())

    def reader(self, start: int = 0) -> Reader:
        """Return a reader that begins at the first event that is not settled, or at `start` if that is later."""
        return Reader(self._fs, self.directory / "segments", max(self.cursor.position, start))

    def _expire(self, now: float) -> None:
        """Settle the segments of which all events are too old."""
        oldest, span = now - self._limits.max_age, self._limits.max_age / SEGMENTS_PER_AGE
        expired = segment.expired_before(self._view.segments, oldest, span)
        if expired > self._cursor.position:
            self._cursor.settle([Span(self._cursor.position, expired)], Outcome.EXPIRED)

    def _give_way(self, disk: SharedDisk) -> None:
        """Settle the oldest segments of what is beyond the queue's part of the disk, which others have joined since."""
        in_use = self._in_use()
        excess, gone = sum(each.size for each in in_use) - min(self._limits.max_bytes, disk.part), 0
        while excess > 0 and gone < self._replaceable(in_use):
            excess -= in_use[gone].size
            gone += 1
        if gone:
            position = in_use[gone].first_seq if gone < len(in_use) else self._view.next_seq
            self._cursor.settle([Span(self._cursor.position, position)], Outcome.OVERFLOW)

    @property
    def _segment_bytes(self) -> int:
        """How large a segment may be now: a part of the disk that has become smaller is several of them all the same."""
        own = self._limits.segment_bytes
        return own if self._disk is None else min(own, self._disk.part // 4)

    def _replaceable(self, in_use: Sequence[Segment]) -> int:
        """Return how many of the oldest segments may make room for what comes."""
        if self._limits.overflow != "drop-oldest" or not in_use:
            return 0
        return len(in_use) - (in_use[-1].size < self._segment_bytes)  # what comes may go into the last one

    def _admit_by_shares(self, submitted: Sequence[S], now: float) -> Admitted[S]:
        self._expire(now)
        occupancy, in_use = self._occupancy(now), self._in_use()
        outcomes, replaced = shares.admit(submitted, occupancy)
        if replaced:
            position = in_use[replaced].first_seq if replaced < len(in_use) else self._view.next_seq
            self._cursor.settle([Span(self._cursor.position, position)], Outcome.OVERFLOW)
        refused = [(each, why) for each, why in zip(submitted, outcomes, strict=True) if why is not None]
        accepted = [each for each, why in zip(submitted, outcomes, strict=True) if why is None]
        totals: dict[tuple[int, Outcome], tuple[int, int]] = {}
        for each, why in refused:
            if not each.retried:  # that stays among the dead letters
                events, size = totals.get((each.owner, why), (0, 0))
                totals[each.owner, why] = events + each.event_count, size + each.size
        refusals = []
        for (owner, why), (events, size) in totals.items():
            self._cursor.shed(events, why)
            held = sum(part.held.get(owner, 0) for part in occupancy.parts)
            refusals.append(Refusal(owner, why, events, size, held, occupancy.shares[owner]))
        return Admitted(accepted, refused, refusals)

    def _occupancy(self, now: float) -> Occupancy:
        in_use = self._in_use()
        parts = [Part(each.size, self._held.get(each.first_seq, {})) for each in in_use]
        replaceable = self._replaceable(in_use)
        max_bytes = self.max_bytes - segment.HEADER_BYTES
        return Occupancy(max_bytes, parts, self._senders.shares(max_bytes, now), replaceable)

    def _bytes_in_use(self) -> int:
        size = 0
        for each in self._in_use():
            size += each.size
        return size

    def _in_use(self) -> tuple[Segment, ...]:
        """Return the segments that hold something unsettled. The others can go, the last of them once another one follows."""
        position, segments = self._cursor.position, self._view.segments
        return segments[segment.deletable(segments, position) :] if position < self._view.next_seq else ()
