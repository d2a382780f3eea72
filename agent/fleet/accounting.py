"""The accounts of a team: its ledger stream, folded in the order of the stream, so that all who read it agree. Pure.

For each queue there is one `agent.queue.cursor.Cursor`, known by the subject that its events are published on and the queue's id:
an event is settled once, by whatever comes first in the stream. Numbers that never come are normal: a queue's own drops.

    in doubt = events of requests that nothing has closed + events that were delivered, and settled by something else before

A relay writes a request down before it makes it, so that events are delivered twice at most as often as they are in doubt.

Short-lived machines leave a queue each. One of which nothing was heard for FORGET_SECONDS is forgotten but for its sums. What
counts is time in which events are settled, by the stream's own clock: none passes while the account is blocked, or no relay runs.

Whoever holds the credential of a pool chooses its queues and the gaps in them, so what is kept of a subject is bounded as well:
when it is more than MAX_KEPT, the queue of which was heard longest ago is forgotten. Events of a forgotten queue that come again
count as new, and are delivered again: those of that subject alone.
"""

import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

import msgspec

from agent.fleet.engine import StreamState
from agent.fleet.records import Intent, Part, Record, Released, Seen, Settled, event_count
from agent.queue.cursor import Cursor, CursorState, Ledger, Outcome, Span, is_possible
from agent.queue.record import MAX_SEQ

MAX_OPEN_INTENTS = 10_000
"""Of so many it is known whether something closes them yet; what is older is in doubt for good."""

MAX_CLOSED = 4096
"""Of so many requests it is known that they are closed, so that a copy of a record, which came late, opens none again."""

DAY = 86400.0
FORGET_SECONDS = (7 + 8) * DAY
"""Nothing of a queue comes again after `queue.max_age`, as it is unless set, and the age of the ledger stream's records.

A queue that goes on after that counts as a new one, and what it had forwarded before as lost.
"""

MAX_KEPT = 60_000
"""How much is kept of a subject: a queue counts one, a span that is settled beyond a gap one, 64 bytes of reasons for drops one.

Of these a queue takes the most memory, 1.8 kB, so that a subject takes at most 110 MB. 4,000 short-lived machines a day fit. All
relays have to fold by the same number: by another one they would forget other queues.
"""

MAX_RELAYS = 32
"""Of so many relays it is kept when they made requests, those of which was heard last."""

MAX_STEP = 3600.0
"""What passes at most, in seconds, between two records that settle events."""

_VERSION = 1
_CRC_BYTES = 4


