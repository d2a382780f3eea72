"""A small HTTP/1.1 server on h11: one handler, keep-alive, bounded requests. It serves the control socket and the demo's API.

It knows HTTP's messages. It must never know what they ask for.

Whatever a client sends, the server goes on: what is no request gets 400 in the API's error shape, an exception in the
handler gets 500 and a log line, and when no more files can be opened it waits until they can.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc
import anyio.lowlevel
import h11
import msgspec
import structlog

from agent.logs import Throttle

MAX_BODY_BYTES = 1024 * 1024
MAX_CONNECTIONS = 64
IDLE_SECONDS = 60.0
READ_BYTES = 64 * 1024
ACCEPT_RETRY_SECONDS = 0.1
LOG_INTERVAL = 60.0


@dataclass(frozen=True)
class Request:
    """A whole request. `query` holds the last value of each parameter; `headers` has lower-case names."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


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


Handler = Callable[[Request], Awaitable[Response]]


class SocketListener(anyio.abc.Listener[anyio.abc.ByteStream]):
    """A listening Unix socket that does not block, for `serve`; whoever opened it closes it.

    anyio's own Unix streams complain of an InvalidStateError when they are cancelled, on asyncio, while the client
    hangs up. Waiting for a socket to become readable does not.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening

    async def serve(
        self,
        handler: Callable[[anyio.abc.ByteStream], Any],
        task_group: anyio.abc.TaskGroup | None = None,
    ) -> None:
        """Give each connection to `handler`. Raises OSError if one cannot be accepted."""
        if task_group is None:
            async with anyio.create_task_group() as task_group:
                return await self.serve(handler, task_group)
        while True:
            await anyio.wait_readable(self._socket)
            with contextlib.suppress(BlockingIOError):
                task_group.start_soon(handler, _SocketStream(self._socket.accept()[0]))

    async def aclose(self) -> None:
        """Leave the socket to its owner."""


class _SocketStream(anyio.abc.ByteStream):
    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except ConnectionError as error:
                raise anyio.BrokenResourceError from error
            else:
                if data:
                    return data
                raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        while item:
            try:
                item = item[self._socket.send(item, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except ConnectionError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self._socket.close()


async def serve(listener: anyio.abc.Listener[anyio.abc.ByteStream], handler: Handler) -> None:
    """Answer requests until cancelled. What connects beyond MAX_CONNECTIONS is closed unanswered."""
    limiter, throttle = anyio.CapacityLimiter(MAX_CONNECTIONS), Throttle(LOG_INTERVAL)

    async def converse(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            if limiter.available_tokens:
                async with limiter:
                    await _Conversation(stream, handler).run()

    async with anyio.create_task_group() as tasks:
        while True:
            try:
                await listener.serve(converse, tasks)
            except (OSError, anyio.BrokenResourceError) as error:  # such as too many open files
                held_back = throttle.allow("accept", anyio.current_time())
                if held_back is not None:
                    reason = str(error.__cause__ or error)
                    structlog.get_logger("agent.http").error("cannot_accept", error=reason, suppressed=held_back)
                await anyio.sleep(ACCEPT_RETRY_SECONDS)


class _Conversation:
    """One connection: request, response, and so on while both sides want to."""

    def __init__(self, stream: anyio.abc.ByteStream, handler: Handler) -> None:
        self._stream = stream
        self._handler = handler
        self._wire = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None

    async def run(self) -> None:
        try:
            while (request := await self._next_request()) is not None:
                await self._respond(await self._answer(request))
                if self._wire.our_state is not h11.DONE or self._wire.their_state is not h11.DONE:
                    return
                self._wire.start_next_cycle()
                self._head = None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the client has gone

    async def _next_request(self) -> Request | None:
        """Return None if none came in time; what is no request is answered here."""
        try:
            with anyio.move_on_after(IDLE_SECONDS):
                return await self._read_request()
        except h11.RemoteProtocolError as error:
            if self._wire.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._respond(Response.error(error.error_status_hint, "bad_request", str(error)))
        return None

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except Exception:  # whatever it is: a fault in a report must not stop the daemon
            log = structlog.get_logger("agent.http")
            log.exception("request_failed", method=request.method, path=request.path)
            return Response.error(500, "internal_error", "the request failed: the daemon's log says how")

    async def _read_request(self) -> Request | None:
        body = bytearray()
        while True:
            event = self._wire.next_event()
            if event is h11.NEED_DATA:
                await self._receive_more()
            elif isinstance(event, h11.Request):
                self._head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError(f"a body may have {MAX_BODY_BYTES} bytes", error_status_hint=413)
            elif isinstance(event, h11.EndOfMessage) and self._head is not None:
                return _request(self._head, bytes(body))
            else:  # the connection was closed between requests
                return None

    async def _receive_more(self) -> None:
        if self._wire.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self._send(self._wire.send(go_on))
        try:
            self._wire.receive_data(await self._stream.receive(READ_BYTES))
        except anyio.EndOfStream:
            self._wire.receive_data(b"")

    async def _respond(self, response: Response) -> None:
        length = ("content-length", str(len(response.body)))
        headers = [("content-type", response.content_type), length, *response.headers]
        head = self._wire.send(h11.Response(status_code=response.status, headers=headers))
        bodiless = self._head is not None and self._head.method == b"HEAD"
        body = None if bodiless else self._wire.send(h11.Data(response.body))
        await self._send(head, body, self._wire.send(h11.EndOfMessage()))

    async def _send(self, *parts: bytes | None) -> None:
        with anyio.move_on_after(IDLE_SECONDS) as patience:
            await self._stream.send(b"".join(part for part in parts if part))
        if patience.cancelled_caught:
            raise anyio.BrokenResourceError


def _request(head: h11.Request, body: bytes) -> Request:
    try:
        target = urlsplit(head.target.decode("ascii"))
    except ValueError as error:
        raise h11.RemoteProtocolError(f"the request's target is no URL: {error}") from error
    query = {name: values[-1] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode("ascii"), target.path, query, headers, body)
