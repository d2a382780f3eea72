"""An agent that `exec` starts for its job, with a spool of its own, and flushes and ends with it.

It is handed sockets that listen already, as systemd hands them over: what the command writes before the agent is ready waits
there.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent import config
from agent.cli.commands.flush import LONGEST
from agent.cli.job.agent import DURABLE_SECONDS, SHORTEST_SECONDS, JobAgent
from agent.cli.views.words import amount
from agent.config import SOCKET_PATH_LIMIT, Config, Places
from agent.errors import AgentError, ConfigError, StorageError

if TYPE_CHECKING:
    from agent.queue.filesystem import Filesystem
    from agent.usage.counting import Totals

READING_SECONDS = 0.5  # for an agent that stops to read what was written before: milliseconds, unless it hangs
BACKLOG = 4096  # connections; the system's own limit may be lower
# What the supervisor of this process has set is not for another one.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
LOG = "agent.log"  # in the spool
_LONGEST_NAME = "artifacts-agent-12345678/control.sock"
INTAKE_ENDED = b"X_INTAKE_ENDED=1"  # what agent/daemon/app.py notifies of
GRACE_SECONDS = 2.0
PROGRESS_SECONDS = 15.0
COUNTED_BYTES = 4 * 1024 * 1024  # 30,000 events, which take 50 ms


class StartedAgent(JobAgent):
    """An agent of this job's own. Its spool outlives it if there is something left in it."""

    without_front = "clients of a front have to send a token, and there is none: set TURBO_TOKEN"

    def __init__(
        self, spool: Path, runtime: Path, process: subprocess.Popen[bytes], lifeline: int, notify: socket.socket
    ) -> None:
        super().__init__(runtime / "control.sock", runtime / "events.sock")
        self.spool = spool
        self._process = process
        self._lifeline = lifeline
        self._notify = notify
        self._ended = os.pidfd_open(process.pid)
        self._ready = False
        self.problem: str | None = None  # to be said; the job has its agent all the same

    @property
    def place(self) -> str:
        return str(self.spool)

    def look_ahead(self) -> None:
        """Import what the end needs to hand the history over, too."""
        super().look_ahead()
        import agent.config.validation  # noqa: F401

    def wait_until_ready(self, until: float) -> bool:
        if not self._ready:
            heard = self._hears(b"READY=1", until)
            if heard is None:
                raise AgentError(f"it did not start: {self._discard()}")
            self._ready = heard
        return self._ready

    def _hears(self, assignment: bytes, until: float) -> bool | None:
        """Wait until the agent notifies of this; return False at `until` on the steady clock, None if it ends without."""
        sources = [self._notify.fileno(), self._ended]
        while readable := select.select(sources, [], [], max(until - time.monotonic(), 0.0))[0]:
            if self._notify.fileno() not in readable:
                return None
            if assignment in self._notify.recv(4096).splitlines():
                return True
        return False

    def _ends_within(self, seconds: float) -> bool:
        """Wait for its end; `Popen.wait` with a timeout looks only every 50 ms."""
        if not select.select([self._ended], [], [], seconds)[0]:
            return False
        self._process.wait()
        return True

    def _discard(self) -> str:
        """Remove what is left of an agent that has ended before it took an event; return its last words."""
        self._process.wait()
        said = _last_words(self.spool / LOG)
        self.let_go()
        _remove_all(self.control.parent)
        _remove_all(self.spool)
        return said

    def end(self, seconds: float | None) -> str | None:
        """Flush, stop the agent, and remove its spool unless something is left in it; return what to say of that.

        Without `seconds` it waits only as long as delivery makes progress, and for PROGRESS_SECONDS at most.
        """
        if not self.wait_until_ready(time.monotonic() + GRACE_SECONDS):
            self.let_go()
            return f"the agent is not ready yet: it ends by itself, and keeps what was sent in {self.spool}"
        from agent.control.client import ControlClient

        control, flushed = ControlClient(self.control), None
        until = time.monotonic() + (GRACE_SECONDS if seconds is None else seconds)
        with contextlib.suppress(AgentError):  # the spool says what is left
            if seconds is None:
                # An agent that hangs would not end a wait for delivery by itself.
                flushed = control.flush(DURABLE_SECONDS, until="durable", grace=SHORTEST_SECONDS)
                if flushed is not None and flushed.in_time:
                    flushed = control.flush(PROGRESS_SECONDS, until="stalled", grace=DURABLE_SECONDS)
            else:
                flushed = control.flush(min(seconds, LONGEST))
        # What of its own is not delivered now is not waited for again; requests of adopted spools may take what time is left.
        delivered = flushed is not None and flushed.in_time
        if not self.stop(max(until - time.monotonic(), 0.0) if delivered else 0.0):
            return f"the agent does not stop; what it has not delivered is in {self.spool}"
        with contextlib.suppress(AgentError):  # a line less
            self.usage = _usage(self.spool)
        try:
            return _tidy(self.spool, self.load)
        except (OSError, StorageError) as error:
            return f"{self.spool} stays: {error}"

    def stop(self, seconds: float, reading_seconds: float = READING_SECONDS) -> bool:
        """Ask the agent to stop, and to stop at once `seconds` after it has read what was written; return whether it has ended.

        An agent that has not read it after `reading_seconds` hangs. It is let go in either case.
        """
        while select.select([self._notify], [], [], 0.0)[0]:
            self._notify.recv(4096)  # to make room for what it says next: the socket holds few notifications
        self._process.send_signal(signal.SIGTERM)
        self._hears(INTAKE_ENDED, time.monotonic() + reading_seconds)
        ended = self._ends_within(seconds)
        if not ended:
            self._process.send_signal(signal.SIGTERM)
            ended = self._ends_within(GRACE_SECONDS)
        self.let_go()
        _remove_all(self.control.parent)  # an agent that was killed has left its sockets
        return ended

    def let_go(self) -> None:
        """End the agent without waiting for it: it drains first."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            self._notify.close()
            os.close(self._ended)


def start(places: Places, path: Path | None, environ: Mapping[str, str]) -> StartedAgent:
    """Start an agent for a job; return before it is ready. Raises AgentError or OSError: then nothing is left of it."""
    from agent.queue.filesystem import OsFilesystem

    state = config.state_directory(environ, os.geteuid())
    place = _place_for_spools(places.adopt, state and state / "spools", os.geteuid())
    spool, runtime = place.parent / os.urandom(8).hex(), _runtime_directory(environ)
    try:
        OsFilesystem().make_directory(spool)
        has_token = config.find_token(places.token_file, environ) is not None
        variables = _environment(environ, spool, runtime, with_front=has_token, adopts=place.adopts)
        agent = _launch(spool, runtime, path, variables)
    except (OSError, AgentError):
        _remove_all(runtime)
        _remove_all(spool)  # it has never taken an event
        raise
    agent.problem = place.problem
    return agent


class _SpoolPlace(NamedTuple):
    """Where spools are; `adopts` says whether a job's agent takes over there what earlier jobs have left."""

    parent: Path
    adopts: bool
    problem: str | None = None


