"""The front: passes requests on to the real API and its answers back, unchanged, as streams (RFC 9110, 7.6).

It holds no more of a body than one piece. What breaks on one side is broken off on the other: an answer that ends too early ends
the client's connection, and a client that hangs up ends its request to the API. But a request with a body that the client
wrote to its end goes on without it for a while: the API has what it needs, be it the artifact of a build that has just ended.
"""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from http import HTTPStatus
from typing import NamedTuple, cast

import anyio
import httpx
import structlog

from agent.http.api import FORWARDED_METHODS
from agent.http.client import IS_WHOLE, TAKE_TURN, ConnectionPool, transport_factory
from agent.http.connection import TURN_PIECES, ClientGoneError
from agent.http.outage import Outage, insists
from agent.http.server import Exchange, InvalidHeadError, Response
from agent.runtime import Wakeup
from agent.throttle import Throttle

CONNECT_SECONDS = 10.0
STALL_SECONDS = 300.0
KEEP_SECONDS = 4.0  # a connection that is not used; servers of Node.js close theirs after 5 s
IDLE_CONNECTIONS = 32
LEFT_SECONDS = 30.0  # for the API to answer an upload whose client has gone
PATIENT_SECONDS = 2.0  # a client that leaves sooner may have other reasons than the API
LOG_INTERVAL = 60.0

