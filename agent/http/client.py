"""One connection to a server as an httpx transport, and a stack of such: httpcore's connection without its pool.

It knows httpx and httpcore. It must never know what is asked, or of whom.

A pool looks at all of its connections several times for each request, be it one: that takes a fifth of a small request's time.
"""

import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from agent.errors import ConfigError

SocketOption = tuple[int, int, int]

_NAMES = (  # of the exceptions that both have, the more special ones first
    *("ConnectTimeout", "ReadTimeout", "WriteTimeout", "TimeoutException"),
    *("ConnectError", "ReadError", "WriteError", "NetworkError"),
    *("LocalProtocolError", "RemoteProtocolError", "ProtocolError", "UnsupportedProtocol"),
)
_TWINS: Sequence[tuple[type[Exception], type[httpx.TransportError]]] = [
    (getattr(httpcore, name), getattr(httpx, name)) for name in _NAMES
]


class DirectTransport(httpx.AsyncBaseTransport):
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
        connection = await self._good_connection()
        with _translated():
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
            response.status, headers=response.headers, stream=_Answer(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.aclose()

    async def _good_connection(self) -> httpcore.AsyncHTTPConnection:
        if self._connection is not None and not self._connection.is_closed() and self._connection.has_expired():
            await self._connection.aclose()
        if self._connection is None or self._connection.is_closed():
            self._connection = self._connect()
        return self._connection


class _Answer(httpx.AsyncByteStream):
    """The body of an answer, piece by piece."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for piece in self._response.aiter_stream():
                yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


def transports(url: str, keep_seconds: float, *local_options: SocketOption) -> Callable[[], httpx.AsyncBaseTransport]:
    """Return what makes transports of one connection to `url`, by way of the environment's proxies and certificates.

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
            return partial(DirectTransport, httpx.URL(url), certificates, keep_seconds, options)
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
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        twin = next((twin for original, twin in _TWINS if isinstance(error, original)), None)
        if twin is None:
            raise
        raise twin(str(error)) from error


class ConnectionPool:
    """Connections to one server, each a transport of its own; of those that are idle the one that was used last is used next."""

    def __init__(self, make: Callable[[], httpx.AsyncBaseTransport], most_idle: int) -> None:
        self._make = make
        self._most_idle = most_idle
        self._idle: list[httpx.AsyncBaseTransport] = []

    def take(self) -> httpx.AsyncBaseTransport:
        """Return a connection for one request."""
        return self._idle.pop() if self._idle else self._make()

    async def give_back(self, connection: httpx.AsyncBaseTransport) -> None:
        """Take a connection back, whatever became of its request, once the answer is closed."""
        if len(self._idle) < self._most_idle:
            self._idle.append(connection)
        else:
            await connection.aclose()

    async def aclose(self) -> None:
        """Close those that are idle."""
        while self._idle:
            await self._idle.pop().aclose()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
