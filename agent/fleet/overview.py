"""Where every event of a team is, over the whole fleet: what runners forwarded, what relays settled, what the engine holds.

    forwarded = delivered + dead_lettered + expired + in stream + lost

What a runner forwarded is known from the ledger that it sends now and then, so that what was lost in the engine shows when it has
sent the next one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.fleet import names
from agent.fleet.accounting import FleetLedger, Forgotten, QueueKey
from agent.fleet.engine import Engine, EngineError
from agent.fleet.message import Events, InvalidMessageError, decode
from agent.fleet.records import Part, decode_record
from agent.queue.cursor import Cursor, Ledger, Outcome

READ_RECORDS = 1000
READ_SECONDS = 5.0
MAX_MESSAGES = 100_000
"""So many messages of the stream are looked at; of more, `Overview.is_whole` says that there are."""


@dataclass
class Counts:
    """Numbers of events; `queued` and `dropped` are what runners said last of what they have not forwarded."""

    forwarded: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    expired: int = 0
    in_stream: int = 0
    lost: int = 0
    queued: int = 0
    dropped: int = 0

    def add(self, other: "Counts") -> None:
        """Add another one's numbers."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Pool:
    """The runners that publish on one subject: how many queues were seen, and when the last one said how it is doing."""

    counts: Counts = field(default_factory=Counts)
    queues: int = 0
    seen_at: float | None = None


@dataclass
class Overview:
    """How a team is doing. Times are in seconds since the epoch. `pools` are by subject, `unreadable` messages of nobody."""

    counts: Counts = field(default_factory=Counts)
    in_doubt: int = 0
    messages: int = 0
    unreadable: int = 0
    oldest_event_at: float | None = None
    is_whole: bool = True
    pools: dict[str, Pool] = field(default_factory=dict)


class InStream:
    """The events that messages in the stream hold, each once, whoever published it how often."""

    def __init__(self) -> None:
        self.messages = 0
        self.unreadable = 0
        self.oldest_event_at: float | None = None
        self.seen: dict[QueueKey, Ledger] = {}
        self._cursors: dict[QueueKey, Cursor] = {}

    def add(self, subject: str, events: Events | None, ledger: FleetLedger) -> None:
        """Take a message, None for one that says nothing; what `ledger` has as settled is not in the stream any more."""
        self.messages += 1
        if events is None:
            self.unreadable += 1
            return
        key = QueueKey(subject, events.queue)
        before = self.seen.get(key)
        if events.ledger is not None and (before is None or before.accepted <= events.ledger.accepted):
            self.seen[key] = events.ledger
        left = ledger.unsettled(Part(subject, events.queue, events.spans))
        if not left:
            return
        cursor = self._cursors.setdefault(key, Cursor())
        cursor.next_seq = max(cursor.next_seq, left[-1].stop)
        cursor.settle(left, Outcome.FORWARDED)
        if events.enqueued_at is not None:
            self.oldest_event_at = min(self.oldest_event_at or events.enqueued_at, events.enqueued_at)

    @property
    def queues(self) -> Sequence[QueueKey]:
        """The queues of which there are events or ledgers."""
        return sorted(self._cursors.keys() | self.seen.keys())

    def count(self, key: QueueKey) -> int:
        """Return how many events of a queue there are."""
        cursor = self._cursors.get(key)
        return 0 if cursor is None else cursor.state().counts.get(Outcome.FORWARDED, 0)


def account(ledger: FleetLedger, stream: InStream) -> Overview:
    """Return where the events are that a ledger and a stream know of."""
    found = Overview(
        in_doubt=ledger.in_doubt,
        messages=stream.messages,
        unreadable=stream.unreadable,
        oldest_event_at=stream.oldest_event_at,
    )
    for key in sorted({*ledger.queues, *stream.queues}):
        pool = found.pools.setdefault(key.subject, Pool())
        counts, seen = _counts(key, ledger, stream), ledger.seen.get(key)
        pool.queues += 1
        pool.counts.add(counts)
        found.counts.add(counts)
        if seen is not None:
            pool.seen_at = max(pool.seen_at or seen.at, seen.at)
    for subject, forgotten in ledger.forgotten.items():
        pool = found.pools.setdefault(subject, Pool())
        counts = _forgotten_counts(forgotten)
        pool.queues += forgotten.queues
        pool.counts.add(counts)
        found.counts.add(counts)
        if forgotten.seen_at is not None:
            pool.seen_at = max(pool.seen_at or forgotten.seen_at, forgotten.seen_at)
    return found


