"""The agent of a job that `exec` runs: one that runs already. `agent.cli.job.started` has the one that is started for it."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from agent.cli.commands.flush import LONGEST
from agent.cli.views.words import amount
from agent.client.ci import JOB_VARIABLE
from agent.config import DEFAULT_URL, Config, Places
from agent.errors import AgentError, NotRunningError
from agent.ingest import owners
from agent.ingest.job_path import job_path, without_job
from agent.rules import Sender

if TYPE_CHECKING:  # what an agent is asked with is imported when there is one, and mostly after the command has started
    from agent.control.schema import StatusReport

if TYPE_CHECKING:
    from agent.usage.counting import Totals

SHORTEST_SECONDS = 0.1
DURABLE_SECONDS = 0.9  # for a commit, which takes milliseconds: it hangs
NO_PROXY = ("NO_PROXY", "no_proxy")
CLIENT_TOKENS = ("TURBO_TOKEN", "VERCEL_ARTIFACTS_TOKEN")


class JobAgent:
    """An agent that runs, behind the control socket at `control`; `variables` are for the command."""

    without_front = "the agent has no front on a port: set http.listen and front.enabled"

    def __init__(
        self, control: Path, stream: Path | None, status: "StatusReport | None" = None, queue: Path | None = None
    ) -> None:
        """Without a `status` it has not answered so far. `queue` is its directory, where that may be read."""
        self.control = control
        self.stream = stream
        # So that `artifacts-agent flush` or another `exec` in the job find it.
        self.variables: dict[str, str] = {"ARTIFACTS_AGENT_LISTEN_CONTROL": str(control)}
        self.usage: Totals | None = None  # of the job, once it has ended and if it is known
        self.load: Callable[[], Config] | None = None  # returns all of the job's configuration
        self._job: str | None = None
        self._queue = queue
        self._status = status
        if stream is not None:
            self.variables["ARTIFACTS_AGENT_SOCKET"] = str(stream)

    @property
    def place(self) -> str:
        """Where events wait."""
        return "the queue of the agent"

    def label(self, job: str | None) -> None:
        """Have the command's events labelled as those of a job, or of none."""
        self._job = job
        self.variables[JOB_VARIABLE] = job or ""

    def look_ahead(self) -> None:
        """Import what `count` needs while the command runs: it takes as long as counting."""
        if self._queue is not None:
            import agent.spools.identity
            import agent.usage.job  # noqa: F401

    def count(self, since: float) -> None:
        """Find out what the cache did for the job since a time (epoch), if its queue may be read. After `end`."""
        if self._job is None or self._queue is None:
            return
        from agent.queue.filesystem import OsFilesystem
        from agent.spools.identity import queues_in
        from agent.usage.job import count_job

        fs = OsFilesystem()
        with contextlib.suppress(OSError):  # as of another user's agent: a line less
            self.usage = count_job(fs, queues_in(fs, self._queue), self._job, since)

    def end(self, seconds: float | None) -> str | None:
        """Wait until everything written before is on disk, or for up to `seconds` until it is delivered.

        Return what to say of what is left. Raises AgentError.
        """
        from agent.control.client import ControlClient

        control = ControlClient(self.control)
        if seconds is None:
            flushed = control.flush(DURABLE_SECONDS, until="durable", job=self._job, grace=SHORTEST_SECONDS)
            if flushed is None or not flushed.in_time:
                return "the agent does not answer: what was sent waits in its socket until it does"
            return None
        known = self._status.destinations if self._status is not None else {}
        named: list[str] = []  # all
        if len(known) > 1 and self.load is not None:
            for_job = destinations_of(self.load(), os.environ)
            named = [name for name in for_job if name in known and known[name].state != "failed"]
        flushed = control.flush(min(seconds, LONGEST), destinations=named, job=self._job)
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
        wanted = without_job(environ.get("TURBO_API", "")).rstrip("/")
        if not wanted and not on_purpose and front.url == DEFAULT_URL:
            raise AgentError(f"api.url is not set: set it to the server that clients use, {DEFAULT_URL} for example")
        if wanted and wanted not in {front.url, f"http://{front.address}"}:
            raise AgentError(
                f"the agent delivers to {front.url}, but TURBO_API or turbo's configuration names another server"
            )
        _try_as_client(front.address, environ, time_left(until))
        path = "" if self._job is None else job_path(self._job)
        self.variables.update(_without_proxy(environ, front.address), TURBO_API=f"http://{front.address}{path}")

    def _front(self, until: float) -> "_Front":
        from agent.control.client import ControlClient

        status = self._status or ControlClient(self.control, time_left(until)).status()
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
            uids = owners.listening_uids(address)
            if not uids:
                raise AgentError(f"the front does not answer: nobody listens at {address}")
            if not uids <= trusted:
                raise AgentError(f"the agent's port {address} is taken by another user, {max(uids - trusted)}")
        return self._known


