"""A small HTTP/1.1 server on h11: keep-alive, bounded requests, whole or as a stream. It serves the control socket, the API's own
endpoint for clients that know no other, and the demo's API.

Whatever a client sends, the server goes on: what is no request gets 400 in the API's error shape, an exception in the
handler gets 500 and a log line, and when no more files can be opened it waits until they can.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from urllib.parse import parse_qsl, urlsplit

import anyio
import h11
import msgspec
import structlog

from agent.acceptor import Acceptor
from agent.http.body_memory import BodyMemory
from agent.http.connection import TURN_PIECES, ClientGoneError, Http1Connection, Timeouts, timed_out
from agent.http.hang_ups import HangUps
from agent.peers import Peer, Turns, groups_of, token_holders
from agent.throttle import Throttle

MAX_BODY_BYTES = 1024 * 1024
MAX_CONNECTIONS = 64
TIMEOUTS = Timeouts()

LOG_INTERVAL = 10.0
MAX_REASON_CHARACTERS = 200

_CODES = {
    408: "request_timeout",
    413: "payload_too_large",
    501: "not_implemented",
    503: "service_unavailable",
}

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


_NO_HEAD = Head("", "", {}, {})


@dataclass(frozen=True, kw_only=True)
class Request(Head):
    """A whole request.

    `hung_up` returns when the client is known to have gone, for what is not worth finishing then.
    """

    body: bytes = b""
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


class InvalidHeadError(Exception):
    """A response has a head that HTTP does not allow. Nothing of it has been sent: there can be another response."""


class Exchange:
    """One request, of which the head has come, and its answer. Reading raises what `Http1Connection.read` does, writing
    ClientGoneError.

    `status` is the answer's, once it has begun.
    """

    def __init__(self, head: Head, connection: Http1Connection, acceptor: Acceptor[Http1Connection]) -> None:
        self.head = head
        self.status: int | None = None
        self._connection = connection
        self._acceptor = acceptor

    @property
    def peer(self) -> Peer:
        """Who sends the request."""
        return self._connection.peer

    def groups(self) -> frozenset[int]:
        """Return the groups that its process is in, as far as the kernel says so."""
        return groups_of(self._connection.socket)

    def trust(self, destination: str) -> None:
        """Say that the client has shown the token of a destination: it takes turns with others who have, not with strangers."""
        if self._connection.group != (group := token_holders(destination)):
            self._acceptor.regroup(self._connection, group)

    def end_after_answer(self) -> None:
        """Let the connection end with the answer; what is left of the request's body is not read."""
        self._connection.end()

    async def take_turn(self) -> None:
        """Let others have their turn: see `agent.peers`."""
        await self._connection.turn.wait()

    async def body(self, limit: int = MAX_BODY_BYTES, memory: BodyMemory | None = None) -> bytes:
        """Read the whole body; one that is larger is refused before it is read, where its length is known."""
        too_large = h11.RemoteProtocolError(f"a body may have {limit} bytes", error_status_hint=413)
        if (self.head.length or 0) > limit:
            raise too_large
        body, is_whole = self.received()
        if is_whole:
            return bytes(body)
        seconds = self._connection.timeouts.body
        memory = memory or BodyMemory(limit)
        with memory.hold(self._connection.group) as held, anyio.move_on_after(seconds) as waiting:
            while len(body) <= limit and (piece := await self.read()):
                await held.grow(len(body) + len(piece))
                body += piece
        if waiting.cancelled_caught:
            raise timed_out("the whole body", seconds)
        if len(body) > limit:
            raise too_large
        return bytes(body)

    def received(self) -> tuple[bytearray, bool]:
        """Return what has come of the body, as a rule with the head, and whether that is all of it."""
        body = bytearray()
        for _ in range(TURN_PIECES):
            piece = self._connection.read_received()
            if not piece:
                return body, piece is not None
            body += piece
        return body, False

    async def read(self) -> bytes:
        """Read a piece of the body; b"" at its end."""
        return await self._connection.read()

    async def answer(self, response: Response) -> None:
        """Send a whole response."""
        length = ("content-length", str(len(response.body)))
        headers = [("content-type", response.content_type), length, *response.headers]
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        await self.answer_as(response.status, raw, _phrase(response.status), response.body)

    async def answer_as(self, status: int, headers: Headers, reason: bytes, body: bytes) -> None:
        """Send a whole response with these headers; without a content-length it is sent in chunks. Raises InvalidHeadError."""
        response, send = self._response(status, headers, reason), self._connection.http.send
        self.status = status
        head = send(response)
        data = None if self.head.method == "HEAD" else send(h11.Data(body))
        await self._connection.send(head, data, send(h11.EndOfMessage()))

    async def start(self, status: int, headers: Headers, reason: bytes = b"") -> None:
        """Begin a response whose body comes in pieces; without a content-length it is sent in chunks. Raises InvalidHeadError."""
        response = self._response(status, headers, reason)
        self.status = status
        await self._connection.send_event(response)

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body. Lets no others run if the socket takes it at once."""
        await self._connection.send_event(h11.Data(piece))

    async def finish(self) -> None:
        """End the body. If this is not called, the connection is cut off."""
        await self._connection.send_event(h11.EndOfMessage())

    def begin_stream(self) -> None:
        """Say that this may take any time: `Server.catch_up` does not wait for it."""
        self._connection.begin_stream()

    def on_hang_up(self, callback: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `callback` if the client hangs up while the block lasts, or has hung up already. See `HangUps.watch`."""
        return self._connection.on_hang_up(callback)

    def until_left(self, seconds: float) -> AbstractContextManager[None]:
        """End the block when the client has left. See `Http1Connection.until_left`."""
        return self._connection.until_left(seconds)

    def has_left(self) -> bool:
        """Tell whether the client is known to have gone within `until_left`, so that another connection can have its place."""
        return self._connection.has_left

    async def hung_up(self) -> None:
        """Return when the client has hung up."""
        gone = anyio.Event()
        with self.on_hang_up(gone.set):
            await gone.wait()

    def _response(self, status: int, headers: Headers, reason: bytes = b"") -> h11.Response:
        closing = [] if self._connection.goes_on else [(b"connection", b"close")]
        try:
            return h11.Response(status_code=status, headers=[*headers, *closing], reason=reason)
        except h11.LocalProtocolError as error:
            raise InvalidHeadError(str(error)[:MAX_REASON_CHARACTERS]) from error