def _place_for_spools(adopt: Path | None, own: Path | None, euid: int) -> _SpoolPlace:
    """Return where a job's spool is: where the agent with queue.adopt looks, or else in a directory of this user's own.

    Raises AgentError if there is neither.
    """
    problem = adopt and _not_for_spools_of(euid, adopt)
    if adopt is not None and (problem is None or own is None):
        return _SpoolPlace(adopt, adopts=False)
    if own is None:
        raise AgentError("no directory for its spool: set HOME, or queue.adopt")
    what = f"queue.adopt: {problem}: what this job leaves is in {own}, for this user's next job"
    return _SpoolPlace(own, adopts=True, problem=what if problem else None)


def _not_for_spools_of(euid: int, directory: Path) -> str | None:
    """Say why a user's spools cannot be adopted from a directory; None if they can.

    A spool is its user's alone, so that another user's agent, unless it is root's, could not read it.
    """
    place = next(each for each in (directory, *directory.parents) if os.path.lexists(each))
    if euid == 0:
        return None
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place}: this user cannot write there"
    if place == directory and (owner := place.stat().st_uid) not in {0, euid}:
        return f"{place}: it is another user's, {owner}"
    return None


def _environment(
    environ: Mapping[str, str], spool: Path, runtime: Path, *, with_front: bool, adopts: bool
) -> dict[str, str]:
    """Return the environment of a job's agent."""
    own = {
        "QUEUE_DIRECTORY": str(spool),
        "QUEUE_ADOPT": str(spool.parent) if adopts else "",
        "LISTEN_STREAM": str(runtime / "events.sock"),
        "LISTEN_DATAGRAM": "",
        "LISTEN_CONTROL": str(runtime / "control.sock"),
        "LISTEN_MODE": "0600",
        "LISTEN_GROUP": "",
        "HTTP_SOCKET": "",
        "HTTP_LISTEN": "127.0.0.1:0" if with_front else "",
        "METRICS_SOCKET": "",
        "METRICS_LISTEN": "",
        "FRONT_ENABLED": "true" if with_front else "false",
    }
    inherited = {name: value for name, value in environ.items() if name not in _NOT_INHERITED}
    special = {
        "NOTIFY_SOCKET": str(runtime / "notify.sock"),
        # Its modules are the ones of this process, whatever the job's PYTHONPATH holds: see agent/cli/launcher.py.
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return inherited | {f"{config.PREFIX}{name}": value for name, value in own.items()} | special


def _launch(spool: Path, runtime: Path, path: Path | None, environ: Mapping[str, str]) -> StartedAgent:
    command = [sys.executable, "-P", "-m", "agent.cli.job.process", str(runtime), str(path or "")]
    with contextlib.ExitStack() as on_failure:
        notify = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(str(runtime / "notify.sock"))
        ours, lifeline = os.pipe()
        on_failure.callback(os.close, lifeline)
        # The agent alone has these in the end: where it is gone, clients are to be refused.
        with _listen(runtime / "control.sock") as control, _listen(runtime / "events.sock") as stream:
            passed = {"control": control.fileno(), "stream": stream.fileno()}
            command += [f"{name}:{number}" for name, number in passed.items()]
            with os.fdopen(ours, "rb") as stdin, (spool / LOG).open("ab") as output:
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    env=environ,
                    pass_fds=[*passed.values()],
                    start_new_session=True,
                )
        agent = StartedAgent(spool, runtime, process, lifeline, notify)
        on_failure.pop_all()
    return agent


