"""The backlog of a relay: messages of the work queue, which it holds until their events are settled in the ledger stream.

    fetch ─► leave out what the ledger has settled ─► batch ─► Intent ─► request ─► Settled ─► acknowledge the message

What is held is bounded, and asked more time for; a message that may be somebody else's meanwhile is let go of. Nothing is on
a disk here: what is not settled comes again to others.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import anyio
import anyio.lowlevel
import structlog

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch, BatchOptions, Piece
from agent.delivery.ready import ReadyBatches
from agent.delivery.sampling import find_sample
from agent.delivery.transport import Kind, Verdict
from agent.fleet import dead
from agent.fleet.engine import EngineError, Message
from agent.fleet.fetching import MAX_HELD_EVENTS, Fetcher
from agent.fleet.following import LedgerFollower
from agent.fleet.held import Held
from agent.fleet.records import Intent, Part, Released, Settled, encode_record
from agent.fleet.shared import SharedTurns
from agent.fleet.writing import FleetWriter
from agent.queue.cursor import Outcome, Pause, Span
from agent.queue.dead_letters import DeadLetter
from agent.runtime import Runtime, Wakeup

INTENT_SECONDS = 10.0
MAX_SHOWN_BYTES = 300
_RECORD_MARGIN = 1024  # what a record may grow by until its request is settled


class _Request(NamedTuple):
    """A request that was written down, and its events as the fleet knows them."""

    id: str
    parts: tuple[Part, ...]


class StreamBacklog:
    """The events of a team that wait in the engine; see `agent.delivery.backlog.Backlog`. It fetches while `run` runs.

    `settled` counts what this relay has settled, by outcome.
    """

    def __init__(
        self,
        writer: FleetWriter,
        follower: LedgerFollower,
        turns: SharedTurns,
        options: BatchOptions,
        runtime: Runtime,
        max_held: int = MAX_HELD_EVENTS,
    ) -> None:
        self._writer = writer
        self._engine = writer.engine
        self._follower = follower
        self._turns = turns
        self._runtime = runtime
        self._fetcher = Fetcher(writer, follower, runtime, max_held, self._may_hold)
        self._held = self._fetcher.held
        self._log = structlog.get_logger("agent.fleet")
        self._ready = ReadyBatches(options)
        self._expired: deque[Held] = deque()  # to be settled as that
        self._done: deque[Message] = deque()  # to be acknowledged
        self._tending = Wakeup()
        self._requests: dict[int, _Request] = {}  # by the first number of the batch that is under way
        self.changed = self._fetcher.changed
        self.settled: Counter[str] = Counter()

    def _may_hold(self) -> bool:
        """Whether to hold messages: also as long as the API is being asked to take some."""
        return self._turns.may_hold or bool(self._requests)

    @property
    def storage_error(self) -> str | None:
        """See `Backlog`: what the engine does not do now."""
        return self._writer.error or self._follower.error or self._turns.error

    @property
    def pause(self) -> Pause | None:
        """See `Backlog`: that of all relays, or of this one alone."""
        return self._turns.pause

    def remember(self, pause: Pause | None) -> None:
        """See `Backlog`: for all relays, unless it is this one alone that is refused."""
        self._turns.remember(pause)

    @property
    def unreadable(self) -> int:
        """How many messages said nothing."""
        return self._fetcher.unreadable

    @property
    def dead_not_kept(self) -> int:
        """How many dead letters this relay could not keep, because AA_DEAD is full."""
        return self._writer.dead_not_kept

    @property
    def held_events(self) -> int:
        """How many events it holds."""
        return self._held.event_count

    # Taking

    async def next_batch(self, limit: Size, *, at_once: bool) -> Batch | None:
        """See `Backlog`."""
        await anyio.lowlevel.checkpoint()
        now = anyio.current_time()
        self._fetcher.let_lapsed_go(now)
        self._ready.raise_limit(limit)
        while self._fetcher.fresh and not self._ready:
            self._form(self._fetcher.fresh.popleft(), now)
        if not self._ready:
            self._ready.close_filled(limit)
            self._ready.close_due(now, at_once=at_once)
        while (batch := self._ready.take(limit)) is not None:
            if self._held.holds(batch.spans):
                return batch
            self._ready.add(self._pieces(batch.spans), now)
        return None

    async def take_sample(self, refused: Sequence[Batch]) -> Batch | None:
        """See `Backlog`. What is held comes in question, first that of other pools: one alone must not have all pause."""
        await anyio.lowlevel.checkpoint()
        now = anyio.current_time()
        self._fetcher.let_lapsed_go(now)
        while self._fetcher.fresh:
            self._form(self._fetcher.fresh.popleft(), now)
        self._ready.close_due(now, at_once=True)
        waiting = self._ready.newest_first()
        pools = {held.message.subject for batch in refused for held, _ in self._held.pieces(batch.spans)}
        theirs = [held.span for held in self._held if held.message.subject in pools]
        found = find_sample(waiting, refused, theirs) or find_sample(waiting, refused)
        if found is None:
            return None
        sample, rest = found[0].take_out(found[1])
        self._ready.replace(found[0], rest)
        return sample

    @property
    def due_at(self) -> float:
        """See `Backlog`."""
        return float("-inf") if self._ready or self._fetcher.fresh else self._ready.due_at

    def put_back(self, *batches: Batch) -> None:
        """See `Backlog`."""
        self._ready.put_back(*batches)

    def holds(self, batch: Batch) -> bool:
        """See `Backlog`: a message whose time has run out may be somebody else's."""
        self._fetcher.let_lapsed_go(anyio.current_time())
        return self._held.holds(batch.spans)

    def rewind(self) -> None:
        """See `Backlog`: begins again with what is held."""
        self._ready.clear()
        self._fetcher.fresh = deque([held for held in self._held if held.checked])

    def _form(self, held: Held, now: float) -> None:
        """Put what nothing has settled of a message into batches; have it end if nothing is left, and expire if it is too old."""
        if held not in self._held:
            return
        enqueued_at = held.events.enqueued_at
        if enqueued_at is not None and enqueued_at < self._runtime.wall_clock() - self._ready.options.max_age:
            self._expired.append(held)
            self._tending.set()
            return
        self._settle_as_elsewhere(held)
        self._ready.add(self._pieces(self._held.unsettled(held.span)), now)

    def _settle_as_elsewhere(self, held: Held) -> None:
        """Settle here what the ledger says is settled of a message; what comes to its end by that is acknowledged soon."""
        done = self._held.settle_but(held, self._follower.ledger.unsettled(held.part))
        if done:
            self._done.extend([each.message for each in done])
            self._tending.set()

    def _pieces(self, spans: Iterable[Span]) -> list[Piece]:
        """Return what is held of these numbers."""
        return [
            Piece(held.events.context, None, span, held.lines(span), held.events.enqueued_at)
            for held, span in self._held.pieces(spans)
        ]

    # Requests

    async def write_intent(self, batch: Batch) -> Verdict | None:
        """Write down that a request is about to be made; if it may not be, return why."""
        request = _Request(self._writer.new_id(), self._held.parts(batch.spans))
        record = Intent(request.id, self._writer.relay, request.parts)
        if len(encode_record(record)) > self._engine.max_payload - _RECORD_MARGIN and batch.event_count > 1:
            return Verdict(Kind.TOO_LARGE, "the engine takes no record of so many parts")
        written = False
        with anyio.move_on_after(INTENT_SECONDS):
            await self._writer.insist("an intent", partial(self._writer.write, record, request.id))
            written = True
        if not written:
            return Verdict(Kind.TRANSIENT, f"the engine takes no record: {self._writer.error}")
        self._requests[batch.spans[0].start] = request
        if self.holds(batch):
            return None
        lapsed = Verdict(Kind.TRANSIENT, "the engine may have given the events to another relay")
        await self.note_answer(batch, lapsed, took_nothing=True)
        return lapsed

    async def note_answer(self, batch: Batch, verdict: Verdict, *, took_nothing: bool) -> None:
        """Say what came of a request that was written down; one that was accepted is closed by `settle`."""
        if verdict.kind is Kind.ACCEPTED:
            self._turns.note_accepted()
            return
        request = self._requests.pop(batch.spans[0].start, None)
        if request is not None and took_nothing:
            with suppress(EngineError):  # then its events stay in doubt, which they need not be
                await self._writer.write(Released(request.id), request.id)

    # Settling

    async def settle(self, batch: Batch, outcome: Outcome) -> None:
        """See `Backlog`. An engine that refuses the record holds delivery up: a crash would repeat too much."""
        first = batch.spans[0].start
        request = self._requests.get(first)
        parts = request.parts if request is not None else self._held.parts(batch.spans)
        await self._settle(parts, outcome, request.id if request is not None else None)
        self._requests.pop(first, None)
        await self._forget(batch.spans)

    async def _settle(self, parts: tuple[Part, ...], outcome: Outcome, request: str | None = None) -> None:
        if parts:
            record, name = Settled(outcome, parts, request), request or self._writer.new_id()
            await self._writer.insist("a settlement", partial(self._writer.write, record, name))
            self.settled[outcome] += sum([span.length for part in parts for span in part.spans])

    async def _forget(self, spans: Sequence[Span]) -> None:
        """Settle these numbers here, and acknowledge the messages of which nothing is left."""
        for held in self._held.settle(spans):
            await self._writer.ack(held.message)
        self.changed.notify_all()

    async def keep_dead_letter(self, batch: Batch, verdict: Verdict) -> None:
        """See `Backlog`: it goes to AA_DEAD."""
        for part in self._held.parts(batch.spans):
            now = self._runtime.wall_clock()
            letter = DeadLetter(part.spans[0].start, now, verdict.status, verdict.message, batch.context, batch.lines)
            sent = letter.line[:MAX_SHOWN_BYTES].decode(errors="replace").rstrip()
            facts = {"queue": part.queue, "seq": letter.seq, "sent": sent, "message": verdict.message}
            self._log.warning("event_dead_lettered", **facts)
            keep = partial(self._writer.keep_dead, *dead.of_event(part.subject, part.queue, letter))
            await self._writer.insist("a dead letter", keep)

    async def purge(self) -> int:
        """See `Backlog`: also what is fetched meanwhile, until nothing comes."""
        count = 0
        while len(self._held) or not self._fetcher.idle:
            for held in self._held:
                left = self._held.unsettled(held.span)
                await self._settle(self._held.parts(left), Outcome.PURGED)
                count += sum([span.length for span in left])
                await self._forget([held.span])
            if not len(self._held) and not self._fetcher.idle:
                await self.changed.wait()
        self.rewind()
        return count

    # Running

    async def run(self) -> None:
        """Fetch, and keep what is held, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._fetcher.run)
            tasks.start_soon(self._tend)

    async def release(self) -> None:
        """Fetch no more, and let others have at once what is held; nothing may be under way."""
        await self._fetcher.stop()
        await self._fetcher.let_go()
        self.rewind()

    async def _tend(self) -> None:
        """Acknowledge messages of which nothing is left, and settle those that are too old."""
        while True:
            await self._tending.wait()
            while self._done:
                await self._writer.ack(self._done.popleft())
            while self._expired:
                held = self._expired.popleft()
                self._settle_as_elsewhere(held)
                left = self._held.unsettled(held.span)
                if held not in self._held or not left:
                    continue
                await self._settle(self._held.parts(left), Outcome.EXPIRED)
                count = sum([span.length for span in left])
                self._writer.log_throttled("events_expired", events=count, queue=held.events.queue)
                await self._forget([held.span])
