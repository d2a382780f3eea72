"""The agent of a job that `exec` runs: the one that runs already, or one that is started, flushed and ended with the job.

An agent that is started is handed sockets that listen already, as systemd hands them over: what the command writes before the
agent is ready waits there.
"""

import contextlib
import http.client
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from agent import config
from agent.cli.commands.flush import LONGEST
from agent.cli.views.words import amount
from agent.config import DEFAULT_URL, SOCKET_PATH_LIMIT, Config
from agent.control.client import ControlClient, DeniedError, SilentError, UnansweredError
from agent.control.schema import StatusReport
from agent.errors import AgentError, NotRunningError, StorageError
from agent.ingest import sockets

SHORTEST_SECONDS = 0.1
DURABLE_SECONDS = 0.9  # for a commit, which takes milliseconds: it hangs
PROGRESS_SECONDS = 15.0
GRACE_SECONDS = 2.0
HURRY_SECONDS = 0.2  # between two SIGTERMs that are to be two
NO_PROXY = ("NO_PROXY", "no_proxy")
CLIENT_TOKENS = ("TURBO_TOKEN", "VERCEL_ARTIFACTS_TOKEN")
BACKLOG = 4096  # connections; the system's own limit may be lower
# What the supervisor of this process has set is not for another one.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
LOG = "agent.log"  # in the spool
_LONGEST_NAME = "artifacts-agent-12345678/control.sock"


class JobAgent:
    """An agent that runs, behind the control socket at `control`; `variables` are for the command."""

    without_front = "the agent has no front on a port: set http.listen and front.enabled"

    def __init__(self, control: Path, stream: Path | None, status: StatusReport | None = None) -> None:
        """Without a `status` it has not answered so far."""
        self.control = control
        self.stream = stream
        self.variables: dict[str, str] = {}
        self._status = status
        if stream is not None:
            self.variables["ARTIFACTS_AGENT_SOCKET"] = str(stream)

    @property
    def place(self) -> str:
        """Where events wait."""
        return "the queue of the agent"

    def end(self, seconds: float | None) -> str | None:
        """Wait until everything written before is on disk, or for up to `seconds` until it is delivered.

        Return what to say of what is left. Raises AgentError.
        """
        control = ControlClient(self.control)
        if seconds is None:
            flushed = control.flush(DURABLE_SECONDS, until="durable", grace=SHORTEST_SECONDS)
            if flushed is None or not flushed.in_time:
                return "the agent does not answer: what was sent waits in its socket until it does"
            return None
        flushed = control.flush(min(seconds, LONGEST))
        if flushed is None:
            raise AgentError(f"the agent does not answer: {self.control}")
        if not (queued := flushed.report.queued):
            return None
        why = f": {flushed.verdict.held_up}" if flushed.verdict.held_up else ""
        return f"{amount(queued, 'event')} not delivered yet: still in {self.place}, which goes on{why}"

    def wait_until_ready(self, until: float) -> bool:
        """Return whether it answers, at `until` on the steady clock at the latest. Raises AgentError if it never will."""
        return self._status is not None

    def use_proxy(self, environ: Mapping[str, str], until: float, *, on_purpose: bool) -> None:
        """Add the address of the front to `variables`. Raises AgentError if clients would fare worse with it than without.

        TURBO_API in `environ` is what clients go by now. `on_purpose` says whether api.url was set at all: without either, nobody
        has said that the server is the one that clients use.
        """
        front = self._front(until)
        if front.address is None:
            raise AgentError(self.without_front)
        wanted = environ.get("TURBO_API", "").rstrip("/")
        if not wanted and not on_purpose and front.url == DEFAULT_URL:
            raise AgentError(f"api.url is not set: set it to the server that clients use, {DEFAULT_URL} for example")
        if wanted and wanted not in {front.url, f"http://{front.address}"}:
            raise AgentError(
                f"the agent delivers to {front.url}, but TURBO_API or turbo's configuration names another server"
            )
        _try_as_client(front.address, environ, _up_to(until))
        self.variables.update(_without_proxy(environ, front.address), TURBO_API=f"http://{front.address}")

    def _front(self, until: float) -> "_Front":
        status = self._status or ControlClient(self.control, _up_to(until)).status()
        listening, api = status.http, status.api
        return _Front(listening.listen if listening and listening.forwards else None, api.url if api else None)


class _Front(NamedTuple):
    """Where a front is, and where it passes requests on to."""

    address: str | None
    url: str | None


