"""One HTTP/1.1 connection as its server sees it: a socket that does not block, h11's reading of it, and its time limits.

It reads with `anyio.wait_readable` on the socket. anyio's own streams complain of an InvalidStateError when they are cancelled,
on asyncio, while the client hangs up.
"""

import contextlib
import socket
import struct
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

import anyio
import anyio.lowlevel
import h11

from agent.acceptor import Connection
from agent.http.hang_ups import HangUps
from agent.peers import Peer, Turns

HEAD_READ_BYTES = 16 * 1024
READ_BYTES = 64 * 1024
# How slowly a body may come, a second.
SLOWEST_BYTES = 1024
# After so many bytes others have their turn, where a read costs as much as READ_COST bytes, be it of one.
TURN_BYTES = 4096
READ_COST = 512
# After so many pieces of a body others have their turn.
TURN_PIECES = 32
# What many pieces of a body have at least, on average: a chunk costs as much as 1,000 bytes.
SMALLEST_PIECE_BYTES = 16
MANY_PIECES = 1000

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for zero seconds: close() sends RST


class Timeouts(NamedTuple):
    """How long to wait, in seconds.

    `idle`: for a request to begin. `head`: for its whole head. `body`: for its whole body, where it is wanted whole. `stall`: for
    more of a body, or until the client takes more of an answer. `grace`: for a body in all, beyond the time that it takes at
    SLOWEST_BYTES. `linger`: for a client to see that it was refused before it had sent everything.
    """

    idle: float = 60.0
    head: float = 5.0
    body: float = 30.0
    stall: float = 60.0
    grace: float = 5.0
    linger: float = 2.0


class ClientGoneError(Exception):
    """The client has hung up, or does not take what it is sent."""


def timed_out(what: str, seconds: float) -> h11.RemoteProtocolError:
    """Return the error for a client that is too slow."""
    return h11.RemoteProtocolError(f"{what} did not come within {seconds:g} s", error_status_hint=408)


