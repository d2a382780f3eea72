"""A server of artifacts that does what its paths say, for tests of what stands before it: real HTTP/1.1 over loopback.

What it does:

    PUT, POST, PATCH   the body is read and its size and digest are kept: 200, with both as JSON
    GET /sized/N       N bytes of `pattern`, with a content-length;  GET /chunked/N in chunks
    GET /endless       bytes without end
    GET /cut/N         N bytes of N + 1, and the end of the connection;  /cut-chunked/N the same in chunks
    …   /informational   103 without end
    …   /hang          no answer
    …   /early         403 before the body is read, and then the body;  /early-end 403, and the end of the connection
    …   /status/N      an answer with that status, a location, two cookies and a gzip encoding that is none
"""

import asyncio
import hashlib
import json
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import h11

from tests.support.tcp_server import TcpServer

PREFIX = "/prefix"
"""May stand before every path."""
PIECE = bytes(range(256)) * 256


def pattern(size: int) -> bytes:
    """Return the bytes that the server sends."""
    return (PIECE * (size // len(PIECE) + 1))[:size]


class Seen(NamedTuple):
    """A request's head, as it was sent."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER, 1 << 20))

    async def event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(1 << 18))
        return event

    async def send(self, *events: h11.Event) -> None:
        for event in events:
            self.writer.write(self.http.send(event) or b"")
        await self.writer.drain()


class Upstream(TcpServer):
    """The server. `seen` has every request's head, and `left` is set when a client leaves before its answer is complete."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.seen: list[Seen] = []
        self.left = threading.Event()
        self.busy = threading.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until one of them ends the connection."""
        connection = _Connection(reader, writer)
        try:
            while isinstance(head := await connection.event(), h11.Request):
                self.seen.append(Seen(head.method.decode(), head.target.decode(), head.headers.raw_items()))
                self.busy.set()
                await self._answer(connection, head)
                if connection.http.our_state is not h11.DONE or connection.http.their_state is not h11.DONE:
                    return
                connection.http.start_next_cycle()
        except (OSError, h11.RemoteProtocolError):
            self.left.set()

    async def _answer(self, connection: _Connection, head: h11.Request) -> None:
        path = head.target.decode().partition("?")[0].removeprefix(PREFIX).removeprefix("/v8/artifacts")
        kind, _, number = path.strip("/").partition("/")
        if kind.startswith("early"):
            await self._whole(connection, head, 403, [("connection", "close")], b'{"error":"early"}')
            while kind == "early" and isinstance(await connection.event(), h11.Data):
                pass
            return None
        size, digest = 0, hashlib.sha256()
        while isinstance(event := await connection.event(), h11.Data):
            size += len(event.data)
            digest.update(event.data)
        match kind:
            case "informational":
                while True:
                    await connection.send(h11.InformationalResponse(status_code=103, headers=[("link", "</a>")]))
            case "hang":
                await connection.reader.read()
                raise ConnectionResetError
            case "sized" | "chunked" | "cut" | "cut-chunked" | "endless":
                return await self._stream(connection, head, kind, int(number or 0))
            case "status":
                extra = [("location", "http://elsewhere.example/x"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
                headers = [*extra, ("content-encoding", "gzip"), ("X-Artifact-Tag", "t"), ("Keep-Alive", "timeout=5")]
                return await self._whole(connection, head, int(number), headers, b"not gzip at all")
            case _:
                body = json.dumps({"size": size, "sha256": digest.hexdigest()}).encode()
                return await self._whole(connection, head, 200, [], body)

    async def _whole(
        self, connection: _Connection, head: h11.Request, status: int, headers: list[tuple[str, str]], body: bytes
    ) -> None:
        fields = [("content-length", str(len(body))), *headers] if status not in {204, 304} else headers
        answer = h11.Response(status_code=status, headers=fields, reason=b"As Asked")
        bodiless = head.method == b"HEAD" or status in {204, 304}
        await connection.send(answer, *([] if bodiless else [h11.Data(body)]), h11.EndOfMessage())

    async def _stream(self, connection: _Connection, head: h11.Request, kind: str, size: int) -> None:
        cut = kind.startswith("cut")
        framing = ("content-length", str(size + cut)) if kind in {"sized", "cut"} else ("transfer-encoding", "chunked")
        await connection.send(h11.Response(status_code=200, headers=[framing]))
        if head.method == b"HEAD":
            return await connection.send(h11.EndOfMessage())
        sent = 0
        while sent < size or kind == "endless":
            piece = PIECE[: None if kind == "endless" else size - sent]
            await connection.send(h11.Data(piece))
            sent += len(piece)
        return None if cut else await connection.send(h11.EndOfMessage())
