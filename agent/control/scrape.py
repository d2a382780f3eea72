"""The metrics for whoever may not use the control socket: three requests on sockets of their own, and nothing else.

Anybody on this machine can connect to a port, and an answer costs some work and a sync of the disk. So an answer is found once in
ANSWER_SECONDS, and everybody who asks meanwhile gets the same.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from agent.control.router import Route, Router
from agent.http.server import Exchange, Head, Request, Response, Server
from agent.ingest.sockets import BoundSocket

MAX_CONNECTIONS = 16
ANSWER_SECONDS = 1.0


@dataclass
class _Known:
    """The last answer to a request, and until when it is given to others."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    response: Response | None = None
    until: float = 0.0


class ScrapeListener:
    """Serves routes that take nothing but a GET on the sockets in `bound`, on each kind with at most MAX_CONNECTIONS."""

    def __init__(self, bound: Sequence[BoundSocket], routes: Sequence[Route]) -> None:
        self._bound = bound
        self._router = Router(routes)
        # Two servers, so that who is connected over TCP takes no place from a scraper on the Unix socket.
        self._unix, self._tcp = (Server(MAX_CONNECTIONS) for _ in range(2))
        self._known = {route.path: _Known() for route in routes}

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._unix.connections + self._tcp.connections

    async def serve(self) -> None:
        """Answer until cancelled; whoever opened the sockets closes them."""
        async with anyio.create_task_group() as tasks:
            for each in self._bound:
                server = self._unix if each.socket.family == socket.AF_UNIX else self._tcp
                tasks.start_soon(server.serve, each.socket, self._handle)

    async def _handle(self, exchange: Exchange) -> None:
        if exchange.head.length != 0:
            exchange.end_after_answer()  # nobody reads the body
        await exchange.answer(await self.answer(exchange.head))

    async def answer(self, head: Head) -> Response:
        """Return an answer that is no older than ANSWER_SECONDS; one of each kind is looked for at a time."""
        request = Request(head.method, head.path, {}, {})
        known = self._known.get(head.path) if head.method == "GET" else None
        if known is None:
            return await self._router.handle(request)
        async with known.lock:
            if known.response is None or anyio.current_time() >= known.until:
                known.response = await self._router.handle(request)
                known.until = anyio.current_time() + ANSWER_SECONDS
            return known.response
