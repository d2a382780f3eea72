"""`exec`: run a command with an agent beside it, and flush at the end."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli import STARTED
from agent.cli.options import JOB_LABEL, Duration, changed_label, config_option, find_config
from agent.cli.views.output import complain
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.cli.job.agent import JobAgent

END_SECONDS = 0.5
LONG_SECONDS = 60.0
"""After so long what was said at the start is far up in a job's log, and is said again at the end."""
_NO_AGENT = "no agent for this command"
_LEFT_ALONE = "TURBO_API is left as it is"


@click.command(
    "exec",
    short_help="Run a build with a daemon beside it.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--deadline",
    type=Duration(),
    metavar="DURATION",
    help="Wait after COMMAND's end until its events are delivered, at most this long.",
)
@click.option(
    "--start-deadline",
    type=Duration(),
    default="1.5s",
    show_default=True,
    metavar="DURATION",
    help="How long COMMAND waits for the daemon before it starts, at most, counted from the start of this process.",
)
@click.option(
    "--job",
    metavar="LABEL",
    help=f"What COMMAND's events belong to, for reports. {JOB_LABEL}  [default: ARTIFACTS_AGENT_JOB, else the CI system's job]",
)
@config_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def exec_(
    path: Path | None, deadline: float | None, start_deadline: float, job: str | None, command: tuple[str, ...]
) -> int:
    """Run COMMAND and deliver its usage events: through the daemon that is running, or through one that is started for this job.

    \b
    TURBO_API=https://api.vercel.com artifacts-agent exec -- turbo run build

    COMMAND gets two variables. ARTIFACTS_AGENT_SOCKET is the daemon's socket. TURBO_API is the address of the daemon's front,
    which passes every request that is not about events on to the real API; it is set if TURBO_TOKEN is set, the daemon has
    `[front]` enabled (one that is started here has), and it is known which server COMMAND uses: by TURBO_API, turbo's own
    configuration or api.url.

    COMMAND keeps its standard streams, signals and exit code; if a signal ends it, `exec` ends by the same signal. As in a shell,
    127 means that COMMAND was not found, 126 that it cannot be executed. A problem with the daemon is one line on standard error,
    and COMMAND runs all the same. It does not wait for a daemon that is slow to start: what it sends waits in the socket, and
    TURBO_API is left as it is.

    At the end `exec` waits until its events are on disk: the running daemon goes on with them. A daemon that was started for this
    job delivers as long as that makes progress, and is stopped. With --deadline, `exec` waits for delivery in either case, unless
    nothing can be delivered before it. What is not delivered then stays in the running daemon's queue, or in a spool directory
    below queue.adopt, or else in spools/ below the state directory. There an agent with queue.adopt delivers it, or the next one
    that `exec` starts; `check` and `status` say what waits there.

    The last line says what the cache did for this job, if that can be known, and so does what its CI system shows: the file that
    GITHUB_STEP_SUMMARY names, an annotation of Buildkite, a section in GitLab's log.
    """
    from agent.cli.job import command as job_command

    begun = time.time()
    preparation = _Preparation(path, STARTED + start_deadline, _label(job, command[0], begun))
    preparation.start()
    environ = os.environ | preparation.variables()
    preparation.look_ahead()
    try:
        code = job_command.run(command, environ)
    finally:
        agent = preparation.end()
        again = preparation.told if time.time() - begun >= LONG_SECONDS else None
        if agent is not None:
            _end(agent, deadline, begun, again)
        elif again is not None:
            _warn(again)
    return job_command.end_as(code)


