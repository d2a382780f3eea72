"""`exec`: run a command with an agent beside it, and flush at the end."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import Duration, config_option, find_config
from agent.cli.views.words import PROGRAM
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.cli.job.agent import JobAgent

SYSTEM_RUNTIME_DIRECTORY = "/run/artifacts-agent"


@click.command(
    "exec",
    short_help="Run a build with a daemon beside it.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--deadline",
    type=Duration(),
    default="15s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait after the command's end, at most, for its events to be delivered.",
)
@config_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_(path: Path | None, deadline: float, command: tuple[str, ...]) -> int:
    """Run COMMAND and deliver its usage events: through the daemon that is running, or through one that is started for this job.

    \b
    artifacts-agent exec -- turbo run build

    COMMAND gets two variables. ARTIFACTS_AGENT_SOCKET is the daemon's socket. TURBO_API is the address of the daemon's front,
    which passes every request that is not about events on to the real API; it is set if TURBO_TOKEN is set and the daemon has
    `[front]` enabled. A daemon that is started here has.

    COMMAND keeps its standard streams, signals and exit code; if a signal ends it, `exec` ends by the same signal. As in a shell,
    127 means that COMMAND was not found, 126 that it cannot be executed. A problem with the daemon is one line on standard error,
    and COMMAND runs all the same.

    At the end its events are flushed. What is not delivered by the deadline stays in the running daemon's queue, or in a spool
    directory below queue.adopt, or else below the state directory. The next daemon there delivers it.
    """
    from agent.cli.job import command as job_command

    agent = _agent(path)
    environ = os.environ | (agent.variables if agent is not None else {})
    try:
        code = job_command.run(command, environ)
    finally:
        if agent is not None:
            _end(agent, deadline)
    return job_command.end_as(code)


def _agent(path: Path | None) -> "JobAgent | None":
    """Return the agent for the job; None if there is none, which costs a line."""
    from agent import config
    from agent.cli.job import agent as job_agent

    try:
        found = find_config(path)
        settings = config.load(found, with_runtime_directory(os.environ, os.geteuid()))
        agent = job_agent.find(settings) or job_agent.start(settings, found and found.absolute(), os.environ)
    except AgentError as error:
        _warn(f"no agent for this command: {error}")
        return None
    except OSError as error:
        _warn(f"no agent for this command: {error.filename}: {error.strerror}")
        return None
    try:
        agent.use_proxy(os.environ)
    except AgentError as error:
        _warn(f"TURBO_API is left as it is: {error}")
    return agent


def with_runtime_directory(environ: Mapping[str, str], euid: int) -> Mapping[str, str]:
    """Return an environment that says where an agent's sockets are: where it does not, in cron say, those of the system's.

    An agent that is started for a job makes a place for its own.
    """
    from agent import config

    if config.runtime_directory(environ, euid) is not None:
        return environ
    return {**environ, "RUNTIME_DIRECTORY": SYSTEM_RUNTIME_DIRECTORY}


def _end(agent: "JobAgent", deadline: float) -> None:
    try:
        with _interruptible():
            left = agent.end(deadline)
    except _InterruptedError:
        left = f"interrupted: what is not delivered yet stays in {agent.place}"
    except AgentError as error:
        left = f"not flushed: {error}"
    if left is not None:
        _warn(left)


class _InterruptedError(Exception):
    """A signal says that nobody wants to wait any longer."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let signals end the block, not this process: its exit code is the command's."""

    def interrupt(_number: int, _frame: object) -> None:
        raise _InterruptedError

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warn(text: str) -> None:
    try:
        click.echo(f"{PROGRAM}: {' '.join(text.split())}", err=True)
    except OSError:  # nobody reads it
        return
