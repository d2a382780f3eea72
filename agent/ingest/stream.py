"""The stream listener: accepts connections, reads them line by line, and answers those that asked for acks.

It knows sockets and their limits. It must never know what a line means, or files.

Data that a client's write was told to have taken is never thrown away. To end a connection, the listener first shuts down
the receiving side, from where on writes fail at the client, and then reads what is left. A client that went away, or
that does not read its acks, is read to its end like any other.
"""

import array
import contextlib
import errno
import fcntl
import socket
import termios
from collections import OrderedDict

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from agent.events import MAX_LINE_BYTES
from agent.ingest.framing import LineFramer, Lines, as_lines
from agent.ingest.intake import Conversation, Intake, Peer
from agent.ingest.sockets import BoundSocket, peer_of
from agent.runtime import Broadcast
from agent.throttle import Throttle

READ_BYTES = MAX_LINE_BYTES
# Refusing a line costs much more than taking one: who sends bad lines has to share the daemon in smaller turns.
READ_BYTES_AFTER_REJECTS = 4 * 1024
# What is accepted in one turn, before others have theirs: clients, and bytes of those that have hung up already.
TURN_CLIENTS = 32
TURN_BYTES = 256 * 1024
ANSWER_SECONDS = 10.0
ACCEPT_RETRY_SECONDS = 0.1
EVICTION_SECONDS = 0.1
LOG_INTERVAL = 60.0

_NOBODY_WAITS = frozenset({errno.EAGAIN, errno.EINVAL})  # EINVAL: the socket is shut down


class _Connection:
    """One client: its socket, and how many bytes have been received from it and then taken by the intake."""

    __slots__ = ("_patience", "begun", "framer", "open", "peer", "progress", "received", "refused", "socket", "taken")

    def __init__(self, connection: socket.socket, begun: bytes) -> None:
        """`begun` is what has been read from it."""
        connection.setblocking(False)
        self.socket = connection
        self.begun = begun
        self.peer = Peer(*peer_of(connection))
        self.framer = LineFramer(MAX_LINE_BYTES)
        self.received = len(begun)
        self.taken = 0
        self.open = True
        self.refused = False
        self.progress = Broadcast()
        self._patience: anyio.CancelScope | None = None

    def receive(self, size: int) -> bytes:
        """Return what can be read, b"" at the end. Raises BlockingIOError if that is nothing yet."""
        try:
            data = self.socket.recv(size)
        except ConnectionResetError:  # it went away without reading its acks; what it had written was read before
            return b""
        self.received += len(data)
        return data

    def begin(self) -> bytes:
        """Return, once, what was read when it was accepted."""
        begun, self.begun = self.begun, b""
        return begun

    def advance(self) -> None:
        self.taken = self.received
        self.progress.notify_all()

    def waiting_bytes(self) -> int:
        size = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.FIONREAD, size)
        return size[0]

    async def answer(self, data: bytes) -> None:
        """Send `data` to a client that reads its acks; one that does not is to write no more."""
        with anyio.move_on_after(0.0 if self.refused else ANSWER_SECONDS) as self._patience:
            with contextlib.suppress(ConnectionError):
                await _send(self.socket, data)
        if self._patience.cancelled_caught:
            self.refuse_more()

    def refuse_more(self) -> None:
        """Let writes fail at the client; what is in the socket can still be read, and then the stream ends."""
        self.refused = True
        if self._patience is not None:
            self._patience.cancel()
        with contextlib.suppress(OSError):  # ENOTCONN: the client has gone already
            self.socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self.open = False
        self.advance()
        self.socket.close()


