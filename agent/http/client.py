"""The client's side: connections to a server as httpx transports of one connection each, and a small pool of them.

httpcore's own pool looks at all of its connections several times for each request, be it one: that takes a fifth of a small
request's time.
"""

import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
import anyio.lowlevel
import httpcore
import httpx

from agent.errors import ConfigError

SocketOption = tuple[int, int, int]
TransportFactory = Callable[[], httpx.AsyncBaseTransport]

_EXCEPTIONS = (  # which both httpcore and httpx have, the more special ones first
    *("ConnectTimeout", "ReadTimeout", "WriteTimeout", "TimeoutException"),
    *("ConnectError", "ReadError", "WriteError", "NetworkError"),
    *("LocalProtocolError", "RemoteProtocolError", "ProtocolError", "UnsupportedProtocol"),
)
_HTTPX_ERRORS: Sequence[tuple[type[Exception], type[httpx.TransportError]]] = [
    (getattr(httpcore, name), getattr(httpx, name)) for name in _EXCEPTIONS
]


# How much of the head of an answer is looked at in one turn, and how long it may be: any number of informational answers may come
# before it (RFC 9110, 15.2).
HEAD_READ_BYTES = 1024
MAX_HEAD_BYTES = 128 * 1024

TAKE_TURN = "agent.take_turn"
"""The extension of a request that lets others run while the head of its answer comes in many pieces."""


class _HeadLimit(httpcore.AsyncNetworkBackend):
    """Makes connections that bound how much is read before an answer's body begins."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()
        self._left: int | None = None
        self._take_turn: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    def begin_head(self, take_turn: Callable[[], Awaitable[None]]) -> None:
        """Say that an answer is to come."""
        self._left, self._take_turn = MAX_HEAD_BYTES, take_turn

    def end_head(self) -> None:
        """Say that its head has come."""
        self._left = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options), self)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)

    async def read(self, stream: httpcore.AsyncNetworkStream, max_bytes: int, timeout: float | None) -> bytes:  # noqa: ASYNC109
        """Read from a stream. Raises httpcore.RemoteProtocolError if the head is too long."""
        if self._left is None:
            return await stream.read(max_bytes, timeout)
        if self._left <= 0:
            raise httpcore.RemoteProtocolError(
                f"the head of its answer, with those that go before it, is longer than {MAX_HEAD_BYTES:,} bytes"
            )
        if self._left < MAX_HEAD_BYTES:
            await self._take_turn()
        data = await stream.read(min(max_bytes, HEAD_READ_BYTES), timeout)
        if self._left is not None:
            self._left -= len(data)
        return data


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that is read by way of a `_HeadLimit`."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, limit: _HeadLimit) -> None:
        self._stream = stream
        self._limit = limit

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        return await self._limit.read(self._stream, max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._limit)

    def get_extra_info(self, info: str) -> object:
        if info == "is_readable" and _is_buffered(self._stream):
            return True
        return self._stream.get_extra_info(info)


class SingleConnectionTransport(httpx.AsyncBaseTransport):
    """Makes one request at a time on a connection that it keeps for `keep_seconds`, and replaces when it is no longer good.

    A connection on which anything has come behind an answer is no good: it would be taken for the answer to the next request.
    Whether it has is looked at just before that request; what comes between it and its answer cannot be told from an answer.
    """

    def __init__(
        self, url: httpx.URL, ssl_context: ssl.SSLContext | None, keep_seconds: float, options: Sequence[SocketOption]
    ) -> None:
        self._limit = _HeadLimit()
        self._connect = partial(
            httpcore.AsyncHTTPConnection,
            origin=_url(url).origin,
            ssl_context=ssl_context,
            keepalive_expiry=keep_seconds,
            socket_options=options,
            network_backend=self._limit,
        )
        self._connection: httpcore.AsyncHTTPConnection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request. Raises httpx.TransportError."""
        connection = await self._usable_connection()
        self._limit.begin_head(request.extensions.get(TAKE_TURN, anyio.lowlevel.checkpoint))
        with _httpx_errors():
            response = await connection.handle_async_request(
                httpcore.Request(
                    request.method,
                    _url(request.url),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        self._limit.end_head()
        return httpx.Response(
            response.status, headers=response.headers, stream=_ResponseStream(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.aclose()

    async def _usable_connection(self) -> httpcore.AsyncHTTPConnection:
        connection = self._connection
        if (
            connection is not None
            and not connection.is_closed()
            and (connection.has_expired() or _has_surplus(connection))
        ):
            await connection.aclose()
        if self._connection is None or self._connection.is_closed():
            self._connection = self._connect()
        return self._connection


def _has_surplus(connection: httpcore.AsyncHTTPConnection) -> bool:
    """Tell whether more was read of an idle connection than the last answer."""
    inner = connection._connection  # noqa: SLF001 - httpcore gives what is left to the next request, and says nothing of it
    return isinstance(inner, httpcore.AsyncHTTP11Connection) and bool(inner._h11_state.trailing_data[0])  # noqa: SLF001


def _is_buffered(stream: object) -> bool:
    """Tell whether a stream, or what it reads from, has read something that was not asked for yet: no socket knows of that."""
    if (inner := getattr(stream, "_stream", None) or getattr(stream, "transport_stream", None)) is not None:
        bio = getattr(inner, "_read_bio", None)
        return bool(bio is not None and bio.pending) or _is_buffered(inner)
    return bool(getattr(getattr(stream, "_protocol", None), "read_queue", None))


class _ResponseStream(httpx.AsyncByteStream):
    """The body of a response, piece by piece."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_errors():
            async for piece in self._response.aiter_stream():
                yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


def transport_factory(url: str, keep_seconds: float, *local_options: SocketOption) -> TransportFactory:
    """Return a function that makes transports of one connection to `url`, by way of the environment's proxies and certificates.

    A connection that was idle for `keep_seconds` is not used again; `local_options` are for the sockets if the server is on this
    machine. Raises ConfigError.
    """
    proxy = _proxy(url)
    try:
        # Certificates are read only where they are needed: that takes longer than all the rest of the start, and 3 MiB.
        secure = "https" in {urlsplit(url).scheme, urlsplit(proxy or "").scheme}
        certificates = httpx.create_ssl_context() if secure else None
        if proxy is None and urlsplit(url).scheme in {"http", "https"}:  # of any other httpx says what is wrong with it
            options = local_options if _is_loopback(urlsplit(url).hostname or "") else ()
            return partial(SingleConnectionTransport, httpx.URL(url), certificates, keep_seconds, options)
        # By way of a proxy each request has a connection of its own: whether one has surplus on it cannot be asked there.
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


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for `url`."""
    parts, proxies = urlsplit(url), getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if found is None or _is_loopback(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    return found if "://" in found else f"http://{found}"


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


@contextlib.contextmanager
def _httpx_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found = next((ours for theirs, ours in _HTTPX_ERRORS if isinstance(error, theirs)), None)
        if found is None:
            raise
        raise found(str(error)) from error


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