def _phrase(status: int) -> bytes:
    """Return the reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


Handler = Callable[[Request], Awaitable[Response]]
StreamHandler = Callable[[Exchange], Awaitable[None]]


def buffered(handler: Handler) -> StreamHandler:
    """Return a stream handler that reads the whole body before it calls `handler`."""

    async def handle(exchange: Exchange) -> None:
        body = await exchange.body()
        request = Request(**vars(exchange.head), body=body, hung_up=exchange.hung_up)
        await exchange.answer(await handler(request))

    return handle


async def serve(listening: socket.socket, handler: Handler) -> None:
    """Answer requests until cancelled; whoever opened the socket closes it."""
    await Server(MAX_CONNECTIONS).serve(listening, buffered(handler))


class Server:
    """Serves any number of listening sockets, with at most `max_connections` together.

    When one more comes, the one that has waited longest for a request has to go; if none waits, the new one is closed.
    """

    def __init__(self, max_connections: int, timeouts: Timeouts = TIMEOUTS, turns: Turns | None = None) -> None:
        """`turns` are those of the clients' groups, if they have some already."""
        self._timeouts = timeouts
        self._turns = turns or Turns()
        self._log = structlog.get_logger("agent.http")
        self._throttle = Throttle(LOG_INTERVAL)
        self._acceptor: Acceptor[Http1Connection] = Acceptor(max_connections, "agent.http", refuse_when_full=True)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._acceptor.connections

    async def serve(
        self, listening: socket.socket, handler: StreamHandler, release: Callable[[], None] = lambda: None
    ) -> None:
        """Answer requests until `close`; then call `release`, and return when those that have come are answered."""
        listening.setblocking(False)
        with HangUps() as hang_ups:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hang_ups.run)
                await self._acceptor.serve(
                    listening,
                    lambda accepted: [
                        Http1Connection(each, peer, self._timeouts, hang_ups, self._turns)
                        for each, peer in accepted.items()
                    ],
                    partial(self._serve_connection, handler),
                    release,
                )
                tasks.cancel_scope.cancel()

    def close(self) -> None:
        """Accept no more connections and, after those that have begun, no more requests."""
        self._acceptor.close()

    async def catch_up(self) -> None:
        """Return when every request that clients had written before the call is answered, but for streams."""
        await self._acceptor.catch_up()

    async def _serve_connection(self, handler: StreamHandler, connection: Http1Connection) -> None:
        """Answer request after request, while both sides want to."""
        while await self._answer_next(connection, handler) and connection.next_cycle():
            self._acceptor.touch(connection)
        await connection.linger()

    async def _answer_next(self, connection: Http1Connection, handler: StreamHandler) -> bool:
        """Have the next request answered; False if none came. What is no request is answered here."""
        exchange = Exchange(_NO_HEAD, connection, self._acceptor)
        try:
            found = await connection.next_head()
            if found is None:
                return False
            exchange.head = _head(found)
            await handler(exchange)
        except h11.RemoteProtocolError as error:
            connection.end()
            await connection.turn.wait()  # of many that are too slow, all may notice at once
            if not connection.http.trailing_data[1]:  # it has not just gone away
                self._log_refusal(error, connection.peer)
            code = _CODES.get(error.error_status_hint, "bad_request")
            await _fail(exchange, Response.error(error.error_status_hint, code, str(error)))
        except ClientGoneError:
            pass
        except Exception:  # whatever it is: a fault in a handler must not stop the daemon
            log = structlog.get_logger("agent.http")
            log.exception("request_failed", method=exchange.head.method, path=exchange.head.path)
            await _fail(
                exchange, Response.error(500, "internal_error", "the request failed: the daemon's log says how")
            )
        return True

    def _log_refusal(self, error: h11.RemoteProtocolError, peer: Peer) -> None:
        status, reason = error.error_status_hint, str(error)[:MAX_REASON_CHARACTERS]
        held_back = self._throttle.allow(str(status), anyio.current_time())
        if held_back is not None:
            self._log.warning("request_broken", status=status, reason=reason, **peer.facts, suppressed=held_back)


async def _fail(exchange: Exchange, response: Response) -> None:
    """Answer with an error; an answer that has begun is cut off instead: see `Http1Connection.close`."""
    if exchange.status is None:
        with contextlib.suppress(ClientGoneError):
            await exchange.answer(response)


def _head(found: h11.Request) -> Head:
    try:
        target = urlsplit(found.target.decode("ascii"))
    except ValueError as error:
        raise h11.RemoteProtocolError(f"the request's target is no URL: {error}") from error
    query = dict(parse_qsl(target.query, keep_blank_values=True))
    raw = found.headers.raw_items()
    headers = {name.lower().decode("ascii"): value.decode("latin-1") for name, value in raw}
    return Head(found.method.decode("ascii"), target.path, query, headers, found.target, raw)
