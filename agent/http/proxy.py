"""The front: passes requests on to the real API and its answers back, unchanged, as streams (RFC 9110, 7.6).

It holds no more of a body than one piece. What breaks on one side is broken off on the other: an answer that ends too early ends
the client's connection, and a client that hangs up ends its request to the API. But a request with a body that the client
wrote to its end goes on without it for a while: the API has what it needs, be it the artifact of a build that has just ended.
"""

import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple, cast

import anyio
import httpx
import structlog

from agent.http.client import TAKE_TURN, ConnectionPool, transport_factory
from agent.http.connection import TURN_PIECES, ClientGoneError
from agent.http.server import Exchange, Response
from agent.runtime import Wakeup
from agent.throttle import Throttle

CONNECT_SECONDS = 10.0
STALL_SECONDS = 300.0
KEEP_SECONDS = 4.0  # a connection that is not used; servers of Node.js close theirs after 5 s
IDLE_CONNECTIONS = 32
LEFT_SECONDS = 30.0  # for the API to answer an upload whose client has gone
LOG_INTERVAL = 60.0

# Without it the event loop reads as much in one turn as the socket holds, several MB, and events wait for that. Elsewhere the
# network is slower than a turn, and a small buffer would make it slower still.
_SMALL_BUFFER = (socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
_TIMEOUT = {"connect": CONNECT_SECONDS, "read": STALL_SECONDS, "write": STALL_SECONDS, "pool": CONNECT_SECONDS}
_HOP_BY_HOP = {b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"}
_CHUNKED = (b"transfer-encoding", b"chunked")
_TURBO = "turbo "
METHODS = "GET, HEAD, PUT, POST, OPTIONS, PATCH, DELETE"
_WANT_ONLY_AN_ANSWER = frozenset({"GET", "HEAD", "OPTIONS"})

_Headers = list[tuple[bytes, bytes]]


class BrokenOffError(ClientGoneError):
    """The client is to find its connection ended, without an answer."""


class _Upstream(NamedTuple):
    url: httpx.URL
    connections: ConnectionPool


class Proxy:
    """Passes requests on to `url`. `answered` counts the answers, the API's and its own, by status."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError if what the environment says of proxies and certificates is unusable."""
        self.answered: Counter[int] = Counter()
        self._upstream = _open(url)
        self._former: list[_Upstream] = []
        self._idle = Wakeup()
        self._log = structlog.get_logger("agent.front")
        self._throttle = Throttle(LOG_INTERVAL)

    def prepare(self, url: str) -> Callable[[], None]:
        """Return what has later requests passed on to `url`. Raises ConfigError."""
        new = self._upstream if httpx.URL(url) == self._upstream.url else _open(url)

        def take_over() -> None:
            if new is not self._upstream:
                self._upstream.connections.keep_none()
                self._former.append(self._upstream)
                self._upstream = new
                self._idle.set()

        return take_over

    async def run(self) -> None:
        """Close connections to the API that have no more use, until cancelled."""
        while True:
            await self._idle.wait()
            await anyio.sleep(KEEP_SECONDS)
            while self._former:
                await self._former.pop().connections.aclose()
            await self._upstream.connections.close_idle(KEEP_SECONDS)

    async def aclose(self) -> None:
        """Close the connections that are idle."""
        for upstream in [self._upstream, *self._former]:
            await upstream.connections.aclose()

    async def forward(self, exchange: Exchange) -> None:
        """Have the API answer a request. Raises ClientGoneError and what reading the request raises."""
        try:
            wants_only_an_answer = exchange.head.method in _WANT_ONLY_AN_ANSWER
            with exchange.until_left(0.0 if wants_only_an_answer else LEFT_SECONDS):
                return await self._relay(exchange)
            raise ClientGoneError
        finally:
            if exchange.status is not None:
                self.answered[exchange.status] += 1

    async def _relay(self, exchange: Exchange) -> None:
        if exchange.head.method not in METHODS.split(", ") or not exchange.head.target.startswith(b"/"):
            message = f"Only {METHODS} of a path are passed on"
            return await exchange.answer(Response.error(405, "method_not_allowed", message))
        upstream = self._upstream
        connection = upstream.connections.acquire()
        try:
            return await self._exchange(exchange, upstream.url, connection)
        finally:
            await upstream.connections.release(connection)
            self._idle.set()

    async def _exchange(self, exchange: Exchange, url: httpx.URL, connection: httpx.AsyncBaseTransport) -> None:
        try:
            response = await connection.handle_async_request(_request(exchange, url))
        except httpx.ConnectTimeout as error:
            return await _no_answer(exchange, url, error)
        except httpx.TimeoutException:
            message = f"{url} has not answered within {STALL_SECONDS:g} s"
            return await exchange.answer(Response.error(504, "gateway_timeout", message))
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            if isinstance(error, httpx.RemoteProtocolError):
                self._warn_invalid(exchange, error)
            return await _no_answer(exchange, url, error)
        try:
            return await _pass_back(exchange, response)
        finally:
            await response.aclose()

    def _warn_invalid(self, exchange: Exchange, error: httpx.RemoteProtocolError) -> None:
        held_back = self._throttle.allow("answer_invalid", anyio.current_time())
        if held_back is not None:
            facts = {"path": exchange.head.path, **exchange.peer.facts, "suppressed": held_back}
            self._log.warning("answer_invalid", reason=str(error), **facts)


async def _pass_back(exchange: Exchange, response: httpx.Response) -> None:
    headers, stream = _end_to_end(response.headers.raw), cast(httpx.AsyncByteStream, response.stream)
    await exchange.start(response.status_code, headers, response.extensions.get("reason_phrase", b""))
    with contextlib.suppress(httpx.TransportError):  # an answer without its end is cut off
        pieces = 0
        async for piece in stream:
            await exchange.write(piece)
            pieces += 1
            if pieces % TURN_PIECES == 0:
                await exchange.take_turn()
        await exchange.finish()


class _Body(httpx.AsyncByteStream):
    """A request's body, piece by piece. No generator: what is left of it needs no end."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self._exchange.read():
            return piece
        raise StopAsyncIteration


def _open(url: str) -> _Upstream:
    return _Upstream(
        httpx.URL(url), ConnectionPool(transport_factory(url, KEEP_SECONDS, _SMALL_BUFFER), IDLE_CONNECTIONS)
    )


def _request(exchange: Exchange, url: httpx.URL) -> httpx.Request:
    head = exchange.head
    chunked = [_CHUNKED] if head.length is None else []
    headers = [(b"Host", url.netloc), *_end_to_end(head.raw_headers, b"host"), *chunked]
    target = url.raw_path.rstrip(b"/") + head.target
    extensions = {"timeout": _TIMEOUT, "target": target, TAKE_TURN: exchange.take_turn}
    return httpx.Request(head.method, url, headers=headers, stream=_Body(exchange), extensions=extensions)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]], *others: bytes) -> _Headers:
    """Return the headers that are not for the next hop alone (RFC 9110, 7.6.1); no length beside chunks (RFC 9112, 6.3)."""
    found = [(name, name.lower(), value) for name, value in headers]
    options = b",".join(value for _, lower, value in found if lower == b"connection").lower().split(b",")
    named = {option.strip() for option in options} - {b"content-length"}  # without which the body would have no end
    dropped = {*_HOP_BY_HOP, *named, *others}
    if any(lower == b"transfer-encoding" for _, lower, _ in found):
        dropped.add(b"content-length")
    return [(name, value) for name, lower, value in found if lower not in dropped]


async def _no_answer(exchange: Exchange, url: httpx.URL, error: Exception) -> None:
    """Answer that the API cannot be reached, or, to turbo, hang up, as the API's own address would have.

    A connection that fails is for turbo an artifact that it does not get. For a 5xx it waits 2 s and asks again, for one
    artifact after the other: a build of 130 packages takes 3 s more.
    """
    if exchange.head.headers.get("user-agent", "").startswith(_TURBO):
        raise BrokenOffError
    reason = str(error) or type(error).__name__
    message = f"{url} cannot be reached: {reason}"
    await exchange.answer(Response.error(502, "bad_gateway", message))
