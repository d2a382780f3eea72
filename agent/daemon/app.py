"""The composition root: builds every part from a configuration, and runs them from start-up to shutdown.

It knows all parts, signals and their order. It must never know an algorithm: whatever decides or computes is elsewhere.
"""

import os
import random
import resource
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import anyio
import anyio.abc
import msgspec
import structlog

from agent import __version__, config
from agent.config import Config
from agent.config.tokens import TokenFiles, token_files
from agent.control.routes import Control
from agent.control.schema import ApiStatus, HttpStatus, StatusReport
from agent.control.status import adoption_status
from agent.daemon import logging
from agent.daemon.settings import account_of, limits_of
from agent.daemon.systemd import Notifier
from agent.daemon.wiring import adoption_policy, delivery_config
from agent.delivery.pipeline import Pipeline
from agent.errors import ConfigError, ListenError, StorageError
from agent.http import server
from agent.http.proxy import Proxy
from agent.ingest import sockets
from agent.ingest.datagram import DatagramListener
from agent.ingest.http_events import AccessPolicy, HttpListener
from agent.ingest.intake import Intake
from agent.ingest.sockets import BoundSocket
from agent.ingest.stream import StreamListener
from agent.queue.filesystem import OsFilesystem
from agent.queue.lock import lock_queue
from agent.runtime import Runtime, run_in_thread
from agent.spools import identity as spool
from agent.spools.adoption import Adoption
from agent.spools.identity import DESTINATION

CONTROL_MODE = 0o600
TOKEN_POLL_SECONDS = 5.0
READ_OUT_SECONDS = 5.0
# For the queue's files, the control socket's connections and the requests to the API.
RESERVED_FILES = 192
HTTP_ROLES = ("http", "http_tcp")
RUNTIME = Runtime(run_blocking=run_in_thread, wall_clock=time.time, random=random.random)


def run(load: Callable[[], Config], environ: Mapping[str, str], parent: int | None = None) -> None:
    """Run a daemon in this process until SIGTERM or SIGINT; `load` is called again on SIGHUP.

    With `parent`, a pipe, it also ends when that is closed. Raises an AgentError if it cannot start, or cannot go on.
    """
    anyio.run(_run, load, environ, parent, backend="asyncio", backend_options={"use_uvloop": True})


async def _run(load: Callable[[], Config], environ: Mapping[str, str], parent: int | None) -> None:
    await Daemon(load, environ, parent).run()


AnyListener = StreamListener | DatagramListener | HttpListener


