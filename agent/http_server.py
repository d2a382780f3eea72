"""A small HTTP/1.1 server on h11: one handler, keep-alive, bounded requests. It serves the control socket and the demo's API.

It knows HTTP's messages. It must never know what they ask for.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.abc
import h11
import msgspec

MAX_BODY_BYTES = 1024 * 1024
IDLE_SECONDS = 60.0
READ_BYTES = 64 * 1024


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


async def serve(listener: anyio.abc.Listener[anyio.abc.SocketStream], handler: Handler) -> None:
    """Answer requests until cancelled."""

    async def converse(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await _converse(stream, handler)

    await listener.serve(converse)


async def _converse(stream: anyio.abc.SocketStream, handler: Handler) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        while True:
            request = None
            with anyio.move_on_after(IDLE_SECONDS):
                request = await _read_request(stream, connection)
            if request is None:
                return
            await _respond(stream, connection, await handler(request))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        if connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await _respond(stream, connection, Response.error(error.error_status_hint, "bad_request", str(error)))
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass  # the client has gone


async def _read_request(stream: anyio.abc.SocketStream, connection: h11.Connection) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                await stream.send(connection.send(go_on) or b"")
            connection.receive_data(await _receive(stream))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise h11.RemoteProtocolError(f"a body may have {MAX_BODY_BYTES} bytes", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return _request(head, bytes(body))
        else:  # the connection was closed between requests
            return None


async def _receive(stream: anyio.abc.SocketStream) -> bytes:
    try:
        return await stream.receive(READ_BYTES)
    except anyio.EndOfStream:
        return b""


def _request(head: h11.Request, body: bytes) -> Request:
    target = urlsplit(head.target.decode("ascii"))
    query = {name: values[-1] for name, values in parse_qs(target.query, keep_blank_values=True).items()}
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode("ascii"), target.path, query, headers, body)


async def _respond(stream: anyio.abc.SocketStream, connection: h11.Connection, response: Response) -> None:
    headers = [("content-type", response.content_type), ("content-length", str(len(response.body))), *response.headers]
    head = connection.send(h11.Response(status_code=response.status, headers=headers))
    body = connection.send(h11.Data(response.body))
    end = connection.send(h11.EndOfMessage())
    await stream.send((head or b"") + (body or b"") + (end or b""))
