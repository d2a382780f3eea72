"""The delivery worker: take a batch, send it, decide, perform, for one destination.

It performs decisions; `agent.delivery.policy` makes them. It knows what waits as a `Backlog` and the API as a `Transport`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import anyio
import structlog

from agent.delivery import policy
from agent.delivery.backlog import Backlog
from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch
from agent.delivery.measures import Measures
from agent.delivery.policy import Action, Decision, DeliverySettings, DeliveryState, Paused, Reason
from agent.delivery.remembered_pause import is_known, paused_by, to_remember
from agent.delivery.state_log import log_pause, log_trouble
from agent.delivery.suspects import Suspects
from agent.delivery.transport import Kind, Transport, Verdict
from agent.delivery.turns import LocalTurns, Turns
from agent.queue.barrier import Barrier
from agent.queue.cursor import Outcome, Pause
from agent.runtime import Runtime, TaskPool

_FOREVER = float("inf")

# What a probe's answer must be for an event to be tried: "enabled", or no clear answer at all.
_WORTH_A_TRY = {Kind.ACCEPTED, Kind.REJECTED, Kind.TOO_LARGE, Kind.MISCONFIGURED}


class Worker:
    """Delivers what a backlog holds, for as long as `run` runs; `state` says how it is doing.

    `requests` counts from the start, and so do `measures`.
    """

    def __init__(
        self,
        backlog: Backlog,
        transport: Transport,
        settings: DeliverySettings,
        runtime: Runtime,
        turns: Turns | None = None,
    ) -> None:
        """A pause that the backlog remembers goes on. Without `turns` no other delivers for the same account."""
        self._backlog = backlog
        self._transport = transport
        self._settings = settings
        self._runtime = runtime
        self._log = structlog.get_logger("agent.delivery")
        self._changed = backlog.changed
        self._turn = anyio.Lock(fast_acquire=True)  # whoever has it decides what begins next
        self._in_flight = 0
        self._stopping = False
        # Whether what the backlog holds in memory may have been settled meanwhile, or is formed for old settings.
        self._stale = False
        self._retired: list[Transport] = []
        self._flushing: list[Barrier] = []
        self._suspects = Suspects()
        self._turns = turns or LocalTurns(settings.requests_per_minute)
        self.requests = 0
        self.measures = Measures()
        self.state = self._restored()

    @property
    def batch_limit(self) -> policy.BatchLimit:
        """How large a batch may be now, and why."""
        return policy.describe_batch_limit(self.state, self._settings, anyio.current_time())

    # Commands

    def pause(self) -> None:
        """Stop sending until `resume`."""
        self._enter(policy.pause_by_operator(self.state))

    def resume(self) -> float | None:
        """Send again now, whatever the reason for the pause was, and whatever the server asked for.

        Returns for how many more seconds it had asked not to be sent anything; None if it had not.
        """
        overridden = self._retry_after_overridden()
        self._enter(DeliveryState())
        return overridden

    def reconfigure(self, transport: Transport, settings: DeliverySettings) -> None:
        """Deliver with these from now on. Requests under way end with the old transport, which is closed after the last one.

        Ends a pause, which the new configuration may have made pointless, unless an operator wanted it. What the server asked
        for before is not waited for.
        """
        self._retry_after_overridden()
        self._retired.append(self._transport)
        self._transport, self._settings, self._stale = transport, settings, True
        self._turns.reconfigure(settings.requests_per_minute)
        self._enter(policy.reconfigured(self.state))

    def follow(self, pause: Pause | None) -> None:
        """Enter a pause that others have written down, or leave one that they have ended; nothing of it is written again."""
        if pause is not None:
            self._enter(self._paused(self.state, pause), remember=False)
        elif self.state.paused is not None:
            self._enter(replace(policy.resume(self.state), probes=0), remember=False)

    def _retry_after_overridden(self) -> float | None:
        wait = round(self.state.not_before - anyio.current_time(), 1)
        if wait <= 0:
            return None
        self._log.warning("retry_after_overridden", error=self.state.last_failure, left=wait)
        return wait

    async def flush(self, barrier: Barrier, *, give_up: Callable[[DeliveryState], bool] = lambda _: False) -> None:
        """Return when `barrier` is passed; no batch timer and no jitter is waited for.

        Also return when nothing is under way and `give_up` says of the state that there is nothing to wait for.
        """
        self.state = policy.skip_backoff(self.state)
        self._flushing.append(barrier)
        self._changed.notify_all()
        try:
            while not barrier.passed and (self._in_flight or not give_up(self.state)):
                await self._changed.wait()
        finally:
            self._flushing.remove(barrier)

    async def purge(self, seconds: float) -> int | None:
        """Settle all that waits as purged, once no request is under way that may deliver some of it; return how many.

        None if that moment did not come within `seconds`: then nothing is purged.
        """
        with anyio.move_on_after(seconds):
            async with self._turn:
                await self._nothing_in_flight()
                self._suspects.clear()
                return await self._backlog.purge()
        return None

    async def stop_after_inflight(self) -> None:
        """Begin no more requests, and return when those that are under way have been answered; `run` returns too."""
        self._stopping = True
        self._changed.notify_all()
        async with self._turn:
            await self._nothing_in_flight()

    async def aclose(self) -> None:
        """Close the transport, once `run` has returned."""
        for transport in (*self._retired, self._transport):
            await transport.aclose()

    async def _nothing_in_flight(self) -> None:
        while self._in_flight:
            await self._changed.wait()

    # The loop

    async def run(self) -> None:
        """Deliver until `stop_after_inflight`."""
        try:
            async with anyio.create_task_group() as tasks:
                requests = TaskPool(tasks)
                while not self._stopping:
                    seen, seconds = self._changed.count, _FOREVER
                    if not self._has_enough:
                        async with self._turn:
                            seconds = await self._step(requests)
                    if seconds > 0:
                        await self._changed.wait(seen=seen, seconds=seconds)
                requests.close()
        finally:
            self._backlog.rewind()

    async def _step(self, requests: TaskPool) -> float:
        """Do one thing that is to be done now; return for how many seconds there is nothing more to do."""
        if self._stopping or self._has_enough:
            return _FOREVER
        if self._stale:
            await self._begin_anew()
        state, now = self.state, anyio.current_time()
        if state.paused is not None:
            return await self._wait_or_probe(state.paused, now)
        if state.doubt is not None and self._in_flight:
            return _FOREVER
        if (wait := max(state.retry_at, self._turns.next_at) - now) > 0:
            return wait
        if state.doubt is not None:
            await self._send_sample()
            return 0.0
        batch, seconds = await self._next_batch(now)
        if batch is None:
            return seconds
        if self.state is not state or self._stopping:  # while it was read
            self._give_back(batch)
            return 0.0
        self._begin_request()
        requests.start_soon(partial(self._deliver, batch, self._transport))
        return 0.0

    @property
    def _has_enough(self) -> bool:
        """Whether no more may begin before a request that is under way has been answered."""
        under_way = self._in_flight
        return under_way > 0 and (self._stale or under_way >= policy.slots(self.state, anyio.current_time()))

    async def _next_batch(self, now: float) -> tuple[Batch | None, float]:
        """Return what to send now, or for how many seconds there is nothing.

        An event that was set aside comes again once others have been accepted; by itself, if nothing else waits.
        """
        suspects, full = self._suspects, self._suspects.is_full
        due_at = suspects.due_at(alone=full)
        if due_at <= now:
            return suspects.take(alone=full), 0.0
        if full:
            return None, due_at - now
        at_once = not all(barrier.passed for barrier in self._flushing)
        limit = policy.batch_limit(self.state, self._settings, now)
        batch = await self._backlog.next_batch(limit, at_once=at_once)
        if batch is not None:
            return batch, 0.0
        if self._backlog.due_at == _FOREVER and not self._in_flight:
            due_at = suspects.due_at(alone=True)
            if due_at <= now:
                return suspects.take(alone=True), 0.0
        return None, min(self._backlog.due_at, due_at) - anyio.current_time()

    def _give_back(self, batch: Batch) -> None:
        """Let a batch come later that was not sent, or got no answer."""
        if batch.refusals:
            self._suspects.put_back(batch, anyio.current_time())
        else:
            self._backlog.put_back(batch)

    async def _begin_anew(self) -> None:
        """Let go of what is of an earlier configuration, or from before a pause: nothing is under way."""
        self._stale = False
        self._suspects.clear()
        self._backlog.rewind()
        while self._retired:
            await self._retired.pop().aclose()

    async def _deliver(
        self, batch: Batch, transport: Transport, probed: Paused | None = None, *, is_sample: bool = False
    ) -> None:
        """Send a batch, decide about the answer and perform the decision. A batch can be the probe of a pause, or a sample."""
        has_turn = await self._turns.take(probing=probed is not None)
        if not has_turn or not self._backlog.holds(batch):
            if self._backlog.holds(batch):
                self._give_back(batch)
            else:
                self._backlog.put_back(batch)
            self.requests -= 1
            self._end_request()
            return
        begun_at = anyio.current_time()
        verdict = await transport.send(batch)
        now = anyio.current_time()
        self.measures.note_answer(batch, verdict, now - begun_at, self._runtime.wall_clock())
        self._log.debug("request", events=batch.event_count, verdict=verdict.kind, status=verdict.status)
        match self._decide(batch, verdict, transport, probed, now, is_sample=is_sample):
            case Action.SETTLE:
                await self._backlog.settle(batch, verdict.outcome)
            case Action.RETRY:
                self._give_back(batch)
            case Action.SPLIT:
                self._backlog.put_back(*batch.split(verdict.message if verdict.kind is Kind.REJECTED else None))
            case Action.SET_ASIDE:
                self._suspects.set_aside(batch, policy.may_try_again_at(batch.refusals + 1, now, self._settings))
            case Action.DEAD_LETTER:
                await self._backlog.keep_dead_letter(batch, verdict)
                await self._backlog.settle(batch, Outcome.DEAD_LETTERED)
            case Action.RETURN:
                pass  # it still waits in the backlog, and comes again after the rewind
        self._end_request()

    def _decide(
        self,
        batch: Batch,
        verdict: Verdict,
        transport: Transport,
        probed: Paused | None,
        now: float,
        *,
        is_sample: bool,
    ) -> Action:
        """Decide, and enter the new state before anything else can happen."""
        state, settings, jitter = self.state, self._settings, self._runtime.random()
        if transport is not self._transport:
            return self._perform(policy.decide_late(state, verdict, now=now))
        if probed is not None and probed == state.paused:
            return self._perform(policy.decide_probe(state, verdict, now=now, jitter=jitter, settings=settings))
        if is_sample:
            action, new = policy.decide_sample(state, verdict, batch.size, now=now, jitter=jitter, settings=settings)
        else:
            action, new = policy.decide(
                state, verdict, batch.size, refusals=batch.refusals, now=now, jitter=jitter, settings=settings
            )
        self._note_refusal(batch, verdict)
        if action is Action.SETTLE and (whole := batch.half_of) is not None:
            whole.accepted_halves += 1
            if whole.accepted_halves == 2:
                new = policy.size_refused(new, whole.size, whole.message, now=now, settings=settings)
        return self._perform(Decision(action, new))

    def _note_refusal(self, batch: Batch, verdict: Verdict) -> None:
        if verdict.kind is Kind.ACCEPTED:
            self._suspects.note_acceptance()
        elif verdict.kind in {Kind.REJECTED, Kind.TOO_LARGE} and batch.event_count == 1:
            self._suspects.note_refusal(batch)

    def _perform(self, decision: Decision) -> Action:
        """Enter the state that was decided on, and log what changes with it."""
        old, new = self.state, decision.state
        if new is old:
            return decision.action
        self._enter(new)
        log_trouble(old, new, self._settings, anyio.current_time())
        return decision.action

    def _begin_request(self) -> None:
        """Count a request when it is decided on: its task may start only after the next one is decided on."""
        self._in_flight += 1
        self.requests += 1
        self._turns.note_begun()

    def _end_request(self) -> None:
        self._in_flight -= 1
        self._changed.notify_all()

    # While paused

    async def _wait_or_probe(self, paused: Paused, now: float) -> float:
        """Probe if it is time, and nobody else does; return for how many seconds there is nothing more to do."""
        if now < paused.until:
            return paused.until - now
        if (wait := await self._turns.may_probe()) > 0:
            return wait
        if self.state.paused == paused:
            await self._probe(paused)
        await self._turns.end_probe()
        return 0.0

    async def _probe(self, paused: Paused) -> None:
        """Find out whether the pause is over, with the server's status and then, if that allows it, with one event.

        Somebody may be faster, and resume, pause or reconfigure: then what a probe finds out changes nothing of that.
        """
        transport = self._transport
        verdict = await transport.probe()
        if verdict is not None:
            self.measures.note_last(verdict, self._runtime.wall_clock())
        if self.state.paused != paused:
            return
        if verdict is not None and verdict.kind not in _WORTH_A_TRY:
            now, jitter = anyio.current_time(), self._runtime.random()
            self._perform(policy.decide_probe(self.state, verdict, now=now, jitter=jitter, settings=self._settings))
            return
        rejections = paused.reason is Reason.REJECTIONS
        batch = await (self._sample_anew() if rejections else self._first_event())
        if self.state.paused != paused or self._stopping:
            return
        if batch is None:
            self._enter(policy.resume(self.state))
            return
        self._begin_request()
        await self._deliver(batch, transport, paused)

    async def _send_sample(self) -> None:
        """Remove a doubt, or pause; nothing is under way."""
        doubtful = self.state
        sample = await self._backlog.take_sample(self._suspects.refused)
        if (
            sample is None and self._suspects.due_at(alone=False) < _FOREVER
        ):  # others were accepted since they were refused
            self._enter(policy.dismiss_doubt(self.state))
            return
        if sample is None:
            if self.state is doubtful:
                now, jitter = anyio.current_time(), self._runtime.random()
                self._enter(policy.pause_in_doubt(doubtful, now=now, jitter=jitter, settings=self._settings))
            return
        if self.state is not doubtful or self._stopping:
            self._backlog.put_back(sample)
            return
        self._begin_request()
        await self._deliver(sample, self._transport, is_sample=True)

    async def _sample_anew(self) -> Batch | None:
        self._stale = True
        self._backlog.rewind()
        return await self._backlog.take_sample(self._suspects.refused) or await self._first_event()

    async def _first_event(self) -> Batch | None:
        """Take a batch of one event; None if nothing waits. What else was read for it is forgotten before the next batch."""
        self._stale = True
        self._backlog.rewind()
        one = Size(1, self._settings.max_bytes)
        batch = await self._backlog.next_batch(one, at_once=True)
        while batch is None and self._backlog.due_at <= anyio.current_time() and not self._stopping:
            batch = await self._backlog.next_batch(one, at_once=True)
        return batch

    # State

    def _enter(self, new: DeliveryState, *, remember: bool = True) -> None:
        old, self.state = self.state, new
        if old.paused != new.paused:
            self._stale = True
            if remember:
                self._remember_pause(new)
            log_pause(old.paused, new.paused, anyio.current_time())
        self._changed.notify_all()

    def _remember_pause(self, state: DeliveryState) -> None:
        """Let a pause survive a restart."""
        now, wall_clock = anyio.current_time(), self._runtime.wall_clock()
        self._backlog.remember(to_remember(state, self._backlog.pause, now=now, wall_clock=wall_clock))

    def _restored(self) -> DeliveryState:
        """Return the state in which an earlier process left delivery."""
        pause = self._backlog.pause
        if pause is None:
            return DeliveryState()
        if not is_known(pause):  # a later version's: the next answer tells whether to pause
            self._backlog.remember(None)
            return DeliveryState()
        return self._paused(DeliveryState(), pause)

    def _paused(self, state: DeliveryState, pause: Pause) -> DeliveryState:
        now, wall_clock = anyio.current_time(), self._runtime.wall_clock()
        return paused_by(state, pause, self._settings, now=now, wall_clock=wall_clock)
