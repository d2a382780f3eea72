"""Asking the daemon: the control socket's requests, as methods.

It knows the requests of `agent.control.routes` and httpx. It must never know what is done with the answers.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from agent.errors import AgentError, DeadlineError, NotRunningError, StorageError
from agent.queue.barrier import FlushReport

TIMEOUT_SECONDS = 10.0
# The daemon keeps the deadline; this is for one that does not answer at all.
GRACE_SECONDS = 2.0
# What is in the queue of a session is found out whatever the deadline.
SEARCH_SECONDS = 60.0

_HOW_TO_START = (
    "start it with `artifacts-agent run`, or `systemctl start artifacts-agent`, or name the configuration with --config"
)


T = TypeVar("T")

# Whole queues are read and written for some answers; a daemon that is stuck shows at the first, short question.
LONG_SECONDS = 3600.0

_ERRORS: dict[int, type[AgentError]] = {504: DeadlineError, 507: StorageError}


class Answer(NamedTuple):
    """What the daemon answered: `text` is the JSON as it came, `value` what it holds."""

    status: int
    text: str
    value: dict[str, Any]


class Flushed(NamedTuple):
    """What a flush came to: `text` is the report as it came, `verdict` what has happened since the call."""

    in_time: bool
    text: str
    report: FlushReport
    verdict: FlushReport


class ControlClient:
    """Talks to the daemon behind the control socket at `path`. Every method raises NotRunningError if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # No TLS here: reading the system's certificates would take longer than most answers.
        transport = httpx.HTTPTransport(uds=str(path), verify=False)
        self._client = httpx.Client(transport=transport, base_url="http://agent", trust_env=False)

    def status(self) -> Answer:
        """Return how the daemon is doing."""
        return self._ask("GET", "/status")

    def flush(self, seconds: float, session: str | None = None) -> Flushed | None:
        """Wait until everything written before, or all of a session, has left the queue; None for no answer, well after that."""
        target, patience = f"/flush?deadline={seconds!r}", seconds + GRACE_SECONDS
        if session is not None:
            target, patience = f"{target}&session={quote(session, safe='')}", patience + SEARCH_SECONDS
        try:
            response = self._request("POST", target, patience)
        except _SilentError:
            return None
        try:
            report = msgspec.json.decode(response.content, type=FlushReport)
            verdict = msgspec.json.decode(response.headers["artifacts-agent-flush"], type=FlushReport)
        except (KeyError, msgspec.DecodeError, UnicodeDecodeError):
            return self._refuse("POST /flush", response)
        return Flushed(response.status_code == 200, response.text, report, verdict)

    def pause(self) -> None:
        """Stop delivery."""
        self._ask("POST", "/pause")

    def resume(self) -> None:
        """Let delivery go on."""
        self._ask("POST", "/resume")

    def ask(self, method: str, target: str, kind: type[T], *, body: bytes | None = None) -> T:
        """Return what the daemon answers, as `kind`. Raises DeadlineError, StorageError or AgentError with its message."""
        response = self._request(method, target, LONG_SECONDS, body)
        wanted = f"{method} {target.partition('?')[0]}"
        if response.status_code == 404:
            raise AgentError(f"{self._path}: the daemon knows no {wanted}: it is older than this command: restart it")
        try:
            if response.status_code == 200:
                return msgspec.json.decode(response.content, type=kind)
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{wanted} got {response.status_code}: does listen.control name the right socket?"
        raise _ERRORS.get(response.status_code, AgentError)(f"{self._path}: {message}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self._client.close()

    def _ask(self, method: str, target: str) -> Answer:
        response = self._request(method, target, TIMEOUT_SECONDS)
        try:
            value = response.json()
        except ValueError:
            value = None
        if response.status_code != 200 or not isinstance(value, dict):
            self._refuse(f"{method} {target.partition('?')[0]}", response)
        return Answer(response.status_code, response.text, value)

    def _refuse(self, wanted: str, response: httpx.Response) -> NoReturn:
        where = "does listen.control name the right socket, of a daemon that is as new as this command?"
        raise AgentError(f"{self._path}: {wanted} got {response.status_code}: {where}")

    def _request(self, method: str, target: str, timeout: float, body: bytes | None = None) -> httpx.Response:
        patience = httpx.Timeout(timeout, connect=TIMEOUT_SECONDS)
        try:
            return self._client.request(method, target, content=body, timeout=patience)
        except httpx.TimeoutException as error:
            raise _SilentError(
                f"{self._path}: no answer within {timeout:g} s: the daemon is stopped, or its disk hangs; "
                "look at its process and its logs"
            ) from error
        except httpx.ConnectError as error:
            kind = DeniedError if isinstance(_system_error(error), PermissionError) else NotRunningError
            raise kind(f"{self._path}: {_why_not(error)}") from error
        except httpx.TransportError as error:
            raise NotRunningError(
                f"{self._path}: the connection ended before the answer: the daemon has stopped; {_HOW_TO_START}"
            ) from error


class DeniedError(NotRunningError):
    """There may be a daemon, which this user may not ask."""


class _SilentError(NotRunningError):
    """Somebody listens, and does not answer in time."""


def _why_not(error: httpx.ConnectError) -> str:
    cause = _system_error(error)
    if isinstance(cause, PermissionError):
        return "this user may not ask the daemon (Permission denied): run it as the daemon's user, or as root"
    reason = cause.strerror if cause is not None and cause.strerror else error
    return f"no daemon answers there ({reason}): {_HOW_TO_START}"


def _system_error(error: BaseException | None) -> OSError | None:
    """Find the operating system's error that httpx and httpcore have wrapped."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
