"""The process of a relay: from a configuration to its end. It has no queue and no sockets but those of the metrics."""

import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

import anyio
import structlog

from agent import __version__
from agent.config import Config, read_token, token_files
from agent.control.router import Route
from agent.control.scrape import ScrapeListener
from agent.daemon import logging
from agent.daemon.journal import is_journal
from agent.daemon.signals import Signals
from agent.daemon.systemd import Notifier
from agent.daemon.token_watch import TokenWatch
from agent.delivery.batching import BatchOptions
from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.policy import DeliverySettings
from agent.errors import ConfigError
from agent.fleet.engine import Engine
from agent.fleet.relay import Relay
from agent.http.server import Request, Response
from agent.ingest import sockets
from agent.ingest.sockets import BoundSocket
from agent.runtime import Runtime, run_in_thread
from agent.secret import Secret

RUNTIME = Runtime(run_blocking=run_in_thread, wall_clock=time.time, random=random.random)


def run(config: Config, environ: Mapping[str, str], connect: Callable[[Config], Engine]) -> None:
    """Run a relay until SIGTERM or SIGINT. Raises an AgentError if it cannot start."""
    anyio.run(_run, config, environ, connect, backend="asyncio", backend_options={"use_uvloop": True})


async def _run(config: Config, environ: Mapping[str, str], connect: Callable[[Config], Engine]) -> None:
    if config.relay.team is None:
        raise ConfigError("relay.servers: there is no engine to deliver from: set relay.servers and relay.team")
    watch = TokenWatch(token_files(config, environ))  # first: a token that is replaced meanwhile is read again later
    token = read_token(config, environ)
    logging.configure(config.log.level, config.log.format, to_journal=is_journal(environ))
    log, notifier, signals = structlog.get_logger("agent.daemon"), Notifier(environ), Signals(None)
    async with AsyncExitStack() as opened:
        bound = _open_metrics(config)
        for each in bound:
            opened.callback(each.release)
        engine = connect(config)
        opened.push_async_callback(engine.aclose)
        name = f"{socket.gethostname().partition('.')[0][:32]}-{secrets.token_hex(4)}"
        transport = _transport(config, token)
        relay = Relay(engine, transport, config.relay.team, name, _settings(config), _options(config), RUNTIME)
        opened.push_async_callback(relay.aclose)

        def renew_token() -> None:
            try:
                relay.replace_transport(_transport(config, read_token(config, environ)))
            except ConfigError as error:
                structlog.get_logger("agent.daemon").error("reload_refused", error=str(error))
            else:
                log.info("reloaded", changed=["token"])

        async def watch_token() -> None:
            while True:
                await watch.replaced(config, environ)
                renew_token()

        async with anyio.create_task_group() as tasks:
            await tasks.start(signals.watch, renew_token)
            tasks.start_soon(watch_token)
            tasks.start_soon(logging.report_held_back)
            if bound:
                tasks.start_soon(ScrapeListener(bound, _routes(relay)).serve)
                tasks.start_soon(relay.gauges.run)
            log.info("started", version=__version__, pid=os.getpid(), api=config.api.url, relay=name)
            notifier.enter("Waiting for the engine")
            if token is None:
                log.warning(
                    "no_token", hint="set api.token_file: a request that is refused pauses all relays of the team"
                )
            tasks.start_soon(_deliver, relay, config.relay.team, notifier)
            await signals.stop.wait()
            seconds = config.shutdown.deadline
            log.info("stopping", deadline=seconds)
            notifier.enter("Settling what is under way", "STOPPING=1")
            with signals.patience:
                await relay.drain(seconds)
            tasks.cancel_scope.cancel()
    logging.say_held_back()
    log.info("stopped", settled={str(outcome): count for outcome, count in relay.backlog.settled.items()})


async def _deliver(relay: Relay, team: str, notifier: Notifier) -> None:
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.run)
        structlog.get_logger("agent.daemon").info("connected", team=team)
        notifier.enter("Delivering", "READY=1")


def _transport(config: Config, token: Secret | None) -> HttpTransport:
    api, secret = config.api, token.reveal() if token is not None else None
    endpoint = Endpoint(url=api.url, token=secret, team_id=api.team_id, slug=api.slug, timeout=api.timeout)
    return HttpTransport(endpoint, wall_clock=RUNTIME.wall_clock)


def _settings(config: Config) -> DeliverySettings:
    batch, retry, pause = config.batch, config.retry, config.pause
    return DeliverySettings(
        max_events=batch.max_events,
        max_bytes=batch.max_bytes,
        concurrency=batch.concurrency,
        initial_delay=retry.initial_delay,
        max_delay=retry.max_delay,
        probe_interval=pause.probe_interval,
        max_probe_interval=pause.max_probe_interval,
        rejections_in_a_row=pause.rejections_in_a_row,
        requests_per_minute=config.api.max_requests_per_minute,
    )


def _options(config: Config) -> BatchOptions:
    batch = config.batch
    return BatchOptions(batch.max_delay, config.queue.max_age, batch.split_sessions)


def _open_metrics(config: Config) -> list[BoundSocket]:
    metrics, bound = config.metrics, list[BoundSocket]()
    if metrics.socket is not None:
        listen = config.listen
        bound.append(sockets.bind(metrics.socket, sockets.STREAM, mode=listen.mode, group=listen.group))
    if metrics.listen is not None:
        bound.append(sockets.bind_tcp(metrics.listen))
    return bound


def _routes(relay: Relay) -> list[Route]:
    async def metrics(_: Request) -> Response:
        from agent.control import relay_metrics  # here: a relay that nobody scrapes does not pay for the import

        return Response(200, relay_metrics.render(relay), relay_metrics.CONTENT_TYPE)

    async def healthz(_: Request) -> Response:
        return Response.json({"healthy": True})

    async def readyz(_: Request) -> Response:
        problem = relay.backlog.storage_error
        if problem is None and relay.worker is None:
            problem = "the ledger of the fleet is being read"
        if problem is None and (refused := relay.turns.refused_alone) is not None:
            problem = f"the API refuses this relay alone: {refused}"
        return Response.json({"ready": problem is None, "problem": problem}, 200 if problem is None else 503)

    return [
        Route("GET", "/metrics", metrics, "What the relay does, as Prometheus text"),
        Route("GET", "/healthz", healthz, "200 from a relay that answers at all"),
        Route(
            "GET",
            "/readyz",
            readyz,
            "200 only while it could deliver, as far as the engine and its own token go; else 503",
        ),
    ]
