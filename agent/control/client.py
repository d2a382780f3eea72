"""Asking the daemon: the control socket's requests, as methods.

A connection is made for each request. It is the standard library's: to import httpx takes longer than most answers.
"""

import contextlib
import http.client
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from agent.control.schema import (
    VERDICT_HEADER,
    FlushVerdict,
    Readiness,
    Reloaded,
    Resumed,
    StatusReport,
    decode_status,
)
from agent.errors import AgentError, ConfigError, DeadlineError, NotRunningError, StorageError
from agent.queue.barrier import FlushReport

TIMEOUT_SECONDS = 10.0
# The daemon keeps the deadline of a flush; this is for one that does not answer at all.
GRACE_SECONDS = 2.0
# A session is searched for in the queue whatever the deadline.
SEARCH_SECONDS = 60.0
# Whole queues are read and written for some answers; a daemon that is stuck shows at the first, short question.
LONG_SECONDS = 3600.0

_HOW_TO_START = (
    "start it with `artifacts-agent run`, or `systemctl start artifacts-agent`, or name the configuration with --config"
)
_ERRORS: dict[int, type[AgentError]] = {504: DeadlineError, 507: StorageError}

T = TypeVar("T")


class DeniedError(NotRunningError):
    """There may be a daemon, which this user may not ask."""


class UnansweredError(NotRunningError):
    """Somebody holds the control socket, and gives no answer."""


class SilentError(UnansweredError):
    """No answer came in time."""


class Flushed(NamedTuple):
    """The answer to a flush: `text` is the report as it came, `verdict` what has happened since the call."""

    in_time: bool
    text: str
    report: FlushReport
    verdict: FlushVerdict