class _Preparation(threading.Thread):
    """Finds or starts the agent for the job, in a thread: what it imports and asks takes as long as a busy machine makes it."""

    def __init__(self, path: Path | None, until: float, job: str | None) -> None:
        """The command is to be started at `until` on the steady clock at the latest. `job` is the label of its events."""
        super().__init__(daemon=True)
        self._path = path
        self._until = until
        self._job = job
        self._agent: JobAgent | None = None
        self._complete = False
        self._problem: str | None = None
        self._notice: str | None = None
        self._too_late = False
        self.told: str | None = None  # why the job is without something

    def variables(self) -> Mapping[str, str]:
        """Wait for the agent; return what the command is to know of it. What is missing costs a line."""
        self.join(max(self._until - time.monotonic(), 0.0))
        agent = self._agent
        if agent is None:
            self._too_late = True
        if not self._tell() and not self._complete:
            without = _NO_AGENT if agent is None else _LEFT_ALONE
            self.told = f"{without}: the agent is not ready yet: the command does not wait for it"
            _warn(self.told)
        return {} if agent is None else {**agent.variables}

    def look_ahead(self) -> None:
        """Begin, in a thread, what the end needs and can be done while the command runs."""
        if self._agent is not None:
            threading.Thread(target=self._look_ahead, args=(self._agent,), daemon=True).start()

    @staticmethod
    def _look_ahead(agent: "JobAgent") -> None:
        _leave_signals()
        agent.look_ahead()

    def end(self) -> "JobAgent | None":
        """Return the agent, if there is one."""
        self.join(END_SECONDS)
        self._tell()
        return self._agent

    def _tell(self) -> bool:
        """Say what there is to say; return whether that is why the job is without something."""
        notice, self._notice = self._notice, None
        if notice is not None:
            _warn(notice)
        problem, self._problem = self._problem, None
        if problem is not None:
            self.told = problem
            _warn(problem)
        return problem is not None

    def run(self) -> None:
        _leave_signals()
        try:
            self._find_agent()
        except AgentError as error:
            self._agent, self._problem = None, f"{_NO_AGENT}: {error}"
        except OSError as error:
            self._agent, self._problem = None, f"{_NO_AGENT}: {error.filename}: {error.strerror}"

    def _find_agent(self) -> None:
        from agent import config
        from agent.cli.job import agent as job_agent
        from agent.cli.job import turbo

        found, environ = find_config(self._path), turbo.with_api_url(os.environ, Path.cwd())
        directories = config.Directories.of_daemon(environ, os.geteuid())
        places, load = (
            config.Places(found, environ, directories),
            partial(config.load, found, environ, directories=directories),
        )
        agent = job_agent.find(places, load, self._until)
        if agent is None and self._too_late:
            return
        if agent is None:
            from agent.cli.job import started

            agent = own = started.start(places, found and found.absolute(), environ)
            self._notice = own.problem
        agent.label(self._job)
        agent.load = load
        self._agent = agent
        try:
            ready = agent.wait_until_ready(self._until)
        except AgentError:
            load()  # which says what is wrong with the configuration, if that is why
            raise
        if ready:
            try:
                agent.use_proxy(environ, self._until, on_purpose=places.names_url)
            except AgentError as error:
                self._problem = f"{_LEFT_ALONE}: {error}"
            self._complete = True


def _leave_signals() -> None:
    """Have no signal come to this thread: they are for the one that waits for the command."""
    from agent.cli.job.command import AWAITED

    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)


def _label(given: str | None, program: str, now: float) -> str | None:
    """Return the label of a job: one that nobody names is known by its program and when it began."""
    from agent.client.ci import JOB_VARIABLE, detect_job, to_label

    given = os.environ.get(JOB_VARIABLE) if given is None else given
    if given is not None:
        if (notice := changed_label(given)) is not None:
            _warn(notice)
        return to_label(given)
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    return detect_job(os.environ) or to_label(f"{Path(program).name} {begun} {os.getpid()}")


def _end(agent: "JobAgent", deadline: float | None, begun: float, again: str | None) -> None:
    """End the agent's part; `again` is what was said at the start, and is to be said again."""
    try:
        with _interruptible():
            left = agent.end(deadline)
            agent.count(begun)
    except _InterruptedError:
        left = f"interrupted: what is not delivered yet stays in {agent.place}"
    except AgentError as error:
        left = f"not flushed: {error}"
    except ImportError as error:
        left = f"this installation of the agent was removed or replaced while the command ran: {error}"
    if left is not None:
        _warn(left)
    if agent.usage is not None and agent.usage.tasks:
        with contextlib.suppress(OSError, ImportError):  # nobody reads it, or it was removed
            from agent.cli.job import summary

            summary.report(agent.usage, os.environ, again)
    elif again is not None:
        _warn(again)


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
        complain(" ".join(text.split()))
    except OSError:  # nobody reads it
        return
