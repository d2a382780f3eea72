"""A small HTTP/1.1 server on h11: keep-alive, bounded requests, whole or as a stream. It serves the control socket, the API's own
endpoint for clients that know no other, and the demo's API.

It knows HTTP's messages. It must never know what they ask for.

Whatever a client sends, the server goes on: what is no request gets 400 in the API's error shape, an exception in the
handler gets 500 and a log line, and when no more files can be opened it waits until they can.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import h11
import msgspec
import structlog

from agent.http.connection import ClientGoneError, Http1Connection, Timeouts, timed_out
from agent.throttle import Throttle

MAX_BODY_BYTES = 1024 * 1024
MAX_CONNECTIONS = 64
ACCEPT_RETRY_SECONDS = 0.1
TURN_CLIENTS = 32
LOG_INTERVAL = 60.0
PATIENCE = Timeouts()

_CODES = {408: "request_timeout", 413: "payload_too_large", 501: "not_implemented"}

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Head:
    """What a request says before its body. `query` holds the last value of each parameter; `headers` has lower-case names.

    `target` and `raw_headers` are these as they were sent.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    target: bytes = b""
    raw_headers: Headers = ()

    @property
    def length(self) -> int | None:
        """How many bytes the body has; None if it comes in chunks, whatever a length says then (RFC 9112, 6.3)."""
        return None if "transfer-encoding" in self.headers else int(self.headers.get("content-length", 0))


@dataclass(frozen=True)
class Request:
    """A whole request. See `Head`.

    `hung_up` returns when the client is known to have gone, for what is not worth finishing then.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    hung_up: Callable[[], Awaitable[None]] = anyio.sleep_forever


@dataclass(frozen=True)
class Response:
    """A whole response."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def json(cls, value: object, status: int = 200) -> "Response":
        """Return `value` as JSON."""
        return cls(status, msgspec.json.encode(value) + b"\n")

    @classmethod
    def error(cls, status: int, code: str, message: str) -> "Response":
        """Return an error in the API's shape."""
        return cls.json({"error": {"code": code, "message": message}}, status)