_TIMEOUT = {"connect": CONNECT_SECONDS, "read": STALL_SECONDS, "write": STALL_SECONDS, "pool": CONNECT_SECONDS}
_HOP_BY_HOP = {b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"}
_CHUNKED = (b"transfer-encoding", b"chunked")
_TURBO = "turbo "
_METHODS = frozenset(FORWARDED_METHODS.split(", "))
_FINAL = HTTPStatus.FAILED_DEPENDENCY
_WANT_ONLY_AN_ANSWER = frozenset({"GET", "HEAD", "OPTIONS"})

_Headers = list[tuple[bytes, bytes]]


class BrokenOffError(ClientGoneError):
    """The client is to find its connection ended, without an answer."""


class _Upstream(NamedTuple):
    """An API. Every request names its `host`, and has `prefix` before its target."""

    url: httpx.URL
    host: bytes
    prefix: bytes
    connections: ConnectionPool
    outage: Outage


class Proxy:
    """Passes requests on to `url`. `answered` counts the answers, the API's and its own, by status."""

    def __init__(self, url: str, answered: Counter[int] | None = None) -> None:
        """`answered` may be shared with others. Raises ConfigError if the environment's proxies or certificates are unusable."""
        self.answered: Counter[int] = Counter() if answered is None else answered
        self._upstream = _open(url)
        self._former: list[_Upstream] = []
        self._idle = Wakeup()
        self._running = anyio.CancelScope()
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
        """Close connections to the API that have no more use, until `retire`."""
        with self._running:
            while True:
                await self._idle.wait()
                await anyio.sleep(KEEP_SECONDS)
                while self._former:
                    await self._former.pop().connections.aclose()
                await self._upstream.connections.close_idle(KEEP_SECONDS)
        await self.aclose()

    def retire(self) -> None:
        """Keep no connections from now on, and end `run`. Requests under way go on."""
        self._upstream.connections.keep_none()
        self._running.cancel()

    async def aclose(self) -> None:
        """Close the connections that are idle."""
        for upstream in [self._upstream, *self._former]:
            await upstream.connections.aclose()

    async def forward(self, exchange: Exchange) -> None:
        """Have the API answer a request. Raises ClientGoneError and what reading the request raises."""
        begun, upstream = time.monotonic(), self._upstream
        wants_only_an_answer = exchange.head.method in _WANT_ONLY_AN_ANSWER
        try:
            with exchange.until_left(0.0 if wants_only_an_answer else LEFT_SECONDS):
                return await self._relay(exchange, upstream)
            if exchange.status is None and time.monotonic() - begun >= PATIENT_SECONDS:
                upstream.outage.note(time.monotonic(), None)
            raise ClientGoneError
        finally:
            if exchange.status is not None:
                self.answered[exchange.status] += 1

    async def _relay(self, exchange: Exchange, upstream: _Upstream) -> None:
        if exchange.head.method not in _METHODS or not exchange.head.target.startswith(b"/"):
            message = f"Only {FORWARDED_METHODS} of a path are passed on"
            return await exchange.answer(Response.error(405, "method_not_allowed", message))
        if upstream.outage.is_fresh(time.monotonic()) and insists(_user_agent(exchange)):
            message = f"{upstream.url} has just failed, and is not asked again so soon"
            return await exchange.answer(Response.error(_FINAL, "bad_gateway", message))
        connection = upstream.connections.acquire()
        try:
            return await self._exchange(exchange, upstream, connection)
        finally:
            await upstream.connections.release(connection)
            self._idle.set()

    async def _exchange(self, exchange: Exchange, upstream: _Upstream, connection: httpx.AsyncBaseTransport) -> None:
        try:
            response = await connection.handle_async_request(_request(exchange, upstream))
        except httpx.ConnectTimeout as error:
            return await _no_answer(exchange, upstream, error)
        except httpx.TimeoutException:
            upstream.outage.note(time.monotonic(), None)
            message = f"{upstream.url} has not answered within {STALL_SECONDS:g} s"
            return await exchange.answer(_failed(exchange, upstream, message, 504, "gateway_timeout"))
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            if isinstance(error, httpx.RemoteProtocolError):
                self._warn_invalid(exchange, error)
            return await _no_answer(exchange, upstream, error)
        upstream.outage.note(time.monotonic(), response.status_code)
        try:
            return await _pass_back(exchange, response, is_final=_is_final(exchange, upstream))
        except InvalidHeadError as error:
            self._warn_invalid(exchange, error)
            return await _no_answer(exchange, upstream, error)
        finally:
            await response.aclose()

    def _warn_invalid(self, exchange: Exchange, error: Exception) -> None:
        held_back = self._throttle.allow("answer_invalid", anyio.current_time())
        if held_back is not None:
            facts = {"path": exchange.head.path, **exchange.peer.facts, "suppressed": held_back}
            self._log.warning("answer_invalid", reason=str(error), **facts)


async def _pass_back(exchange: Exchange, response: httpx.Response, *, is_final: bool) -> None:
    """Pass an answer on; with `is_final`, under a status after which the client does not ask again. Raises InvalidHeadError."""
    headers, stream = _end_to_end(response.headers.raw), cast(httpx.AsyncByteStream, response.stream)
    status, reason = response.status_code, response.extensions.get("reason_phrase", b"")
    if is_final:
        headers.append((b"proxy-status", b"artifacts-agent; received-status=%d" % status))  # RFC 9209
        status, reason = _FINAL, _FINAL.phrase.encode()
    if response.extensions.get(IS_WHOLE, False):
        await exchange.answer_as(status, headers, reason, b"".join([piece async for piece in stream]))
        return
    await exchange.start(status, headers, reason)
    with contextlib.suppress(httpx.TransportError):  # an answer without its end is cut off
        pieces = 0
        async for piece in stream:
            await exchange.write(piece)
            pieces += 1
            if pieces % TURN_PIECES == 0:
                await exchange.take_turn()
        await exchange.finish()


class _Body(httpx.AsyncByteStream):
    """A request's body, piece by piece, of which `first` has come. No generator: what is left of it needs no end."""

    def __init__(self, exchange: Exchange, first: bytes) -> None:
        self._exchange = exchange
        self._first = first

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece, self._first = self._first, b""
        if piece := piece or await self._exchange.read():
            return piece
        raise StopAsyncIteration


def _open(url: str) -> _Upstream:
    connections = ConnectionPool(transport_factory(url, KEEP_SECONDS), IDLE_CONNECTIONS)
    parsed = httpx.URL(url)
    return _Upstream(parsed, parsed.netloc, parsed.raw_path.rstrip(b"/"), connections, Outage())


def _request(exchange: Exchange, upstream: _Upstream) -> httpx.Request:
    head = exchange.head
    chunked = [_CHUNKED] if head.length is None else []
    headers = [(b"Host", upstream.host), *_end_to_end(head.raw_headers, b"host", b"proxy-authorization"), *chunked]
    extensions = {"timeout": _TIMEOUT, "target": upstream.prefix + head.target, TAKE_TURN: exchange.take_turn}
    received, is_whole = exchange.received()
    body = httpx.ByteStream(bytes(received)) if is_whole else _Body(exchange, bytes(received))
    return httpx.Request(head.method, upstream.url, headers=headers, stream=body, extensions=extensions)


def _end_to_end(headers: Sequence[tuple[bytes, bytes]], *others: bytes) -> _Headers:
    """Return the headers that are not for the next hop alone (RFC 9110, 7.6.1); no length beside chunks (RFC 9112, 6.3)."""
    names = [name.lower() for name, _ in headers]
    dropped = {*_HOP_BY_HOP, *others}
    if b"connection" in names:
        options = b",".join(value for (_, value), name in zip(headers, names, strict=True) if name == b"connection")
        dropped |= {option.strip() for option in options.lower().split(b",")}
        dropped.discard(b"content-length")  # without which the body would have no end
    if b"transfer-encoding" in names:
        dropped.add(b"content-length")
    return [header for header, name in zip(headers, names, strict=True) if name not in dropped]


def _user_agent(exchange: Exchange) -> str:
    return exchange.head.headers.get("user-agent", "")


def _is_final(exchange: Exchange, upstream: _Upstream) -> bool:
    """Tell whether the client is to get a status after which it does not ask again: see `agent.http.outage`."""
    return upstream.outage.lasts and insists(_user_agent(exchange))


def _failed(exchange: Exchange, upstream: _Upstream, message: str, status: int, code: str) -> Response:
    return Response.error(_FINAL if _is_final(exchange, upstream) else status, code, message)


async def _no_answer(exchange: Exchange, upstream: _Upstream, error: Exception) -> None:
    """Answer that the API cannot be reached, or, to turbo, hang up, as the API's own address would have.

    A connection that fails is for turbo an artifact that it does not get. For a 5xx it waits 2 s and asks again, for one
    artifact after the other: a build of 130 packages takes 3 s more.
    """
    upstream.outage.note(time.monotonic(), None)
    if _user_agent(exchange).startswith(_TURBO) and not _is_final(exchange, upstream):
        raise BrokenOffError
    reason = str(error) or type(error).__name__
    message = f"{upstream.url} cannot be reached: {reason}"
    await exchange.answer(_failed(exchange, upstream, message, 502, "bad_gateway"))
