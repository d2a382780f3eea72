"""The demo from start to end: signals, the temporary directory, the server, and whatever happens, an orderly end."""

import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio

from agent.demo import report, scenario
from agent.demo.agent_process import TOKEN, AgentProcess, temporary_directory
from agent.demo.api import DemoApi
from agent.demo.harness import FAST, READABLE, Harness, Timing
from agent.demo.report import Evidence
from agent.demo.view import DemoView, PanelView, PlainView, for_stdout
from agent.errors import AgentError
from agent.http.server import serve

NEXT_STEPS = (
    "Install: the units are in systemd/, every key is in config.example.toml.",
    "Read on: README.md, which leads to installation, operations and the protocol.",
)


def run(*, fast: bool, fleet: bool) -> int:
    """See `agent.demo.run_demo`. Raises ConfigError where something that a fleet needs is not installed."""
    view = PlainView() if fleet else for_stdout()
    timing = FAST if fast or not isinstance(view, PanelView) else READABLE
    play = _show_fleet(view) if fleet else partial(_play, view, timing)
    try:
        return anyio.run(_run, view, play)
    except KeyboardInterrupt:  # before the signals were watched: nothing had been started
        return 128 + signal.SIGINT


Play = Callable[[], Awaitable[int]]


def _show_fleet(view: DemoView) -> Play:
    from agent.fleet.installed import require_client

    require_client("--fleet")
    from agent.demo import fleet

    fleet.nats_server()  # so that what is missing is said before anything begins

    async def play() -> int:
        try:
            with temporary_directory() as directory:
                return await fleet.play(view, directory)
        except* (AgentError, OSError) as errors:
            view.say(f"The demo failed: {_first(errors)}", "bold red")
        return 1

    return play


async def _run(view: DemoView, play_all: Play) -> int:
    """Play until the end or a signal; return the exit code."""
    code = 1
    with anyio.open_signal_receiver(*_ending_signals()) as signals, view:
        async with anyio.create_task_group() as tasks:

            async def play() -> None:
                nonlocal code
                code = await play_all()
                tasks.cancel_scope.cancel()

            tasks.start_soon(play)
            async for number in signals:
                code = 128 + number
                tasks.cancel_scope.cancel()
    if code > 128:
        view.say("Interrupted. All processes have ended, and the temporary directory is gone.")
    return code


def _ending_signals() -> list[signal.Signals]:
    """Return the signals to end on: not those that the parent wants ignored, as nohup does."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]


async def _play(view: DemoView, timing: Timing) -> int:
    evidence = None
    try:
        with temporary_directory() as directory:
            evidence = await _run_scenario(view, timing, directory)
    except* (AgentError, OSError) as errors:
        view.say(f"The demo failed: {_first(errors)}", "bold red")
    return _report(view, evidence) if evidence is not None else 1


def _first(errors: ExceptionGroup) -> Exception:
    """Return the error that came first: the others are what it led to."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


async def _run_scenario(view: DemoView, timing: Timing, directory: Path) -> Evidence:
    """Start the server, play the scenario, and leave no process behind."""
    api = DemoApi(TOKEN, delay=timing.answer, retry_after=timing.retry_after)
    listening = socket.create_server(("127.0.0.1", 0))
    agent = AgentProcess(directory, f"http://127.0.0.1:{listening.getsockname()[1]}")
    harness = Harness(agent, api, view, timing, directory)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, listening, api.handle)
            tasks.start_soon(harness.watch)
            evidence = await scenario.play(harness)
            tasks.cancel_scope.cancel()
    finally:
        listening.close()
        with anyio.CancelScope(shield=True):
            await agent.kill()
    return evidence


def _report(view: DemoView, evidence: Evidence) -> int:
    view.heading("end", "The ledger: every event is accounted for.")
    for line in report.findings(evidence):
        view.say(line)
    problems = report.problems(evidence)
    for line in problems:
        view.say(f"Not as promised: {line}", "bold red")
    if not problems:
        view.heading("next", NEXT_STEPS[0])
        view.say(NEXT_STEPS[1])
    return 1 if problems else 0
