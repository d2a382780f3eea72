"""A relay that passes bytes on unchanged, both ways, and captures the requests and their status on the way.

It stands before a real server that does not say what it received.
"""

import asyncio
from collections.abc import Callable

import h11

from tests.support.capture import CapturingServer
from tests.support.http_connection import captured
from tests.support.tcp_server import HOST, close

_CHUNK = 64 * 1024


class CaptureProxy(CapturingServer):
    """Relays to a port on loopback. A 2xx counts as accepted once it has passed through whole."""

    def __init__(self, upstream_port: int) -> None:
        super().__init__()
        self._upstream_port = upstream_port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection until the server ends it, or the client does and the server follows."""
        from_server, to_server = await asyncio.open_connection(HOST, self._upstream_port)
        tap = _Tap(self._arrived, self._answered)
        upload = asyncio.create_task(_pump(reader, to_server, tap.from_client))
        try:
            await _pump(from_server, writer, tap.from_server)
        finally:
            upload.cancel()
            to_server.close()  # before anything is awaited: this task may be cancelled there
            await asyncio.gather(upload, return_exceptions=True)
            await close(to_server)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tap: Callable[[bytes], None]) -> None:
    try:
        while data := await reader.read(_CHUNK):
            tap(data)
            writer.write(data)
            await writer.drain()
    finally:
        writer.write_eof()


class _Tap:
    """Reads both directions of one connection; each parser is told what the other has read."""

    def __init__(self, arrived: Callable[..., int], answered: Callable[[int, int], None]) -> None:
        self._arrived = arrived
        self._answered = answered
        self._requests = h11.Connection(h11.SERVER)
        self._responses = h11.Connection(h11.CLIENT)
        self._start()

    def _start(self) -> None:
        self._head: h11.Request | None = None
        self._body = b""
        self._index: int | None = None
        self._status = 0

    def from_client(self, data: bytes) -> None:
        self._requests.receive_data(data)
        while isinstance(event := self._requests.next_event(), h11.Request | h11.Data | h11.EndOfMessage):
            self._responses.send(event)
            self._take_request(event)

    def from_server(self, data: bytes) -> None:
        self._responses.receive_data(data)
        while isinstance(
            event := self._responses.next_event(),
            h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage,
        ):
            self._requests.send(event)
            self._take_response(event)

    def _take_request(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            self._head = event
        elif isinstance(event, h11.Data):
            self._body += event.data
        else:
            self._capture()

    def _take_response(self, event: h11.Event) -> None:
        if isinstance(event, h11.Response):
            self._status = event.status_code
        elif isinstance(event, h11.EndOfMessage):
            self._finish()

    def _capture(self) -> int:
        assert self._head is not None
        if self._index is None:
            self._index = self._arrived(captured(self._head, self._body))
        return self._index

    def _finish(self) -> None:
        # A server may answer (413) before the upload is complete: then the body is captured as far as it came.
        self._answered(self._capture(), self._status)
        if self._requests.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            self._requests.start_next_cycle()
            self._responses.start_next_cycle()
            self._start()