class Http1Connection(Connection):
    """A connection that speaks HTTP/1.1. Bytes count as taken when the messages that they belong to are dealt with.

    What a client has written before it hung up is still read, request by request; only its answers are lost.
    """

    def __init__(
        self, accepted: socket.socket, peer: Peer, timeouts: Timeouts, hang_ups: HangUps, turns: Turns
    ) -> None:
        super().__init__(accepted, peer)
        self._over_tcp = accepted.family != socket.AF_UNIX
        if self._over_tcp:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeouts = timeouts
        self.http = h11.Connection(h11.SERVER)
        self._hang_ups = hang_ups
        self._is_last = False
        self._streaming = False
        self._gone = False
        self._muted = False
        self._idle: anyio.CancelScope | None = None
        self._reading: anyio.CancelScope | None = None
        self._left: anyio.CancelScope | None = None
        self._turns = turns
        self.turn = turns.of(self.group)
        self._work = 0
        self._pieces = 0
        self._body_bytes = 0
        self._body_seconds = 0.0

    def join(self, group: Hashable) -> None:
        """See `Connection`; it takes turns with that group, too."""
        super().join(group)
        self.turn = self._turns.of(group)

    # Reading

    async def next_head(self) -> h11.Request | None:
        """Return the next request's head; None if none has begun in time, or before `evict`, or if the client has hung up.

        Raises h11.RemoteProtocolError for what is no request, or does not come to its end.
        """
        self._pieces, self._body_bytes, self._body_seconds = 0, 0, 0.0
        if not self.http.trailing_data[0]:
            self.advance()
            self.http.receive_data(await self._first_bytes())
        with anyio.CancelScope() as waiting:
            self._reading = waiting
            await self.turn.wait()
        self._reading = None
        if waiting.cancel_called:
            return None
        event = self.http.next_event()
        if event is h11.NEED_DATA:
            event = await self._event_within(self.timeouts.head, HEAD_READ_BYTES, "the whole head of a request")
        if not isinstance(event, h11.Request):
            return None
        if not _has_body(event):
            self.http.next_event()
        return event

    def read_received(self) -> bytes | None:
        """Return the next piece of a request's body that has been received; b"" at its end, None if more has to come first.

        Raises h11.RemoteProtocolError.
        """
        if self.http.their_state is not h11.SEND_BODY:
            return b""
        event = self.http.next_event()
        return None if event is h11.NEED_DATA else self._piece(event)

    async def read(self) -> bytes:
        """Return the next piece of a request's body; b"" at its end.

        Raises h11.RemoteProtocolError, and so if none comes, or if they have come too slowly.
        """
        if self._pieces % TURN_PIECES == 0:
            await self.turn.wait()
        piece = self.read_received()
        if piece is not None:
            return piece
        event = await self._more_of_the_body()
        return self._piece(event)

    def _piece(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> bytes:
        piece = bytes(event.data) if isinstance(event, h11.Data) else b""
        self._body_bytes += len(piece)
        self._pieces += 1
        if self._pieces > MANY_PIECES and self._body_bytes < self._pieces * SMALLEST_PIECE_BYTES:
            message = f"the body comes in chunks of less than {SMALLEST_PIECE_BYTES} bytes: send larger ones"
            raise h11.RemoteProtocolError(message, error_status_hint=400)
        return piece

    async def _more_of_the_body(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Wait for the next piece. Only time that is spent waiting for the client counts against it."""
        timeouts, begun = self.timeouts, anyio.current_time()
        left = timeouts.grace + self._body_bytes / SLOWEST_BYTES - self._body_seconds
        if left < timeouts.stall:
            slow = f"a body of more than {SLOWEST_BYTES} bytes/s"
            event = await self._event_within(max(left, 0.0), READ_BYTES, slow, timeouts.grace)
        else:
            event = await self._event_within(timeouts.stall, READ_BYTES, "more of the body")
        self._body_seconds += anyio.current_time() - begun
        return event

    def next_cycle(self) -> bool:
        """Get ready for the next request; False if there is to be none."""
        if self._is_last or self.http.their_state is not h11.DONE:
            return False
        if self.http.our_state is h11.DONE:
            self.http.start_next_cycle()
        elif self._gone:  # nobody waits for the rest of the answer, but another whole request may have come
            more, _ = self.http.trailing_data
            self.http = h11.Connection(h11.SERVER)
            self._muted = True  # the next answer must not be taken for this one
            if more:
                self.http.receive_data(more)
        else:
            return False
        self._streaming = False
        return True

    @property
    def goes_on(self) -> bool:
        """Whether another request may follow the one that is under way."""
        return self.http.their_state is h11.DONE and not self._is_last

    @property
    def idle(self) -> bool:
        """See `Connection`."""
        return self._idle is not None

    @property
    def has_left(self) -> bool:
        """Whether the client has hung up within `until_left`."""
        return self._left is not None

    def evict(self, *, hard: bool = False) -> bool:
        """End the connection if it waits for a request of which nothing has come; tell whether it did.

        If it is `hard`, also if it waits for more of a request, or for an answer that nobody waits for.
        """
        waiting, self._idle = self._idle, None
        if waiting is None and hard:
            waiting = self._reading or self._left
            self._reading = self._left = None
        if waiting is None:
            return False
        waiting.cancel()
        return True

    def end(self) -> None:
        """Let the request that is under way be the last one, be it none."""
        self._is_last = True
        self.evict()

    def begin_stream(self) -> None:
        """Say that the request that is under way may take any time: `wait_taken` does not wait for it."""
        self._streaming = True
        self._progress.notify_all()

    async def wait_taken(self, target: int) -> None:
        """See `Connection`; also returns when a stream begins."""
        while self.open and self.taken < target and not self._streaming:
            await self._progress.wait()

    async def linger(self) -> None:
        """Before the end, read what the client still sends: it might not see its answer otherwise, which a reset overtakes."""
        if self.http.our_state is h11.SEND_BODY or self.http.their_state not in {h11.SEND_BODY, h11.ERROR}:
            return
        with contextlib.suppress(OSError), anyio.move_on_after(self.timeouts.linger) as self._reading:
            self.socket.shutdown(socket.SHUT_WR)
            self.begin_stream()  # nobody is to wait for what is thrown away
            while await self._receive(READ_BYTES):
                await self.turn.wait()

    @contextlib.contextmanager
    def on_hang_up(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call `callback` from the event loop if the client hangs up while the block lasts, or has hung up already."""

        def hung_up() -> None:
            self._gone = True
            callback()

        self._hang_ups.watch(self.socket, hung_up, over_tcp=self._over_tcp)
        try:
            yield
        finally:
            self._hang_ups.forget(self.socket)

    @contextlib.contextmanager
    def until_left(self, seconds: float) -> Iterator[None]:
        """End the block `seconds` after the client has hung up, or then as soon as another connection needs the place."""

        def left() -> None:
            self._gone = True
            self._left, scope.deadline = scope, anyio.current_time() + seconds

        with anyio.CancelScope() as scope:
            self._hang_ups.watch(self.socket, left, over_tcp=self._over_tcp)
            try:
                yield
            finally:
                self._hang_ups.forget(self.socket)
                self._left = None

    async def _event_within(
        self, seconds: float, size: int, what: str, told_seconds: float | None = None
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event; if it does not come in time, `told_seconds` are what the client is told of that."""
        deadline = anyio.current_time() + seconds
        try:
            with anyio.move_on_at(deadline) as self._reading:
                while True:
                    event = self.http.next_event()
                    if event is not h11.NEED_DATA:
                        return event
                    await self._more(size)
        finally:
            self._reading = None
        if anyio.current_time() < deadline:
            raise h11.RemoteProtocolError("the connection is needed for other clients", error_status_hint=503)
        raise timed_out(what, seconds if told_seconds is None else told_seconds)

    async def _more(self, size: int) -> None:
        self.advance()
        if self.http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            with contextlib.suppress(ClientGoneError):  # it may have sent the body all the same
                await self.send(self.http.send(go_on))
        data = await self._receive(size)
        self.http.receive_data(data)
        self._work += READ_COST + len(data)
        if self._work >= TURN_BYTES:
            self._work = 0
            await self.turn.wait()

    async def _first_bytes(self) -> bytes:
        with anyio.move_on_after(0 if self._is_last else self.timeouts.idle) as self._idle:
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
                    await anyio.wait_readable(self.socket)
        finally:
            self._idle = None

    def _read_now(self, size: int) -> bytes:
        try:
            data = self.socket.recv(size)
        except ConnectionError:
            return b""
        self.received += len(data)
        return data

    # Writing

    async def send(self, *parts: bytes | None) -> None:
        """Send bytes. Raises ClientGoneError. Lets no others run if the socket takes all at once.

        After an answer that was given up, nothing is sent.
        """
        if self._muted:
            return
        view = memoryview(parts[0] if len(parts) == 1 and parts[0] else b"".join(part for part in parts if part))
        try:
            while view:
                try:
                    view = view[self.socket.send(view, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    await self._wait_writable()
        except OSError as error:
            self._gone = True
            raise ClientGoneError from error

    async def send_event(self, event: h11.Event) -> None:
        """Send a message's part. Raises ClientGoneError."""
        parts: Iterable[bytes] | None = self.http.send_with_data_passthrough(event)
        await self.send(*(parts or ()))

    async def _wait_writable(self) -> None:
        with anyio.move_on_after(self.timeouts.stall) as waiting:
            await anyio.wait_writable(self.socket)
        if waiting.cancelled_caught:
            self.end()
            raise ClientGoneError

    # The end

    def close(self) -> None:
        """Close the connection; if an answer is incomplete, so that no client can take it for a whole one."""
        if (self._muted or self.http.our_state is h11.SEND_BODY) and self._over_tcp:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        super().close()


def _has_body(head: h11.Request) -> bool:
    headers = dict(head.headers)
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", 0)) > 0