def _forgotten_counts(forgotten: Forgotten) -> Counts:
    settled = forgotten.counts
    return Counts(
        forwarded=forgotten.forwarded,
        delivered=settled.get(Outcome.DELIVERED, 0),
        dead_lettered=settled.get(Outcome.DEAD_LETTERED, 0),
        expired=settled.get(Outcome.EXPIRED, 0),
        lost=forgotten.forwarded - sum(settled.values()),
        dropped=forgotten.dropped,
    )


def _counts(key: QueueKey, ledger: FleetLedger, stream: InStream) -> Counts:
    settled, in_stream = ledger.counts(key), stream.count(key)
    known = sum(settled.values()) + in_stream
    last = ledger.seen.get(key)
    said = [each for each in (last.ledger if last is not None else None, stream.seen.get(key)) if each is not None]
    own = max(said, key=lambda each: each.accepted, default=None)
    forwarded = max(known, own.forwarded if own is not None else 0)
    return Counts(
        forwarded=forwarded,
        delivered=settled.get(Outcome.DELIVERED, 0),
        dead_lettered=settled.get(Outcome.DEAD_LETTERED, 0),
        expired=settled.get(Outcome.EXPIRED, 0),
        in_stream=in_stream,
        lost=forwarded - known,
        # What was forwarded since is not queued any more.
        queued=max(own.queued - (forwarded - own.forwarded), 0) if own is not None else 0,
        dropped=sum(own.dropped.values()) if own is not None else 0,
    )


async def look(engine: Engine, team: str, snapshot: bytes | None) -> Overview:
    """Return how a team is doing: reads its ledger from a snapshot on, and the stream. Raises EngineError."""
    # The stream first: what is settled meanwhile is in the ledger. And once more: what came meanwhile may be in a ledger, too.
    messages, after = await _read_stream(engine, team, 0)
    ledger = await read_ledger(engine, team, snapshot)
    newer, _ = await _read_stream(engine, team, after)
    stream = InStream()
    for subject, events in (*messages, *newer):
        stream.add(subject, events, ledger)
    overview = account(ledger, stream)
    overview.is_whole = len(messages) < MAX_MESSAGES
    return overview


async def _read_stream(engine: Engine, team: str, after: int) -> tuple[list[tuple[str, Events | None]], int]:
    """Return what the messages behind a number say, without their lines, and the number of the last one."""
    found: list[tuple[str, Events | None]] = []
    while len(found) < MAX_MESSAGES and (
        message := await engine.next_stored(names.EVENTS, names.team_events(team), after)
    ):
        try:
            events = decode(message.headers, message.body)._replace(lines=b"")
        except InvalidMessageError:
            events = None
        found.append((message.subject, events))
        after = message.seq
    return found, after


async def read_ledger(engine: Engine, team: str, snapshot: bytes | None) -> FleetLedger:
    """Return the accounts of a team, read to their end from a snapshot on. Raises EngineError."""
    subject = names.ledger_subject(team)
    ledger = (FleetLedger.decode(snapshot) if snapshot is not None else None) or FleetLedger()
    ledger.begin(await engine.stream_state(names.LEDGER))
    last = await engine.last_seq(names.LEDGER, subject)
    reader = engine.reader(names.LEDGER, subject, ledger.seq)
    try:
        while ledger.seq < last:
            found = await reader.read(READ_RECORDS, READ_SECONDS)
            if not found:
                raise EngineError(
                    f"the ledger of {team} cannot be read to its end: record {ledger.seq + 1} does not come"
                )
            for message in found:
                ledger.apply(decode_record(message.body), message.seq, message.kept_at)
    finally:
        await reader.aclose()
    return ledger
