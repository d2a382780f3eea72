"""The datagram listener: a datagram is one or more lines, and nothing is ever answered.

A datagram that was received is always taken: nothing cancels that but the end of the whole daemon.
"""

import os
import socket
from pathlib import Path

import anyio
import anyio.lowlevel

from agent.events import MAX_LINE_BYTES
from agent.ingest.framing import LineFramer, Lines, as_lines
from agent.ingest.intake import ClientState, Intake
from agent.ingest.sockets import BoundSocket
from agent.peers import CREDENTIALS_SPACE, UNKNOWN, Peer, group_in, read_credentials
from agent.runtime import Broadcast

# More than net.core.wmem_default lets a client send at once.
MAX_DATAGRAM_BYTES = 256 * 1024
# How many datagrams may wait in a socket: as the kernel says. It may have said something else when systemd made the socket.
_QUEUE_LENGTH = Path("/proc/sys/net/unix/max_dgram_qlen")
_USUAL_QUEUE_LENGTH = 512  # systemd's; the kernel's own default is 10
# What is received in one turn, before others have theirs.
TURN_DATAGRAMS = 256
TURN_BYTES = 256 * 1024
# So long a turn goes on for senders that have been waiting for room in the socket.
TURN_SECONDS = 0.004


# As an int: to test a flag of an enum takes longer than to receive a datagram.
_TRUNCATED = int(socket.MSG_TRUNC)
_CREDENTIALS = int(socket.SCM_CREDENTIALS)

# What was received, its ancillary data, which say who sent it, and its flags: a plain tuple costs least.
_Datagram = tuple[bytes, list[tuple[int, int, bytes]], int]


class DatagramListener:
    """Serves one datagram socket."""

    def __init__(self, bound: BoundSocket, intake: Intake) -> None:
        self._bound = bound
        self._intake = intake
        self._waiting = anyio.CancelScope()
        self._closing = False
        self._buffer = memoryview(bytearray(MAX_DATAGRAM_BYTES))
        self._buffers = [self._buffer]
        self._taking = False
        self._taken = 0
        self._progress = Broadcast()
        self._most_waiting = _most_waiting(made_here=bound.path is not None)
        bound.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    async def serve(self) -> None:
        """Receive until `close`, and then what has been sent before; a socket that systemd keeps also keeps that."""
        while not self._closing:
            with self._waiting:
                await anyio.wait_readable(self._bound.socket)
            self._waiting = anyio.CancelScope()
            while await self._take_some() and not self._closing:
                pass
        if self._bound.path is not None:
            self._bound.socket.shutdown(socket.SHUT_RD)
            while await self._take_some():
                pass
        self._bound.release()
        self._progress.notify_all()

    async def close(self) -> None:
        """Let `serve` receive no more, after what has been sent."""
        self._closing = True
        self._waiting.cancel()

    async def catch_up(self) -> None:
        """Return when every datagram that had been sent before the call has been taken."""
        enough = self._taken + self._most_waiting
        while (self._taking or self._has_more()) and self._taken < enough:
            await self._progress.wait()

    def _has_more(self) -> bool:
        try:
            self._bound.socket.recv(1, socket.MSG_PEEK)
        except OSError:  # nothing is there, or the socket is closed
            return False
        return True

    async def _take_some(self) -> bool:
        """Take what has been sent, but no more than is good in one turn; False if nothing had been."""
        await self._intake.wait_for_capacity()
        whole, odd = self._receive_some()
        self._taking = bool(whole or odd)
        others: list[int] = []
        if whole:
            messages = [as_lines(data) for data, _, _ in whole]
            others = self._intake.submit_messages(messages, _owners(whole), lambda index: _client(whole[index]))
        for datagram in [whole[index] for index in others] + odd:
            await self._take(datagram)
        self._taking = False
        self._taken += len(whole) + len(odd)
        self._progress.notify_all()
        await anyio.lowlevel.checkpoint()
        return bool(whole or odd)

    def _receive_some(self) -> tuple[list[_Datagram], list[_Datagram]]:
        """Return the datagrams that can be taken together, and those that were cut off or are too long for that.

        Linux lets ten wait as a rule, and a turn costs much the same for one as for hundreds.
        """
        whole: list[_Datagram] = []
        odd: list[_Datagram] = []
        size, receive, buffer, buffers = 0, self._bound.socket.recvmsg_into, self._buffer, self._buffers
        seen, until = 1, anyio.current_time() + TURN_SECONDS
        while size < TURN_BYTES and len(whole) < TURN_DATAGRAMS:
            try:
                length, ancillary, flags, _ = receive(buffers, CREDENTIALS_SPACE)
            except BlockingIOError:
                if len(whole) <= seen or anyio.current_time() >= until:
                    break
                seen = len(whole)
                os.sched_yield()
                continue
            into = odd if flags & _TRUNCATED or length > MAX_LINE_BYTES else whole
            into.append((buffer[:length].tobytes(), ancillary, flags))
            size += length
            if into is odd:  # as large as a turn, or as bad
                break
        return whole, odd

    async def _take(self, datagram: _Datagram) -> None:
        data, _, flags = datagram
        framer, client = LineFramer(MAX_LINE_BYTES), _client(datagram)
        if len(data) > MAX_LINE_BYTES and self._intake.dismiss(as_lines(data), client):
            return
        found = [framer.feed(data[start : start + MAX_LINE_BYTES]) for start in range(0, len(data), MAX_LINE_BYTES)]
        found.append(Lines(b"", 1) if flags & _TRUNCATED else framer.end())
        for lines in found:
            if lines.block or lines.oversized:
                await self._intake.submit(lines, client)


def _most_waiting(*, made_here: bool) -> int:
    try:
        return max(int(_QUEUE_LENGTH.read_text()), 0 if made_here else _USUAL_QUEUE_LENGTH) + 1
    except (OSError, ValueError):  # /proc may be hidden
        return 8 * _USUAL_QUEUE_LENGTH


def _owners(datagrams: list[_Datagram]) -> list[int]:
    """Return the uid of each one's sender. What the kernel says of one process is read once."""
    senders = [
        ancillary[0][2] if ancillary and ancillary[0][1] == _CREDENTIALS else b"" for _, ancillary, _ in datagrams
    ]
    uids = {each: read_credentials(each)[1] if each else UNKNOWN.uid for each in set(senders)}
    return [uids[each] for each in senders]


def _client(datagram: _Datagram) -> ClientState:
    """Return who sent it, as the kernel says."""
    data = next((data for _, kind, data in datagram[1] if kind == socket.SCM_CREDENTIALS), None)
    if data is None:
        return ClientState(UNKNOWN, answerable=False, socket="datagram")
    group = frozenset([group_in(data)])
    return ClientState(Peer(*read_credentials(data)), answerable=False, socket="datagram", groups=lambda: group)
