"""`POST /flush?deadline=SECONDS&destination=NAME&session=ID&job=LABEL&until=durable|stalled`: how long it waits, what it reports.

The answer is a `FlushReport` with 200 when all that had been written before the call has left the queue, with 504 if the deadline
passed first. It is of every event accepted before the call, since the queue began; with a session, of its events that the queue
and its history hold.

With a job it is of the destinations to which events with this label have come lately, since the daemon's start: another team's
trouble is not the job's. Where there are none it is of those that are named, or of all.

It comes as soon as nothing can be delivered before the deadline: while nothing is under way, and delivery is paused or backs off
beyond it. `until=stalled` does not wait for an end of that at all, nor longer than STALLED_SECONDS without an event that leaves
the queue. `until=durable` waits only until everything is in the queue and on the disk: 200 then, whatever is queued.

The header `artifacts-agent-flush` has the `schema.FlushVerdict` on this flush: of those events that had not come to an end
before the call; with a session, of all of its events.

A client that hangs up ends its flush.
"""

import json
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, Protocol

import anyio
import msgspec

from agent.control.schema import VERDICT_HEADER
from agent.control.selection import selected
from agent.delivery.pipeline import Pipeline
from agent.errors import StorageError
from agent.http.server import Request, Response
from agent.queue.barrier import Barrier, FlushReport, total

DEFAULT_DEADLINE = 30.0
MAX_DEADLINE = 86_400.0
STALLED_SECONDS = 2.0
STALLED_POLL_SECONDS = 0.25


class CatchUp(Protocol):
    """What a flush needs of a listener."""

    async def catch_up(self) -> None:
        """Return when everything that had been written before the call has been taken."""


class FlushRoute:
    """Answers requests for a flush of the pipelines, which are given by destination."""

    def __init__(self, pipelines: Mapping[str, Pipeline], listeners: Sequence[CatchUp]) -> None:
        self._pipelines = pipelines
        self._listeners = listeners

    async def flush(self, request: Request) -> Response:
        """Wait until what has been written has left the queues."""
        this = _Flush(selected(request, self._pipelines), self._pipelines, request.query.get("job"), self._listeners)
        deadline = _deadline(request)
        if deadline is None:
            return Response.error(400, "bad_deadline", f"deadline is a number of seconds from 0 to {MAX_DEADLINE:g}")
        until = request.query.get("until")
        if until not in {None, "durable", "stalled"}:
            return Response.error(400, "bad_until", "until is durable or stalled, or left out")
        response = Response.error(408, "client_gone", "the client hung up before the flush was over")
        async with anyio.create_task_group() as tasks:

            async def end_with_the_client() -> None:
                await request.hung_up()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_with_the_client)
            patience = _Patience(anyio.current_time() + deadline, stalled=until == "stalled")
            session = request.query.get("session")
            if until == "durable":
                response = await this.make_durable(patience)
            elif session is None:
                response = await this.all(patience)
            else:
                response = await this.session(session, patience)
            tasks.cancel_scope.cancel()
        return response


