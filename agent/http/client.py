"""The client's side: connections to a server as httpx transports of one connection each, and a small pool of them.

HTTP is spoken over sockets that do not block, and answers are parsed by httptools: httpx's own transports cost several times as
much per request, and read ahead, so that nobody can tell whether more has come than an answer.
"""

import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from itertools import chain
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
import anyio.lowlevel
import httpx

from agent.errors import ConfigError
from agent.http import dialing
from agent.http.answer import Answer

TransportFactory = Callable[[], httpx.AsyncBaseTransport]

READ_BYTES = 128 * 1024  # in one turn
# How much of the head of an answer is looked at in one turn, and how long it may be: any number of informational answers may come
# before it (RFC 9110, 15.2). So much may also come at most of what is no body, such as trailers, before more of a body.
HEAD_READ_BYTES = 16 * 1024
MAX_HEAD_BYTES = 128 * 1024

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_is_head = re.compile(rb"%b [!-~]+ HTTP/1\.1\r\n(?:%b: [^\0\n-\r\x7f]*\r\n)+\r\n" % (_TOKEN, _TOKEN)).fullmatch

TAKE_TURN = "agent.take_turn"
"""The extension of a request that lets others run while the head of its answer comes in many pieces."""
IS_WHOLE = "agent.is_whole"
"""The extension of a response that says whether all of it has come: then nobody waits for its body."""


class _Connection:
    """A connection to a server, for one request after the other."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._answer = Answer("")
        self._takes_more = True
        self._idle_since: float | None = None  # by the event loop's clock; None while a request is under way

    async def send(self, head: "RequestHead", body: httpx.AsyncByteStream, seconds: float | None) -> None:
        """Send a request. That the server reads no more of it is no error: it may have answered.

        Raises httpx.TransportError if nothing more is taken of it for so long.
        """
        self._idle_since = None
        self._answer = Answer(head.method)
        try:
            if isinstance(body, httpx.SyncByteStream):  # it is in memory: head and body go together
                await self._send(head.data, *chain.from_iterable(map(head.encode, body)), head.end, seconds=seconds)
                return
            await self._send(head.data, seconds=seconds)
            async for piece in body:
                await self._send(*head.encode(piece), seconds=seconds)
            await self._send(head.end, seconds=seconds)
        except _BrokenError:
            self._takes_more = False

    async def head(self, seconds: float | None, take_turn: Callable[[], Awaitable[None]]) -> Answer:
        """Return the answer once its head is there. Raises httpx.TransportError."""
        answer, left = self._answer, MAX_HEAD_BYTES
        while not answer.has_head:
            if left <= 0:
                raise httpx.RemoteProtocolError(
                    f"the head of its answer, with those that go before it, is longer than {MAX_HEAD_BYTES:,} bytes"
                )
            if left < MAX_HEAD_BYTES:
                await take_turn()
            data = await self._receive(min(left, HEAD_READ_BYTES), seconds)
            left -= len(data)
            answer.feed(data)
        return answer

    async def piece(self, seconds: float | None) -> bytes:
        """Return the next piece of the answer's body; b"" at its end. Raises httpx.TransportError."""
        answer, left = self._answer, MAX_HEAD_BYTES
        while not (piece := answer.take()) and not answer.is_whole:
            if left <= 0:
                raise httpx.RemoteProtocolError(f"its answer has {MAX_HEAD_BYTES:,} bytes that are no body")
            await anyio.lowlevel.checkpoint()  # a socket that always has more would let nobody else run
            data = await self._receive(READ_BYTES, seconds)
            left -= len(data)
            answer.feed(data)
        return piece

    def finish(self) -> bool:
        """Get ready for another request; False if the connection cannot have one, as after an answer with more behind it."""
        answer = self._answer
        if not self._takes_more or not answer.is_whole or answer.is_last or answer.has_surplus:
            return False
        self._idle_since = anyio.current_time()
        return True

    def is_usable(self, keep_seconds: float) -> bool:
        """Tell whether it has been idle for less than that, and nothing has come meanwhile, be it the end of the connection."""
        if self._idle_since is None or anyio.current_time() - self._idle_since >= keep_seconds:
            return False
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    async def _send(self, *parts: dialing.Buffer, seconds: float | None) -> None:
        try:
            await dialing.send_all(self._socket, *[part for part in parts if part], seconds=seconds)
        except OSError as error:
            if _has_waited(error):
                raise httpx.WriteTimeout(f"nothing was taken for {seconds} s") from error
            raise _BrokenError from error

    async def _receive(self, size: int, seconds: float | None) -> bytes:
        try:
            return await dialing.perform(self._socket, partial(self._socket.recv, size), seconds=seconds)
        except OSError as error:
            if _has_waited(error):
                raise httpx.ReadTimeout(f"nothing came for {seconds} s") from error
            raise httpx.ReadError(str(error)) from error


