"""What the control socket is asked, and what it answers.

    GET  /status                     JSON: see `Report`
    GET  /metrics                    Prometheus text
    GET  /healthz                    200 only if events can be accepted and persisted, else 503
    POST /flush?deadline=SECONDS     see `agent.control.flush_routes`
    POST /pause, POST /resume        200
    /queue…, /dead-letters…          see `agent.control.queue_routes`

It knows requests and the surface of what it controls. It must never know internals, or which socket it is served on.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import anyio
import msgspec
import structlog

from agent import __version__
from agent.control.flush_routes import FlushRoute, Listener
from agent.control.queue_routes import QueueRoutes
from agent.delivery.pipeline import Pipeline, PipelineStatus
from agent.http.server import Request, Response
from agent.ingest.intake import Intake
from agent.spools import adoption
from agent.spools.adoption import Adoption
from agent.spools.identity import Account
from agent.timestamps import iso

HEALTH_SECONDS = 5.0


class ConnectionCounts(NamedTuple):
    """How many stream connections are open, and how many had to go since the start because there were too many."""

    open: int = 0
    evicted: int = 0


class HttpStatus(NamedTuple):
    """The HTTP listener: where it listens, its connections, and its answers since the start by status.

    `events` is about requests with events, `front` about those that were passed on, which happens if it `forwards`.
    """

    socket: str | None = None
    listen: str | None = None
    connections: int = 0
    events: Mapping[int, int] = {}
    front: Mapping[int, int] = {}
    forwards: bool = False


class Control:
    """Answers requests about the pipelines, by destination."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        intake: Intake,
        listeners: Sequence[Listener],
        connections: Callable[[], ConnectionCounts],
        wall_clock: Callable[[], float],
        http: Callable[[], HttpStatus] = HttpStatus,
        spools: Adoption | None = None,
        account: Callable[[], Account] | None = None,
    ) -> None:
        self._account = account
        self._http = http
        self._adoption = spools
        self._pipelines = pipelines
        self._intake = intake
        self._connections = connections
        self._wall_clock = wall_clock
        self._started_at = wall_clock()
        self._log = structlog.get_logger("agent.control")
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Response]]] = {
            ("GET", "/status"): self._status,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/healthz"): self._healthz,
            **FlushRoute([*pipelines.values()], listeners).routes(),
            ("POST", "/pause"): self._pause,
            ("POST", "/resume"): self._resume,
        }
        for pipeline in pipelines.values():  # there is one, until a configuration can have several
            self._routes.update(QueueRoutes(pipeline).routes())

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        route = self._routes.get((request.method, request.path))
        if route is not None:
            return await route(request)
        allowed = [method for method, path in self._routes if path == request.path]
        if allowed:
            return Response.error(405, "method_not_allowed", f"{request.path} takes {' and '.join(allowed)}")
        paths = ", ".join(sorted({path for _, path in self._routes}))
        return Response.error(404, "not_found", f"there is no {request.path}, only {paths}")

    async def _status(self, _: Request) -> Response:
        now, connections = self._wall_clock(), self._connections()
        destinations = {name: _report(await pipeline.status(), now) for name, pipeline in self._pipelines.items()}
        return Response.json(
            {
                "version": __version__,
                "pid": os.getpid(),
                "uptime": round(now - self._started_at, 3),
                "rejected": self._intake.rejected,
                "connections": connections.open,
                "evicted": connections.evicted,
                "api": None if self._account is None else msgspec.to_builtins(self._account()),
                "http": self._http()._asdict(),
                "destinations": destinations,
                "adopted": None if self._adoption is None else _adopted(self._adoption.report()),
            }
        )

    async def _metrics(self, _: Request) -> Response:
        from agent.control import metrics  # here: a daemon that nobody scrapes does not pay for the import

        statuses = {name: await pipeline.status() for name, pipeline in self._pipelines.items()}
        http = self._http()
        answered = {"events": http.events, "front": http.front}
        clients = metrics.Clients(self._intake.rejected, *self._connections(), http.connections, answered)
        adopted = None if self._adoption is None else self._adoption.report()
        text = metrics.render(statuses, clients, self._wall_clock(), adopted)
        return Response(200, text, metrics.CONTENT_TYPE)

    async def _healthz(self, _: Request) -> Response:
        healthy = False
        with anyio.move_on_after(HEALTH_SECONDS):
            healthy = all([await pipeline.healthy() for pipeline in self._pipelines.values()])
        return Response.json({"healthy": healthy}, 200 if healthy else 503)

    async def _pause(self, _: Request) -> Response:
        for pipeline in self._pipelines.values():
            pipeline.pause()
        if self._adoption is not None:
            self._adoption.pause()
        await self._commit()
        return Response.json({"state": "paused"})

    async def _resume(self, _: Request) -> Response:
        for pipeline in self._pipelines.values():
            pipeline.resume()
        if self._adoption is not None:
            self._adoption.resume()
        await self._commit()
        return Response.json({"state": "running"})

    async def _commit(self) -> None:
        """Have what was asked for on the disk before the answer; a disk that does not answer is no reason to refuse it."""
        with anyio.move_on_after(HEALTH_SECONDS):
            for pipeline in self._pipelines.values():
                await pipeline.commit_once()


def _report(status: PipelineStatus, now: float) -> dict[str, object]:
    """Return a destination's part of the status: times are ISO 8601 in UTC, ages in seconds, sizes in bytes."""
    return {
        "state": status.state,
        "reason": status.reason,
        "since": _iso(status.since),
        "until": _iso(status.until),
        "ledger": msgspec.to_builtins(status.ledger),
        "oldest_event_age": None
        if status.oldest_event_at is None
        else round(max(now - status.oldest_event_at, 0.0), 3),
        "last_delivery_at": _iso(status.last_delivery_at),
        "requests": status.requests,
        "queue": {
            "bytes": status.queue_bytes,
            "segments": status.segments,
            "quarantined": status.quarantined,
            "quarantine_lost": status.quarantine_lost,
        },
        "dead_letters": status.dead_letters,
        "dead_letters_discarded": status.dead_letters_discarded,
        "storage_error": status.storage_error,
    }


def _adopted(report: adoption.AdoptionReport) -> dict[str, object]:
    """Return what the status says of adopted spools; `ledger` is the sum of those that are finished."""
    return {
        "queued": sum(each.ledger.queued for each in report.under_way),
        "under_way": [
            {
                "directory": str(each.directory),
                "state": each.state,
                "reason": each.reason,
                "ledger": msgspec.to_builtins(each.ledger),
            }
            for each in report.under_way
        ],
        "finished": report.finished,
        "ledger": msgspec.to_builtins(report.ledger),
        "left": [{"directory": str(directory), "reason": reason} for directory, reason in report.left],
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso(seconds)
