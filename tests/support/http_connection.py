"""The server's end of one HTTP/1.1 connection: h11 over asyncio streams, with every way to be rude at the end of it."""

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl

import h11

from tests.support.capture import Captured
from tests.support.tcp_server import reset

_CHUNK = 64 * 1024


class HttpConnection:
    """One connection, one request at a time. OSError or h11.RemoteProtocolError when the client breaks off."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.SERVER)
        self._asked_for_body = True

    @property
    def client_left(self) -> bool:
        """Whether the client has closed its end."""
        return self._reader.at_eof()

    async def head(self) -> h11.Request | None:
        """Read the next request's head; None when the client closed instead."""
        event = await self._event()
        self._asked_for_body = not isinstance(event, h11.Request) or event.method != b"HEAD"
        return event if isinstance(event, h11.Request) else None

    async def some_body(self) -> bytes:
        """Read what comes first of the body, and no more."""
        event = await self._event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def body(self) -> bytes:
        """Read the whole body."""
        parts = []
        while isinstance(event := await self._event(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def client_leaves(self, within: float | None) -> bool:
        """Wait that many seconds (None: for ever), but no longer than the client stays; true if it left."""
        try:
            async with asyncio.timeout(within):
                while data := await self._reader.read(_CHUNK):
                    self._state.receive_data(data)
                return True
        except TimeoutError:
            return False

    def encode(self, status: int, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return the whole answer's bytes, with content-length and, for a body without one, a JSON content-type.

        To HEAD it is the same without the body.
        """
        fields = {"content-length": str(len(body))} | ({"content-type": "application/json"} if body else {})
        fields |= {name.lower(): value for name, value in headers.items()}
        answer = h11.Response(status_code=status, headers=list(fields.items()))
        data = [h11.Data(data=body)] if self._asked_for_body else []
        parts = [self._state.send(each) for each in (answer, *data, h11.EndOfMessage())]
        return b"".join(part or b"" for part in parts)

    def reset(self) -> None:
        """End the connection with RST."""
        reset(self._writer)

    def next_request(self) -> bool:
        """Get ready for another request; false if this connection carries none."""
        if self._state.our_state is not h11.DONE or self._state.their_state is not h11.DONE:
            return False
        self._state.start_next_cycle()
        return True

    async def _event(self) -> h11.Event:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            if self._state.they_are_waiting_for_100_continue:
                await self.write(self._state.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._state.receive_data(await self._reader.read(_CHUNK))
        assert not isinstance(event, type), "h11 is paused only after a request that nobody answered"
        return event


def captured(head: h11.Request, body: bytes) -> Captured:
    """Turn a parsed request into what tests look at."""
    path, _, query = head.target.decode("ascii").partition("?")
    return Captured(
        method=head.method.decode("ascii"),
        path=path,
        query=dict(parse_qsl(query, keep_blank_values=True)),
        headers={name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
        body=body,
    )