class Exchange:
    """One request, of which the head has come, and its answer. Reading raises what `Http1Connection.read` does, writing
    ClientGoneError.

    `status` is the answer's, once it has begun.
    """

    def __init__(self, head: Head, wire: Http1Connection) -> None:
        self.head = head
        self.status: int | None = None
        self._wire = wire

    async def body(self, limit: int = MAX_BODY_BYTES) -> bytes:
        """Read the whole body; one that is larger is refused before it is read, where its length is known."""
        too_large = h11.RemoteProtocolError(f"a body may have {limit} bytes", error_status_hint=413)
        if (self.head.length or 0) > limit:
            raise too_large
        body, seconds = bytearray(), self._wire.patience.body
        with anyio.move_on_after(seconds):
            while piece := await self.read():
                body += piece
                if len(body) > limit:
                    raise too_large
            return bytes(body)
        raise timed_out("the whole body", seconds)

    async def read(self) -> bytes:
        """Read a piece of the body; b"" at its end."""
        return await self._wire.read()

    async def answer(self, response: Response) -> None:
        """Send a whole response."""
        length = ("content-length", str(len(response.body)))
        headers = [("content-type", response.content_type), length, *response.headers]
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        self.status = response.status
        send = self._wire.http.send
        head = send(self._response(response.status, raw))
        body = None if self.head.method == "HEAD" else send(h11.Data(response.body))
        await self._wire.send(head, body, send(h11.EndOfMessage()))

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        """Begin a response whose body comes in pieces; without a content-length it is sent in chunks."""
        self.status = status
        await self._wire.send_event(self._response(status, headers, reason))

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body. Lets no others run if the socket takes it at once."""
        await self._wire.send_event(h11.Data(piece))

    async def finish(self) -> None:
        """End the body. If this is not called, the connection is cut off."""
        await self._wire.send_event(h11.EndOfMessage())

    def go_on_endlessly(self) -> None:
        """Say that nobody should wait for the end of this."""
        self._wire.go_on_endlessly()

    @property
    def client_gone(self) -> bool:
        """Whether the client has hung up, be it only its sending half: more than that cannot be seen."""
        return self._wire.client_gone

    async def hung_up(self) -> None:
        """Return when the client has closed the connection; one that has only ended its side may still wait for the answer."""
        await self._wire.hung_up()

    def _response(self, status: int, headers: Headers, reason: bytes = b"") -> h11.Response:
        going_on = self._wire.http.their_state is h11.DONE and not self._wire.ending
        closing = [] if going_on else [(b"connection", b"close")]
        return h11.Response(status_code=status, headers=[*headers, *closing], reason=reason)


Handler = Callable[[Request], Awaitable[Response]]
StreamHandler = Callable[[Exchange], Awaitable[None]]


def whole(handler: Handler) -> StreamHandler:
    """Return a handler that reads the request to its end before it gives it to `handler`."""

    async def handle(exchange: Exchange) -> None:
        head = exchange.head
        body = await exchange.body()
        request = Request(head.method, head.path, head.query, head.headers, body, exchange.hung_up)
        await exchange.answer(await handler(request))

    return handle


async def serve(listening: socket.socket, handler: Handler) -> None:
    """Answer requests until cancelled; whoever opened the socket closes it."""
    await Server(MAX_CONNECTIONS).serve(listening, whole(handler))


class Server:
    """Serves any number of listening sockets, with at most `max_connections` together.

    When one more comes, the one that has waited longest for a request has to go; if none waits, the new one is closed.
    """

    def __init__(self, max_connections: int, patience: Timeouts = PATIENCE) -> None:
        self._patience = patience
        self._max_connections = max_connections
        self._connections: dict[Http1Connection, None] = {}  # those that were used last are last
        self._doors: list[_Door] = []
        self._closing = False
        self._throttle = Throttle(LOG_INTERVAL)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def serve(
        self, listening: socket.socket, handler: StreamHandler, release: Callable[[], None] = lambda: None
    ) -> None:
        """Answer requests until `close`; then call `release`, and return when those that have begun are answered."""
        listening.setblocking(False)
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as accepting:
                door = _Door(listening, handler, tasks, accepting)
                self._doors.append(door)
                while not self._closing:
                    await anyio.wait_readable(listening)
                    await self._accept_ready(door)
            self._doors.remove(door)
            release()

    def close(self) -> None:
        """Accept no more connections and, after those that have begun, no more requests."""
        self._closing = True
        for door in self._doors:
            door.accepting.cancel()
        for wire in self._connections:
            wire.end()

    async def catch_up(self) -> None:
        """Return when every request that clients had written before the call is answered, but for endless ones."""
        for door in self._doors:
            await self._accept_ready(door)
        for wire, target in [(wire, wire.written) for wire in self._connections]:
            await wire.taking(target)

    async def _accept_ready(self, door: "_Door") -> None:
        """Accept everyone who waits. What is accepted is served, even if this is cancelled."""
        try:
            while not self._closing:
                for _ in range(TURN_CLIENTS):
                    self._admit(door.listening.accept()[0], door)
                await anyio.lowlevel.checkpoint()
        except BlockingIOError:
            pass
        except OSError as error:  # such as too many open files
            held_back = self._throttle.allow("accept", anyio.current_time())
            if held_back is not None:
                reason = error.strerror or str(error)
                structlog.get_logger("agent.http").error("cannot_accept", error=reason, suppressed=held_back)
            await anyio.sleep(ACCEPT_RETRY_SECONDS)

    def _admit(self, accepted: socket.socket, door: "_Door") -> None:
        if len(self._connections) >= self._max_connections and not any(wire.evict() for wire in self._connections):
            accepted.close()
            return
        wire = Http1Connection(accepted, self._patience)
        self._connections[wire] = None
        door.tasks.start_soon(self._converse, wire, door.handler)

    async def _converse(self, wire: Http1Connection, handler: StreamHandler) -> None:
        """Serve a connection: request, response, and so on while both sides want to."""
        try:
            while await _exchange(wire, handler) and wire.next_cycle():
                self._connections[wire] = self._connections.pop(wire)
            await wire.linger()
        finally:
            self._connections.pop(wire)
            wire.close()


class _Door(NamedTuple):
    """A listening socket, what answers those who come through it, and what keeps it open."""

    listening: socket.socket
    handler: StreamHandler
    tasks: anyio.abc.TaskGroup
    accepting: anyio.CancelScope


async def _exchange(wire: Http1Connection, handler: StreamHandler) -> bool:
    """Take a request and have it answered; False if none came. What is no request is answered here."""
    exchange = Exchange(Head("", "", {}, {}), wire)
    try:
        found = await wire.next_head()
        if found is None:
            return False
        exchange.head = _head(found)
        await handler(exchange)
    except h11.RemoteProtocolError as error:
        wire.ending = True
        await _fail(
            exchange,
            Response.error(error.error_status_hint, _CODES.get(error.error_status_hint, "bad_request"), str(error)),
        )
    except ClientGoneError:
        return False
    except Exception:  # whatever it is: a fault in a handler must not stop the daemon
        log = structlog.get_logger("agent.http")
        log.exception("request_failed", method=exchange.head.method, path=exchange.head.path)
        await _fail(exchange, Response.error(500, "internal_error", "the request failed: the daemon's log says how"))
    return True


async def _fail(exchange: Exchange, response: Response) -> None:
    """Answer with an error, unless an answer has begun, which is cut off then: see `Http1Connection.close`."""
    if exchange.status is None:
        with contextlib.suppress(ClientGoneError):
            await exchange.answer(response)


def _head(found: h11.Request) -> Head:
    try:
        target = urlsplit(found.target.decode("ascii"))
    except ValueError as error:
        raise h11.RemoteProtocolError(f"the request's target is no URL: {error}") from error
    query = {name: values[-1] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in found.headers}
    raw = found.headers.raw_items()
    return Head(found.method.decode("ascii"), target.path, query, headers, found.target, raw)