class QueueKey(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A queue as the fleet knows it: the subject that its events are published on, and its id."""

    subject: str
    queue: str


class LastSeen(msgspec.Struct, frozen=True, array_like=True):
    """The last ledger that a queue gave itself, at `at` in seconds since the epoch."""

    ledger: Ledger
    at: float


class Forgotten(msgspec.Struct, array_like=True):
    """The sums of the forgotten queues of a subject: settled events by outcome, what they forwarded, and dropped themselves.

    `early` of them were forgotten because there was more than MAX_KEPT of the subject, the others because they were silent.
    """

    queues: int = 0
    counts: dict[str, int] = {}
    forwarded: int = 0
    dropped: int = 0
    seen_at: float | None = None  # when the last of them gave a ledger
    early: int = 0


class RelaySeen(msgspec.Struct, frozen=True, array_like=True):
    """When a relay wrote its first request down, and its last one, in seconds since the epoch by the stream's clock."""

    first_at: float
    last_at: float


class _Kept:
    """How much is kept of a subject, and of each of its queues: that of which was heard last comes last."""

    __slots__ = ("queues", "size")

    def __init__(self) -> None:
        self.queues: OrderedDict[QueueKey, int] = OrderedDict()
        self.size = 0

    def set(self, key: QueueKey, size: int) -> None:
        self.remove(key)
        self.queues[key] = size
        self.size += size

    def remove(self, key: QueueKey) -> None:
        self.size -= self.queues.pop(key, 0)


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything that a fold knows. What is added comes last and has a default.

    `queues` are in the order in which was heard of them, and `heard` has the times. An older one has some in `seen` alone, whose
    times come last.
    """

    version: int
    seq: int
    records: int
    queues: list[tuple[QueueKey, CursorState]]
    sums: dict[str, int]
    intents: dict[str, int]
    doubted: int
    closed: list[str]
    seen: list[tuple[QueueKey, LastSeen]]
    clock: float = 0.0
    settled_at: float = 0.0
    heard: list[float] = []
    forgotten: dict[str, Forgotten] = {}
    stream: str = ""
    relays: dict[str, RelaySeen] = {}
    passed: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Snapshot).decode


class FleetLedger:
    """What has become of the events of a team, up to the record with the number `seq`; `records` is how many that were.

    Up to `passed` the stream had no more of the team than was taken, as far as is known; that is `seq`, or behind it.
    `sums` has the settled events by outcome, `seen` the last ledger of each queue that gave one. `forgotten` is by subject, and
    `relays` by name, that of which was heard last at the end.
    """

    def __init__(self) -> None:
        self.seq = self.passed = 0
        self.records = 0
        self._stream = ""  # which one `seq` is of
        self.sums: Counter[str] = Counter()
        self.seen: dict[QueueKey, LastSeen] = {}
        self.forgotten: dict[str, Forgotten] = {}
        self.relays: dict[str, RelaySeen] = {}
        self._clock = 0.0  # seconds in which events were settled
        self._settled_at = 0.0  # the stream's time of the last record that settled some
        self._heard: OrderedDict[QueueKey, float] = OrderedDict()  # by the clock, what was heard of last comes last
        self._kept: dict[str, _Kept] = {}  # by subject
        self._cursors: dict[QueueKey, Cursor] = {}
        self._intents: dict[str, int] = {}
        self._doubted = 0
        self._closed: dict[str, None] = {}

    def apply(self, record: Record | None, seq: int, kept_at: float = 0.0) -> None:
        """Take the record with that number in the stream, or None for one that is not understood; the order is the stream's.

        `kept_at` is when the stream took it, in seconds since the epoch; 0 is not known. What is not behind `seq` has been taken
        before, and changes nothing.
        """
        if seq <= self.seq:
            return
        self.seq, self.passed = seq, max(self.passed, seq)
        self.records += 1
        if isinstance(record, Settled):
            self._settle(record)
            self._pass_time(kept_at)
        elif isinstance(record, Intent):
            self._open(record, kept_at)
        elif isinstance(record, Released):
            if self._intents.pop(record.id, None) is not None:
                self._note_closed(record.id)
        elif isinstance(record, Seen):
            self._see(record)

    def begin(self, stream: StreamState) -> bool:
        """Go on with a stream behind `seq`; with its first record, and True, if it was made anew since the last one was taken.

        What is known stays: what was settled is not to be sent again.
        """
        anew = self._stream not in ("", stream.created) or self.seq > stream.last_seq
        self._stream = stream.created
        if anew:
            self.seq = self.passed = 0
        return anew

    def unsettled(self, part: Part) -> list[Span]:
        """Return what of a part nothing has settled."""
        cursor = self._cursors.get(QueueKey(part.subject, part.queue))
        return list(part.spans) if cursor is None else [left for span in part.spans for left in cursor.unsettled(span)]

    @property
    def in_doubt(self) -> int:
        """How many events may have been delivered once more than it is known. Of requests that are under way, all are."""
        return self._doubted + sum(self._intents.values())

    @property
    def open_intents(self) -> int:
        """How many requests nothing has closed, those among them that are under way."""
        return len(self._intents)

    def requests_of(self, relay: str) -> int:
        """Return how many of the open intents are a relay's."""
        return sum(each.rpartition("-")[0] == relay for each in self._intents)

    @property
    def forwarded(self) -> int:
        """How many events are known to have been handed to the engine: as queues say, or as many as were settled of them."""
        return sum(map(self._forwarded, self._heard)) + sum(each.forwarded for each in self.forgotten.values())

    def _forwarded(self, key: QueueKey) -> int:
        cursor, seen = self._cursors[key], self.seen.get(key)
        return max(cursor.next_seq - 1 - cursor.queued, seen.ledger.forwarded if seen is not None else 0)

    @property
    def queues(self) -> Sequence[QueueKey]:
        """The queues that are known, in order."""
        return sorted(self._heard)

    def counts(self, key: QueueKey) -> Mapping[str, int]:
        """Return how many events of a queue are settled, by outcome."""
        cursor = self._cursors.get(key)
        return {} if cursor is None else cursor.counts

    def gaps(self, key: QueueKey) -> list[Span]:
        """Return the numbers of a queue before its last settled one that nothing has settled.

        They were dropped by the queue itself, are still in the stream, or were lost there.
        """
        cursor = self._cursors.get(key)
        return [] if cursor is None else cursor.unsettled(Span(1, cursor.next_seq))

    def encode(self) -> bytes:
        """Return a snapshot of everything, to be continued from with the records behind `seq`."""
        queues = [(key, self._cursors[key].state()) for key in self._heard]
        state = _Snapshot(
            _VERSION,
            self.seq,
            self.records,
            queues,
            dict(self.sums),
            self._intents,
            self._doubted,
            list(self._closed),
            list(self.seen.items()),
            self._clock,
            self._settled_at,
            list(self._heard.values()),
            self.forgotten,
            self._stream,
            self.relays,
            self.passed,
        )
        body = _encode(state)
        return zlib.crc32(body).to_bytes(_CRC_BYTES, "big") + body

    @classmethod
    def decode(cls, data: bytes) -> "FleetLedger | None":
        """Return what `encode` has written; None if it is damaged, or of another version: fold the stream anew."""
        body = data[_CRC_BYTES:]
        if zlib.crc32(body).to_bytes(_CRC_BYTES, "big") != data[:_CRC_BYTES]:
            return None
        try:
            state = _decode(body)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return None
        if state.version != _VERSION or not all(is_possible(each) for _, each in state.queues):
            return None
        found = cls()
        found.seq, found.records, found._doubted = state.seq, state.records, state.doubted
        found.passed = max(state.passed, state.seq)
        found._stream, found.relays = state.stream, dict(state.relays)
        found.sums.update(state.sums)
        found.seen.update(state.seen)
        found._cursors = {key: Cursor.from_state(each) for key, each in state.queues}
        found._intents = dict(state.intents)
        found._closed = dict.fromkeys(state.closed)
        found._clock, found._settled_at, found.forgotten = state.clock, state.settled_at, dict(state.forgotten)
        for key in found.seen:
            found._cursors.setdefault(key, Cursor())
        heard = state.heard or [state.clock] * len(found._cursors)  # an older one has no times
        if len(heard) != len(found._cursors):
            return None
        found._heard.update(sorted(zip(found._cursors, heard, strict=True), key=lambda each: each[1]))
        for key in list(found._heard):
            found._measure(key)
        return found

    def _settle(self, record: Settled) -> None:
        fresh = 0
        for part in record.parts:
            key = QueueKey(part.subject, part.queue)
            cursor = self._hear(key)
            if part.spans:
                cursor.next_seq = max(cursor.next_seq, part.spans[-1].stop)
                fresh += cursor.settle(part.spans, record.outcome)
            self._measure(key)
        self.sums[record.outcome] += fresh
        if record.id is None:
            return
        sent = self._intents.pop(record.id, None)
        if sent is not None:
            self._note_closed(record.id)
            if record.outcome is Outcome.DELIVERED:
                self._doubted += sent - fresh

    def _open(self, record: Intent, kept_at: float) -> None:
        if record.id in self._closed or record.id in self._intents:
            return
        before = self.relays.pop(record.relay, None)
        self.relays[record.relay] = RelaySeen(before.first_at if before is not None else kept_at, kept_at)
        if len(self.relays) > MAX_RELAYS:
            del self.relays[next(iter(self.relays))]
        self._intents[record.id] = event_count(record.parts)
        if len(self._intents) > MAX_OPEN_INTENTS:
            self._doubted += self._intents.pop(next(iter(self._intents)))

    def _note_closed(self, request: str) -> None:
        self._closed[request] = None
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    def _see(self, record: Seen) -> None:
        for each in record.ledgers:
            key = QueueKey(each.subject, each.queue)
            self._hear(key)
            before = self.seen.get(key)
            if before is None or before.ledger.accepted <= each.ledger.accepted:
                self.seen[key] = LastSeen(each.ledger, record.at)
            self._measure(key)

    def _hear(self, key: QueueKey) -> Cursor:
        self._heard[key] = self._clock
        self._heard.move_to_end(key)
        cursor = self._cursors.get(key)
        if cursor is None:
            cursor = self._cursors[key] = Cursor()
        return cursor

    def _measure(self, key: QueueKey) -> None:
        """Note how much is kept of a queue of which was just heard, and forget what is too much for its subject."""
        size = 1 + self._cursors[key].settled_beyond
        if key in self.seen:
            size += len(_encode(self.seen[key].ledger.dropped)) // 64
        kept = self._kept.setdefault(key.subject, _Kept())
        kept.set(key, size)
        while kept.size > MAX_KEPT:
            self._forget(key if size > MAX_KEPT else next(iter(kept.queues)))
            self.forgotten[key.subject].early += 1

    def _pass_time(self, now: float) -> None:
        """Let time pass up to a record that settles events, and forget the queues of which nothing was heard for too long."""
        if self._settled_at and now:
            self._clock += min(max(now - self._settled_at, 0.0), MAX_STEP)
        self._settled_at = now or self._settled_at
        while (oldest := next(iter(self._heard), None)) and self._clock - self._heard[oldest] > FORGET_SECONDS:
            self._forget(oldest)

    def _forget(self, key: QueueKey) -> None:
        """Keep no more of a queue than its sums."""
        into = self.forgotten.setdefault(key.subject, Forgotten())
        into.queues += 1
        # What queues say of themselves may be anything, and a snapshot takes no larger numbers.
        into.forwarded = min(into.forwarded + self._forwarded(key), MAX_SEQ)
        for outcome, count in self.counts(key).items():
            into.counts[outcome] = into.counts.get(outcome, 0) + count
        seen = self.seen.pop(key, None)
        if seen is not None:
            into.dropped = min(into.dropped + sum(seen.ledger.dropped.values()), MAX_SEQ)
            into.seen_at = seen.at if into.seen_at is None else max(into.seen_at, seen.at)
        self._kept[key.subject].remove(key)
        del self._cursors[key], self._heard[key]
