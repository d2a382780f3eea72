"""The client's side: connections to a server as httpx transports of one connection each, and a small pool of them.

httpcore's own pool looks at all of its connections several times for each request, be it one: that takes a fifth of a small
request's time.
"""

import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
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


class SingleConnectionTransport(httpx.AsyncBaseTransport):
    """Makes one request at a time on a connection that it keeps for `keep_seconds`, and replaces when it is no longer good."""

    def __init__(
        self, url: httpx.URL, ssl_context: ssl.SSLContext | None, keep_seconds: float, options: Sequence[SocketOption]
    ) -> None:
        self._connect = partial(
            httpcore.AsyncHTTPConnection,
            origin=_url(url).origin,
            ssl_context=ssl_context,
            keepalive_expiry=keep_seconds,
            socket_options=options,
        )
        self._connection: httpcore.AsyncHTTPConnection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make a request. Raises httpx.TransportError."""
        connection = await self._usable_connection()
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
        return httpx.Response(
            response.status, headers=response.headers, stream=_ResponseStream(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.aclose()

    async def _usable_connection(self) -> httpcore.AsyncHTTPConnection:
        if self._connection is not None and not self._connection.is_closed() and self._connection.has_expired():
            await self._connection.aclose()
        if self._connection is None or self._connection.is_closed():
            self._connection = self._connect()
        return self._connection


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
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=keep_seconds)
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

    def acquire(self) -> httpx.AsyncBaseTransport:
        """Return a connection for one request."""
        return self._idle.pop()[0] if self._idle else self._make()

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
