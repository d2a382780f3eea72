"""An engine in memory: the fake of agent.fleet.engine, and the broker that several of them share."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel

from agent.fleet import names
from agent.fleet.engine import (
    ConflictError,
    ConsumerState,
    EngineError,
    Entry,
    Message,
    MessageTooLargeError,
    NotPermittedError,
    StreamFullError,
    StreamState,
)
from agent.runtime import Broadcast

ACK_WAIT = 30.0
MAX_ACK_PENDING = 1000
_EPOCH = 1_750_000_000.0
_STREAMS = {"aa.e.": names.EVENTS, "aa.l.": names.LEDGER, "aa.d.": names.DEAD}


@dataclass
class Stream:
    """The messages of one stream that are left, by number, and the ids of all that ever came."""

    messages: dict[int, Message] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    last_seq: int = 0
    created: int = 1

    @property
    def bytes(self) -> int:
        """How much it holds."""
        return sum(len(message.body) for message in self.messages.values())


@dataclass
class Delivered:
    """A message that a consumer has given out: how often, and when it comes again."""

    count: int
    again_at: float


class MemoryBroker:
    """What all engines of a test share. What is set here holds from the next call on.

    `down` refuses everything; `full` every publish to these streams; `denied` subjects are not permitted. `lose_answers` of
    publishes that are kept all the same, `lose_key_answers` of keys that are set or removed. What readers read comes
    `reading_lag` seconds late. With `no_more_time` no message is extended. With `no_objects` none is saved. AA_LEDGER drops its
    oldest records above `ledger_max_bytes`, if that is not 0.
    """

    def __init__(self, max_payload: int = 1024 * 1024) -> None:
        self.streams = {name: Stream() for name in _STREAMS.values()}
        self.keys: dict[str, Entry] = {}
        self.objects: dict[str, bytes] = {}
        self.max_payload = max_payload
        self.down = False
        self.full: set[str] = set()
        self.denied: set[str] = set()
        self.lose_answers = 0
        self.lose_key_answers = 0
        self.reading_lag = 0.0
        self.no_more_time = False
        self.no_objects = False
        self.ledger_max_bytes = 0
        self.changed = Broadcast()
        self.asking: Counter[str] = Counter()
        self._delivered: dict[str, dict[int, Delivered]] = {}
        self._taken_at: dict[str, float] = {}
        self._revision = 0

    def forget_ids(self) -> None:
        """Forget what came before, as a window that has passed, or a server that was restarted."""
        for stream in self.streams.values():
            stream.ids.clear()

    def renew(self, stream: str) -> None:
        """Remove a stream and its consumers, and make it anew: its numbers begin at 1 again."""
        self.streams[stream] = Stream(created=self.streams[stream].created + 1)
        self._delivered.clear()

    def bodies(self, stream: str) -> list[bytes]:
        """Return what a stream holds."""
        return [message.body for message in self.streams[stream].messages.values()]

    def check(self, subject: str = "") -> None:
        """Raise what the state of the broker says of a call."""
        if self.down:
            raise EngineError("no server answers")
        if subject in self.denied:
            raise NotPermittedError(f'permissions violation for publish to "{subject}"')

    def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """See `Engine.publish`."""
        self.check(subject)
        name = _STREAMS.get(subject[:5])
        if name is None:
            raise EngineError("nobody answers: there is no fleet yet")
        stream, message_id = self.streams[name], headers.get("Nats-Msg-Id")
        if name in self.full:
            raise StreamFullError("maximum bytes exceeded")
        if message_id is not None and message_id in stream.ids:
            return False
        stream.last_seq += 1
        stream.messages[stream.last_seq] = Message(
            subject, dict(headers), body, stream.last_seq, kept_at=_EPOCH + anyio.current_time()
        )
        if message_id is not None:
            stream.ids.add(message_id)
        while name == names.LEDGER and 0 < self.ledger_max_bytes < stream.bytes:
            del stream.messages[min(stream.messages)]
        self.changed.notify_all()
        if self.lose_answers:
            self.lose_answers -= 1
            raise EngineError("no answer")
        return True

    def take(self, stream: str, consumer: str, most: int) -> list[Message]:
        """Give messages out that nobody has, or whose time is up."""
        self.check()
        delivered, now = self._delivered.setdefault(consumer, {}), anyio.current_time()
        wanted = f"aa.e.{consumer.removeprefix('relay-')}."
        found: list[Message] = []
        for seq, message in self.streams[stream].messages.items():
            before = delivered.get(seq)
            if before is None and len(delivered) >= MAX_ACK_PENDING:
                continue
            if message.subject.startswith(wanted) and (before is None or before.again_at <= now) and len(found) < most:
                count = 1 if before is None else before.count + 1
                delivered[seq] = Delivered(count, now + ACK_WAIT)
                found.append(message._replace(deliveries=count, reply=f"{consumer} {seq}"))
        if found:
            self._taken_at[consumer] = _EPOCH + now
        return found

    def consumer_state(self, stream: str, consumer: str) -> ConsumerState:
        """See `Engine.consumer_state`."""
        self.check()
        held, wanted = self._delivered.get(consumer, {}), f"aa.e.{consumer.removeprefix('relay-')}."
        seqs = [seq for seq, each in self.streams[stream].messages.items() if each.subject.startswith(wanted)]
        waiting = sum(seq not in held for seq in seqs)
        return ConsumerState(waiting, len(held), self.asking[consumer], self._taken_at.get(consumer))

    def next_due(self, consumer: str) -> float:
        """Return when the next message comes again."""
        return min([each.again_at for each in self._delivered.get(consumer, {}).values()], default=float("inf"))

    def answer(self, reply: str, seconds: float | None) -> None:
        """Forget a message, or let it come again after `seconds`."""
        self.check()
        consumer, _, seq = reply.partition(" ")
        if seconds is None:
            self._delivered[consumer].pop(int(seq), None)
            self.streams[names.EVENTS].messages.pop(int(seq), None)
        elif (found := self._delivered[consumer].get(int(seq))) is not None:
            found.again_at = anyio.current_time() + seconds
        self.changed.notify_all()

    def behind(self, stream: str, subject: str, after: int, most: int) -> list[Message]:
        """Return the messages on a subject, or a filter that ends in `*`, behind a number."""
        self.check()
        matches = [
            message
            for seq, message in self.streams[stream].messages.items()
            if seq > after and (message.subject == subject or message.subject.startswith(subject.rstrip("*>") or "?"))
        ]
        return matches[:most]

    def put(self, key: str, value: bytes | None, revision: int) -> int:
        """Set or remove a key."""
        self.check()
        found = self.keys.get(key)
        if (found.revision if found is not None else 0) != revision:
            raise ConflictError("the key was changed by somebody else")
        self._revision += 1
        if value is None:
            self.keys.pop(key, None)
        else:
            self.keys[key] = Entry(value, self._revision)
        if self.lose_key_answers:
            self.lose_key_answers -= 1
            raise EngineError("no answer")
        return self._revision


class MemoryReader:
    """See `agent.fleet.engine.Reader`."""

    def __init__(self, broker: MemoryBroker, stream: str, subject: str, after: int) -> None:
        self._broker = broker
        self._place = (stream, subject)
        self._after = after

    async def read(self, most: int, seconds: float) -> Sequence[Message]:
        """See `Reader`."""
        await anyio.lowlevel.checkpoint()
        found: list[Message] = []
        with anyio.move_on_after(seconds):
            while not (found := self._broker.behind(*self._place, self._after, most)):
                await self._broker.changed.wait()
        if found:
            self._after = found[-1].seq
            await anyio.sleep(self._broker.reading_lag)
        return found

    async def aclose(self) -> None:
        """See `Reader`."""


class MemoryEngine:
    """See `agent.fleet.engine.Engine`. A call about a key takes `latency` seconds."""

    def __init__(self, broker: MemoryBroker, latency: float = 0.0) -> None:
        self.broker = broker
        self._latency = latency
        self.closed = False

    @property
    def max_payload(self) -> int:
        """See `Engine`."""
        return self.broker.max_payload

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        size = len(body) + 12 + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
        if size > self.max_payload:
            raise MessageTooLargeError(f"{size} bytes; the server takes {self.max_payload} in a message")
        return self.broker.publish(subject, body, headers)

    async def fetch(self, stream: str, consumer: str, *, most: int, seconds: float) -> Sequence[Message]:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        until = anyio.current_time() + seconds
        self.broker.asking[consumer] += 1
        try:
            while not (found := self.broker.take(stream, consumer, most)):
                now = anyio.current_time()
                if now >= until:
                    break
                seen = self.broker.changed.count
                await self.broker.changed.wait(seen=seen, seconds=min(until, self.broker.next_due(consumer)) - now)
        finally:
            self.broker.asking[consumer] -= 1
        return found

    async def consumer_state(self, stream: str, consumer: str) -> ConsumerState:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        return self.broker.consumer_state(stream, consumer)

    async def ack(self, message: Message) -> None:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        self.broker.answer(message.reply, None)

    async def extend(self, message: Message) -> None:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        if self.broker.no_more_time:
            raise EngineError("no answer")
        self.broker.answer(message.reply, ACK_WAIT)

    async def release(self, message: Message, seconds: float = 0.0) -> None:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        self.broker.answer(message.reply, seconds)

    def reader(self, stream: str, subject: str, after: int) -> MemoryReader:
        """See `Engine`."""
        return MemoryReader(self.broker, stream, subject, after)

    async def next_stored(self, stream: str, subject: str, after: int) -> Message | None:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        return next(iter(self.broker.behind(stream, subject, after, 1)), None)

    async def last_seq(self, stream: str, subject: str) -> int:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        found = self.broker.behind(stream, subject, 0, len(self.broker.streams[stream].messages))
        return found[-1].seq if found else 0

    async def stream_state(self, stream: str) -> StreamState:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        self.broker.check()
        found = self.broker.streams[stream]
        first = min(found.messages, default=found.last_seq + 1)
        most = self.broker.ledger_max_bytes if stream == names.LEDGER else 0
        return StreamState(len(found.messages), found.bytes, first, found.last_seq, str(found.created), most)

    async def get(self, key: str) -> Entry | None:
        """See `Engine`."""
        async with self._on_the_way():
            self.broker.check()
            return self.broker.keys.get(key)

    async def put(self, key: str, value: bytes, revision: int = 0) -> int:
        """See `Engine`."""
        async with self._on_the_way():
            return self.broker.put(key, value, revision)

    async def delete(self, key: str, revision: int) -> None:
        """See `Engine`."""
        async with self._on_the_way():
            self.broker.put(key, None, revision)

    @asynccontextmanager
    async def _on_the_way(self) -> AsyncIterator[None]:
        """Take time to get there and back."""
        await anyio.sleep(self._latency / 2)
        try:
            yield
        finally:
            await anyio.sleep(self._latency / 2)

    async def load(self, name: str) -> bytes | None:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        self.broker.check()
        return self.broker.objects.get(name)

    async def save(self, name: str, data: bytes) -> None:
        """See `Engine`."""
        await anyio.lowlevel.checkpoint()
        self.broker.check()
        if self.broker.no_objects:
            raise EngineError("no room for objects")
        self.broker.objects[name] = data

    async def aclose(self) -> None:
        """See `Engine`."""
        self.closed = True