def _listen(path: Path) -> socket.socket:
    """Open a socket in a directory that is this user's alone."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _last_words(log: Path) -> str:
    """Return the last line that says something, out of the frame that is around the traceback of an ExceptionGroup."""
    lines = [line.strip("| ") for line in log.read_text(errors="replace").splitlines()]
    said = [line for line in lines if any(map(str.isalnum, line)) and not line.startswith("+-")]
    return said[-1].removeprefix("artifacts-agent: ") if said else "it said nothing"


def _runtime_directory(environ: Mapping[str, str]) -> Path:
    """Make a private directory for sockets, whose paths must be short."""
    candidates = [environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - made by mkdtemp, for this user alone
    parents = [parent for parent in candidates if parent.startswith("/") and os.access(parent, os.W_OK | os.X_OK)]
    short = [parent for parent in parents if len(os.fsencode(parent)) + len(_LONGEST_NAME) < SOCKET_PATH_LIMIT]
    if not short:
        raise AgentError("no directory for its sockets: set XDG_RUNTIME_DIR or TMPDIR")
    return Path(tempfile.mkdtemp(prefix="artifacts-agent-", dir=short[0]))


def _usage(directory: Path) -> "Totals | None":
    """Return what the cache did for the job whose spool it is; None if that is not all there, or would take too long to count."""
    from agent.queue.filesystem import OsFilesystem
    from agent.spools.identity import DESTINATION, inner_spools
    from agent.usage.reading import KeptEvents, count_all

    fs = OsFilesystem()
    kept = [KeptEvents.read(fs, each / DESTINATION) for each in (directory, *inner_spools(fs, directory))]
    short = sum(each.size for each in kept) <= COUNTED_BYTES
    return count_all(*kept) if short and all(each.complete for each in kept) else None


def _bequeath(fs: "Filesystem", spool: Path, destination: str, settings: Config) -> None:
    """Hand the history of a spool that is settled over to the queue that a daemon of this user would have, and reports read."""
    from agent.daemon.settings import queue_directory
    from agent.queue.history import JOB_PREFIX, Heir
    from agent.spools import identity

    found, home = identity.read_identity(fs, spool), queue_directory(settings, destination)
    place = next(each for each in (home, *home.parents) if os.path.lexists(each))
    if found is None or place.stat().st_uid != os.geteuid():  # another user could not read it
        return
    bounds = settings.history
    heir = Heir(home / identity.DESTINATION, bounds.max_bytes, bounds.max_age)
    heir.inherit(fs, f"{JOB_PREFIX}{found.id}", spool / identity.DESTINATION, time.time(), removed=True)


def _tidy(directory: Path, load: Callable[[], Config] | None) -> str | None:
    """Remove the spool of an agent that has ended, with those of further destinations in it, if all of them are settled.

    Else return what is left in it. Their histories go to the queues of the configuration that `load` returns.
    """
    from agent.queue.filesystem import OsFilesystem
    from agent.queue.lock import LOCK
    from agent.queue.snapshot import read_queue
    from agent.rules import DEFAULT
    from agent.spools import identity as spool

    fs = OsFilesystem()
    with contextlib.ExitStack() as locked:
        spools = [*spool.inner_spools(fs, directory), directory]
        for each in spools:
            try:
                lock = fs.lock(each / LOCK, create=False)
            except FileNotFoundError:
                return None  # another agent has adopted it already
            if lock is None:
                return None  # or is about to
            locked.callback(lock.release)
        ledger = spool.add(read_queue(fs, each / spool.DESTINATION).cursor.ledger() for each in spools)
        if ledger.queued:
            taker = f"an agent with queue.adopt = {str(directory.parent)!r} will deliver them"
            return f"{amount(ledger.queued, 'event')} not delivered yet, in {directory}: {taker}"
        settings = None
        with contextlib.suppress(ConfigError):  # it was valid when the agent started, and is being changed
            settings = load() if load is not None else None
        for each in spools:
            if (kept := spool.kept_in(fs, each)) is not None:
                return f"{each} stays because of {kept}"
            if (link := spool.linked(fs, directory.parent, each)) is not None:
                return f"{each} stays: {link} is no directory"
            if (other := spool.waiting_for(fs, each)) is not None:
                return f"{each} stays, for the next agent, until {other} can go"
            if settings is not None:
                _bequeath(fs, each, DEFAULT if each == directory else each.name, settings)
            spool.remove(fs, each)
    dropped = sum(ledger.dropped.values())
    return f"{amount(dropped, 'event')} dropped: {', '.join(ledger.dropped)}" if dropped else None


def _remove_all(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)
