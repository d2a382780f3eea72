"""What the control socket is asked, and what it answers: one table of routes, `Control.routes`."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import anyio

from agent.cache_use import CacheUse
from agent.control.flush_routes import CatchUp, FlushRoute
from agent.control.monitoring import Monitoring
from agent.control.queue_routes import QueueRoutes
from agent.control.router import Route, Router
from agent.control.schema import Reloaded
from agent.control.selection import selected
from agent.control.status import Describe
from agent.delivery.pipeline import Pipeline
from agent.http.server import Request, Response

COMMIT_SECONDS = 5.0
NO_USES: Mapping[str, CacheUse] = {}
NOTHING_FAILED: Mapping[str, str] = {}


class Delivery(Protocol):
    """What `pause` and `resume` are about besides the pipelines: what is delivered as they are, to the same destinations."""

    def pause(self, destinations: Collection[str]) -> None:
        """Stop delivering to these until `resume`."""

    def resume(self, destinations: Collection[str]) -> None:
        """Deliver to them again, whatever the reason for a pause was."""


class Control:
    """Answers requests about the pipelines, by destination. `describe` fills in what other parts say in the status, `cache_uses`
    says by CI system what events said of the cache, `failed` why the queues of other destinations cannot be opened. What
    monitoring asks is `monitoring`'s to answer.

    `reload` takes a new configuration over, or raises ConfigError; `reloaded` is awaited before that is said.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        listeners: Sequence[CatchUp],
        wall_clock: Callable[[], float],
        *,
        reload: Callable[[], Reloaded] = Reloaded,
        reloaded: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint,
        describe: Sequence[Describe] = (),
        cache_uses: Mapping[str, CacheUse] = NO_USES,
        deliveries: Iterable[Delivery] = (),
        failed: Mapping[str, str] = NOTHING_FAILED,
    ) -> None:
        self._pipelines = pipelines
        self._deliveries = list(deliveries)
        self._reload_all, self._reloaded = reload, reloaded
        self.monitoring = Monitoring(pipelines, wall_clock, describe, cache_uses, failed)
        flush, queue = FlushRoute(pipelines, listeners), QueueRoutes(pipelines)
        self.routes = (
            Route("GET", "/status", self._status, "How the daemon is doing: schema.StatusReport"),
            *self.monitoring.routes,
            Route("POST", "/flush", flush.flush, "Wait until what was written has left the queue: barrier.FlushReport"),
            Route("POST", "/pause", self._pause, "Stop delivery"),
            Route("POST", "/resume", self._resume, "Deliver again, whatever the reason for a pause was"),
            Route("POST", "/reload", self._reload, "Read configuration and tokens again: schema.Reloaded"),
            Route("GET", "/queue", queue.segments, "What the segments hold: browse.Listing"),
            Route("GET", "/queue/events", queue.events, "A page of queued events: browse.EventPage"),
            Route("GET", "/queue/verify", queue.verify, "What a check of the queue's files finds: audit.Audit"),
            Route("POST", "/queue/repair", queue.repair, "Account for all damage: repair.Repaired"),
            Route("POST", "/queue/purge", queue.purge, "Drop all that is queued: purge.Purged"),
            Route("GET", "/dead-letters", queue.dead_letters, "A page of dead letters: DeadLetterPage"),
            Route("POST", "/dead-letters/retry", queue.retry, "Queue their events again: retry.Retried"),
            Route("POST", "/dead-letters/purge", queue.purge_dead_letters, "Remove them: purge.DeadLettersPurged"),
        )
        self._router = Router(self.routes)

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        return await self._router.handle(request)

    async def _status(self, _: Request) -> Response:
        return Response.json(await self.monitoring.report())

    async def _pause(self, request: Request) -> Response:
        named = selected(request, self._pipelines)
        for pipeline in named.values():
            pipeline.pause()
        for each in self._deliveries:
            each.pause(named)
        await self._commit(request)
        return Response.json({"state": "paused"})

    async def _resume(self, request: Request) -> Response:
        named = selected(request, self._pipelines)
        overridden = [wait for pipeline in named.values() if (wait := pipeline.resume()) is not None]
        for each in self._deliveries:
            each.resume(named)
        await self._commit(request)
        answer: dict[str, object] = {"state": "running"}
        if overridden:
            answer["retry_after_overridden"] = max(overridden)
        return Response.json(answer)

    async def _reload(self, _: Request) -> Response:
        done = self._reload_all()
        await self._reloaded()
        return Response.json(done)

    async def _commit(self, request: Request) -> None:
        """Have what was asked for on the disk before the answer; a disk that does not answer is no reason to refuse it."""
        with anyio.move_on_after(COMMIT_SECONDS):
            async with anyio.create_task_group() as tasks:
                for pipeline in selected(request, self._pipelines).values():
                    tasks.start_soon(pipeline.commit_once)
