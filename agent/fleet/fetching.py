"""Takes the messages of a team out of the work queue, and keeps them from others for as long as they are held here.

    fetch ─► read ─► ledgers of queues are written down ─► hold ─► the ledger is read up to now ─► fresh

A message that says nothing is moved aside. One that may be somebody else's meanwhile is let go of.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from agent.fleet import dead, message, names
from agent.fleet.accounting import QueueKey
from agent.fleet.engine import EngineError, Message
from agent.fleet.following import LedgerFollower
from agent.fleet.held import Held, HeldMessages
from agent.fleet.message import Events, InvalidMessageError
from agent.fleet.records import Part, QueueLedger, Seen
from agent.fleet.writing import RETRY_SECONDS, FleetWriter
from agent.runtime import Broadcast, Runtime

FETCH_MESSAGES = 32
FETCH_SECONDS = 1.0
EXTEND_SECONDS = 10.0
ACK_WAIT = 30.0
"""After so many seconds without an answer the engine gives a message to somebody else: a setting of the consumer."""

SAFE_SECONDS = 5.0
"""So many seconds before that a message counts as lost to others."""

MAX_HELD_EVENTS = 4000
MAX_HELD_BYTES = 32 * 1024 * 1024
"""Of bodies; two fetches of FETCH_MESSAGES may come on top before it shows that messages have become larger."""

LATER_SECONDS = 60.0
COPY_SECONDS = 10.0
MAX_BLOCKERS = 16
"""With more messages that stand for events of another one, that one comes again later: no agent makes so many copies."""

STOP_SECONDS = 3.0


class _Fetched(NamedTuple):
    """Messages, and when they came (steady clock)."""

    messages: Sequence[Message]
    at: float


class Fetcher:
    """Fetches while `run` runs, until `stop`, as long as fewer than `max_held` events and MAX_HELD_BYTES are `held`.

    `fresh` are those messages of which the ledger says what is settled, and which nobody has taken from there yet. `idle` says
    that the last fetch brought nothing, `unreadable` counts the messages that said nothing. While `may_hold` says no, others
    have what is held.
    """

    def __init__(
        self,
        writer: FleetWriter,
        follower: LedgerFollower,
        runtime: Runtime,
        max_held: int,
        may_hold: Callable[[], bool] = lambda: True,
    ) -> None:
        self._writer = writer
        self._engine = writer.engine
        self._follower = follower
        self._runtime = runtime
        self._max_held = max_held
        self._may_hold = may_hold
        self._stopping = False
        self._fetching = False
        self._fetched_at = float("-inf")
        self._per_message = 1.0  # events, and
        self._bytes_per_message = 1.0
        self._coming = 0  # messages that came and are not held yet
        self.held = HeldMessages()
        self.fresh: deque[Held] = deque()
        self.changed = Broadcast()
        self.idle = False
        self.unreadable = 0

    async def run(self) -> None:
        """Fetch, and keep what is held, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fetch)
            tasks.start_soon(self._extend)

    async def stop(self) -> None:
        """Fetch no more, and return when what was fetched last is held, or after STOP_SECONDS."""
        self._stopping = True
        self.changed.notify_all()
        with anyio.move_on_after(STOP_SECONDS):
            while self._fetching:
                await self.changed.wait()

    async def let_go(self) -> None:
        """Let others have at once what is held."""
        for each in self.held:
            for held in self.held.drop(each):
                with suppress(EngineError):  # then they have it when its time has run out
                    await self._engine.release(held.message)

    def let_lapsed_go(self, now: float) -> None:
        """Hold no message any more for which nobody could ask for more time."""
        for held in self.held:
            if now - held.kept_at > ACK_WAIT - SAFE_SECONDS:
                self.held.drop(held)
                self._writer.log_throttled("message_held_too_long", seq=held.message.seq)

    async def _fetch(self) -> None:
        """Fetch; what came is taken in while the next fetch is under way."""
        self._fetching = True
        came, to_take_in = anyio.create_memory_object_stream[_Fetched](0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._take_in_all, to_take_in)
            with came:
                while not self._stopping:
                    found = await self._fetch_once()
                    if found is not None:
                        await came.send(found)
        self._fetching = False
        self.changed.notify_all()

    async def _fetch_once(self) -> _Fetched | None:
        """Return what came; None if nothing can be asked for now, after a while."""
        if not self._may_hold():
            await self.let_go()
            await self.changed.wait(seconds=FETCH_SECONDS)
            return None
        most = self._most()
        if not most:
            await self.changed.wait(seconds=FETCH_SECONDS)
            return None
        consumer = names.consumer(self._writer.team)
        try:
            found = await self._engine.fetch(names.EVENTS, consumer, most=most, seconds=FETCH_SECONDS)
        except EngineError as error:
            self._writer.note_error("a fetch", str(error))
            await anyio.sleep(RETRY_SECONDS)
            return None
        self._writer.note_success("a fetch")
        now = anyio.current_time()
        if now - self._fetched_at > SAFE_SECONDS:  # some may have waited on this side of the connection
            for each in found:
                await self._more_time(each)
        self._fetched_at = now
        if found:
            size = sum([len(each.body) for each in found]) / len(found)
            self._bytes_per_message = max(size, 0.9 * self._bytes_per_message)
        self._coming += len(found)
        return _Fetched(found, now)

    def _most(self) -> int:
        """Return how many messages there is room for, if they are like those that came last; 0 for none."""
        events = self._max_held - self.held.event_count - self._coming * self._per_message
        size = MAX_HELD_BYTES - self.held.byte_count - self._coming * self._bytes_per_message
        if events < 1 or size <= 0:
            return 0
        return min(FETCH_MESSAGES, max(int(min(events / self._per_message, size / self._bytes_per_message)), 1))

    async def _take_in_all(self, fetched: MemoryObjectReceiveStream[_Fetched]) -> None:
        with fetched:
            async for found, now in fetched:
                await self._take_in(found, now)
                self.idle = not found
                self.changed.notify_all()

    async def _take_in(self, found: Sequence[Message], now: float) -> None:
        """Hold messages that came at `now`, once the ledger says what of them is settled."""
        readable = [(each, events) for each in found if (events := await self._read(each, now)) is not None]
        await self._write_ledgers(readable)
        new = [held for each, events in readable if (held := await self._hold(each, events, now)) is not None]
        self._coming -= len(found)
        if new:  # only now: what was settled before these were held, and nobody stands for any more, is in the ledger
            await self._follower.catch_up()
        for held in new:
            for done in self.held.settle_but(held, self._follower.ledger.unsettled(held.part)):
                await self._writer.ack(done.message)
            held.checked = True
            self.fresh.append(held)

    async def _read(self, found: Message, now: float) -> Events | None:
        """Return what a message says that came at `now`; None if it is held, or says nothing."""
        known = self.held.at(found.seq)
        if known is not None and known.message[:3] == found[:3]:  # more time was asked for in vain
            known.message, known.kept_at = found, now
            return None
        if known is not None:  # the stream was made anew, and counts from 1 again: that one is gone from it
            self.held.drop(known)
        try:
            return message.decode(found.headers, found.body)
        except InvalidMessageError as error:
            await self._put_aside(found, str(error))
            return None

    async def _write_ledgers(self, found: Sequence[tuple[Message, Events]]) -> None:
        """Write down what queues say of themselves, all in one record, before their messages can go."""
        ledgers = {QueueKey(each.subject, events.queue): events.ledger for each, events in found if events.ledger}
        known = self._follower.ledger.seen
        new = [
            QueueLedger(key.subject, key.queue, ledger)
            for key, ledger in ledgers.items()
            if key not in known or known[key].ledger != ledger
        ]
        if new:
            record, name = Seen(tuple(new), self._runtime.wall_clock()), self._writer.new_id()
            await self._writer.insist("a ledger", partial(self._writer.write, record, name))

    async def _hold(self, found: Message, events: Events, now: float) -> Held | None:
        """Hold a message that came at `now`; None if there is nothing to be delivered, or not now."""
        if not events.event_count:
            await self._writer.ack(found)
            return None
        blockers = self.held.standing_for(Part(found.subject, events.queue, events.spans))
        if len(blockers) > MAX_BLOCKERS:
            with suppress(EngineError):
                await self._engine.release(found, COPY_SECONDS)
            return None
        self._per_message += 0.1 * (events.event_count - self._per_message)
        return self.held.add(found, events, now, blockers)

    async def _put_aside(self, found: Message, error: str) -> None:
        """Move a message that says nothing to AA_DEAD, or let it come again if the engine fails: nobody waits for it."""
        self._writer.log_throttled("message_unreadable", seq=found.seq, subject=found.subject, error=error)
        try:
            await self._writer.keep_dead(*dead.of_message(found, error, self._engine.max_payload))
        except EngineError as failure:
            self._writer.note_error("a dead letter", str(failure))
            with suppress(EngineError):
                await self._engine.release(found, LATER_SECONDS)
            return
        self._writer.note_success("a dead letter")
        self.unreadable += 1
        await self._writer.ack(found)

    async def _extend(self) -> None:
        while True:
            await anyio.sleep(EXTEND_SECONDS)
            # Before: this process may have been stopped, and the engine takes it all the same.
            self.let_lapsed_go(anyio.current_time())
            for held in self.held:
                now = anyio.current_time()
                if held in self.held and await self._more_time(held.message):
                    held.kept_at = now

    async def _more_time(self, found: Message) -> bool:
        try:
            await self._engine.extend(found)
        except EngineError as error:
            self._writer.log_throttled("message_not_extended", error=str(error))
            return False
        return True
