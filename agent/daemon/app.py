"""The daemon from its start to its end."""

import gc
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

import anyio
import msgspec
import structlog

from agent import __version__, config
from agent.config import Config
from agent.daemon import logging
from agent.daemon.assembly import assemble
from agent.daemon.journal import is_journal
from agent.daemon.reload import Reloader, resume_if_token_is_newer, warn_of_tokens
from agent.daemon.service import Service
from agent.daemon.settings import Settings, account_of
from agent.daemon.signals import Signals
from agent.daemon.systemd import Notifier, show_trouble
from agent.delivery.pipeline import Pipeline
from agent.errors import StorageError
from agent.queue.filesystem import OsFilesystem
from agent.rules import DEFAULT
from agent.runtime import Runtime, Threads, run_in_thread
from agent.spools.identity import add

RUNTIME = Runtime(run_blocking=run_in_thread, wall_clock=time.time, random=random.random)


def run(
    loaded: Callable[[], Config], load: Callable[[], Config], environ: Mapping[str, str], parent: int | None = None
) -> None:
    """Run a daemon with the configuration that `loaded` returns, until SIGTERM or SIGINT; on SIGHUP `load` reads it again.

    With `parent`, a pipe, it also ends when that is closed. Raises an AgentError if it cannot start, or cannot go on.
    """
    anyio.run(_run, loaded, load, environ, parent, backend="asyncio", backend_options={"use_uvloop": True})


async def _run(
    loaded: Callable[[], Config], load: Callable[[], Config], environ: Mapping[str, str], parent: int | None
) -> None:
    settings = Settings.read(loaded(), environ)
    log_settings = settings.config.log
    logging.configure(log_settings.level, log_settings.format, to_journal=is_journal(environ))
    log = structlog.get_logger("agent.daemon")
    notifier, signals = Notifier(environ), Signals(parent)
    async with AsyncExitStack() as opened:
        threads = Threads()
        fs = OsFilesystem(threads.waiting)
        services: list[Service] = []
        reloader = Reloader(load, environ, settings, services, notifier)
        parts = assemble(settings, environ, fs, RUNTIME, threads, opened, reloader.reload, for_job=parent is not None)
        services += parts.services
        pipelines = parts.destinations.pipelines
        resume_if_token_is_newer(pipelines, settings)
        parts.destinations.follow(partial(show_trouble, notifier))
        async with anyio.create_task_group() as tasks:
            await tasks.start(signals.watch, reloader.reload_if_valid)
            tasks.start_soon(signals.watch_parent)
            tasks.start_soon(reloader.watch_tokens)
            tasks.start_soon(logging.report_held_back)
            tasks.start_soon(notifier.feed_watchdog, pipelines[DEFAULT].commit_once)
            for service in services:
                service.start(tasks)
            gc.enable()
            gc.freeze()  # what stays for good: to look through it again and again would hold everybody up, 40 ms at a time
            notifier.enter("Taking events", "READY=1")
            forwards = bool(settings.config.forward.servers)
            if not forwards and config.token_source(settings.config, environ) is None:
                log.warning("no_token", hint="set api.token_file, or requests go out without one")
            warn_of_tokens(settings, environ)
            log.info("started", version=__version__, pid=os.getpid(), api=account_of(settings).url)

            await signals.stop.wait()
            seconds = reloader.settings.config.shutdown.deadline
            deadline = anyio.current_time() + seconds
            notifier.enter("Draining", "STOPPING=1")
            log.info("stopping", deadline=seconds)
            with signals.reading:
                await _drain(parts.listeners, seconds)
            notifier.enter("Delivering what is queued", "X_INTAKE_ENDED=1")  # which `exec` waits for
            with signals.patience:
                await _drain(parts.deliveries, deadline - anyio.current_time())
            if parts.destinations.hanging:
                await parts.destinations.close()
                _say_stopped(pipelines)
                os._exit(
                    StorageError.exit_code
                )  # a thread that hangs in a system call would keep the others' end waiting
            tasks.cancel_scope.cancel()
    _say_stopped(pipelines)


def _say_stopped(pipelines: Mapping[str, Pipeline]) -> None:
    logging.say_held_back()
    ledger = add(each.ledger() for each in pipelines.values())
    structlog.get_logger("agent.daemon").info("stopped", ledger=msgspec.to_builtins(ledger))


async def _drain(services: Sequence[Service], seconds: float) -> None:
    async with anyio.create_task_group() as draining:
        for service in services:
            draining.start_soon(service.drain, seconds)
