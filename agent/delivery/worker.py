"""The delivery worker: read → batch → send → decide → perform, for one destination.

It performs decisions; `agent.delivery.policy` makes them. It must never know status codes, byte layout or clients.
"""

from dataclasses import dataclass, field, replace

import anyio
import anyio.abc
import structlog

from agent.delivery import policy
from agent.delivery.backlog import DiskBacklog
from agent.delivery.batching import Batch
from agent.delivery.policy import Action, DeliverySettings, DeliveryState, Paused, Reason
from agent.delivery.sessions import Sessions
from agent.delivery.transport import Kind, Transport, Verdict
from agent.errors import StorageError
from agent.events import to_json_array
from agent.queue.committer import Committer
from agent.queue.cursor import Outcome, Pause, Span, Watcher
from agent.queue.dead_letters import DeadLetter, DeadLetters
from agent.queue.ownership import Owner
from agent.queue.store import Store
from agent.runtime import Broadcast, Runtime, Wakeup
from agent.throttle import Throttle

STORAGE_RETRY_SECONDS = 1.0
LOG_INTERVAL = 60.0
MAX_SHOWN_BYTES = 300

# A checkpoint has to list what is settled beyond the cursor's position, and what is under way may all be settled there.
MAX_OPEN_SPANS = 1000

_REASONS = frozenset(Reason)

# What a probe's answer must be for an event to be tried: "enabled", or no clear answer at all.
_WORTH_A_TRY = {Kind.ACCEPTED, Kind.REJECTED, Kind.TOO_LARGE, Kind.MISCONFIGURED}


@dataclass
class Purge:
    """A wish that all that is queued be settled as purged: `count` says how many events that was, once it is `done`."""

    done: anyio.Event = field(default_factory=anyio.Event)
    count: int = 0


@dataclass
class Stats:
    """What the workers of a queue, one after another, have in common.

    `last_delivery_at` is in seconds since the epoch, `next_request_at` on the steady clock. `settled` tells
    flushes to look again at what they wait for. A `purge` waits for its moment. `sessions` knows whose events
    they have settled.
    """

    requests: int = 0
    last_delivery_at: float | None = None
    next_request_at: float = float("-inf")
    purge: Purge | None = None
    settled: Broadcast = field(default_factory=Broadcast)
    sessions: Sessions = field(default_factory=Sessions)


class Worker:
    """Delivers what the queue holds for as long as `run` runs; `state` says how it is doing."""

    def __init__(
        self,
        store: Store,
        committer: Committer,
        transport: Transport,
        dead_letters: Owner[DeadLetters],
        source: DiskBacklog,
        settings: DeliverySettings,
        runtime: Runtime,
        stats: Stats,
        state: DeliveryState | None = None,
    ) -> None:
        """`state` is what another worker of the same queue left; a pause that the cursor remembers comes before it."""
        self._store = store
        self._committer = committer
        self._transport = transport
        self._dead_letters = dead_letters
        self._source = source
        self._settings = settings
        self._runtime = runtime
        self._log = structlog.get_logger("agent.delivery")
        self._throttle = Throttle(LOG_INTERVAL)
        self._wakeup = Wakeup()
        self._in_flight = 0
        self._spans_in_flight = 0
        self._rewind = False
        self._dead_letter_lock = anyio.Lock()
        self._dead_letter_error: str | None = None
        self._stopping = False
        self._stats = stats
        self.state = self._restored_state(state or DeliveryState())

    # What others ask of it

    def wake(self) -> None:
        """Say that there was a commit: there may be more to read, or less to wait for."""
        self._wakeup.set()
        self._stats.settled.notify_all()

    @property
    def storage_error(self) -> str | None:
        """Why the queue cannot be read, or a dead letter not be kept, just now."""
        return self._source.error or self._dead_letter_error

    def pause(self) -> None:
        """Stop sending until `resume`."""
        self._enter(policy.pause_by_operator(self.state))

    def resume(self) -> None:
        """Send again now, whatever the reason for the pause was; only what the server asked for still counts."""
        self._enter(policy.fresh_start(self.state))

    async def flush(self, barrier: Watcher, *, until_paused: bool = False) -> None:
        """Return when `barrier`, which the cursor tells what it settles, is passed; no batch timer and no jitter is waited for.

        `until_paused` also returns when delivery stands still and nothing is under way.
        """
        self.state = policy.skip_backoff(self.state)
        self._wakeup.set()
        while not barrier.passed and not (until_paused and self._stands_still):
            await self._stats.settled.wait()

    @property
    def _stands_still(self) -> bool:
        return self.state.paused is not None and self._in_flight == 0

    def stop(self) -> None:
        """Let `run` return when the requests that are under way have been answered."""
        self._stopping = True
        self._wakeup.set()

    async def aclose(self) -> None:
        """Close the transport, once `run` has returned."""
        await self._transport.aclose()

    # The loop

    async def run(self) -> None:
        """Deliver until `stop`."""
        try:
            async with anyio.create_task_group() as tasks:
                while not self._stopping:
                    await self._step(tasks)
        finally:
            self._source.forget()

    async def _step(self, tasks: anyio.abc.TaskGroup) -> None:
        now = anyio.current_time()
        standstill = self._rewind or self._stats.purge is not None
        if self._in_flight and (standstill or self._in_flight >= self.state.slots or self._too_scattered):
            await self._wakeup.wait()
        elif self._stats.purge is not None:
            self._purge(self._stats.purge)
        elif self.state.paused is not None:
            await self._while_paused(self.state.paused, now)
        elif (wait := max(self.state.retry_at, self._stats.next_request_at) - now) > 0:
            await self._wakeup.wait(wait)
        elif not await self._send_next(tasks):
            await self._wakeup.wait(self._source.due_at - anyio.current_time())

    def _purge(self, purge: Purge) -> None:
        """Settle all that is queued: nothing of it is under way."""
        cursor = self._store.cursor
        purge.count = cursor.settle([Span(cursor.position, cursor.next_seq)], Outcome.PURGED)
        self._source.forget()
        self._stats.purge = None
        purge.done.set()

    @property
    def _too_scattered(self) -> bool:
        return self._spans_in_flight + self._store.cursor.settled_beyond > MAX_OPEN_SPANS

    async def _send_next(self, tasks: anyio.abc.TaskGroup) -> bool:
        """Send a batch, or read towards one; False if there is nothing to do for now."""
        if self._rewind:
            self._source.forget()
            self._rewind = False
        limit = policy.batch_limit(self.state, self._settings)
        batch = self._source.next_batch(limit)
        if batch is None:
            at_once = not all(watcher.passed for watcher in self._store.cursor.watchers)
            return await self._read(limit) or self._source.close_due(anyio.current_time(), at_once=at_once)
        self._in_flight += 1
        self._spans_in_flight += len(batch.spans)
        self._pace()
        tasks.start_soon(self._deliver, batch)
        return True

    async def _read(self, limit: int) -> bool:
        settled = self._source.settled
        more = await self._source.read(limit)
        if self._source.settled != settled:
            self._committer.request()
        return more

    async def _deliver(self, batch: Batch) -> None:
        verdict = await self._send(batch)
        await self._perform(self._decide(batch, verdict), batch, verdict)
        self._in_flight -= 1
        self._spans_in_flight -= len(batch.spans)
        self.wake()

    async def _send(self, batch: Batch) -> Verdict:
        verdict = await self._transport.send(batch.context, to_json_array(batch.lines))
        self._log.debug("request", events=batch.event_count, verdict=verdict.kind, status=verdict.status)
        return verdict

    def _pace(self) -> None:
        """Count a request at the moment it is decided on: its task may start only after the next one is decided on."""
        self._stats.requests += 1
        if self._settings.requests_per_minute is not None:
            earliest = max(self._stats.next_request_at, anyio.current_time())
            self._stats.next_request_at = earliest + 60 / self._settings.requests_per_minute

    # While paused

    async def _while_paused(self, paused: Paused, now: float) -> None:
        if now < paused.until:
            await self._wakeup.wait(paused.until - now)
        else:
            await self._probe(paused)

    async def _probe(self, paused: Paused) -> None:
        """Find out whether the pause is over, with the server's status and then, if that allows it, with one event.

        An operator may be faster, and resume or pause: then what a probe finds out changes nothing of that.
        """
        verdict = await self._transport.probe()
        if self.state.paused != paused:
            return
        if verdict is None or verdict.kind in _WORTH_A_TRY:
            await self._try_one_event(paused)
        else:
            self._decide_probe(verdict)

    async def _try_one_event(self, paused: Paused) -> None:
        batch = await self._first_event()
        if self.state.paused != paused:
            return
        if batch is None:
            self._enter(policy.resume(self.state))
            return
        self._pace()
        verdict = await self._send(batch)
        still = self.state.paused == paused
        await self._perform(self._decide_probe(verdict) if still else self._decide(batch, verdict), batch, verdict)

    async def _first_event(self) -> Batch | None:
        self._source.forget()
        batch = None
        while batch is None and not self._stopping and await self._read(1):
            batch = self._source.next_batch(1)
        self._source.forget()
        return batch

    # Deciding and performing

    def _decide(self, batch: Batch, verdict: Verdict) -> Action:
        """Decide, and enter the new state before anything else can happen."""
        now, jitter, events = anyio.current_time(), self._runtime.random(), batch.event_count
        step = policy.decide(self.state, verdict, events, now=now, jitter=jitter, settings=self._settings)
        self._enter(step.state)
        return step.action

    def _decide_probe(self, verdict: Verdict) -> Action:
        now, jitter = anyio.current_time(), self._runtime.random()
        step = policy.decide_probe(self.state, verdict, now=now, jitter=jitter, settings=self._settings)
        self._enter(step.state)
        return step.action

    async def _perform(self, action: Action, batch: Batch, verdict: Verdict) -> None:
        match action:
            case Action.SETTLE:
                self._stats.last_delivery_at = self._runtime.wall_clock()
                await self._settle(batch, Outcome.DELIVERED)
            case Action.RETRY:
                self._source.put_back(batch)
            case Action.SPLIT:
                self._source.put_back(*batch.split())
            case Action.DEAD_LETTER:
                await self._keep_dead_letter(batch, verdict)
                await self._settle(batch, Outcome.DEAD_LETTERED)
            case Action.RETURN:
                pass  # it is still in the queue

    async def _settle(self, batch: Batch, outcome: Outcome) -> None:
        self._account(batch, outcome)
        await self._checkpoint()

    def _account(self, batch: Batch, outcome: Outcome) -> None:
        """Settle what nothing else has settled meanwhile, and remember whose events those are."""
        cursor = self._store.cursor
        fresh = [part for span in batch.spans for part in cursor.unsettled(span)]
        if count := cursor.settle(fresh, outcome):
            self._stats.sessions.count(batch.lines_in(fresh), count, outcome)

    async def _checkpoint(self) -> None:
        """Return when the cursor is written; a disk that refuses it holds delivery up, or a crash would repeat too much."""
        while (await self._committer.request().wait()).checkpoint_error is not None:  # noqa: ASYNC110 - a retry, not a poll
            await anyio.sleep(STORAGE_RETRY_SECONDS)

    async def _keep_dead_letter(self, batch: Batch, verdict: Verdict) -> None:
        now = self._runtime.wall_clock()
        letter = DeadLetter(batch.spans[0].start, now, verdict.status, verdict.message, batch.context, batch.lines)
        self._log.warning(
            "event_dead_lettered",
            seq=letter.seq,
            sent=letter.line[:MAX_SHOWN_BYTES].decode(errors="replace").rstrip(),
            message=verdict.message,
        )
        async with self._dead_letter_lock:
            while not await self._try_to_keep(letter, now):
                if (held_back := self._throttle.allow("dead_letter_not_kept", anyio.current_time())) is not None:
                    self._log.error("dead_letter_not_kept", error=self._dead_letter_error, suppressed=held_back)
                await anyio.sleep(STORAGE_RETRY_SECONDS)

    async def _try_to_keep(self, letter: DeadLetter, now: float) -> bool:
        try:
            await self._dead_letters.run(lambda dead_letters: dead_letters.append(letter, now))
        except StorageError as error:
            self._dead_letter_error = str(error)
            return False
        self._dead_letter_error = None
        return True

    # State

    def _enter(self, new: DeliveryState) -> None:
        old, self.state = self.state, new
        if old.paused != new.paused:
            self._rewind = True
            self._remember_pause(new)
        self._log_change(old, new)
        self._wakeup.set()

    def _remember_pause(self, state: DeliveryState) -> None:
        """Let the next checkpoint, which is asked for, hold the pause: it survives a restart."""
        paused, now, before = state.paused, self._runtime.wall_clock(), self._store.cursor.pause
        if paused is None:
            self._store.cursor.pause = None
        else:
            probe_at = now + paused.until - anyio.current_time()
            since = before.since if before is not None else now
            self._store.cursor.pause = Pause(paused.reason, paused.message, since, probe_at, state.probes)
        self._committer.request()

    def _restored_state(self, state: DeliveryState) -> DeliveryState:
        pause = self._store.cursor.pause
        if pause is None or pause.reason not in _REASONS:  # a later version's: the next answer tells whether to pause
            self._store.cursor.pause = None
            return state
        wait = pause.probe_at - self._runtime.wall_clock()
        if pause.reason != Reason.OPERATOR:
            # A clock that was set back must not make it wait longer than it ever should.
            wait = min(max(wait, 0.0), self._settings.max_probe_interval)
        paused = Paused(Reason(pause.reason), pause.message, anyio.current_time() + wait)
        return replace(state, paused=paused, probes=pause.probes)

    def _log_change(self, old: DeliveryState, new: DeliveryState) -> None:
        now = anyio.current_time()
        if new.paused is not None and new.paused != old.paused:
            wait = round(new.paused.until - now, 1) if new.paused.until != float("inf") else None
            self._log.warning("delivery_paused", reason=new.paused.reason, message=new.paused.message, probe_in=wait)
        elif old.paused is not None and new.paused is None:
            self._log.info("delivery_resumed", after=old.paused.reason)
        elif new.failures and not old.failures:
            self._log.warning("delivery_backing_off", error=new.last_failure, retry_in=round(new.retry_at - now, 1))
        elif old.failures and not new.failures:
            self._log.info("delivery_recovered", failures=old.failures)
        if new.ceiling < old.ceiling:
            self._log.warning("batches_too_large", max_events=new.ceiling)
