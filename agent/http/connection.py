"""One HTTP/1.1 connection as its server sees it: a socket that does not block, h11's reading of it, and every time limit.

It knows bytes, messages and how long they may take. It must never know what a request asks for.

anyio's own streams complain of an InvalidStateError when they are cancelled, on asyncio, while the client hangs up.
Waiting for a socket to become readable does not.
"""

import contextlib
import select
import socket
import struct
from array import array
from collections.abc import Iterable
from fcntl import ioctl
from termios import FIONREAD
from typing import NamedTuple

import anyio
import anyio.lowlevel
import h11

from agent.runtime import Broadcast

HEAD_READ_BYTES = 16 * 1024
READ_BYTES = 64 * 1024
HANG_UP_SECONDS = 0.5

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for zero seconds: close() sends RST
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Timeouts(NamedTuple):
    """How long to wait, in seconds: for a request to begin, for its whole head, its whole body, for a sign of life in a body or
    while the client is to take an answer, and for a client to see that it was refused in the middle.
    """

    idle: float = 60.0
    head: float = 10.0
    body: float = 30.0
    stall: float = 60.0
    linger: float = 2.0


class ClientGoneError(Exception):
    """The client has hung up, or does not take what it is sent."""


def timed_out(what: str, seconds: float) -> h11.RemoteProtocolError:
    """Return the error for a client that is too slow."""
    return h11.RemoteProtocolError(f"{what} did not come within {seconds:g} s", error_status_hint=408)


class Http1Connection:
    """A connection. Of what it has received, the first `taken` bytes belong to messages that are dealt with.

    `ending` says that this request is its last one, `endless` that nobody should wait for the end of this one.
    """

    def __init__(self, connection: socket.socket, patience: Timeouts) -> None:
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.patience = patience
        self.http = h11.Connection(h11.SERVER)
        self.received = 0
        self.taken = 0
        self.endless = False
        self.ending = False
        self.open = True
        self._progress = Broadcast()
        self._socket = connection
        self._idle: anyio.CancelScope | None = None

    # Reading

    async def next_head(self) -> h11.Request | None:
        """Return the next request's head; None if none has begun in time, or before `evict`, or if the client has hung up.

        Raises h11.RemoteProtocolError for what is no request, or does not come to its end.
        """
        event = self.http.next_event()
        if event is h11.NEED_DATA:
            self._advance()
            self.http.receive_data(await self._first_bytes())
            event = await self._event_within(self.patience.head, HEAD_READ_BYTES, "the whole head of a request")
        if not isinstance(event, h11.Request):
            return None
        if not _has_body(event):
            self.http.next_event()
        return event

    async def read(self) -> bytes:
        """Return the next piece of a request's body; b"" at its end. Raises h11.RemoteProtocolError, and so if none comes."""
        if self.http.their_state is not h11.SEND_BODY:
            return b""
        event = self.http.next_event()
        if event is h11.NEED_DATA:
            event = await self._event_within(self.patience.stall, READ_BYTES, "more of the body")
        return event.data if isinstance(event, h11.Data) else b""

    def next_cycle(self) -> bool:
        """Get ready for the next request; False if there is to be none."""
        if self.ending or self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        self.endless = False
        return True

    def evict(self) -> bool:
        """End the connection if it waits for a request of which nothing has come; tell whether it did."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.cancel()
        return idle is not None

    def end(self) -> None:
        """Let the request that is under way be the last one, be it none."""
        self.ending = True
        self.evict()

    def go_on_endlessly(self) -> None:
        """See `endless`."""
        self.endless = True
        self._move()

    async def taking(self, target: int) -> None:
        """Return when so many bytes are taken, or it makes no sense to wait for that."""
        while self.open and self.taken < target and not self.endless:
            await self._progress.wait()

    @property
    def written(self) -> int:
        """How many bytes have come from the client, read or not."""
        size = array("i", [0])
        ioctl(self._socket, FIONREAD, size)
        return self.received + size[0]

    async def linger(self) -> None:
        """Before the end, read what the client still sends: it might not see its answer otherwise, which a reset overtakes."""
        if self.http.our_state is h11.SEND_BODY or self.http.their_state not in {h11.SEND_BODY, h11.ERROR}:
            return
        with contextlib.suppress(OSError), anyio.move_on_after(self.patience.linger):
            self._socket.shutdown(socket.SHUT_WR)
            while await self._receive(READ_BYTES):
                await anyio.lowlevel.checkpoint()

    @property
    def client_gone(self) -> bool:
        """Whether the client has hung up, be it only its sending half: more than that cannot be seen."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return any(event & _GONE for _, event in poll.poll(0))

    async def hung_up(self) -> None:
        """Return when the client has closed the socket. Of a Unix socket that is told from the end of its sending half."""
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLHUP and POLLERR are always told
        while True:
            await anyio.wait_readable(self._socket)
            if poll.poll(0):
                return
            await anyio.sleep(HANG_UP_SECONDS)  # it stays readable: the next request is there, or the end of them

    async def _event_within(
        self, seconds: float, size: int, what: str
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        with anyio.move_on_after(seconds):
            while True:
                event = self.http.next_event()
                if event is not h11.NEED_DATA:
                    return event
                await self._more(size)
        raise timed_out(what, seconds)

    async def _more(self, size: int) -> None:
        self._advance()
        if self.http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self.send(self.http.send(go_on))
        await anyio.lowlevel.checkpoint()
        self.http.receive_data(await self._receive(size))

    async def _first_bytes(self) -> bytes:
        with anyio.move_on_after(0 if self.ending else self.patience.idle) as self._idle:
            return await self._receive(HEAD_READ_BYTES)
        with contextlib.suppress(BlockingIOError):  # what came at the last moment still counts
            return self._read_now(HEAD_READ_BYTES)
        return b""

    async def _receive(self, size: int) -> bytes:
        """Return what can be read, b"" at the end; an end that is no orderly one is an end."""
        try:
            while True:
                try:
                    return self._read_now(size)
                except BlockingIOError:
                    await anyio.wait_readable(self._socket)
        finally:
            self._idle = None

    def _read_now(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size)
        except ConnectionError:
            return b""
        self.received += len(data)
        return data

    def _advance(self) -> None:
        self.taken = self.received
        self._move()

    def _move(self) -> None:
        self._progress.notify_all()

    # Writing

    async def send(self, *parts: bytes | None) -> None:
        """Send bytes. Raises ClientGoneError. Lets no others run if the socket takes all at once."""
        view = memoryview(parts[0] if len(parts) == 1 and parts[0] else b"".join(part for part in parts if part))
        try:
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    await self._wait_writable()
        except OSError as error:
            raise ClientGoneError from error

    async def send_event(self, event: h11.Event) -> None:
        """Send a message's part. Raises ClientGoneError."""
        parts: Iterable[bytes] | None = self.http.send_with_data_passthrough(event)
        await self.send(*(parts or ()))

    async def _wait_writable(self) -> None:
        with anyio.move_on_after(self.patience.stall) as waiting:
            await anyio.wait_writable(self._socket)
        if waiting.cancelled_caught:
            raise ClientGoneError

    # The end

    def close(self) -> None:
        """Close the connection; if an answer is incomplete, so that no client can take it for a whole one."""
        if self.http.our_state is h11.SEND_BODY and self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.open = False
        self._advance()
        self._socket.close()


def _has_body(head: h11.Request) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and int(value)) for name, value in head.headers
    )
