"""A model of the queue on disk: drives a store and its writer over a FaultFilesystem, and knows what must be true of them.

What it holds the queue to, with `sync = "commit"`:

- what was reported durable is, after any crash, unsettled and readable with the same contents, or settled in the checkpoint;
- the checkpoint found is one that was written, and none older than the newest durable one; after a kill it is the last one;
- what is read was appended, under that number; what was refused comes back after a power loss at most;
- a number that was given to a durable event is never given to another one;
- the ledger is exact: `accepted` is what it was after recovery, and every event appended or refused since;
- events are dropped by overflow or expiry only where the limits say so, and never as corrupt once they were durable. What was
  never durable may be found torn after a power loss, and is then counted as corrupt or not at all.
"""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import StorageError
from agent.queue.cursor import Cursor, CursorState, Outcome, Span
from agent.queue.log import Entry
from agent.queue.record import HEADER_BYTES as FRAME_HEADER_BYTES
from agent.queue.record import Frame
from agent.queue.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from agent.queue.segment import Gap
from agent.queue.store import Committed, Limits, Plan
from tests.support.fault_filesystem import Chooser, Crash, FaultFilesystem, KeepAll, LoseAll, RandomChooser
from tests.support.open_queue import OpenQueue

ROOT: Final = Path("/queue")
SEGMENTS: Final = ROOT / "segments"
QUARANTINE: Final = ROOT / "quarantine"
READ_BYTES: Final = 300
_BYTES: Final = bytes(range(251))

Item = tuple[int, int]
"""An event as the model knows it: the entry it came in, and its place there."""


@dataclass
class FailOnce:
    """The rule under which the n-th call from now on fails; `fired` tells whether there was one.

    Closing cannot fail, and nor can asking for the size of an open file. A file that cannot be opened (but for a shortage of
    descriptors) or a cursor that cannot be read is as good as damaged: tests.contract.queue.test_log_rot has those.
    """

    n: int
    code: int
    lasting: bool = False
    fired: bool = False
    at: str = ""

    def __call__(self, operation: str, path: Path) -> OSError | None:
        unreadable = operation == "open" and self.code != errno.EMFILE
        if (
            operation in {"close", "release", "size", "has_name"}
            or unreadable
            or (operation, path) == ("pread", ROOT / "cursor")
        ):
            return None
        self.n -= 1
        if self.n >= 0 or (self.fired and not self.lasting):
            return None
        self.fired, self.at = True, operation
        return OSError(self.code, os.strerror(self.code), str(path))


