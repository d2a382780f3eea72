"""What the control socket is asked, and what it answers: one table of routes, `Control.routes`."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import anyio

from agent.control.flush_routes import CatchUp, FlushRoute
from agent.control.queue_routes import BadRequestError, QueueRoutes
from agent.control.readiness import not_ready
from agent.control.schema import NotReady, Readiness, Reloaded, StatusReport
from agent.control.status import Describe, status_report
from agent.delivery.pipeline import Pipeline
from agent.errors import ConfigError, DeadlineError, StorageError
from agent.http.server import Request, Response
from agent.spools.identity import DESTINATION

HEALTH_SECONDS = 5.0
# What /queue and /dead-letters are about, as long as a request cannot name another destination.
QUEUE_DESTINATION = DESTINATION


class Route(NamedTuple):
    """A request that is answered; `about` says in one line with what."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    about: str


class Delivery(Protocol):
    """What `pause` and `resume` are about besides the pipelines."""

    def pause(self) -> None:
        """Stop delivering until `resume`."""

    def resume(self) -> float | None:
        """Deliver again, whatever the reason for a pause was; return for how many more seconds the server had asked to wait."""


class Control:
    """Answers requests about the pipelines, by destination. `describe` fills in what other parts say in the status.

    `reload` takes a new configuration over, or raises ConfigError.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        listeners: Sequence[CatchUp],
        wall_clock: Callable[[], float],
        *,
        reload: Callable[[], Reloaded] = Reloaded,
        describe: Sequence[Describe] = (),
        deliveries: Iterable[Delivery] = (),
    ) -> None:
        self._pipelines = pipelines
        self._deliveries: list[Delivery] = [*pipelines.values(), *deliveries]
        self._describe = describe
        self._wall_clock = wall_clock
        self._reload_all = reload
        self._started_at = wall_clock()
        flush, queue = FlushRoute(pipelines, listeners), QueueRoutes(pipelines[QUEUE_DESTINATION])
        self.routes = (
            Route("GET", "/status", self._status, "How the daemon is doing: schema.StatusReport"),
            Route("GET", "/metrics", self._metrics, "The same as Prometheus text"),
            Route("GET", "/healthz", self._healthz, "200 only if events can be accepted and persisted, else 503"),
            Route(
                "GET", "/readyz", self._readyz, "200 only if they can be delivered as well, else 503: schema.Readiness"
            ),
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
        self._by_request = {(route.method, route.path): route for route in self.routes}

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        route = self._by_request.get((request.method, request.path))
        if route is None:
            return self._refuse(request)
        try:
            return await route.handler(request)
        except BadRequestError as error:
            return Response.error(400, "bad_request", str(error))
        except ConfigError as error:
            return Response.error(422, "invalid_configuration", str(error))
        except DeadlineError as error:
            return Response.error(504, "deadline_passed", str(error))
        except StorageError as error:
            return Response.error(507, "storage_error", str(error))

    def _refuse(self, request: Request) -> Response:
        allowed = [route.method for route in self.routes if route.path == request.path]
        if allowed:
            return Response.error(405, "method_not_allowed", f"{request.path} takes {' and '.join(allowed)}")
        paths = ", ".join(sorted({route.path for route in self.routes}))
        return Response.error(404, "not_found", f"there is no {request.path}, only {paths}")

    async def _report(self) -> StatusReport:
        return await status_report(self._pipelines, self._describe, self._started_at, self._wall_clock())

    async def _status(self, _: Request) -> Response:
        return Response.json(await self._report())

    async def _metrics(self, _: Request) -> Response:
        from agent.control import metrics  # here: a daemon that nobody scrapes does not pay for the import

        return Response(200, metrics.render(await self._report()), metrics.CONTENT_TYPE)

    async def _healthz(self, _: Request) -> Response:
        healthy = False
        with anyio.move_on_after(HEALTH_SECONDS):
            healthy = all([await pipeline.healthy() for pipeline in self._pipelines.values()])
        return Response.json({"healthy": healthy}, 200 if healthy else 503)

    async def _readyz(self, _: Request) -> Response:
        problems: list[NotReady] = []
        for name, pipeline in self._pipelines.items():
            healthy, status = False, None
            with anyio.move_on_after(HEALTH_SECONDS):
                healthy = await pipeline.healthy()
                status = await pipeline.status()
            problems += not_ready(name, status, healthy=healthy, now=self._wall_clock())
        return Response.json(Readiness(not problems, problems), 503 if problems else 200)

    async def _pause(self, _: Request) -> Response:
        for each in self._deliveries:
            each.pause()
        await self._commit()
        return Response.json({"state": "paused"})

    async def _resume(self, _: Request) -> Response:
        overridden = [wait for each in self._deliveries if (wait := each.resume()) is not None]
        await self._commit()
        answer: dict[str, object] = {"state": "running"}
        if overridden:
            answer["retry_after_overridden"] = max(overridden)
        return Response.json(answer)

    async def _reload(self, _: Request) -> Response:
        return Response.json(self._reload_all())

    async def _commit(self) -> None:
        """Have what was asked for on the disk before the answer; a disk that does not answer is no reason to refuse it."""
        with anyio.move_on_after(HEALTH_SECONDS):
            for pipeline in self._pipelines.values():
                await pipeline.commit_once()
