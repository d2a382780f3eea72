"""`POST /flush?deadline=SECONDS&session=ID`: what it is about, how long it waits, and what it reports.

The answer is a `FlushReport` with 200 when all that had been written before the call has left the queue, with 504 if the deadline
passed first. It is of every event accepted before the call, since the queue began; with a session, of its events that are queued
at the call, and of those that this daemon has delivered or dead-lettered.

The header `artifacts-agent-flush` has the `FlushReport` that a verdict on this flush goes by: of those events that had not come
to an end before the call; with a session, of all of its events.

A client that hangs up ends its flush.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import anyio
import msgspec

from agent.control.schema import VERDICT_HEADER
from agent.delivery.pipeline import Pipeline
from agent.errors import StorageError
from agent.http.server import Request, Response
from agent.queue.barrier import Barrier, FlushReport, total

DEFAULT_DEADLINE = 30.0
MAX_DEADLINE = 86_400.0


class CatchUp(Protocol):
    """What a flush needs of a listener."""

    async def catch_up(self) -> None:
        """Return when everything that had been written before the call has been taken."""


class FlushRoute:
    """Answers requests for a flush of all pipelines."""

    def __init__(self, pipelines: Mapping[str, Pipeline], listeners: Sequence[CatchUp]) -> None:
        self._pipelines = list(pipelines.values())
        self._listeners = listeners

    async def flush(self, request: Request) -> Response:
        """Wait until what has been written has left the queues."""
        deadline = _deadline(request)
        if deadline is None:
            return Response.error(400, "bad_deadline", f"deadline is a number of seconds from 0 to {MAX_DEADLINE:g}")
        response = Response.error(408, "client_gone", "the client hung up before the flush was over")
        async with anyio.create_task_group() as tasks:

            async def end_with_the_client() -> None:
                await request.hung_up()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end_with_the_client)
            response = await self._flush(anyio.current_time() + deadline, request.query.get("session"))
            tasks.cancel_scope.cancel()
        return response

    async def _flush(self, until: float, session: str | None) -> Response:
        if session is None:
            return await self._flush_all(until)
        try:
            return await self._flush_session(session, until)
        except* StorageError as errors:
            problem = str(errors.exceptions[0])
        return Response.error(507, "storage_error", problem)

    async def _flush_all(self, until: float) -> Response:
        before = total(FlushReport.of(pipeline.ledger()) for pipeline in self._pipelines)
        in_time = await self._take_written(until)
        with ExitStack() as open_barriers:
            barriers = [open_barriers.enter_context(pipeline.barrier()) for pipeline in self._pipelines]
            await self._wait(barriers, until)
            report = total(barrier.report() for barrier in barriers)
        return _response(report, report.since(before), in_time=in_time)

    async def _flush_session(self, session: str, until: float) -> Response:
        """The session's events are looked for even after the deadline: without them there is nothing to report."""
        in_time = await self._take_written(until)
        with ExitStack() as open_barriers:
            searches = [open_barriers.enter_context(pipeline.session(session)) for pipeline in self._pipelines]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._wait, [search.barrier for search in searches], until)
                for pipeline, search in zip(self._pipelines, searches, strict=True):
                    tasks.start_soon(pipeline.search, search)
            report = total(search.barrier.report() for search in searches)
        return _response(report, report, in_time=in_time)

    async def _take_written(self, until: float) -> bool:
        """Return whether all of it is in the queue."""
        with anyio.CancelScope(deadline=until) as scope:
            for listener in self._listeners:
                await listener.catch_up()
            async with anyio.create_task_group() as tasks:
                for pipeline in self._pipelines:
                    tasks.start_soon(pipeline.commit_once)
        return not scope.cancelled_caught

    async def _wait(self, barriers: Sequence[Barrier], until: float) -> None:
        with anyio.CancelScope(deadline=until):
            async with anyio.create_task_group() as tasks:
                for pipeline, barrier in zip(self._pipelines, barriers, strict=True):
                    tasks.start_soon(pipeline.passed, barrier)


def _response(report: FlushReport, verdict: FlushReport, *, in_time: bool) -> Response:
    response = Response.json(report, 200 if in_time and not report.queued else 504)
    response.headers.append((VERDICT_HEADER, msgspec.json.encode(verdict).decode()))
    return response


def _deadline(request: Request) -> float | None:
    """Return how many seconds a flush may take; None if there is no such number."""
    try:
        deadline = float(request.query.get("deadline", DEFAULT_DEADLINE))
    except ValueError:
        deadline = math.nan
    return deadline if 0 <= deadline <= MAX_DEADLINE else None
