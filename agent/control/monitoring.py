"""What monitoring asks: metrics, and whether events can be kept and delivered. None of it changes anything."""

from collections.abc import Callable, Mapping, Sequence

import anyio

from agent.cache_use import CacheUse
from agent.control.readiness import not_ready
from agent.control.router import Route
from agent.control.schema import NotReady, Readiness, StatusReport
from agent.control.status import Describe, status_report
from agent.delivery.pipeline import Pipeline
from agent.http.server import Request, Response
from agent.rules import DEFAULT

HEALTH_SECONDS = 5.0


class Monitoring:
    """Answers about the pipelines, by destination, and about what other parts `describe`.

    `cache_uses` says by CI system what events said of the cache, `failed` why the queues of other destinations cannot be opened.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        wall_clock: Callable[[], float],
        describe: Sequence[Describe],
        cache_uses: Mapping[str, CacheUse],
        failed: Mapping[str, str],
    ) -> None:
        self._pipelines = pipelines
        self._wall_clock = wall_clock
        self._describe = describe
        self._cache_uses = cache_uses
        self._failed = failed
        self._started_at = wall_clock()
        self.routes = (
            Route("GET", "/metrics", self._metrics, "The status as Prometheus text, and what is measured besides"),
            Route(
                "GET",
                "/healthz",
                self._healthz,
                "200 only if events of default can be accepted and persisted, else 503",
            ),
            Route(
                "GET", "/readyz", self._readyz, "200 only if they can be delivered as well, else 503: schema.Readiness"
            ),
        )

    async def report(self) -> StatusReport:
        """Return how the daemon is doing."""
        return await status_report(self._pipelines, self._describe, self._started_at, self._wall_clock())

    async def _metrics(self, _: Request) -> Response:
        from agent.control import metrics  # here: a daemon that nobody scrapes does not pay for the import

        measures = {name: pipeline.measures for name, pipeline in self._pipelines.items()}
        return Response(200, metrics.render(await self.report(), measures, self._cache_uses), metrics.CONTENT_TYPE)

    async def _healthz(self, _: Request) -> Response:
        healthy = False
        with anyio.move_on_after(HEALTH_SECONDS):
            healthy = await self._pipelines[DEFAULT].healthy()
        return Response.json({"healthy": healthy}, 200 if healthy else 503)

    async def _readyz(self, _: Request) -> Response:
        found: dict[str, list[NotReady]] = {}

        async def ask(name: str, pipeline: Pipeline) -> None:
            healthy, status = False, None
            with anyio.move_on_after(HEALTH_SECONDS):
                healthy = await pipeline.healthy()
                status = await pipeline.status()
            found[name] = [*not_ready(name, status, healthy=healthy, now=self._wall_clock())]

        names = [*self._pipelines]
        async with anyio.create_task_group() as asking:
            for name in names:
                asking.start_soon(ask, name, self._pipelines[name])
        problems = [problem for name in names for problem in found[name]]
        problems += [NotReady(name, "storage", reason) for name, reason in self._failed.items()]
        return Response.json(Readiness(not problems, problems), 503 if problems else 200)