def find(places: Places, load: Callable[[], Config], until: float) -> JobAgent | None:
    """Return the agent that runs with this configuration; None if none does, or none that this user may ask or send to.

    `load` returns all of the configuration, which only an agent that may not be asked takes.

    One that is there and has not answered after half of the time up to `until`, on the steady clock, keeps what is written to it.
    Raises AgentError if it is no agent, or may be an impostor: what it vouches for gets the job's token.
    """
    control = places.control
    if problem := owners.impostor(control):
        raise AgentError(problem)
    if not _is_listened_at(control):
        return None
    from agent.control.client import ControlClient, DeniedError, SilentError, UnansweredError

    try:
        status = ControlClient(control, time_left(until) / 2).status()
        return JobAgent(control, places.stream, status, places.queue)
    except DeniedError:
        return GuestAgent(load()) if _may_send(places.stream) else None
    except SilentError:
        return JobAgent(control, places.stream, queue=places.queue)
    except UnansweredError:
        raise
    except NotRunningError:
        return None


def destinations_of(settings: Config, environ: Mapping[str, str]) -> list[str]:
    """Return where rules let this user's events go, over all sockets; none if a token may decide otherwise.

    Over HTTP they are for the team that TURBO_TEAMID or TURBO_TEAM names.
    """
    rules = settings.routing
    if settings.tokens_choose:
        return []
    uid, gids = os.geteuid(), frozenset({os.getegid(), *os.getgroups()})
    team = environ.get("TURBO_TEAMID") or None, environ.get("TURBO_TEAM") or None
    senders = [Sender("http", uid, gids, *team), Sender("tcp", None, frozenset(), *team)]
    for asked in (None, *settings.accounts):
        senders += [Sender("stream", uid, gids, asks_for=asked), Sender("datagram", uid, gids, asks_for=asked)]
    found = {rules.route(sender).destination for sender in senders}
    return [name for name in settings.accounts if name in found]


def _is_listened_at(path: Path) -> bool:
    """Tell whether somebody listens at a socket, or may: what cannot be seen is for a `ControlClient` to say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True


def _may_send(stream: Path | None) -> bool:
    return stream is None or os.access(stream, os.W_OK)


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


def time_left(until: float) -> float:
    """Return how long something may take that is to be over at `until`: not too short for an agent that is well."""
    return max(until - time.monotonic(), SHORTEST_SECONDS)


def _try_as_client(address: str, environ: Mapping[str, str], seconds: float) -> None:
    """Send no event as the job's clients would. Raises AgentError if they would be refused."""
    tokens = {name: environ[name] for name in CLIENT_TOKENS if environ.get(name)}
    if not tokens:
        raise AgentError("TURBO_TOKEN is not set, and clients of the front have to send it")
    for name, token in tokens.items():  # which one they prefer depends on their version
        _try_token(address, environ, seconds, name, token)


def _try_token(address: str, environ: Mapping[str, str], seconds: float, variable: str, token: str) -> None:
    import http.client
    import json

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
