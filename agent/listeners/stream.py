"""The stream listener: accepts connections, reads them line by line, and answers those that asked for acks.

It knows sockets and their limits. It must never know what a line means, or files.

Data that a client's write was told to have taken is never thrown away: to close, the listener first shuts down the receiving
side, from where on writes fail at the client, and then reads what is left.
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
from agent.framing.ndjson import LineFramer, Lines
from agent.intake import Conversation, Intake, Peer
from agent.listeners.sockets import Bound, peer_of
from agent.logs import Throttle

READ_BYTES = MAX_LINE_BYTES
ANSWER_SECONDS = 10.0
ACCEPT_RETRY_SECONDS = 0.1
LOG_INTERVAL = 60.0


class _Connection:
    """One client: its socket, and how many bytes have been received from it and then taken by the intake."""

    __slots__ = ("framer", "open", "progress", "received", "refused", "socket", "taken")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.framer = LineFramer(MAX_LINE_BYTES)
        self.received = 0
        self.taken = 0
        self.open = True
        self.refused = False
        self.progress = anyio.Event()

    def advance(self) -> None:
        self.taken = self.received
        self.progress.set()
        self.progress = anyio.Event()

    def waiting_bytes(self) -> int:
        size = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.FIONREAD, size)
        return size[0]

    def refuse_more(self) -> None:
        """Let writes fail at the client; what is in the socket can still be read, and then the stream ends."""
        self.refused = True
        with contextlib.suppress(OSError):  # ENOTCONN: the client has gone already
            self.socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self.open = False
        self.advance()
        self.socket.close()


class StreamListener:
    """Serves one listening socket with at most `max_connections`; beyond that the one that was idle longest has to go."""

    def __init__(self, bound: Bound, intake: Intake, max_connections: int) -> None:
        self._bound = bound
        self._intake = intake
        self._max_connections = max_connections
        self._log = structlog.get_logger("agent.listeners")
        self._throttle = Throttle(LOG_INTERVAL)
        self._connections: OrderedDict[_Connection, None] = OrderedDict()
        self._left = anyio.Event()
        self._accepting = anyio.CancelScope()
        self._tasks: anyio.abc.TaskGroup | None = None
        self.evicted = 0

    async def serve(self) -> None:
        """Accept and read until `close`; returns when every connection has been read to its end."""
        async with anyio.create_task_group() as self._tasks:
            with self._accepting:
                while True:
                    await anyio.wait_readable(self._bound.socket)
                    await self._accept_ready()

    async def close(self) -> None:
        """Accept no more, and let the clients' writes fail from now on; what they have written is still read.

        The backlog of a socket that systemd keeps is left to the next daemon.
        """
        self._accepting.cancel()
        if self._bound.path is not None:
            self._bound.socket.shutdown(socket.SHUT_RD)
            await self._accept_ready()
        self._bound.release()
        for connection in self._connections:
            connection.refuse_more()

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
        while self._tasks is not None:
            try:
                accepted, _ = self._bound.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                await self._cannot_accept(error)
                return
            accepted.setblocking(False)
            connection = _Connection(accepted)
            await self._make_room()
            self._connections[connection] = None
            self._tasks.start_soon(self._serve_connection, connection)

    async def _cannot_accept(self, error: OSError) -> None:
        """Make room after an error such as too many open files; EINVAL only says that `close` has been called."""
        if error.errno == errno.EINVAL:
            return
        held_back = self._throttle.allow("accept", anyio.current_time())
        if held_back is not None:
            self._log.error("cannot_accept", error=error.strerror, connections=self.connections, suppressed=held_back)
        self._evict()
        await anyio.sleep(ACCEPT_RETRY_SECONDS)

    async def _make_room(self) -> None:
        while len(self._connections) >= self._max_connections:
            self._evict()
            await self._left.wait()

    def _evict(self) -> None:
        """End the connection that was idle longest, once; nothing that it has written is lost by it."""
        if self._connections:
            idle = next(iter(self._connections))
            if not idle.refused:
                idle.refuse_more()
                self.evicted += 1

    async def _serve_connection(self, connection: _Connection) -> None:
        conversation = Conversation(Peer(*peer_of(connection.socket)))
        try:
            await self._read_to_end(connection, conversation)
        except ConnectionError:
            pass  # the client went away without reading its acks; what it had written was taken
        finally:
            del self._connections[connection]
            connection.close()
            self._left.set()
            self._left = anyio.Event()

    async def _read_to_end(self, connection: _Connection, conversation: Conversation) -> None:
        while chunk := await _receive(connection.socket):
            connection.received += len(chunk)
            self._connections.move_to_end(connection)
            await self._take(connection.framer.feed(chunk), connection, conversation)
        await self._take(connection.framer.end(), connection, conversation)

    async def _take(self, lines: Lines, connection: _Connection, conversation: Conversation) -> None:
        if lines.block or lines.oversized:
            await self._intake.take(lines, conversation)
        connection.advance()
        answer = conversation.answer()
        if answer is not None:
            await _send(connection.socket, answer)


async def _receive(connection: socket.socket) -> bytes:
    """Return what can be read, b"" at the end of the stream; lets other tasks run first."""
    await anyio.lowlevel.checkpoint()
    while True:
        try:
            return connection.recv(READ_BYTES)
        except BlockingIOError:
            await anyio.wait_readable(connection)


async def _send(connection: socket.socket, data: bytes) -> None:
    """Send all of `data`; raises BrokenPipeError if the client does not read it in time."""
    while data:
        try:
            data = data[connection.send(data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            with anyio.move_on_after(ANSWER_SECONDS) as patience:
                await anyio.wait_writable(connection)
            if patience.cancelled_caught:
                raise BrokenPipeError("the client does not read its acks") from None