class GuestAgent(JobAgent):
    """An agent of another user, to whom this one may send, and whom it may not ask: the configuration says where it is."""

    def __init__(self, settings: Config) -> None:
        super().__init__(settings.listen.control, settings.listen.stream)
        address = settings.http.listen if settings.front.enabled else None
        self._known = _Front(address, settings.api.url)

    def end(self, seconds: float | None) -> str | None:
        """Leave the rest to the agent: this user may not have it flush."""
        return None

    def wait_until_ready(self, until: float) -> bool:
        """Take its word for it."""
        return True

    def _front(self, until: float) -> _Front:
        """Return where the front is said to be, if that is the agent's: anybody may have taken a port that it has left.

        Raises AgentError. An agent that can be asked vouches for its port itself.
        """
        address = self._known.address
        if address is not None:
            try:
                trusted = {0, self.control.stat().st_uid}  # the port may be systemd's
            except OSError as error:
                raise AgentError(f"{self.control}: whose agent it is cannot be seen: {error.strerror}") from error
            uids = sockets.listening_uids(address)
            if not uids:
                raise AgentError(f"the front does not answer: nobody listens at {address}")
            if not uids <= trusted:
                raise AgentError(f"the agent's port {address} is taken by another user, {max(uids - trusted)}")
        return self._known


