"""A server that answers with the very bytes, and in the very pieces, that a test has written down."""

import asyncio
import fcntl
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from tests.support.tcp_server import TcpServer, reset
from tests.support.waiting import HUNG_AFTER, eventually

_ESTABLISHED = 1  # what the low byte of TCP_INFO says of a connection that nobody has closed


class Endless(NamedTuple):
    """Bytes that are sent again and again until the client leaves."""

    data: bytes


class End(Enum):
    """How a connection ends."""

    CLOSED = auto()
    RESET = auto()


Piece = bytes | threading.Event | Endless | End
"""Bytes to send, in a segment of their own; what to wait for before the next ones; or the end of the connection."""


class RawServer(TcpServer):
    """Answers one request, over whichever connection it comes, as `script` says, and all later ones with `default`.

    `requests` has the first line of each request, `accepted` counts connections. `finished` is set when the answer of the script
    has arrived at the other end, wholly, although it may not have been read there; or when that end has gone before.
    """

    def __init__(self, default: bytes, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.default = default
        self.requests: list[bytes] = []
        self.accepted = 0
        self.finished = threading.Event()
        self._script: list[tuple[Sequence[Piece], threading.Event]] = []

    def script(self, *answer: Piece) -> None:
        """Answer the next request so."""
        self.finished = threading.Event()
        self.requests.clear()
        self.accepted = 0
        self._script = [(answer, self.finished)]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the client leaves."""
        self.accepted += 1
        while line := await self._read(reader):
            self.requests.append(line)
            pieces, finished = self._script.pop() if self._script else ([self.default], threading.Event())
            try:
                for piece in pieces:
                    if piece is End.RESET:
                        reset(writer)
                    if isinstance(piece, End):
                        return
                    await self._send(piece, writer)
            finally:
                finished.set()

    async def _send(self, piece: bytes | threading.Event | Endless, writer: asyncio.StreamWriter) -> None:
        if isinstance(piece, threading.Event):
            await asyncio.to_thread(piece.wait, HUNG_AFTER)
        elif isinstance(piece, Endless):
            while not writer.is_closing():
                writer.write(piece.data)
                await writer.drain()
        else:
            writer.write(piece)
            await writer.drain()
            await asyncio.to_thread(_arrived, writer.get_extra_info("socket"))

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        line, *fields = head.lower().split(b"\r\n")
        lengths = [
            int(value) for name, _, value in (field.partition(b":") for field in fields) if name == b"content-length"
        ]
        await reader.readexactly(sum(lengths))
        return line


def _arrived(connection: socket.socket) -> None:
    """Wait until all that was sent is in the other end's buffer, or the other end has gone."""
    eventually(lambda: _unsent(connection), lambda unsent: unsent == 0)


def _unsent(connection: socket.socket) -> int:
    if connection.fileno() == -1 or connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
        return 0
    (unsent,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(unsent)
