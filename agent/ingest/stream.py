"""The stream listener: reads connections line by line, and answers those that asked for acks.

Data that a client's write was told to have taken is never thrown away. To end a connection, the listener first shuts down
the receiving side, from where on writes fail at the client, and then reads what is left. A client that went away, or
that does not read its acks, is read to its end like any other.
"""

import contextlib
import socket
from collections.abc import Mapping
from functools import partial

import anyio

from agent.acceptor import Acceptor, Connection
from agent.events import MAX_LINE_BYTES
from agent.ingest.framing import LineFramer, Lines, as_lines
from agent.ingest.intake import ClientState, Intake
from agent.ingest.sockets import BoundSocket
from agent.peers import Peer, groups_of

READ_BYTES = MAX_LINE_BYTES
# How many bytes of clients that have hung up already are taken in one turn, before others have theirs.
TURN_BYTES = 256 * 1024
ACK_SECONDS = 10.0
# So many submissions of a client that asked for acks, of a read each at the most, are not committed before more is read: the next
# commit is larger for it. What else it writes waits in its socket, so that a disk that hangs costs it time rather than events.
MAX_UNCOMMITTED = 8


class StreamConnection(Connection):
    """One client's connection, and its lines as they are cut out of the stream."""

    __slots__ = ("_ends", "_sending", "client", "first", "framer")

    def __init__(self, accepted: socket.socket, peer: Peer, first: bytes | None) -> None:
        """`first` is what has been read from it already; None if nobody has tried."""
        super().__init__(accepted, peer)
        self.first = first
        self.received = len(first or b"")
        self.client = ClientState(peer, groups=partial(groups_of, accepted))
        self.framer = LineFramer(MAX_LINE_BYTES)
        self._ends = False
        self._sending: anyio.CancelScope | None = None

    async def send_ack(self, data: bytes) -> None:
        """Send `data` to a client that reads its acks; one that does not is to write no more."""
        data = self._send_some(data)
        if not data:
            return
        with anyio.move_on_after(0.0 if self._ends else ACK_SECONDS) as self._sending:
            while data:
                await anyio.wait_writable(self.socket)
                data = self._send_some(data)
        if self._sending.cancelled_caught:
            self.end()

    def _send_some(self, data: bytes) -> bytes:
        """Send what the socket takes; return what is left of it, which is nothing if the client has gone."""
        try:
            return data[self.socket.send(data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return data
        except ConnectionError:
            return b""

    @property
    def idle(self) -> bool:
        """See `Connection`."""
        return not self._ends

    def evict(self, *, hard: bool = False) -> bool:
        """Have the connection end; nothing that the client has written is lost by it. False if that has been said before."""
        if self._ends:
            return False
        self.end()
        return True

    def end(self) -> None:
        """Let writes fail at the client; what is in the socket can still be read, and then the stream ends."""
        self._ends = True
        if self._sending is not None:
            self._sending.cancel()
        with contextlib.suppress(OSError):  # ENOTCONN: the client has gone already
            self.socket.shutdown(socket.SHUT_RD)


class StreamListener:
    """Serves one listening socket with at most `max_connections`; beyond that the one that was idle longest has to go."""

    def __init__(self, bound: BoundSocket, intake: Intake, max_connections: int) -> None:
        self._bound = bound
        self._intake = intake
        self._acceptor: Acceptor[StreamConnection] = Acceptor(
            max_connections, "agent.listeners", wait_for_capacity=intake.wait_for_capacity
        )

    async def serve(self) -> None:
        """Accept and read until `close`; then return when every connection has been read to its end."""
        bound = self._bound
        # Who waits at the end is left to the next daemon where the socket is for that one, too.
        await self._acceptor.serve(bound.socket, self._admit, self._read, bound.release, keep_backlog=bound.outlives)

    async def close(self) -> None:
        """Let `serve` accept no more, and clients write no more; what they have written is still read."""
        self._acceptor.close()

    async def catch_up(self) -> None:
        """Return when everything that clients had written before the call has been taken."""
        await self._acceptor.catch_up()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._acceptor.connections

    @property
    def evicted(self) -> int:
        """How many connections had to go since the start, because there were too many."""
        return self._acceptor.evicted

    def _admit(self, accepted: Mapping[socket.socket, Peer]) -> list[StreamConnection]:
        """Return the connections to serve.

        Many clients send their lines and hang up before they are accepted. Those are dealt with together, here, and cost
        neither a task nor a wait; but those with bad lines, or that wait for acks, are served as others are.
        """
        connections: list[StreamConnection] = []
        ended: list[tuple[socket.socket, Peer, bytes]] = []
        size = 0
        for each, peer in accepted.items():
            if size >= TURN_BYTES:
                connections.append(StreamConnection(each, peer, None))
                continue
            data, is_all = _read_at_once(each)
            size += len(data)
            if is_all:
                ended.append((each, peer, data))
            else:
                connections.append(StreamConnection(each, peer, data))
        if not ended:
            return connections

        def client_of(index: int) -> ClientState:
            return ClientState(ended[index][1], groups=partial(groups_of, ended[index][0]))

        others = self._intake.submit_messages(
            [as_lines(data) for _, _, data in ended], [peer.uid for _, peer, _ in ended], client_of
        )
        for index, (each, peer, data) in enumerate(ended):
            if index in others:
                connections.append(StreamConnection(each, peer, data))
            else:
                each.close()
        return connections

    async def _read(self, connection: StreamConnection) -> None:
        """Read a connection to its end."""
        framer, turn = connection.framer, self._intake.turns.of(connection.peer)
        if connection.first is None:  # it is one of many that have been accepted together, with much to read
            await turn.wait()
        chunk, connection.first = connection.first or b"", b""
        while chunk := chunk or await self._receive(connection):
            self._acceptor.touch(connection)
            await self._take(framer.feed(chunk), connection)
            chunk = b""
            await turn.wait()
        await self._take(framer.end(), connection)
        while connection.client.uncommitted:
            await self._answer(connection)

    async def _receive(self, connection: StreamConnection) -> bytes:
        """Return what can be read, b"" at the end of the stream. While there is nothing, acks are due.

        Reads only when there is room: however many clients there are, what they write waits in their sockets.
        """
        while True:
            await self._intake.wait_for_capacity(connection.client)
            try:
                data = connection.socket.recv(READ_BYTES)
            except BlockingIOError:
                if connection.client.uncommitted:
                    await self._answer(connection)
                else:
                    await anyio.wait_readable(connection.socket)
            except ConnectionResetError:  # it went away without reading its acks; what it had written was read before
                return b""
            else:
                connection.received += len(data)
                return data

    async def _take(self, lines: Lines, connection: StreamConnection) -> None:
        if lines.block or lines.oversized:
            await self._intake.submit(lines, connection.client)
        connection.advance()
        client = connection.client
        if client.is_answer_due or len(client.uncommitted) >= MAX_UNCOMMITTED:
            await self._answer(connection)

    async def _answer(self, connection: StreamConnection) -> None:
        """Wait for the oldest commit that the client waits for, if there is one, and send the ack that is due."""
        await connection.client.wait_committed()
        ack = connection.client.next_ack()
        if ack is not None:
            await connection.send_ack(ack)


def _read_at_once(connection: socket.socket) -> tuple[bytes, bool]:
    """Return what a client has sent that was just accepted, and whether that is all: it has hung up."""
    data = b""
    try:
        while len(data) < READ_BYTES:
            more = connection.recv(READ_BYTES - len(data), socket.MSG_DONTWAIT)
            if not more:
                return data, True
            data += more
    except BlockingIOError:
        return data, False
    except ConnectionResetError:  # see `StreamListener._receive`
        return data, True
    return data, False
