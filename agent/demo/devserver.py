"""The `devserver` command: the demo's API alone, on loopback, which shows what it receives. For authors of build tools."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus

import anyio
import msgspec
from msgspec import UNSET

from agent.demo.api import DemoApi
from agent.errors import AgentError, ListenError
from agent.events import Event
from agent.http.api import EVENTS_PATH, STATUS_PATH
from agent.http.server import Exchange, Request, Response, Server, buffered

ARTIFACTS_PATH = "/v8/artifacts/"
MAX_CONNECTIONS = 256
EXAMPLE = Event("7b0e1a52-91a4-4c0e-8f6d-0d6a3c1f5e42", "LOCAL", "HIT", "115c7929ab9c479c", 514)


class DevServer:
    """The API's server; `say` takes a line to show, in which there may be anything. `totals` has the sum so far."""

    def __init__(self, token: str, say: Callable[[str], None]) -> None:
        self._api = DemoApi(token)
        self._say = say
        self._events: Counter[str] = Counter()
        self._saved = 0.0
        self._answer = buffered(self._handle)

    @property
    def totals(self) -> str:
        """The events and requests so far, and the time that hits have saved."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self._events.items()))
        events = f"{_count(self._events.total(), 'event')} in {_count(self._api.accepted, 'request')}"
        refused = f"; {_count(self._api.refused, 'request')} refused" if self._api.refused else ""
        return f"{events}{f': {kinds}; {_seconds(self._saved)} saved' if kinds else ''}{refused}"

    async def serve(self, listening: socket.socket) -> None:
        """Answer requests until cancelled."""
        await Server(MAX_CONNECTIONS).serve(listening, self._exchange)

    async def _exchange(self, exchange: Exchange) -> None:
        head = exchange.head
        if head.method == "PUT" and head.path.startswith(ARTIFACTS_PATH):
            while await exchange.read():  # an artifact may be large, and is not kept
                pass
            await exchange.answer(Response.json({"urls": []}, HTTPStatus.ACCEPTED))
        else:
            await self._answer(exchange)

    async def _handle(self, request: Request) -> Response:
        answer = await self._api.handle(request)
        if answer.status != HTTPStatus.OK:
            self._show_refusal(request, answer)
        elif request.path == EVENTS_PATH:
            self._show_events(request)
        return answer

    def _show_refusal(self, request: Request, answer: Response) -> None:
        if request.path not in {EVENTS_PATH, STATUS_PATH} and request.method in {"GET", "HEAD"}:
            return  # such as a look for an artifact, which there never is
        message = msgspec.json.decode(answer.body)["error"]["message"]
        self._say(f"{_now()}  {request.method} {request.path}: {answer.status} {message}")

    def _show_events(self, request: Request) -> None:
        events = msgspec.json.decode(request.body, type=list[Event])
        self._say(f"{_now()}  {_count(len(events), 'event')}; {_context(request)}")
        for event in events:
            self._events[f"{event.source} {event.event}"] += 1
            saved = 0 if event.duration is UNSET else event.duration
            self._saved += saved if event.event == "HIT" else 0
            duration = "no duration" if event.duration is UNSET else f"duration {saved:,} ms"
            self._say(f"  {event.source:<6} {event.event:<4}  {event.hash}  {duration}  session {event.session_id}")
        self._say(f"  total: {self.totals}")


def run(port: int, token: str, say: Callable[..., None]) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM, and end with the totals.

    Raises ListenError if the port cannot be opened, and what `say` raises.
    """
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # its own text names the address once more
        raise ListenError(
            f"127.0.0.1:{port}: cannot listen: {reason}: choose another --port, or leave it out"
        ) from error
    with listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if (ended := anyio.run(_serve, listening, token, introduction(url, token).splitlines(), say)) is not None:
            raise ended


async def _serve(
    listening: socket.socket, token: str, first: Sequence[str], say: Callable[..., None]
) -> SystemExit | AgentError | None:
    """Serve until a signal, or until `say` raises: then return what it has raised."""
    ended = None

    def show(*lines: str) -> None:
        nonlocal ended
        try:
            say(*lines)
        except (SystemExit, AgentError) as error:  # raised here, it would become the group's, and asyncio would log it
            ended = error
            tasks.cancel_scope.cancel()

    server = DevServer(token, show)
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with anyio.create_task_group() as tasks:
            show(*first)
            tasks.start_soon(server.serve, listening)
            async for _ in signals:
                show("", f"Received {server.totals}.")
                tasks.cancel_scope.cancel()
    return ended


def introduction(url: str, token: str) -> str:
    """Return what there is, and how to try it."""
    return f"""\
The API is at {url}, and its token is {token}
It takes usage events and shows them. Artifacts are not kept: every build misses the remote cache.

One event:
  curl {url}{EVENTS_PATH} -H 'Authorization: Bearer {token}' \\
    -H 'Content-Type: application/json' -d '[{msgspec.json.encode(EXAMPLE).decode()}]'

Turborepo:
  export TURBO_API={url} TURBO_TOKEN={token} TURBO_TEAM=dev
  turbo run build                            (straight to this server)
  artifacts-agent exec -- turbo run build    (through the agent)

"duration" is in milliseconds: the time that a hit saved, 0 on a miss. Ctrl-C ends the server.
"""


def _context(request: Request) -> str:
    """Return what a request says of its sender, from headers and query."""
    headers, query = request.headers, request.query
    facts = {
        "ci": headers.get("x-artifact-client-ci"),
        "interactive": headers.get("x-artifact-client-interactive"),
        "team": query.get("teamId") or query.get("slug"),
    }
    return ", ".join(f"{name} {value or 'not given'}" for name, value in facts.items())


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:,.3f} s"


def _now() -> str:
    return time.strftime("%H:%M:%S")