class StreamListener:
    """Serves one listening socket with at most `max_connections`; beyond that the one that was idle longest has to go.

    `evicted` counts those that had to.
    """

    def __init__(self, bound: BoundSocket, intake: Intake, max_connections: int) -> None:
        self._bound = bound
        self._intake = intake
        self._max_connections = max_connections
        self._log = structlog.get_logger("agent.listeners")
        self._throttle = Throttle(LOG_INTERVAL)
        self._connections: OrderedDict[_Connection, None] = OrderedDict()
        self._left = Broadcast()
        self._accepting = anyio.CancelScope()
        self._tasks: anyio.abc.TaskGroup | None = None
        self.evicted = 0

    async def serve(self) -> None:
        """Accept and read until `close`; then return when every connection has been read to its end."""
        async with anyio.create_task_group() as self._tasks:
            with self._accepting:
                while True:
                    await anyio.wait_readable(self._bound.socket)
                    await self._accept_ready()
            await self._accept_the_last()

    async def close(self) -> None:
        """Let `serve` accept no more, and clients write no more; what they have written is still read.

        The backlog of a socket that systemd keeps is left to the next daemon.
        """
        self._accepting.cancel()

    async def catch_up(self) -> None:
        """Return when everything that clients had written before the call has been taken."""
        await self._accept_ready()
        for connection, target in [(c, c.received + c.waiting_bytes()) for c in self._connections]:
            while connection.open and connection.taken < target:
                await connection.progress.wait()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def _accept_ready(self) -> None:
        """Accept everyone who waits. What is accepted is served, even if this is cancelled."""
        while self._tasks is not None:
            await self._intake.wait_for_capacity()
            error = self._accept_some(self._tasks)
            await self._make_room()
            if error is None:
                await anyio.lowlevel.checkpoint()
            elif error.errno in _NOBODY_WAITS:
                return
            else:
                await self._cannot_accept(error)

    def _accept_some(self, tasks: anyio.abc.TaskGroup) -> OSError | None:
        """Accept some of those who wait; return why no more could be, None if there may be more.

        Many clients send their lines and hang up before they are accepted. Those are dealt with together, here, and cost
        neither a task nor a wait.
        """
        ended: list[tuple[socket.socket, bytes]] = []
        size = 0
        try:
            for _ in range(TURN_CLIENTS):
                accepted, _ = self._bound.socket.accept()
                data, is_all = _read_at_once(accepted)
                if is_all:
                    ended.append((accepted, data))
                    size += len(data)
                else:
                    self._start(accepted, data, tasks)
                if size >= TURN_BYTES or len(self._connections) > self._max_connections:
                    break
        except OSError as error:
            return error
        finally:
            self._take_at_once(ended, tasks)
        return None

    def _take_at_once(self, ended: list[tuple[socket.socket, bytes]], tasks: anyio.abc.TaskGroup) -> None:
        """Take what clients sent that have hung up; those with bad lines, or that wait for acks, are served as others are."""
        others = self._intake.take_messages([as_lines(data) for _, data in ended]) if ended else []
        for index, (accepted, data) in enumerate(ended):
            if index in others:
                self._start(accepted, data, tasks)
            else:
                accepted.close()

    def _start(self, accepted: socket.socket, data: bytes, tasks: anyio.abc.TaskGroup) -> None:
        connection = _Connection(accepted, data)
        self._connections[connection] = None
        tasks.start_soon(self._serve_connection, connection)

    async def _accept_the_last(self) -> None:
        if self._bound.path is not None:
            self._bound.socket.shutdown(socket.SHUT_RD)
            await self._accept_ready()
        self._tasks = None
        self._bound.release()
        for connection in self._connections:
            connection.refuse_more()

    async def _cannot_accept(self, error: OSError) -> None:
        """Make room after an error such as too many open files."""
        self._complain("cannot_accept", error=error.strerror, connections=self.connections)
        self._evict(f"a new connection cannot be accepted: {error.strerror}")
        await anyio.sleep(ACCEPT_RETRY_SECONDS)

    async def _make_room(self) -> None:
        while len(self._connections) > self._max_connections:
            self._evict(f"there are more than {self._max_connections} connections")
            with anyio.move_on_after(EVICTION_SECONDS):  # one that waits for the disk must not hold up the others
                await self._left.wait()

    def _evict(self, reason: str) -> None:
        """End the connection that was idle longest, once; nothing that it has written is lost by it."""
        idle = next((connection for connection in self._connections if not connection.refused), None)
        if idle is not None:
            idle.refuse_more()
            self.evicted += 1
            self._complain("connection_evicted", reason=reason, uid=idle.peer.uid, pid=idle.peer.pid)

    def _complain(self, event: str, **facts: object) -> None:
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.warning(event, **facts, suppressed=held_back)

    async def _serve_connection(self, connection: _Connection) -> None:
        try:
            await self._read_to_end(connection, Conversation(connection.peer))
        finally:
            del self._connections[connection]
            connection.close()
            self._left.notify_all()

    async def _read_to_end(self, connection: _Connection, conversation: Conversation) -> None:
        size = READ_BYTES
        while chunk := connection.begin() or await self._receive(connection, size):
            self._connections.move_to_end(connection)
            rejected = conversation.rejected
            await self._take(connection.framer.feed(chunk), connection, conversation)
            size = READ_BYTES if conversation.rejected == rejected else READ_BYTES_AFTER_REJECTS
        await self._take(connection.framer.end(), connection, conversation)

    async def _receive(self, connection: _Connection, size: int) -> bytes:
        """Return what can be read, b"" at the end of the stream; lets other tasks run first.

        Reads only when there is room: however many clients there are, what they write waits in their sockets.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            await self._intake.wait_for_capacity()
            try:
                return connection.receive(size)
            except BlockingIOError:
                await anyio.wait_readable(connection.socket)

    async def _take(self, lines: Lines, connection: _Connection, conversation: Conversation) -> None:
        if lines.block or lines.oversized:
            await self._intake.take(lines, conversation)
        connection.advance()
        answer = conversation.answer()
        if answer is not None:
            await connection.answer(answer)


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
    except ConnectionResetError:  # see `_Connection.receive`
        return data, True
    return data, False


async def _send(connection: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[connection.send(data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            await anyio.wait_writable(connection)