def _has_waited(error: OSError) -> bool:
    return isinstance(error, TimeoutError) and error.errno is None


class _BrokenError(Exception):
    """The server takes no more."""


class RequestHead:
    """The head of a request as bytes: `data`. What follows it is the body, piece by piece as `encode` has it, and `end`."""

    def __init__(self, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises httpx.LocalProtocolError if that is no head."""
        self.method = method
        self._is_chunked = False
        parts = [b"%b %b HTTP/1.1\r\n" % (method.encode(), target)]
        for name, value in headers:
            parts.append(b"%b: %b\r\n" % (name, value))
            self._is_chunked |= name.lower() == b"transfer-encoding"
        self.data = b"".join((*parts, b"\r\n"))
        # Each line ends where it should: what is between two line ends within a header's value would be a header, too.
        if self.data.count(b"\r\n") != len(parts) + 1 or _is_head(self.data) is None:
            raise httpx.LocalProtocolError("the request has a method, target or header that HTTP does not allow")
        self.end = b"0\r\n\r\n" if self._is_chunked else b""

    def encode(self, piece: dialing.Buffer) -> tuple[dialing.Buffer, ...]:
        """Return a piece of the body as it is sent, in parts."""
        return (b"%x\r\n" % len(piece), piece, b"\r\n") if self._is_chunked and piece else (piece,)


class SingleConnectionTransport(httpx.AsyncBaseTransport):
    """Makes one request at a time on a connection that it keeps for `keep_seconds`, and replaces when it is no longer good.

    A connection on which anything has come behind an answer is no good: it would be taken for the answer to the next request.
    That is looked at when an answer ends, and again just before the next request; what comes between a request and its answer
    cannot be told from an answer.
    """

    def __init__(
        self,
        route: dialing.Route,
        keep_seconds: float,
        dial: Callable[[dialing.Route], Awaitable[socket.socket]] = dialing.dial,
    ) -> None:
        self._route = route
        self._keep_seconds = keep_seconds
        self._dial = dial
        self._connection: _Connection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request. Raises httpx.TransportError, and UnicodeError for a name that no host can have."""
        head, timeouts = self._head(request), request.extensions.get("timeout", {})
        if self._connection is not None and not self._connection.is_usable(self._keep_seconds):
            await self.aclose()
        if self._connection is None:
            self._connection = await self._connect(timeouts.get("connect"))
        connection, seconds = self._connection, timeouts.get("read")
        try:
            await connection.send(head, cast(httpx.AsyncByteStream, request.stream), timeouts.get("write"))
            answer = await connection.head(seconds, request.extensions.get(TAKE_TURN, anyio.lowlevel.checkpoint))
        except BaseException:
            await self.aclose()
            raise
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(connection, seconds, self._finish),
            extensions={"reason_phrase": answer.reason, IS_WHOLE: answer.is_whole},
        )

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _connect(self, seconds: float | None) -> _Connection:
        try:
            with anyio.fail_after(seconds):
                return _Connection(await self._dial(self._route))
        except OSError as error:
            if _has_waited(error):
                raise httpx.ConnectTimeout(f"no connection within {seconds} s") from error
            raise httpx.ConnectError(str(error)) from error

    def _head(self, request: httpx.Request) -> RequestHead:
        target, headers, proxy = (
            request.extensions.get("target", request.url.raw_path),
            request.headers.raw,
            self._route.proxy,
        )
        if proxy is not None and self._route.tls is None:
            target, headers = b"http://" + request.url.netloc + target, [*proxy.headers, *headers]
        return RequestHead(request.method, target, headers)

    async def _finish(self) -> None:
        if self._connection is not None and not self._connection.finish():
            await self.aclose()


class _Body(httpx.AsyncByteStream):
    """The body of a response, piece by piece. No generator: what is left of it needs no end."""

    def __init__(self, connection: _Connection, seconds: float | None, finish: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._seconds = seconds
        self._finish: Callable[[], Awaitable[None]] | None = finish

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self._connection.piece(self._seconds):
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        finish, self._finish = self._finish, None
        if finish is not None:
            await finish()


def transport_factory(url: str, keep_seconds: float) -> TransportFactory:
    """Return a function that makes transports of one connection to `url`, by way of the environment's proxies and certificates.

    A connection that was idle for `keep_seconds` is not used again. Raises ConfigError.
    """
    proxy = _proxy(url)
    try:
        # Certificates are read only where they are needed: that takes longer than all the rest of the start, and 3 MiB.
        secure = "https" in {urlsplit(url).scheme, urlsplit(proxy or "").scheme}
        certificates = httpx.create_ssl_context() if secure else None
        if (route := _route(httpx.URL(url), certificates, proxy)) is not None:
            return partial(SingleConnectionTransport, route, keep_seconds)
        # Of another scheme httpx says what is wrong. By way of a proxy that is not plain HTTP each request has a connection
        # of its own, since nobody can ask httpx whether more has come than an answer.
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=0)
        make = partial(httpx.AsyncHTTPTransport, verify=certificates or False, limits=limits, proxy=proxy)
        make()  # whatever is wrong with the proxy is said now
    except OSError as error:
        raise ConfigError(f"SSL_CERT_FILE, SSL_CERT_DIR: the certificates cannot be read: {error}") from error
    except (ValueError, ImportError, httpx.InvalidURL):  # their messages, and so their cause, may hold a password
        raise ConfigError(
            "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY: the proxy cannot be used; it should be http://HOST:PORT or https://HOST:PORT"
        ) from None
    return make


def _route(url: httpx.URL, certificates: ssl.SSLContext | None, proxy: str | None) -> dialing.Route | None:
    """Return the way to a server; None if it is not one of `dialing`. Raises ValueError and httpx.InvalidURL for a bad proxy."""
    if url.scheme not in {"http", "https"} or not url.host:
        return None
    tls = certificates if url.scheme == "https" else None
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])
    direct = dialing.Route(url.raw_host, url.port or (443 if tls else 80), tls)
    if proxy is None:
        return direct
    found = httpx.Proxy(proxy)
    if found.url.scheme != "http":
        return None
    name, password = found.raw_auth or (b"", b"")
    credentials = b"Basic " + base64.b64encode(name + b":" + password)
    headers = [(b"Proxy-Authorization", credentials)] if found.raw_auth else []
    return direct._replace(proxy=dialing.Proxy(found.url.raw_host, found.url.port or 80, headers))


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for `url`."""
    parts, proxies = urlsplit(url), getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if found is None or _is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    return found if "://" in found else f"http://{found}"


class ConnectionPool:
    """Connections to one server, each a transport of its own; of those that are idle the one that was used last is used next."""

    def __init__(self, make: TransportFactory, max_idle: int) -> None:
        self._make = make
        self._max_idle = max_idle
        self._idle: list[tuple[httpx.AsyncBaseTransport, float]] = []  # and since when, by the event loop's clock

    def acquire(self, *, anew: bool = False) -> httpx.AsyncBaseTransport:
        """Return a connection for one request; with `anew`, one that was never used."""
        return self._idle.pop()[0] if self._idle and not anew else self._make()

    async def release(self, connection: httpx.AsyncBaseTransport) -> None:
        """Take a connection back, whatever became of its request, once the answer is closed."""
        if len(self._idle) < self._max_idle:
            self._idle.append((connection, anyio.current_time()))
        else:
            await connection.aclose()

    def keep_none(self) -> None:
        """From now on, close connections when they are released."""
        self._max_idle = 0

    async def close_idle(self, seconds: float) -> None:
        """Close those that have been idle for so long."""
        since = anyio.current_time() - seconds
        while self._idle and self._idle[0][1] <= since:
            await self._idle.pop(0)[0].aclose()

    async def aclose(self) -> None:
        """Close those that are idle."""
        while self._idle:
            await self._idle.pop()[0].aclose()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