def find(settings: Config, until: float) -> JobAgent | None:
    """Return the agent that runs with this configuration; None if none does.

    One that is there and has not answered after half of the time up to `until`, on the steady clock, keeps what is written to it.
    Raises AgentError if it is no agent.
    """
    control = settings.listen.control
    try:
        return JobAgent(control, settings.listen.stream, ControlClient(control, _up_to(until) / 2).status())
    except DeniedError:
        return GuestAgent(settings)
    except SilentError:
        return JobAgent(control, settings.listen.stream)
    except UnansweredError:
        raise
    except NotRunningError:
        return None


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
        self._ready = False
        # So that `artifacts-agent flush` or another `exec` in the job find it.
        self.variables["ARTIFACTS_AGENT_LISTEN_CONTROL"] = str(self.control)

    @property
    def place(self) -> str:
        return str(self.spool)

    def wait_until_ready(self, until: float) -> bool:
        if self._ready:
            return True
        ended = os.pidfd_open(self._process.pid)
        waiting_for = [self._notify.fileno(), ended]
        try:
            while readable := select.select(waiting_for, [], [], max(until - time.monotonic(), 0.0))[0]:
                if self._notify.fileno() not in readable:
                    raise AgentError(f"it did not start: {self._discard()}")
                if b"READY=1" in self._notify.recv(4096).splitlines():
                    self._ready = True
                    return True
            return False
        finally:
            os.close(ended)

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
        control, flushed = ControlClient(self.control), None
        until = time.monotonic() + (GRACE_SECONDS if seconds is None else seconds)
        with contextlib.suppress(AgentError):  # the spool says what is left
            if seconds is None:
                flushed = control.flush(PROGRESS_SECONDS, until="stalled", grace=DURABLE_SECONDS)
            else:
                flushed = control.flush(min(seconds, LONGEST))
        # What of its own is not delivered now is not waited for again; spools that it has adopted may take what time is left.
        delivered = flushed is not None and flushed.in_time
        self.stop(max(until - time.monotonic(), HURRY_SECONDS) if delivered else HURRY_SECONDS)
        if self._process.returncode is None:
            return f"the agent does not stop; what it has not delivered is in {self.spool}"
        try:
            return _tidy(self.spool)
        except (OSError, StorageError) as error:
            return f"{self.spool} stays: {error}"

    def stop(self, seconds: float) -> None:
        """Ask the agent to stop, after `seconds` to hurry; then let it go."""
        for patience in (seconds, GRACE_SECONDS):
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
                break
        self.let_go()
        _remove_all(self.control.parent)  # an agent that was killed has left its sockets

    def let_go(self) -> None:
        """End the agent without waiting for it: it drains first."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            self._notify.close()


def start(settings: Config, path: Path | None, environ: Mapping[str, str]) -> StartedAgent:
    """Start an agent for a job; return before it is ready. Raises AgentError or OSError: then nothing is left of it."""
    from agent.queue.filesystem import OsFilesystem

    state = config.state_directory(environ, os.geteuid())
    parent = settings.queue.adopt or (state and state / "spools")
    if parent is None:
        raise AgentError("no directory for its spool: set HOME, or queue.adopt")
    spool, runtime = parent / secrets.token_hex(8), _runtime_directory(environ)
    try:
        OsFilesystem().make_directory(spool)
        has_token = config.read_token(settings, environ) is not None
        return _launch(spool, runtime, path, _environment(settings, environ, spool, runtime, with_front=has_token))
    except (OSError, AgentError):
        _remove_all(runtime)
        _remove_all(spool)  # it has never taken an event
        raise


def _environment(
    settings: Config, environ: Mapping[str, str], spool: Path, runtime: Path, *, with_front: bool
) -> dict[str, str]:
    """Return the environment of a job's agent; it adopts what earlier jobs have left, unless another agent is told to."""
    own = {
        "QUEUE_DIRECTORY": str(spool),
        "QUEUE_ADOPT": str(spool.parent) if settings.queue.adopt is None else "",
        "LISTEN_STREAM": str(runtime / "events.sock"),
        "LISTEN_DATAGRAM": "",
        "LISTEN_CONTROL": str(runtime / "control.sock"),
        "LISTEN_MODE": "0600",
        "LISTEN_GROUP": "",
        "HTTP_SOCKET": "",
        "HTTP_LISTEN": "127.0.0.1:0" if with_front else "",
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
    command = [sys.executable, "-P", "-m", "agent.cli", "run", "--job", str(runtime)]
    command += ["--config", str(path)] if path is not None else []
    with contextlib.ExitStack() as on_failure:
        notify = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(str(runtime / "notify.sock"))
        ours, lifeline = os.pipe()
        on_failure.callback(os.close, lifeline)
        # The agent alone has these in the end: where it is gone, clients are to be refused.
        with _listen(runtime / "control.sock") as control, _listen(runtime / "events.sock") as stream:
            passed = {"control": control.fileno(), "stream": stream.fileno()}
            command += [f"--socket={name}:{number}" for name, number in passed.items()]
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
        on_failure.pop_all()
    return StartedAgent(spool, runtime, process, lifeline, notify)


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
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("artifacts-agent: ") if lines else "it said nothing"


def _runtime_directory(environ: Mapping[str, str]) -> Path:
    """Make a private directory for sockets, whose paths must be short."""
    candidates = [environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]  # noqa: S108 - made by mkdtemp, for this user alone
    parents = [parent for parent in candidates if parent.startswith("/") and os.access(parent, os.W_OK | os.X_OK)]
    short = [parent for parent in parents if len(os.fsencode(parent)) + len(_LONGEST_NAME) < SOCKET_PATH_LIMIT]
    if not short:
        raise AgentError("no directory for its sockets: set XDG_RUNTIME_DIR or TMPDIR")
    return Path(tempfile.mkdtemp(prefix="artifacts-agent-", dir=short[0]))


def _tidy(directory: Path) -> str | None:
    """Remove the spool of an agent that has ended, if it is settled; else return what is left in it."""
    from agent.queue.filesystem import OsFilesystem
    from agent.queue.lock import LOCK
    from agent.queue.snapshot import read_queue
    from agent.spools import identity as spool

    fs = OsFilesystem()
    try:
        lock = fs.lock(directory / LOCK, create=False)
    except FileNotFoundError:
        return None  # another agent has adopted it already
    if lock is None:
        return None  # or is about to
    try:
        ledger = read_queue(fs, directory / spool.DESTINATION).cursor.ledger()
        if ledger.queued:
            taker = f"an agent with queue.adopt = {str(directory.parent)!r} will deliver them"
            return f"{amount(ledger.queued, 'event')} not delivered yet, in {directory}: {taker}"
        if (kept := spool.kept_in(fs, directory)) is not None:
            return f"{directory} stays because of {kept}"
        if (other := spool.waiting_for(fs, directory)) is not None:
            return f"{directory} stays, for the next agent, until {other} can go"
        spool.remove(fs, directory)
    finally:
        lock.release()
    dropped = sum(ledger.dropped.values())
    return f"{amount(dropped, 'event')} dropped: {', '.join(ledger.dropped)}" if dropped else None


def _without_proxy(environ: Mapping[str, str], address: str) -> dict[str, str]:
    """Return NO_PROXY and no_proxy with the front's host: clients would hand what they send, the token, to a proxy.

    Some read only one of them, so that each has what the other one said.
    """
    host = address.rpartition(":")[0].strip("[]")
    upper, lower = (environ.get(name, "") for name in NO_PROXY)
    values = (upper or lower, lower or upper)
    listed = [{entry.strip() for entry in value.split(",")} for value in values]
    return {
        name: value if {host, "*"} & entries else f"{value},{host}".lstrip(",")
        for name, value, entries in zip(NO_PROXY, values, listed, strict=True)
    }


def _up_to(until: float) -> float:
    """Return how long something may take that is to be over at `until`: not too short for an agent that is well."""
    return max(until - time.monotonic(), SHORTEST_SECONDS)


def _remove_all(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def _try_as_client(address: str, environ: Mapping[str, str], seconds: float) -> None:
    """Send no event as the job's clients would. Raises AgentError if they would be refused."""
    tokens = {name: environ[name] for name in CLIENT_TOKENS if environ.get(name)}
    if not tokens:
        raise AgentError("TURBO_TOKEN is not set, and clients of the front have to send it")
    for name, token in tokens.items():  # which one they prefer depends on their version
        _try_token(address, environ, seconds, name, token)


def _try_token(address: str, environ: Mapping[str, str], seconds: float, variable: str, token: str) -> None:
    names = {"TURBO_TEAMID": "teamId", "TURBO_TEAM": "slug"}
    query = urlencode({key: environ[name] for name, key in names.items() if environ.get(name)})
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection = http.client.HTTPConnection(address, timeout=seconds)
    try:
        connection.request("POST", f"/v8/artifacts/events?{query}", b"[]", headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == http.client.UNAUTHORIZED:
            raise AgentError(f"{variable} is not the token that the agent expects of its clients")
        if answer.status != http.client.OK:
            raise AgentError(f"the agent would refuse this job's events: {json.loads(body)['error']['message']}")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise AgentError(f"the front does not answer: {error}") from error
    finally:
        connection.close()
