"""A small server of the API: what it answers can be changed at any time, and it counts what it has recorded.

It has the API's two requests that are about events, its answers and the shape of its errors, as the OpenAPI description has them.
"""

from collections import Counter
from enum import Enum
from http import HTTPStatus

import anyio
import msgspec

from agent.events import Event
from agent.http.api import EVENTS_PATH, STATUS_PATH
from agent.http.server import Request, Response

MAX_CI_CHARACTERS = 50

_decode_events = msgspec.json.Decoder(list[Event]).decode


class ApiState(Enum):
    """What requests with events get, as status and message, and what the server says of the account."""

    HEALTHY = (200, "", "enabled")
    DOWN = (503, "Down for maintenance", "enabled")
    BLOCKED = (402, "The account is missing a payment", "paused")

    def __init__(self, status: int, message: str, account: str) -> None:
        self.status = status
        self.message = message
        self.account = account


class DemoApi:
    """The server's state; `handle` is for `agent.http.server.serve`. `delay` and `retry_after` are in seconds.

    `recorded` counts the events; `accepted` and `refused` count requests. Events with the hash `poison` are refused.
    """

    def __init__(self, token: str, *, delay: float = 0.0, retry_after: int = 1) -> None:
        self.state = ApiState.HEALTHY
        self.poison: str | None = None
        self.recorded: Counter[Event] = Counter()
        self.accepted = 0
        self.refused = 0
        self._token = token
        self._delay = delay
        self._retry_after = retry_after

    async def handle(self, request: Request) -> Response:
        """Answer a request after the delay, and count the answer if it was about events."""
        await anyio.sleep(self._delay)
        match request.method, request.path:
            case "GET", path if path == STATUS_PATH:
                return self._refusal(request) or Response.json({"status": self.state.account})
            case "POST", path if path == EVENTS_PATH:
                answer = self._refusal(request) or self._record(request)
            case _:
                return _error(HTTPStatus.NOT_FOUND, f"No route {request.method} {request.path}")
        self.accepted += answer.status == HTTPStatus.OK
        self.refused += answer.status != HTTPStatus.OK
        return answer

    def _refusal(self, request: Request) -> Response | None:
        """Return what stands against any request now: the outage, a wrong token, the block of the account."""
        if self.state is ApiState.DOWN:
            return _error(HTTPStatus(self.state.status), self.state.message, ("retry-after", str(self._retry_after)))
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return _error(HTTPStatus.UNAUTHORIZED, "The request is not authorized")
        if self.state is ApiState.BLOCKED and request.path == EVENTS_PATH:
            return _error(HTTPStatus(self.state.status), self.state.message)
        return None

    def _record(self, request: Request) -> Response:
        try:
            _check_headers(request)
            events = _decode_events(request.body)
            self._check_hashes(events)
        except ValueError as error:  # msgspec's errors are ValueErrors
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        self.recorded.update(events)
        return Response.json({})

    def _check_hashes(self, events: list[Event]) -> None:
        if any(event.hash == self.poison for event in events):
            raise ValueError(f"The hash {self.poison} is not valid")


def _check_headers(request: Request) -> None:
    if len(request.headers.get("x-artifact-client-ci", "")) > MAX_CI_CHARACTERS:
        raise ValueError(f"x-artifact-client-ci may have {MAX_CI_CHARACTERS} characters")
    if request.headers.get("x-artifact-client-interactive", "0") not in {"0", "1"}:
        raise ValueError("x-artifact-client-interactive is 0 or 1")


def _error(status: HTTPStatus, message: str, *headers: tuple[str, str]) -> Response:
    answer = Response.error(status, status.phrase.lower().replace(" ", "_"), message)
    return Response(status, answer.body, headers=list(headers))