class ControlClient:
    """Asks the daemon behind the control socket at `path`; `seconds` is how long a short answer may take.

    `passed_over` are the places that were looked at before, for the message where no daemon answers.
    Every method raises NotRunningError if no daemon answers: DeniedError if this user may not ask it, UnansweredError if there
    is somebody who does not answer. An answer that is not understood is an AgentError.
    """

    def __init__(self, path: Path, seconds: float = TIMEOUT_SECONDS, *, passed_over: Sequence[Path] = ()) -> None:
        self._path = path
        self._seconds = seconds
        self._elsewhere = f", and there is none at {' or '.join(map(str, passed_over))}" if passed_over else ""

    def status(self) -> StatusReport:
        """Return how the daemon is doing."""
        return self.status_and_json()[0]

    def status_and_json(self) -> tuple[StatusReport, str]:
        """Return how the daemon is doing, and the answer as it came, with what only a newer daemon says."""
        answer = self._request("GET", "/status", self._seconds)
        if answer.status == 200:
            with contextlib.suppress(ValueError):
                return decode_status(answer.body), answer.body.decode()
        raise self._unexpected("GET /status", answer)

    def metrics(self) -> str:
        """Return the metrics as Prometheus text."""
        return self._ask("GET", "/metrics").decode(errors="replace")

    def healthy(self) -> bool:
        """Tell whether events can be accepted and persisted now."""
        answer = self._request("GET", "/healthz", self._seconds)
        if answer.status not in {200, 503}:
            raise self._unexpected("GET /healthz", answer)
        return answer.status == 200

    def readiness(self) -> Readiness:
        """Return whether events can be delivered now, and if not, why."""
        answer = self._request("GET", "/readyz", self._seconds)
        if answer.status in {200, 503}:
            with contextlib.suppress(ValueError):
                return msgspec.json.decode(answer.body, type=Readiness)
        raise self._unexpected("GET /readyz", answer)

    def flush(
        self,
        seconds: float,
        session: str | None = None,
        *,
        until: Literal["durable", "stalled"] | None = None,
        destinations: Sequence[str] = (),
        job: str | None = None,
        grace: float = GRACE_SECONDS,
    ) -> Flushed | None:
        """Wait until everything written before, or all of a session, has left the queue of these destinations, or all queues.

        With the label of a `job`, they are those to which its events have come; the others only where it is not known.

        `until` waits for less: see `agent.control.flush_routes`. None if no answer has come `grace` seconds after the deadline.
        """
        target, patience = f"/flush?deadline={seconds!r}", seconds + grace
        if until is not None:
            target += f"&until={until}"
        if destinations:
            target += f"&destination={quote(','.join(destinations))}"
        if job is not None:
            target += f"&job={quote(job, safe='')}"
        if session is not None:
            target, patience = f"{target}&session={quote(session, safe='')}", patience + SEARCH_SECONDS
        try:
            answer = self._request("POST", target, patience)
        except SilentError:
            return None
        if answer.status == 400:
            raise AgentError(f"{self._path}: {self._complaint('POST /flush', answer)}")
        try:
            report = msgspec.json.decode(answer.body, type=FlushReport)
            verdict = msgspec.json.decode(answer.verdict, type=FlushVerdict)
        except ValueError as error:
            raise self._unexpected("POST /flush", answer) from error
        return Flushed(answer.status == 200, answer.body.decode(), report, verdict)

    def pause(self, destinations: Sequence[str] = ()) -> None:
        """Stop delivery, to these destinations or to all."""
        self.ask("POST", f"/pause{_about(destinations)}", Resumed, seconds=self._seconds)

    def resume(self, destinations: Sequence[str] = ()) -> Resumed:
        """Let delivery go on, to these destinations or to all."""
        return self.ask("POST", f"/resume{_about(destinations)}", Resumed, seconds=self._seconds)

    def reload(self) -> Reloaded:
        """Have configuration and tokens read again. Raises ConfigError if they are refused."""
        return self.ask("POST", "/reload", Reloaded, seconds=self._seconds)

    def ask(
        self, method: str, target: str, kind: type[T], *, body: bytes | None = None, seconds: float = LONG_SECONDS
    ) -> T:
        """Return an answer that may take long, as `kind`.

        Raises ConfigError, DeadlineError, StorageError or AgentError with its message.
        """
        answer = self._request(method, target, seconds, body)
        wanted = f"{method} {target.partition('?')[0]}"
        if answer.status == 404:
            raise AgentError(f"{self._path}: the daemon knows no {wanted}: it is older than this command: restart it")
        try:
            if answer.status == 200:
                return msgspec.json.decode(answer.body, type=kind)
        except ValueError as error:
            raise self._unexpected(wanted, answer) from error
        message = self._complaint(wanted, answer)
        if answer.status == 422:  # it names the file already
            raise ConfigError(message)
        raise _ERRORS.get(answer.status, AgentError)(f"{self._path}: {message}")

    def _complaint(self, wanted: str, answer: "_Answer") -> str:
        """Return what an answer that is an error says."""
        try:
            return msgspec.json.decode(answer.body, type=_Refusal).error.message
        except ValueError:
            return f"{wanted} got {answer.status}: does listen.control name the right socket?"

    def _ask(self, method: str, target: str) -> bytes:
        answer = self._request(method, target, self._seconds)
        if answer.status != 200:
            raise self._unexpected(f"{method} {target}", answer)
        return answer.body

    def _unexpected(self, wanted: str, answer: "_Answer") -> AgentError:
        where = "does listen.control name the right socket, of a daemon that is as new as this command?"
        return AgentError(f"{self._path}: {wanted} got {answer.status}: {where}")

    def _request(self, method: str, target: str, seconds: float, body: bytes | None = None) -> "_Answer":
        with contextlib.closing(_UnixConnection(self._path, seconds)) as connection:
            try:
                connection.connect()
            except PermissionError as error:
                advice = "run it as the daemon's user, or as root"
                reason = f"this user may not ask the daemon ({error.strerror}){self._elsewhere}: {advice}"
                raise DeniedError(f"{self._path}: {reason}") from error
            except OSError as error:
                nobody = isinstance(error, FileNotFoundError | ConnectionRefusedError)
                kind = NotRunningError if nobody else UnansweredError
                reason = f"no daemon answers there ({error.strerror or error}){self._elsewhere}: {_HOW_TO_START}"
                raise kind(f"{self._path}: {reason}") from error
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before the end
                    connection.request(method, target, body)
                answer = connection.getresponse()
                return _Answer(answer.status, answer.headers.get(VERDICT_HEADER, ""), answer.read())
            except TimeoutError as error:
                reason = "the daemon is stopped, or its disk hangs; look at its process and its logs"
                raise SilentError(f"{self._path}: no answer within {seconds:g} s: {reason}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = f"the connection ended before the answer: the daemon has stopped; {_HOW_TO_START}"
                raise UnansweredError(f"{self._path}: {reason}") from error


def _about(destinations: Sequence[str]) -> str:
    return f"?destination={quote(','.join(destinations))}" if destinations else ""


class _Answer(NamedTuple):
    status: int
    verdict: str
    body: bytes


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    """An error in the API's shape."""

    error: _Error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("agent", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
