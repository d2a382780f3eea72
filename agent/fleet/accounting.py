"""The accounts of a team: its ledger stream, folded in the order of the stream, so that all who read it agree. Pure.

For each queue there is one `agent.queue.cursor.Cursor`, known by the subject that its events are published on and the queue's id:
an event is settled once, by whatever comes first in the stream. Numbers that never come are normal: a queue's own drops.

    in doubt = events of requests that nothing has closed + events that were delivered, and settled by something else before

A relay writes a request down before it makes it, so that events are delivered twice at most as often as they are in doubt.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from agent.fleet.records import Intent, Part, Record, Released, Seen, Settled, event_count
from agent.queue.cursor import Cursor, CursorState, Ledger, Outcome, Span, is_possible

MAX_OPEN_INTENTS = 10_000
"""Of so many it is known whether something closes them yet; what is older is in doubt for good."""

MAX_CLOSED = 4096
"""Of so many requests it is known that they are closed, so that a copy of a record, which came late, opens none again."""

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


class _Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything that a fold knows. What is added comes last and has a default."""

    version: int
    seq: int
    records: int
    queues: list[tuple[QueueKey, CursorState]]
    sums: dict[str, int]
    intents: dict[str, int]
    doubted: int
    closed: list[str]
    seen: list[tuple[QueueKey, LastSeen]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Snapshot).decode


class FleetLedger:
    """What has become of the events of a team, up to the record with the number `seq`; `records` is how many that were.

    `sums` has the settled events by outcome, `seen` the last ledger of each queue that gave one.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.records = 0
        self.sums: Counter[str] = Counter()
        self.seen: dict[QueueKey, LastSeen] = {}
        self._cursors: dict[QueueKey, Cursor] = {}
        self._intents: dict[str, int] = {}
        self._doubted = 0
        self._closed: dict[str, None] = {}

    def apply(self, record: Record | None, seq: int) -> None:
        """Take the record with that number in the stream, or None for one that is not understood; the order is the stream's.

        What is not behind `seq` has been taken before, and changes nothing.
        """
        if seq <= self.seq:
            return
        self.seq = seq
        self.records += 1
        if isinstance(record, Settled):
            self._settle(record)
        elif isinstance(record, Intent):
            self._open(record)
        elif isinstance(record, Released):
            if self._intents.pop(record.id, None) is not None:
                self._note_closed(record.id)
        elif isinstance(record, Seen):
            self._see(record)

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

    @property
    def forwarded(self) -> int:
        """How many events are known to have been handed to the engine: as queues say, or as many as were settled of them."""
        settled = {key: cursor.next_seq - 1 - cursor.queued for key, cursor in self._cursors.items()}
        told = {key: seen.ledger.forwarded for key, seen in self.seen.items()}
        return sum(max(settled.get(key, 0), told.get(key, 0)) for key in settled.keys() | told.keys())

    @property
    def queues(self) -> Sequence[QueueKey]:
        """The queues that are known, in order."""
        return sorted(self._cursors.keys() | self.seen.keys())

    def counts(self, key: QueueKey) -> Mapping[str, int]:
        """Return how many events of a queue are settled, by outcome."""
        cursor = self._cursors.get(key)
        return {} if cursor is None else cursor.state().counts

    def gaps(self, key: QueueKey) -> list[Span]:
        """Return the numbers of a queue before its last settled one that nothing has settled.

        They were dropped by the queue itself, are still in the stream, or were lost there.
        """
        cursor = self._cursors.get(key)
        return [] if cursor is None else cursor.unsettled(Span(1, cursor.next_seq))

    def encode(self) -> bytes:
        """Return a snapshot of everything, to be continued from with the records behind `seq`."""
        queues = [(key, cursor.state()) for key, cursor in self._cursors.items()]
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
        found.sums.update(state.sums)
        found.seen.update(state.seen)
        found._cursors = {key: Cursor.from_state(each) for key, each in state.queues}
        found._intents = dict(state.intents)
        found._closed = dict.fromkeys(state.closed)
        return found

    def _settle(self, record: Settled) -> None:
        fresh = 0
        for part in record.parts:
            key = QueueKey(part.subject, part.queue)
            cursor = self._cursors.get(key)
            if cursor is None:
                cursor = self._cursors[key] = Cursor()
            if part.spans:
                cursor.next_seq = max(cursor.next_seq, part.spans[-1].stop)
                fresh += cursor.settle(part.spans, record.outcome)
        self.sums[record.outcome] += fresh
        if record.id is None:
            return
        sent = self._intents.pop(record.id, None)
        if sent is not None:
            self._note_closed(record.id)
            if record.outcome is Outcome.DELIVERED:
                self._doubted += sent - fresh

    def _open(self, record: Intent) -> None:
        if record.id in self._closed or record.id in self._intents:
            return
        self._intents[record.id] = event_count(record.parts)
        if len(self._intents) > MAX_OPEN_INTENTS:
            self._doubted += self._intents.pop(next(iter(self._intents)))

    def _note_closed(self, request: str) -> None:
        self._closed[request] = None
        if len(self._closed) > MAX_CLOSED:
            del self._closed[next(iter(self._closed))]

    def _see(self, record: Seen) -> None:
        key = QueueKey(record.subject, record.queue)
        before = self.seen.get(key)
        if before is None or before.ledger.accepted <= record.ledger.accepted:
            self.seen[key] = LastSeen(record.ledger, record.at)
