"""Where every event of a team is, over the whole fleet: what runners forwarded, what relays settled, what the engine holds.

    forwarded = delivered + dead_lettered + expired + in stream + lost

What a runner forwarded is known from the ledger that it sends now and then, so that what was lost in the engine shows when it has
sent the next one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.msgpack import encode

from agent.fleet import names
from agent.fleet.accounting import FleetLedger, Forgotten, QueueKey
from agent.fleet.engine import Engine, EngineError, Message
from agent.fleet.message import Events, InvalidMessageError, decode
from agent.fleet.records import Part, decode_record
from agent.fleet.stored import read_stored
from agent.queue.cursor import Ledger, Outcome, Span, union

READ_RECORDS = 1000
READ_SECONDS = 5.0
MAX_MESSAGES = 100_000
"""So many messages of the stream are looked at; of more, `Overview.is_whole` says that there are."""

MAX_SPANS = 250_000
"""At most so many spans of a subject's messages are looked at, 40 MB: whoever has a pool's credential can publish any number.

A message counts as one more, and 64 bytes of the ledger that it brings as one.
"""


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
    """The runners that publish on one subject: how many queues were seen, and when the last one said how it is doing.

    `forgotten_early` of the queues relays have forgotten, as there was too much to be kept of the subject.
    """

    counts: Counts = field(default_factory=Counts)
    queues: int = 0
    forgotten_early: int = 0
    seen_at: float | None = None


class RelayAtWork(NamedTuple):
    """When a relay began its first request, and its last one, and how many nothing has closed: under way, or in doubt."""

    first_at: float
    last_at: float
    open_requests: int


@dataclass
class Overview:
    """How a team is doing. Times are in seconds since the epoch. `pools` are by subject, `unreadable` messages of nobody.

    `relays` are by name, that which made a request last at the end; only so many are known.
    """

    counts: Counts = field(default_factory=Counts)
    in_doubt: int = 0
    messages: int = 0
    unreadable: int = 0
    oldest_event_at: float | None = None
    is_whole: bool = True
    pools: dict[str, Pool] = field(default_factory=dict)
    relays: dict[str, RelayAtWork] = field(default_factory=dict)


class InStream:
    """What messages in the stream say: their events, each once, whoever published it how often.

    Of a subject that says too much `is_whole` is False, and its further messages are only counted.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.unreadable = 0
        self.seen: dict[QueueKey, Ledger] = {}
        self.is_whole = True
        self._said: list[tuple[Part, float | None]] = []
        self._sizes: Counter[str] = Counter()

    def add(self, subject: str, events: Events | None) -> None:
        """Take a message, None for one that says nothing."""
        self.messages += 1
        if events is None:
            self.unreadable += 1
            return
        size = 1 + len(events.spans) + (len(encode(events.ledger)) // 64 if events.ledger is not None else 0)
        if self._sizes[subject] + size > MAX_SPANS:
            self.is_whole = False
            return
        self._sizes[subject] += size
        key = QueueKey(subject, events.queue)
        before = self.seen.get(key)
        if events.ledger is not None and (before is None or before.accepted <= events.ledger.accepted):
            self.seen[key] = events.ledger
        self._said.append((Part(subject, events.queue, events.spans), events.enqueued_at))

    def left(self, ledger: FleetLedger) -> "Left":
        """Return which events there are: what `ledger` has as settled is not in the stream any more."""
        spans: dict[QueueKey, list[Span]] = {}
        times: list[float] = []
        for part, enqueued_at in self._said:
            found = ledger.unsettled(part)
            if found:
                spans.setdefault(QueueKey(part.subject, part.queue), []).extend(found)
                times += [enqueued_at] if enqueued_at is not None else []
        counts = {key: sum([span.length for span in union(each)]) for key, each in spans.items()}
        return Left(counts, min(times, default=None))


class Left(NamedTuple):
    """How many events of each queue are in the stream, and when the oldest was enqueued, in seconds since the epoch."""

    counts: dict[QueueKey, int]
    oldest_event_at: float | None


def account(ledger: FleetLedger, stream: InStream) -> Overview:
    """Return where the events are that a ledger and a stream know of."""
    left = stream.left(ledger)
    found = Overview(
        in_doubt=ledger.in_doubt,
        messages=stream.messages,
        unreadable=stream.unreadable,
        oldest_event_at=left.oldest_event_at,
        is_whole=stream.is_whole,
        relays={
            name: RelayAtWork(each.first_at, each.last_at, ledger.requests_of(name))
            for name, each in ledger.relays.items()
        },
    )
    for key in sorted({*ledger.queues, *left.counts, *stream.seen}):
        pool = found.pools.setdefault(key.subject, Pool())
        seen, in_stream = ledger.seen.get(key), left.counts.get(key, 0)
        counts = _counts(ledger.counts(key), in_stream, seen.ledger if seen is not None else None, stream.seen.get(key))
        pool.queues += 1
        pool.counts.add(counts)
        found.counts.add(counts)
        if seen is not None:
            pool.seen_at = max(pool.seen_at or seen.at, seen.at)
    for subject, forgotten in ledger.forgotten.items():
        pool = found.pools.setdefault(subject, Pool())
        counts = _forgotten_counts(forgotten)
        pool.queues += forgotten.queues
        pool.forgotten_early = forgotten.early
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


def _counts(settled: Mapping[str, int], in_stream: int, *said: Ledger | None) -> Counts:
    """Return the numbers of a queue, which has said these things of itself."""
    known = sum(settled.values()) + in_stream
    own = max([each for each in said if each is not None], key=lambda each: each.accepted, default=None)
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
    stream = InStream()
    last = await _read_stream(engine, team, stream, 0)
    ledger = await read_ledger(engine, team, snapshot)
    await _read_stream(engine, team, stream, last)
    overview = account(ledger, stream)
    overview.is_whole &= stream.messages < MAX_MESSAGES
    return overview


async def _read_stream(engine: Engine, team: str, stream: InStream, after: int) -> int:
    """Take the messages behind a number, and return that of the last one of all teams."""

    def take(found: Message) -> bool:
        try:
            events = decode(found.headers, found.body)
        except InvalidMessageError:
            events = None
        stream.add(found.subject, events)
        return stream.messages < MAX_MESSAGES

    last = (await engine.stream_state(names.EVENTS)).last_seq
    if stream.messages < MAX_MESSAGES:
        await read_stored(engine, names.EVENTS, names.team_events(team), after, last, take)
    return last


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
