"""How far a queue is settled, and the ledger: what has become of every event, exactly.

Events are numbered from 1 as they become durable. `position` is the first one that is not settled; batches settle out of order,
so spans beyond it may be settled too. An event is settled once, by whatever comes first, which makes every count exact:

    accepted = delivered + forwarded + dead_lettered + Σ dropped[reason] + queued
"""

import math
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple, Protocol

import msgspec

from agent.queue.record import MAX_SEQ


class Outcome(StrEnum):
    """What settles an event. All but the first three are reasons for a drop."""

    DELIVERED = "delivered"
    FORWARDED = "forwarded"  # to a fleet: its relays deliver it
    DEAD_LETTERED = "dead_lettered"
    OVERFLOW = "overflow"  # queue.max_bytes was reached
    QUOTA = "quota"  # its sender's share of a queue that is half full was used up
    EXPIRED = "expired"  # older than queue.max_age
    CORRUPT = "corrupt"  # its bytes on disk are damaged or gone
    DISK_FULL = "disk_full"  # no room, or less than queue.min_free_bytes
    DISK_ERROR = "disk_error"  # the disk refused the write twice
    RATE_LIMITED = "rate_limited"  # more than a rule lets its sender send in a second
    STALLED = "stalled"  # the disk did not answer, and the buffer before it was full
    PURGED = "purged"  # an operator wanted it gone


NOT_DROPPED = (Outcome.DELIVERED, Outcome.FORWARDED, Outcome.DEAD_LETTERED)
DROP_REASONS = tuple(outcome for outcome in Outcome if outcome not in NOT_DROPPED)


class Span(NamedTuple):
    """The sequence numbers from `start` up to, not including, `stop`."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many events the span has."""
        return self.stop - self.start