class _Flush:
    """One flush, of the pipelines that are `named`, or of those of `known` to which events of a job have come.

    Which these are is known when all that was written before has been taken.
    """

    def __init__(
        self,
        named: Mapping[str, Pipeline],
        known: Mapping[str, Pipeline],
        job: str | None,
        listeners: Sequence[CatchUp],
    ) -> None:
        self._pipelines = named
        self._known = known
        self._job = job
        self._listeners = listeners
        self._before = {name: FlushReport.of(each.ledger()) for name, each in known.items()}

    async def make_durable(self, patience: "_Patience") -> Response:
        in_time = await self._take_written(patience.deadline)
        report = total(FlushReport.of(pipeline.ledger()) for pipeline in self._pipelines.values())
        return self._response(report, report.since(self._report_before()), 200 if in_time else 504)

    async def all(self, patience: "_Patience") -> Response:
        in_time = await self._take_written(patience.deadline)
        with ExitStack() as open_barriers:
            barriers = [open_barriers.enter_context(pipeline.barrier()) for pipeline in self._pipelines.values()]
            await self._wait(barriers, patience)
            report = total(barrier.report() for barrier in barriers)
        return self._response(report, report.since(self._report_before()), _status(report, in_time=in_time))

    async def session(self, session: str, patience: "_Patience") -> Response:
        try:
            return await self._find_and_flush(session, patience)
        except* StorageError as errors:
            problem = str(errors.exceptions[0])
        return Response.error(507, "storage_error", problem)

    async def _find_and_flush(self, session: str, patience: "_Patience") -> Response:
        """The session's events are looked for even after the deadline: without them there is nothing to report."""
        in_time = await self._take_written(patience.deadline)
        with ExitStack() as open_barriers:
            searches = [open_barriers.enter_context(pipeline.session(session)) for pipeline in self._pipelines.values()]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._wait, [search.barrier for search in searches], patience)
                for pipeline, search in zip(self._pipelines.values(), searches, strict=True):
                    tasks.start_soon(pipeline.search, search)
            report = total(search.barrier.report() for search in searches)
        return self._response(report, report, _status(report, in_time=in_time))

    async def _take_written(self, until: float) -> bool:
        """Return whether all of it is in the queue."""
        taken = await _all_by(until, [listener.catch_up for listener in self._listeners])
        if self._job is not None:
            of_job = {name: each for name, each in self._known.items() if self._job in each.jobs}
            self._pipelines = of_job or self._pipelines
        return await _all_by(until, [pipeline.commit_once for pipeline in self._pipelines.values()]) and taken

    async def _wait(self, barriers: Sequence[Barrier], patience: "_Patience") -> None:
        with anyio.CancelScope(deadline=patience.deadline) as waiting:
            async with anyio.create_task_group() as watching:
                if patience.stalled:
                    watching.start_soon(_end_when_stalled, barriers, waiting)
                async with anyio.create_task_group() as tasks:
                    for pipeline, barrier in zip(self._pipelines.values(), barriers, strict=True):
                        tasks.start_soon(pipeline.passed, barrier, patience.latest)
                watching.cancel_scope.cancel()

    def _report_before(self) -> FlushReport:
        return total(self._before.get(name, FlushReport()) for name in self._pipelines)

    def _response(self, report: FlushReport, about: FlushReport, status: int) -> Response:
        held_up = self._held_up()
        verdict = _facts(about) | ({} if held_up is None else {"held_up": held_up})
        response = Response.json(_facts(report), status)
        response.headers.append((VERDICT_HEADER, json.dumps(verdict)))  # ASCII, as a header has to be
        return response

    def _held_up(self) -> str | None:
        """Return why nothing is sent to one of them now: to one with events that wait, if there is any."""
        for name, pipeline in sorted(self._pipelines.items(), key=lambda each: not each[1].ledger().queued):
            if (reason := pipeline.held_up()) is not None:
                return reason if len(self._known) == 1 else f"{name}: {reason}"
        return None


async def _all_by(until: float, calls: Sequence[Callable[[], Coroutine[None, None, object]]]) -> bool:
    """Make calls at the same time; return whether all have returned by a time on the steady clock."""
    with anyio.CancelScope(deadline=until) as scope:
        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(call)
    return not scope.cancelled_caught


class _Patience(NamedTuple):
    """How long a flush waits: up to a deadline on the steady clock, or also only as long as delivery is not `stalled`."""

    deadline: float
    stalled: bool

    def latest(self) -> float:
        """Return until when the next attempt is waited for."""
        return anyio.current_time() if self.stalled else self.deadline


async def _end_when_stalled(barriers: Sequence[Barrier], waiting: anyio.CancelScope) -> None:
    """End a wait in which no event has left the queue for STALLED_SECONDS."""
    queued, since = total(barrier.report() for barrier in barriers).queued, anyio.current_time()
    while anyio.current_time() < since + STALLED_SECONDS:
        await anyio.sleep(STALLED_POLL_SECONDS)
        if (left := total(barrier.report() for barrier in barriers).queued) != queued:
            queued, since = left, anyio.current_time()
    waiting.cancel()


def _facts(report: FlushReport) -> dict[str, object]:
    """Return what a client is told: of forwarding only where events were forwarded."""
    facts: dict[str, object] = msgspec.to_builtins(report)
    return facts if report.forwarded else {name: value for name, value in facts.items() if name != "forwarded"}


def _status(report: FlushReport, *, in_time: bool) -> int:
    return 200 if in_time and not report.queued else 504


def _deadline(request: Request) -> float | None:
    """Return how many seconds a flush may take; None if there is no such number."""
    try:
        deadline = float(request.query.get("deadline", DEFAULT_DEADLINE))
    except ValueError:
        deadline = math.nan
    return deadline if 0 <= deadline <= MAX_DEADLINE else None