class Daemon:
    """One daemon: the queue's only owner."""

    def __init__(self, load: Callable[[], Config], environ: Mapping[str, str], parent: int | None = None) -> None:
        """Read the configuration and the token. Raises ConfigError."""
        self._parent = parent
        self._load = load
        self._environ = environ
        self._config = load()
        self._secret = config.read_token(self._config, environ)
        self._tokens = token_files(self._config, environ)
        self._terms = _terms(self._config, environ)
        self._front = Proxy(self._config.api.url) if self._config.front.enabled else None
        self._http: HttpListener | None = None
        self._notifier = Notifier(environ)
        self._stop = anyio.Event()
        self._draining = anyio.CancelScope()
        self._adoption: Adoption | None = None
        logging.configure(self._config.log.level, self._config.log.format)
        self._log = structlog.get_logger("agent.daemon")

    async def run(self) -> None:
        """Serve until a signal says stop. Raises StorageError, QueueLockedError or ListenError if it cannot start."""
        fs = OsFilesystem()
        lock = lock_queue(fs, self._config.queue.directory)
        try:
            self._identify()
            delivery = delivery_config(self._config, self._secret, RUNTIME)
            directory = self._config.queue.directory / DESTINATION
            pipeline = Pipeline(fs, directory, limits_of(self._config), delivery, RUNTIME)
            try:
                await self._serve(pipeline)
            finally:
                await pipeline.close()
        finally:
            lock.release()
        self._log.info("stopped", ledger=msgspec.to_builtins(pipeline.ledger()))

    async def _serve(self, pipeline: Pipeline) -> None:
        intake = Intake(pipeline)
        bound = _open_sockets(self._config, self._environ)
        try:
            limit, http_limit = self._connection_limits()
            stream, listeners = _listeners(bound, intake, limit)
            self._http = self._http_listener(bound, intake, http_limit)
            listeners += [self._http] if self._http is not None else []
            self._adoption = self._new_adoption(pipeline)
            address = sockets.tcp_address(bound["http_tcp"]) if "http_tcp" in bound else None
            control = Control(
                {DESTINATION: pipeline},
                listeners,
                RUNTIME.wall_clock,
                describe=[partial(self._describe, intake, stream, address)],
                deliveries=[self._adoption] if self._adoption is not None else [],
            )
            control_listener = bound["control"].socket
            self._resume_if_token_is_newer(pipeline)
            async with anyio.create_task_group() as background:
                await background.start(self._watch_signals, pipeline)
                background.start_soon(server.serve, control_listener, control.handle)
                background.start_soon(self._watch_token, pipeline)
                background.start_soon(self._feed_watchdog, pipeline)
                background.start_soon(self._watch_parent)
                if self._front is not None:
                    background.start_soon(self._front.watch)
                await self._work(pipeline, listeners)
                background.cancel_scope.cancel()
        finally:
            for each in bound.values():
                each.release()
            if self._front is not None:
                await self._front.aclose()

    def _http_listener(self, bound: Mapping[str, BoundSocket], intake: Intake, limit: int) -> HttpListener | None:
        found = [bound[role] for role in HTTP_ROLES if role in bound]
        if not found:
            return None
        listener = HttpListener(found, intake, self._terms, limit)
        listener.forward = self._front.forward if self._front is not None else None
        return listener

    def _describe(
        self, intake: Intake, stream: StreamListener | None, address: str | None, report: StatusReport
    ) -> None:
        account = account_of(self._config)
        report.api = ApiStatus(account.url, account.team_id, account.slug)
        report.rejected = intake.rejected
        if stream is not None:
            report.connections, report.evicted = stream.connections, stream.evicted
        if self._adoption is not None:
            report.adopted = adoption_status(self._adoption.report())
        if self._http is None:
            return
        path = self._config.http.socket
        report.http = HttpStatus(
            socket=str(path) if path is not None else None,
            listen=address,
            connections=self._http.connections,
            events=self._http.answered,
            front=self._front.answered if self._front is not None else {},
            forwards=self._front is not None,
        )

    async def _work(self, pipeline: Pipeline, listeners: Sequence[AnyListener]) -> None:
        """Take events and deliver them until told to stop; return when all that was taken is on disk."""
        async with anyio.create_task_group() as writing:
            writing.start_soon(pipeline.run)
            if self._adoption is not None:
                writing.start_soon(self._adoption.run)
            deadline = await self._listen(listeners)
            with self._draining:
                await self._drain(pipeline, deadline - anyio.current_time())
            if self._adoption is not None:
                self._adoption.abort()

    async def _drain(self, pipeline: Pipeline, seconds: float) -> None:
        if self._adoption is not None:
            self._adoption.stop(seconds)
        await pipeline.drain(seconds)
        if self._adoption is not None:
            await self._adoption.ended.wait()

    async def _listen(self, listeners: Sequence[AnyListener]) -> float:
        """Take events until told to stop; then let no more in, and take what has been written.

        Returns until when the rest of the shutdown may take. Reading what is left may take longer: it is bounded by the
        sockets' buffers, and what is not read would be lost.
        """
        async with anyio.create_task_group() as listening:
            for listener in listeners:
                listening.start_soon(listener.serve)
            self._notifier.notify("READY=1", "STATUS=Taking events")
            if config.token_source(self._config, self._environ) is None:
                self._log.warning("no_token", hint="set api.token_file, or requests go out without one")
            self._log.info("started", version=__version__, pid=os.getpid(), api=self._config.api.url)
            await self._stop.wait()
            self._notifier.notify("STOPPING=1", "STATUS=Draining")
            self._log.info("stopping", deadline=self._config.shutdown.deadline)
            now, seconds = anyio.current_time(), self._config.shutdown.deadline
            listening.cancel_scope.deadline = now + max(seconds, READ_OUT_SECONDS)
            for listener in listeners:
                await listener.close()
        return now + seconds

    def _connection_limits(self) -> tuple[int, int]:
        """Return how many connections may be open, on the stream socket and over HTTP; the rest of the process needs files too.

        A connection over HTTP takes two files: the front has one to the API for each.
        """
        http = self._config.http
        files = _raise_file_limit()
        free = max(files - RESERVED_FILES, 4)
        wanted = {
            "listen.max_connections": self._config.listen.max_connections,
            "http.max_connections": http.max_connections if http.socket or http.listen else 0,
        }
        over_http = min(wanted["http.max_connections"], free // 4)
        limits = {
            "listen.max_connections": min(wanted["listen.max_connections"], free - 2 * over_http),
            "http.max_connections": over_http,
        }
        reason = f"the process may open {files} files; raise LimitNOFILE= or ulimit -n"
        for key, limit in limits.items():
            if limit < wanted[key]:
                facts = {"max_connections": limit, "wanted": wanted[key], "reason": reason}
                self._log.warning("max_connections_lowered", key=key, **facts)
        return limits["listen.max_connections"], over_http

    # The queue directory, and others'

    def _identify(self) -> None:
        """Have the queue directory say whose its events are, for whoever adopts it one day."""
        account = account_of(self._config)
        try:
            spool.identify(OsFilesystem(), self._config.queue.directory, account, secrets.token_hex(16))
        except StorageError as error:
            self._log.warning("identity_not_written", error=str(error))

    def _new_adoption(self, owner: Pipeline) -> Adoption | None:
        queue, limits = self._config.queue, limits_of(self._config)
        if queue.adopt is None:
            return None
        return Adoption(
            OsFilesystem(),
            queue.adopt,
            queue.directory,
            limits,
            adoption_policy(self._config, self._secret, RUNTIME),
            RUNTIME,
            owner,
        )

    # Signals and reload

    async def _watch_signals(
        self, pipeline: Pipeline, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload(pipeline, self._load)
                elif self._stop.is_set():
                    self._draining.cancel()  # asked twice: what is not delivered stays in the queue
                else:
                    self._stop.set()

    async def _watch_parent(self) -> None:
        """Stop when whoever started this daemon is gone, however that came."""
        if self._parent is not None:
            await anyio.wait_readable(self._parent)  # nobody writes there: it is the end
            self._stop.set()

    async def _watch_token(self, pipeline: Pipeline) -> None:
        while True:
            await anyio.sleep(TOKEN_POLL_SECONDS)
            found = token_files(self._config, self._environ)
            found = TokenFiles(found.api or self._tokens.api, found.clients or self._tokens.clients)
            if found != self._tokens:
                self._tokens = found
                self._reload(pipeline, lambda: self._config)

    def _reload(self, pipeline: Pipeline, load: Callable[[], Config]) -> None:
        """Take over a new configuration and token; a wrong one is refused as a whole, and the old one stays."""
        self._notifier.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            loaded = load()
            new = self._with_fixed(loaded)
            tokens, secret = token_files(new, self._environ), config.read_token(new, self._environ)
            terms = _terms(new, self._environ)
            if self._front is not None:
                self._front.reconfigure(new.api.url)
        except ConfigError as error:
            self._log.error("reload_refused", error=str(error))
        else:
            self._take_over(loaded, new, new_token=secret != self._secret or terms.token != self._terms.token)
            self._tokens, self._secret, self._terms = tokens, secret, terms
            if self._http is not None:
                self._http.terms = terms
            self._identify()
            pipeline.reconfigure(delivery_config(new, secret, RUNTIME))
            if self._adoption is not None:
                self._adoption.reconfigure(adoption_policy(new, secret, RUNTIME))
        self._notifier.notify("READY=1")

    def _take_over(self, loaded: Config, new: Config, *, new_token: bool) -> None:
        for key in config.needs_restart(self._config, loaded):
            self._log.warning("restart_needed", key=key)
        changed = config.differences(self._config, new)
        self._config = new
        logging.configure(new.log.level, new.log.format)
        self._log.info("reloaded", changed=[*changed, *(["token"] if new_token else [])])

    def _with_fixed(self, new: Config) -> Config:
        """Return a new configuration with what stays as it is until a restart."""
        fixed = {key.partition(".")[0] for key in config.RESTART_KEYS}
        return new.model_copy(update={section: getattr(self._config, section) for section in fixed})

    def _resume_if_token_is_newer(self, pipeline: Pipeline) -> None:
        """End a pause if the token was replaced while no daemon ran; of a credential systemd makes a new copy at each start."""
        since, token = pipeline.paused_since, self._tokens.api
        if since is not None and token is not None and self._config.api.token_file and token.changed_at > since:
            pipeline.resume()

    async def _feed_watchdog(self, pipeline: Pipeline) -> None:
        """Tell systemd that the daemon is alive, but only as long as its write path answers."""
        if self._notifier.watchdog_seconds is None:
            return
        while True:
            await pipeline.commit_once()
            self._notifier.notify("WATCHDOG=1")
            await anyio.sleep(self._notifier.watchdog_seconds / 3)


def _open_sockets(settings: Config, environ: Mapping[str, str]) -> dict[str, BoundSocket]:
    """Open every socket that is configured, by role; those that systemd passed come first. Raises ListenError."""
    listen = settings.listen
    bound = {
        role: BoundSocket(passed, None) for role, passed in sockets.passed_by_systemd(environ, os.getpid()).items()
    }
    try:
        if listen.stream is not None and "stream" not in bound:
            bound["stream"] = sockets.bind(listen.stream, sockets.STREAM, mode=listen.mode, group=listen.group)
        if listen.datagram is not None and "datagram" not in bound:
            bound["datagram"] = sockets.bind(listen.datagram, sockets.DATAGRAM, mode=listen.mode, group=listen.group)
        http = settings.http
        if http.socket is not None:
            bound["http"] = sockets.bind(http.socket, sockets.STREAM, mode=listen.mode, group=listen.group)
        if http.listen is not None:
            bound["http_tcp"] = sockets.bind_tcp(http.listen)
        if "control" not in bound:
            bound["control"] = sockets.bind(listen.control, sockets.STREAM, mode=CONTROL_MODE)
    except ListenError:
        for each in bound.values():
            each.release()
        raise
    return bound


def _listeners(
    bound: Mapping[str, BoundSocket], intake: Intake, max_connections: int
) -> tuple[StreamListener | None, list[AnyListener]]:
    stream = StreamListener(bound["stream"], intake, max_connections) if "stream" in bound else None
    listeners: list[AnyListener] = [stream] if stream else []
    if "datagram" in bound:
        listeners.append(DatagramListener(bound["datagram"], intake))
    return stream, listeners


def _terms(settings: Config, environ: Mapping[str, str]) -> AccessPolicy:
    return AccessPolicy(config.read_http_token(settings, environ), settings.api.team_id, settings.api.slug)


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets this process have: each connection is one. Returns that limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize
