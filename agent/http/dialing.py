"""Connections to servers, as sockets that do not block: names, addresses, TLS and the way through a proxy.

No more is read ahead than TLS needs for its records, so that a read tells whether anything has come that nobody has asked for.
"""

import os
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import h11
import httpx

# After so long another address of a host is tried beside the one that does not answer (RFC 8305, 5).
NEXT_ADDRESS_SECONDS = 0.25
# How long the head of a proxy's answer to CONNECT may be, with those of informational answers before it.
MAX_TUNNEL_HEAD_BYTES = 16 * 1024
TUNNEL_READ_BYTES = 1024  # of it, in one turn

Address = tuple[str | int, ...]
Buffer = bytes | memoryview
T = TypeVar("T")


class Proxy(NamedTuple):
    """A proxy that speaks plain HTTP; `headers` are for itself."""

    host: bytes
    port: int
    headers: list[tuple[bytes, bytes]]


class Route(NamedTuple):
    """The way to a server. `tls` has its certificates if it speaks TLS."""

    host: bytes
    port: int
    tls: ssl.SSLContext | None = None
    proxy: Proxy | None = None


async def dial(route: Route) -> socket.socket:
    """Connect to a server. Raises OSError, UnicodeError for a name that no host can have, and httpx.ProxyError."""
    first = route.proxy or route
    connection = await _connect(first.host, first.port)
    try:
        if route.tls is None:
            return connection
        if route.proxy is not None:
            await _tunnel(connection, route, route.proxy)
        secure = route.tls.wrap_socket(connection, server_hostname=route.host.decode(), do_handshake_on_connect=False)
        connection = secure  # which has taken over the descriptor
        await perform(secure, secure.do_handshake)
    except BaseException:
        connection.close()
        raise
    return connection


async def perform(
    connection: socket.socket, call: Callable[[], T], *, seconds: float | None = None, writes: bool = False
) -> T:
    """Call a method of a socket, one that `writes` or reads, until it does not have to wait.

    Raises OSError, and TimeoutError without an errno if it has to wait for so long.
    """
    while True:
        try:
            return call()
        except BlockingIOError:
            wait = anyio.wait_writable if writes else anyio.wait_readable
        except ssl.SSLWantReadError:  # TLS may have to read before it can write, and the other way round
            wait = anyio.wait_readable
        except ssl.SSLWantWriteError:
            wait = anyio.wait_writable
        if seconds is None:
            await wait(connection)
        else:
            with anyio.fail_after(seconds):
                await wait(connection)


async def send_all(connection: socket.socket, *parts: Buffer, seconds: float | None = None) -> None:
    """Send bytes, one part behind the other. Raises as `perform` does. Lets no others run if the socket takes all at once."""
    if len(parts) > 1 and not isinstance(connection, ssl.SSLSocket):  # the kernel joins them
        sent = await perform(connection, partial(connection.sendmsg, parts), seconds=seconds, writes=True)
        if sent == sum(map(len, parts)):
            return
        view = memoryview(b"".join(parts))[sent:]
    else:
        view = memoryview(b"".join(parts))
    while view:
        view = view[await perform(connection, partial(connection.send, view), seconds=seconds, writes=True) :]


async def _connect(host: bytes, port: int) -> socket.socket:
    """Connect to a host, at whichever of its addresses answers first."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await connect_to_any([(family, address) for family, _, _, _, address in found])


async def connect_to_any(addresses: Sequence[tuple[int, Address]]) -> socket.socket:
    """Connect to whichever address, of those with their families, answers first. Raises OSError if none does."""
    connected: list[socket.socket] = []
    errors: list[OSError] = []

    async def attempt(family: int, address: Address, failed: anyio.Event) -> None:
        try:
            connection = await _connect_to(family, address)
        except OSError as error:
            errors.append(error)
            failed.set()
        else:
            connected.append(connection)
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for family, address in addresses:
                failed = anyio.Event()
                tasks.start_soon(attempt, family, address, failed)
                with anyio.move_on_after(NEXT_ADDRESS_SECONDS):
                    await failed.wait()
    except BaseException:
        for connection in connected:
            connection.close()
        raise
    if not connected:
        raise OSError(", ".join(dict.fromkeys(error.strerror or str(error) for error in errors)))
    for connection in connected[1:]:
        connection.close()
    return connected[0]


async def _connect_to(family: int, address: Address) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(connection)
            if code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        connection.close()
        raise
    return connection


async def _tunnel(connection: socket.socket, route: Route, proxy: Proxy) -> None:
    """Have a proxy pass on bytes to the server (RFC 9110, 9.3.6). Raises httpx.ProxyError."""
    target = b"%b:%d" % (b"[%b]" % route.host if b":" in route.host else route.host, route.port)
    http = h11.Connection(h11.CLIENT, MAX_TUNNEL_HEAD_BYTES)
    head = h11.Request(method="CONNECT", target=target, headers=[(b"Host", target), *proxy.headers])
    await send_all(connection, (http.send(head) or b"") + (http.send(h11.EndOfMessage()) or b""))
    left = MAX_TUNNEL_HEAD_BYTES
    try:
        while not isinstance(event := http.next_event(), h11.Response):
            if event is not h11.NEED_DATA:
                continue
            if left <= 0:
                raise httpx.ProxyError(f"the head of its answer is longer than {MAX_TUNNEL_HEAD_BYTES:,} bytes")
            await anyio.lowlevel.checkpoint()  # a proxy that always has more would let nobody else run
            data = await perform(connection, partial(connection.recv, min(left, TUNNEL_READ_BYTES)))
            left -= len(data)
            http.receive_data(data)
    except h11.RemoteProtocolError as error:
        raise httpx.ProxyError(str(error)) from error
    if not 200 <= event.status_code < 300:
        raise httpx.ProxyError(f"{event.status_code} {event.reason.decode('ascii', 'ignore')}")
    if http.trailing_data[0]:
        raise httpx.ProxyError("it sent more than its answer")