def union(spans: Iterable[Span]) -> list[Span]:
    """Return what `spans` cover, in order: spans that meet or overlap become one."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and span.start <= found[-1].stop:
            found[-1] = Span(found[-1].start, max(found[-1].stop, span.stop))
        else:
            found.append(span)
    return found


_start, _stop = attrgetter("start"), attrgetter("stop")


def without(span: Span, others: Sequence[Span]) -> list[Span]:
    """Return what of `span` is in none of `others`, which are in order and apart."""
    start, parts = span.start, []
    first = bisect_right(others, start, key=_stop)
    for other in others[first : bisect_left(others, span.stop, first, key=_start)]:
        if start < other.start:
            parts.append(Span(start, other.start))
        start = other.stop
    if start < span.stop:
        parts.append(Span(start, span.stop))
    return parts


class Pause(msgspec.Struct, frozen=True, array_like=True):
    """Why delivery is paused, since when, when to probe (seconds since the epoch), and how many probes there were."""

    reason: str
    message: str
    since: float
    probe_at: float
    probes: int


class Ledger(msgspec.Struct, frozen=True):
    """The counts of promise 3. `dropped` has only reasons that occurred; `retried` of the accepted were dead letters before.

    `delivered` were taken by the API, `forwarded` by a fleet, whose relays deliver them.
    """

    accepted: int
    delivered: int
    dead_lettered: int
    dropped: dict[str, int]
    queued: int
    retried: int = 0
    forwarded: int = 0


class Run(NamedTuple):
    """Segments of which all up to the next run are of one owner alone: a uid. None stands for several owners, or unknown ones."""

    first_seq: int
    owner: int | None


MAX_RUNS = 64


class CursorState(msgspec.Struct, frozen=True, array_like=True):
    """What a checkpoint holds. `shed` counts events that were dropped before they had a number; `runs` say whose segments are.

    What is added comes last and has a default: older checkpoints lack it, and older daemons ignore it.
    """

    position: int
    next_seq: int
    origin: int
    settled: list[Span]
    counts: dict[str, int]
    shed: dict[str, int]
    pause: Pause | None
    retried: int = 0
    runs: tuple[Run, ...] = ()


_END_OF_TIME = 253_402_300_800.0  # the year 10000, which no calendar here goes to


def is_possible(state: CursorState) -> bool:
    """Tell whether a queue can be in this state: its numbers are in order, and every settled event is counted once."""
    edges = [state.origin, state.position, *(edge for span in state.settled for edge in span), state.next_seq]
    in_order = 0 < state.origin <= state.position <= state.next_seq <= MAX_SEQ
    apart = all(one < other for one, other in pairwise(edges[1:-1])) and edges[-2] <= state.next_seq
    settled = state.position - state.origin + sum(span.length for span in state.settled)
    counted = (
        sum(state.counts.values()) == settled
        and min([*state.counts.values(), *state.shed.values(), state.retried, 0]) == 0
    )
    return in_order and apart and counted and (state.pause is None or _is_possible_pause(state.pause))


def _is_possible_pause(pause: Pause) -> bool:
    in_time = 0 <= pause.since < _END_OF_TIME and (0 <= pause.probe_at < _END_OF_TIME or pause.probe_at == math.inf)
    return in_time and pause.probes >= 0


class Watcher(Protocol):
    """Who is told what the cursor settles, such as `agent.queue.barrier.Barrier`."""

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """Take note: each event is named once, whatever is asked to be settled how often."""

    @property
    def passed(self) -> bool:
        """Whether nothing that is queued matters to it any more."""


class Cursor:
    """The settled part of one queue. `next_seq` is the number that the next event to become durable will get.

    Everyone in `watchers` is told what is settled.
    """

    __slots__ = (
        "_counts",
        "_origin",
        "_settled",
        "_shed",
        "next_seq",
        "pause",
        "position",
        "retried",
        "runs",
        "watchers",
    )

    def __init__(self, first_seq: int = 1) -> None:
        """Begin at `first_seq`, as for a new queue or one whose cursor was lost."""
        self.position = first_seq
        self.next_seq = first_seq
        self.retried = 0
        self.pause: Pause | None = None
        self.runs: tuple[Run, ...] = ()
        self.watchers: list[Watcher] = []
        self._origin = first_seq
        self._settled: list[Span] = []
        self._counts: dict[str, int] = {}
        self._shed: dict[str, int] = {}

    @classmethod
    def from_state(cls, state: CursorState) -> "Cursor":
        """Continue from a checkpoint."""
        cursor = cls(state.origin)
        cursor.position = state.position
        cursor.next_seq = state.next_seq
        cursor.pause = state.pause
        cursor.retried = state.retried
        cursor.runs = state.runs
        cursor._settled = list(state.settled)
        cursor._counts = dict(state.counts)
        cursor._shed = dict(state.shed)
        return cursor

    def state(self) -> CursorState:
        """Return a checkpoint of everything."""
        return CursorState(
            self.position,
            self.next_seq,
            self._origin,
            self._settled.copy(),
            self._counts.copy(),
            self._shed.copy(),
            self.pause,
            self.retried,
            self.runs,
        )

    def settle(self, spans: Sequence[Span], outcome: Outcome) -> int:
        """Settle what of `spans` is not settled yet; return how many events that was."""
        fresh = union(part for span in spans for part in self.unsettled(span))
        count = sum(part.length for part in fresh)
        if count:
            self._counts[outcome] = self._counts.get(outcome, 0) + count
            self._add(fresh)
            for watcher in self.watchers:
                watcher.settled(fresh, outcome)
        return count

    def shed(self, count: int, outcome: Outcome) -> None:
        """Count events that were accepted from a client and dropped before they reached the disk."""
        self._shed[outcome] = self._shed.get(outcome, 0) + count

    def unsettled(self, span: Span) -> list[Span]:
        """Return the parts of `span` that nothing has settled yet."""
        return without(Span(max(span.start, self.position), span.stop), self._settled)

    @property
    def settled_beyond(self) -> int:
        """How many spans beyond `position` are settled: what a checkpoint has to list."""
        return len(self._settled)

    @property
    def queued(self) -> int:
        """How many durable events are not settled."""
        return self.next_seq - self._origin - sum(self._counts.values())  # all settled are counted: `is_possible`

    @property
    def counts(self) -> dict[str, int]:
        """How many events are settled, by outcome."""
        return self._counts.copy()

    def ledger(self) -> Ledger:
        """Return the counts as they are now."""
        delivered, forwarded, dead_lettered = [self._counts.get(outcome, 0) for outcome in NOT_DROPPED]
        dropped = {str(reason): count for reason, count in self._shed.items()}
        for reason, count in self._counts.items():
            if reason not in NOT_DROPPED:
                dropped[str(reason)] = dropped.get(reason, 0) + count
        accepted = self.next_seq - self._origin + sum(self._shed.values())
        return Ledger(accepted, delivered, dead_lettered, dropped, self.queued, self.retried, forwarded)

    def _add(self, fresh: list[Span]) -> None:
        for span in fresh:
            first = bisect_left(self._settled, span.start, key=_stop)
            last = bisect_right(self._settled, span.stop, first, key=_start)
            self._settled[first:last] = union([span, *self._settled[first:last]])
        if self._settled[0].start <= self.position:
            self.position = self._settled.pop(0).stop


# A cursor file has two slots. A checkpoint goes to the slot that does not hold the newest durable one, so that whatever a crash
# does to it, the other is still there. A slot is: marker, length, CRC over the rest, generation, CursorState as msgpack.
SLOT_BYTES = 32 * 1024
SLOTS = 2
_SLOT_MARKER = b"AAQC"
_SLOT_VERSION = 1
_PREFIX = struct.Struct("<4sHII")
_GENERATION = struct.Struct("<Q")

_encode_state = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(CursorState).decode


class Checkpoint(NamedTuple):
    """A decoded slot; the higher generation is the newer one."""

    generation: int
    state: CursorState


def encode_slot(generation: int, state: CursorState) -> bytes:
    """Return a slot's bytes; raises ValueError if the state has outgrown a slot."""
    body = _GENERATION.pack(generation) + _encode_state(state)
    slot = _PREFIX.pack(_SLOT_MARKER, _SLOT_VERSION, len(body), zlib.crc32(body)) + body
    if len(slot) > SLOT_BYTES:
        raise ValueError(f"a checkpoint has {len(slot)} bytes; a slot takes {SLOT_BYTES}")
    return slot


def decode_slot(data: bytes) -> Checkpoint | None:
    """Return the checkpoint in a slot; None if it is empty, torn, damaged, of another version or a state that cannot be."""
    if len(data) < _PREFIX.size + _GENERATION.size:
        return None
    marker, version, length, crc = _PREFIX.unpack_from(data)
    body = data[_PREFIX.size : _PREFIX.size + length]
    if marker != _SLOT_MARKER or version != _SLOT_VERSION or len(body) != length or zlib.crc32(body) != crc:
        return None
    try:
        checkpoint = Checkpoint(_GENERATION.unpack_from(body)[0], _decode_state(body[_GENERATION.size :]))
    except (ValueError, struct.error, RecursionError):  # a CRC that holds over something that is no state
        return None
    return checkpoint if checkpoint.generation < MAX_SEQ and is_possible(checkpoint.state) else None
