"""The datagram listener: a datagram is one or more lines, and nothing is ever answered.

It knows sockets. It must never know what a line means, or files.

A datagram that was received is always taken: nothing cancels that but the end of the whole daemon.
"""

import socket

import anyio
import anyio.lowlevel

from agent.events import MAX_LINE_BYTES
from agent.framing.ndjson import LineFramer, Lines
from agent.intake import Conversation, Intake, Peer
from agent.listeners.sockets import CREDENTIALS_SPACE, Bound, read_credentials

# More than net.core.wmem_default lets a client send at once.
MAX_DATAGRAM_BYTES = 256 * 1024
# More than net.unix.max_dgram_qlen lets wait in a socket: 10 by default, 512 under systemd.
MAX_WAITING = 4096
_NOBODY = Peer(pid=0, uid=0xFFFF_FFFF)


class DatagramListener:
    """Serves one datagram socket."""

    def __init__(self, bound: Bound, intake: Intake) -> None:
        self._bound = bound
        self._intake = intake
        self._waiting = anyio.CancelScope()
        self._closing = False
        self._taking = False
        self._taken = 0
        self._progress = anyio.Event()
        bound.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    async def serve(self) -> None:
        """Receive until `close`, and then what has been sent before; a socket that systemd keeps also keeps that."""
        while not self._closing:
            with self._waiting:
                await anyio.wait_readable(self._bound.socket)
            self._waiting = anyio.CancelScope()
            while await self._take_one() and not self._closing:
                pass
        if self._bound.path is not None:
            self._bound.socket.shutdown(socket.SHUT_RD)
            while await self._take_one():
                pass
        self._bound.release()
        self._advance()

    async def close(self) -> None:
        """Let `serve` receive no more, after what has been sent."""
        self._closing = True
        self._waiting.cancel()

    async def catch_up(self) -> None:
        """Return when every datagram that had been sent before the call has been taken."""
        enough = self._taken + MAX_WAITING
        while (self._taking or self._has_more()) and self._taken < enough:
            await self._progress.wait()

    def _has_more(self) -> bool:
        try:
            self._bound.socket.recv(1, socket.MSG_PEEK)
        except OSError:  # nothing is there, or the socket is closed
            return False
        return True

    async def _take_one(self) -> bool:
        received = self._receive()
        if received is None:
            return False
        self._taking = True
        await self._take(*received)
        self._taking = False
        self._taken += 1
        self._advance()
        await anyio.lowlevel.checkpoint()
        return True

    def _advance(self) -> None:
        self._progress.set()
        self._progress = anyio.Event()

    def _receive(self) -> tuple[bytes, Peer, bool] | None:
        try:
            data, ancillary, flags, _ = self._bound.socket.recvmsg(MAX_DATAGRAM_BYTES, CREDENTIALS_SPACE)
        except BlockingIOError:
            return None
        sender = next(
            (Peer(*read_credentials(d)) for _, kind, d in ancillary if kind == socket.SCM_CREDENTIALS), _NOBODY
        )
        return data, sender, bool(flags & socket.MSG_TRUNC)

    async def _take(self, data: bytes, sender: Peer, truncated: bool) -> None:
        framer, conversation = LineFramer(MAX_LINE_BYTES), Conversation(sender, answerable=False)
        for start in range(0, len(data), MAX_LINE_BYTES):
            await self._take_lines(framer.feed(data[start : start + MAX_LINE_BYTES]), conversation)
        await self._take_lines(Lines(b"", 1) if truncated else framer.end(), conversation)

    async def _take_lines(self, lines: Lines, conversation: Conversation) -> None:
        if lines.block or lines.oversized:
            await self._intake.take(lines, conversation)