def payload(entry: int, size: int) -> bytes:
    """Return at least `size` bytes that belong to this entry alone."""
    start = entry * 31 % len(_BYTES)
    return f"{entry}:".encode() + (_BYTES[start:] + _BYTES * (size // len(_BYTES) + 1))[:size]


def entry_of(data: bytes) -> int:
    """Return which entry a payload belongs to; ValueError if it is none of ours."""
    number, _, filler = data.partition(b":")
    if payload(int(number), len(filler)) != data:
        raise ValueError("a payload was changed")
    return int(number)


def crash_choosers(seeds: Iterable[int]) -> list[Chooser | None]:
    """Return ways to die: None is a kill, the others are power losses."""
    return [None, LoseAll(), KeepAll(), *(RandomChooser(seed) for seed in seeds)]


@dataclass
class Checkpoints:
    """What a recovery may find: `newest` after a kill, one of `any_of` after a power loss. None: no cursor."""

    newest: list[CursorState | None] = field(default_factory=lambda: [None])
    any_of: list[CursorState | None] = field(default_factory=lambda: [None])

    def attempted(self, states: Sequence[CursorState]) -> None:
        """Take these as under way: any of them, or none, may have been written."""
        self.any_of.extend(states)
        self.newest = list(self.any_of)

    def written(self, state: CursorState) -> None:
        """Take this one as written, but not durable."""
        self.newest = [state]

    def durable(self, state: CursorState | None) -> None:
        """Take this one as durable."""
        self.newest, self.any_of = [state], [state]


class QueueModel:
    """A queue, what it must hold, and the faults that it has to live with."""

    def __init__(self, limits: Limits, *, capacity: int | None = None) -> None:
        self.limits = limits
        self.disk = FaultFilesystem(capacity=capacity)
        self.now = 1_000_000.0
        self.contents: dict[int, Item] = {}
        self.in_flight: dict[int, set[Item]] = {}
        self.refused: dict[int, set[Item]] = {}
        self.doubtful: set[int] = set()
        self.attempted: set[int] = set()
        self.torn = False
        self.born: dict[int, float] = {}
        self.written: dict[Item, float] = {}
        self.checkpoints = Checkpoints()
        self.entries = 0
        self.read_frames: list[Frame] = []
        self.faults = 0
        self._accepted = 0
        self._unsynced_faults = False
        self.open()

    # What a process does

    def open(self) -> None:
        """Open the queue, hold it to its promises, and count from there. StorageError passes through."""
        faulty = isinstance(self.disk.errors, FailOnce)
        self.queue = OpenQueue(self.disk, ROOT, self.limits)
        faulty = faulty and isinstance(self.disk.errors, FailOnce) and self.disk.errors.fired
        self._check_checkpoint()
        found = self.queue.cursor.state()
        if faulty:
            self.checkpoints.any_of.append(found)
        else:
            self.checkpoints.durable(found)
        self.reader = self.queue.store.reader()
        self.read_frames = []
        healthy, self.disk.errors = self.disk.errors, lambda _operation, _path: None
        self._check_everything_is_there(adopt_as_doubtful=faulty or self._unsynced_faults)
        self.disk.errors = healthy
        self._accepted = self.queue.cursor.ledger().accepted

    def append(self, *sizes: tuple[int, int]) -> Committed:
        """Commit entries of (item count, payload size) as one group."""
        entries = []
        for count, size in sizes:
            entries.append(Entry(count, payload(self.entries, size)))
            self.entries += 1
        return self.commit(entries)

    def commit(self, entries: Sequence[Entry] = ()) -> Committed:
        """Plan and commit; what is acknowledged is from then on part of the promises."""
        plan = self._plan(entries)
        items = self._numbered(plan.entries)
        for number, item in items.items():
            self.in_flight.setdefault(number, set()).add(item)
            self.written[item] = self.now
        self.attempted |= items.keys()
        self.checkpoints.attempted([plan.checkpoint, *_with_shed(plan)])
        oldest = self.queue.view.segments[:1]
        committed = self.queue.perform(plan, self.now)
        self._take_over(plan, committed, items)
        if (
            committed.checkpoint_error is None
            and oldest
            and oldest[0].first_seq < self.queue.view.segments[0].first_seq
        ):
            self.checkpoints.any_of = [plan.checkpoint, *self.checkpoints.newest]  # durable before anything was deleted
        self.check_ledger()
        return committed

    def read(self, max_bytes: int = READ_BYTES) -> list[Frame | Gap]:
        """Read on; gaps are settled as corrupt, as the worker does. StorageError passes through."""
        read = self.reader.read(self.queue.view, max_bytes)
        self.queue.writer.quarantine(read.damaged)
        self.take(read.items)
        return read.items

    def take(self, items: Sequence[Frame | Gap]) -> None:
        """Hold what was read to the promises, and settle the gaps."""
        for item in items:
            if isinstance(item, Gap):
                self._check_gap(item.span)
                self.queue.cursor.settle([item.span], Outcome.CORRUPT)
            else:
                self._check_frame(item)
                self.read_frames.append(item)

    def read_all(self) -> None:
        """Read to the end of the queue."""
        while self.read():
            pass

    def settle(self, spans: Sequence[Span], outcome: Outcome = Outcome.DELIVERED) -> None:
        """Settle what was read."""
        self.queue.cursor.settle(spans, outcome)
        self.check_ledger()

    def settle_all(self) -> None:
        """Deliver all that was read."""
        self.settle([Span(frame.first_seq, frame.next_seq) for frame in self.read_frames])
        self.read_frames = []

    def sync(self) -> None:
        """Make everything durable; StorageError passes through."""
        self.queue.writer.sync()
        if len(self.checkpoints.newest) == 1:
            self.checkpoints.durable(self.checkpoints.newest[0])

    def close(self) -> None:
        """Close the queue in order; StorageError passes through."""
        state = self.queue.cursor.state()
        self.checkpoints.attempted([state])
        self.reader.close()
        self.queue.close()
        self.checkpoints.durable(state)

    # What happens to it

    def die(self, chooser: Chooser | None) -> None:
        """Kill the process, or with a chooser cut the power; nothing is open after that."""
        self.disk.errors = lambda _operation, _path: None
        if chooser is None:
            self.disk.kill()
            return
        self.disk.crash(chooser)
        self._unsynced_faults = False
        self.torn = self.torn or bool(self.in_flight or self.refused or self.doubtful)
        self.checkpoints.newest = list(self.checkpoints.any_of)
        for number, items in self.refused.items():
            self.in_flight.setdefault(number, set()).update(items)
        for number in self.doubtful:
            self.in_flight.setdefault(number, set()).add(self.contents.pop(number))
        self.doubtful.clear()

    def fail(self, n: int, code: int, *, lasting: bool = False, partial: Chooser | None = None) -> FailOnce:
        """Make the n-th call from now on fail, or with `lasting` every one from there; `healthy` ends it."""
        rule = FailOnce(n, code, lasting)
        self.disk.errors = rule
        self.disk.partial = partial or LoseAll()
        return rule

    def healthy(self) -> None:
        """Let no call fail any more."""
        if isinstance(self.disk.errors, FailOnce) and self.disk.errors.fired:
            self._unsynced_faults = True
            self.faults += 1
        self.disk.errors = lambda _operation, _path: None

    # What must be true

    def check_ledger(self) -> None:
        """Hold the ledger to promise 3, and to every event that came since the start."""
        ledger = self.queue.cursor.ledger()
        settled = ledger.delivered + ledger.forwarded + ledger.dead_lettered + sum(ledger.dropped.values())
        assert ledger.accepted == settled + ledger.queued
        assert ledger.accepted == self._accepted, (ledger, self._accepted)

    def quarantined(self) -> list[Path]:
        """Return the copies in quarantine."""
        return [path for path in self.disk.paths() if path.parent == QUARANTINE]

    def finish(self) -> None:
        """Work on as if nothing had been: append, deliver everything, restart in order, and find it all accounted for."""
        self.healthy()
        assert self.torn or not self.quarantined()
        self.disk.capacity = None
        self.read_all()
        self.settle_all()
        assert self.append((2, 40), (1, 400)).refused is None
        self.read_all()
        self.settle_all()
        assert self.queue.cursor.queued == 0
        assert self.commit().checkpoint_error is None
        ledger = self.queue.cursor.ledger()
        self.close()
        self.open()
        assert self.queue.cursor.ledger() == ledger

    def _plan(self, entries: Sequence[Entry]) -> Plan:
        cursor, view = self.queue.cursor, self.queue.view
        before, position = cursor.ledger().dropped, cursor.position
        refused = self.queue.refusal(entries, self.now)
        plan = self.queue.store.plan(() if refused else entries, self.now)
        self._accepted += sum(entry.item_count for entry in entries) if refused else 0
        dropped = cursor.ledger().dropped
        if dropped.get(Outcome.EXPIRED, 0) > before.get(Outcome.EXPIRED, 0):
            oldest = [self.born[n] for n in range(position, cursor.position) if n in self.born][:1]
            assert all(born <= self.now - self.limits.max_age for born in oldest)
        if dropped.get(Outcome.OVERFLOW, 0) > before.get(Outcome.OVERFLOW, 0):
            added = SEGMENT_HEADER_BYTES + sum(FRAME_HEADER_BYTES + len(entry.payload) for entry in entries)
            assert view.size + added > self.limits.max_bytes
        return plan

    def _numbered(self, entries: Sequence[Entry]) -> dict[int, Item]:
        items: dict[int, Item] = {}
        number = self.queue.view.next_seq
        for entry in entries:
            known = entry_of(entry.payload)
            for place in range(entry.item_count):
                items[number + place] = (known, place)
            number += entry.item_count
        return items

    def _take_over(self, plan: Plan, committed: Committed, items: dict[int, Item]) -> None:
        self._accepted += len(items)
        faulty = isinstance(self.disk.errors, FailOnce) and self.disk.errors.fired
        if committed.refused is None:
            clash = items.keys() & self.contents.keys()
            assert not clash, f"numbers given twice: {clash}"
            self.contents.update(items)
            self.in_flight = {n: held for n, held in self.in_flight.items() if n not in items}
            self.born.update(dict.fromkeys(items, self.now))
            state = plan.checkpoint
        else:
            for number, item in items.items():
                self.refused.setdefault(number, set()).add(item)
                if not faulty:  # else it may not have been cut off
                    self.in_flight[number].discard(item)
            state = _shed_as(plan, committed.refused)
        if committed.checkpoint_error is None:
            self.checkpoints.written(state)

    def _check_checkpoint(self) -> None:
        """Find the checkpoint among those that may be found."""
        found, view = self.queue.cursor.state(), self.queue.view
        fresh = Cursor(view.segments[0].first_seq if view.segments else view.next_seq).state()
        possible = [_numberless(state or fresh) for state in self.checkpoints.newest]
        assert _numberless(found) in possible, (found, self.checkpoints)
        assert view.next_seq > max([*self.contents, 0])

    def _check_everything_is_there(self, *, adopt_as_doubtful: bool) -> None:
        """Read the whole queue; what a crash left of unacknowledged appends becomes part of it."""
        for item in self.queue.items(READ_BYTES):
            if isinstance(item, Gap):
                self._check_gap(item.span)
                continue
            entry = entry_of(item.payload)
            for number in range(item.first_seq, item.next_seq):
                known = (entry, number - item.first_seq)
                if number not in self.contents:
                    assert known in self.in_flight.get(number, ()), f"{number} was never appended"
                    self.contents[number] = known
                    self.born[number] = self.written[known]
                    if adopt_as_doubtful:
                        self.doubtful.add(number)
            self._check_frame(item)
        self.in_flight = {n: items for n, items in self.in_flight.items() if n >= self.queue.view.next_seq}

    def _check_frame(self, frame: Frame) -> None:
        entry = entry_of(frame.payload)
        for number in range(frame.first_seq, frame.next_seq):
            assert self.contents[number] == (entry, number - frame.first_seq)

    def _check_gap(self, span: Span) -> None:
        for part in self.queue.cursor.unsettled(span):
            numbers = set(range(part.start, part.stop))
            assert not numbers & self.contents.keys(), "durable events are gone"
            assert not numbers or self.torn, "something is missing that no power loss has torn"
            assert numbers <= self.attempted, "numbers are missing that nothing ever had"


def _numberless(state: CursorState) -> CursorState:
    """Return the state without what recovery takes from the log where that knows more."""
    return msgspec.structs.replace(state, next_seq=0, runs=())


def _shed_as(plan: Plan, reason: Outcome) -> CursorState:
    shed = dict(plan.checkpoint.shed)
    shed[reason] = shed.get(reason, 0) + sum(entry.item_count for entry in plan.entries)
    return msgspec.structs.replace(plan.checkpoint, shed=shed)


def _with_shed(plan: Plan) -> list[CursorState]:
    """Return the checkpoints that a refusal would write."""
    return [_shed_as(plan, reason) for reason in (Outcome.DISK_FULL, Outcome.DISK_ERROR)] if plan.entries else []


CODES: Final = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE)
__all__ = [
    "CODES",
    "QUARANTINE",
    "READ_BYTES",
    "ROOT",
    "SEGMENTS",
    "Checkpoints",
    "Crash",
    "FailOnce",
    "QueueModel",
    "StorageError",
    "crash_choosers",
    "entry_of",
    "payload",
]
