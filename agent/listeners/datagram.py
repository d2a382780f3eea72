"""The datagram listener: a datagram is one or more lines, and nothing is ever answered.

It knows sockets. It must never know what a line means, or files.
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
_NOBODY = Peer(pid=0, uid=0xFFFF_FFFF)


class DatagramListener:
    """Serves one datagram socket."""

    def __init__(self, bound: Bound, intake: Intake) -> None:
        self._bound = bound
        self._intake = intake
        self._receiving = anyio.Lock()
        self._serving = anyio.CancelScope()
        bound.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    async def serve(self) -> None:
        """Receive until `close`."""
        with self._serving:
            while True:
                await anyio.wait_readable(self._bound.socket)
                await self.catch_up()

    async def close(self) -> None:
        """Receive no more, after what has been sent; a socket that systemd keeps also keeps what comes later."""
        self._serving.cancel()
        if self._bound.path is not None:
            self._bound.socket.shutdown(socket.SHUT_RD)
        await self.catch_up()
        self._bound.release()

    async def catch_up(self) -> None:
        """Take every datagram that has been sent."""
        async with self._receiving:
            while (received := self._receive()) is not None:
                await self._take(*received)
                await anyio.lowlevel.checkpoint()

    def _receive(self) -> tuple[bytes, Peer, bool] | None:
        try:
            data, ancillary, flags, _ = self._bound.socket.recvmsg(MAX_DATAGRAM_BYTES, CREDENTIALS_SPACE)
        except BlockingIOError:
            return None
        if not data and not ancillary:  # shut down
            return None
        sender = next(
            (Peer(*read_credentials(d)) for _, kind, d in ancillary if kind == socket.SCM_CREDENTIALS), _NOBODY
        )
        return data, sender, bool(flags & socket.MSG_TRUNC)

    async def _take(self, data: bytes, sender: Peer, truncated: bool) -> None:
        framer, conversation = LineFramer(MAX_LINE_BYTES), Conversation(sender)
        for start in range(0, len(data), MAX_LINE_BYTES):
            await self._take_lines(framer.feed(data[start : start + MAX_LINE_BYTES]), conversation)
        await self._take_lines(Lines(b"", 1) if truncated else framer.end(), conversation)

    async def _take_lines(self, lines: Lines, conversation: Conversation) -> None:
        if lines.block or lines.oversized:
            await self._intake.take(lines, conversation)
