"""Accepting clients: in bounded turns, at most so many at a time, and at the end those that still wait.

The stream listener and the HTTP server use it. It decides who gets in and who has to go; what is said on a connection is theirs.
"""

import array
import fcntl
import socket
import termios
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from agent.accept_queue import CROWD, NOBODY_WAITS, AcceptQueue
from agent.peers import STRANGERS, Peer, group_of, owner_of, peer_of, take_turns
from agent.runtime import Broadcast
from agent.throttle import Throttle

# Where a crowd waits for the places of others, so many are made free ahead of it: an end takes some passes of the loop.
CROWD_SPARE = 16
# With `refuse_when_full`, of the places one part in so many is kept for other users than the one that keeps all others busy, and
# another one for other processes.
KEPT_PART = 8
# While a crowd waits, no process keeps more places busy than this: a flush waits for what is in all of them.
CROWD_PLACES = 64
RETRY_SECONDS = 0.1
EVICTION_SECONDS = 0.1
LOG_INTERVAL = 60.0


class Connection(ABC):
    """One client: its socket, and how many bytes have been received from it and then taken, which means dealt with.

    `group` is what counts together when connections become too many: see `agent.peers`.
    """

    __slots__ = ("_progress", "group", "open", "peer", "received", "socket", "taken")

    def __init__(self, accepted: socket.socket, peer: Peer) -> None:
        accepted.setblocking(False)
        self.socket = accepted
        self.peer = peer
        self.group = group_of(peer)
        self.received = 0
        self.taken = 0
        self.open = True
        self._progress = Broadcast()

    def join(self, group: Hashable) -> None:
        """Belong to another group from now on. It is `Acceptor.regroup` that says so."""
        self.group = group

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether it waits for the client, and could end now."""

    @abstractmethod
    def evict(self, *, hard: bool = False) -> bool:
        """Begin to end the connection, which another one needs the place of; False if it cannot end now, or ends already.

        If it is `hard`, it may end even in the middle of what the client sends.
        """

    @abstractmethod
    def end(self) -> None:
        """End the connection after what the client has written."""

    @property
    def written(self) -> int:
        """How many bytes have come from the client, received or not."""
        size = array.array("i", [0])
        fcntl.ioctl(self.socket, termios.FIONREAD, size)
        return self.received + size[0]

    def advance(self) -> None:
        """Count all that was received as taken."""
        self.taken = self.received
        self._progress.notify_all()

    async def wait_taken(self, target: int) -> None:
        """Return when so many bytes are taken, or the connection has ended."""
        while self.open and self.taken < target:
            await self._progress.wait()

    def close(self) -> None:
        """Close the socket."""
        self.open = False
        self.advance()
        self.socket.close()


C = TypeVar("C", bound=Connection)


@dataclass(eq=False)
class _Listening(Generic[C]):
    """A listening socket, what becomes of those who come through it, and the tasks that serve them."""

    waiting: AcceptQueue
    admit: Callable[[Mapping[socket.socket, Peer]], Iterable[C]]
    serve: Callable[[C], Awaitable[None]]
    tasks: anyio.abc.TaskGroup
    accepting: anyio.CancelScope
    open: bool = True


class Acceptor(Generic[C]):
    """Accepts clients on any number of listening sockets, and keeps at most `max_connections` of their connections together.

    When there are more, or no more files can be opened, the user that has most of them has to give one up, of its processes the
    one that has most, of that the one that was idle longest; strangers go before all others. If none can go, a new one is closed
    with `refuse_when_full`; otherwise nobody is accepted until there is room. `wait_for_capacity` is awaited before each turn.
    `evicted` counts those that had to go, `refused` those that were closed.

    Of clients that are accepted together, users are served in turn, and of each user its processes.
    """

    def __init__(
        self,
        max_connections: int,
        logger: str,
        *,
        refuse_when_full: bool = False,
        wait_for_capacity: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.evicted = self.refused = 0
        self._max_connections = max_connections
        self._refuse_when_full = refuse_when_full
        self._wait_for_capacity = wait_for_capacity
        self._connections: OrderedDict[C, None] = OrderedDict()  # those that were used last are last
        self._groups: Counter[Hashable] = Counter()  # how many of them each has
        self._owners: Counter[Hashable] = Counter()  # and how many each user has
        self._ending: set[C] = set()  # those of them that have to go
        self._listening: list[_Listening[C]] = []
        self._closing = False
        self._left = Broadcast()
        self._log = structlog.get_logger(logger)
        self._throttle = Throttle(LOG_INTERVAL)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def serve(
        self,
        listening: socket.socket,
        admit: Callable[[Mapping[socket.socket, Peer]], Iterable[C]],
        serve: Callable[[C], Awaitable[None]],
        release: Callable[[], None],
        *,
        keep_backlog: bool = False,
    ) -> None:
        """Accept until `close`, and then who still waits; call `release`, and return when every connection has ended.

        `admit` gets clients that were accepted together, in the order of their turns, returns their connections, and closes what
        it returns none for; `serve` serves one. With `keep_backlog`, who waits at the end is left to the next process that has
        the socket.
        """
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as accepting:
                entry = _Listening(AcceptQueue(listening), admit, serve, tasks, accepting)
                self._listening.append(entry)
                while not self._closing:
                    await entry.waiting.wait()
                    await self._accept_ready(entry)
            entry.waiting.lengthen()  # who has the socket next finds it as it was
            if not keep_backlog:
                if listening.family == socket.AF_UNIX:
                    listening.shutdown(socket.SHUT_RD)  # nobody else can connect, and who has can be accepted
                await self._accept_ready(entry)
            entry.open = False
            self._listening.remove(entry)
            release()
            for connection in self._connections:
                connection.end()

    def close(self) -> None:
        """Let `serve` accept no more, and end the connections after what clients have written."""
        self._closing = True
        for entry in self._listening:
            entry.accepting.cancel()

    async def catch_up(self) -> None:
        """Return when everything that clients had written before the call has been taken."""
        for entry in [*self._listening]:
            await self._accept_ready(entry)
        for connection, target in [(each, each.written) for each in self._connections]:
            await connection.wait_taken(target)

    def touch(self, connection: C) -> None:
        """Say that a connection was used."""
        self._connections.move_to_end(connection)

    def regroup(self, connection: C, group: Hashable) -> None:
        """Say that a connection belongs to another group."""
        self._count(connection, -1)
        connection.join(group)
        self._count(connection, 1)

    def _count(self, connection: C, change: int) -> None:
        for counts, key in ((self._groups, connection.group), (self._owners, owner_of(connection.group))):
            counts[key] += change
            if not counts[key]:
                del counts[key]

    async def _accept_ready(self, entry: _Listening[C]) -> None:
        """Accept everyone who waits now. What is accepted is served, even if this is cancelled."""
        most = entry.waiting.accepted + entry.waiting.most_waiting
        while True:
            if self._wait_for_capacity is not None:
                await self._wait_for_capacity()
            if not entry.open:
                return
            error = self._accept_some(entry)
            if not self._refuse_when_full:
                await self._make_room(entry)
            if error is None:
                await anyio.lowlevel.checkpoint()
                if entry.waiting.accepted > most:
                    return
            elif error.errno in NOBODY_WAITS:
                return
            else:  # such as too many open files
                self._warn("cannot_accept", error=error.strerror, connections=self.connections)
                self._evict(f"a new connection cannot be accepted: {error.strerror}")
                await anyio.sleep(RETRY_SECONDS)

    async def _make_room(self, entry: _Listening[C]) -> None:
        """If there are too many connections, have some end and wait for that; where a crowd waits, have more of them end."""
        spare = CROWD_SPARE if entry.waiting.crowded else 0
        while len(self._connections) > self._max_connections:
            for _ in range(len(self._connections) + spare - self._max_connections - len(self._ending)):
                self._evict()
            with anyio.move_on_after(EVICTION_SECONDS):  # one that waits for the disk must not hold up the others
                await self._left.wait()

    def _accept_some(self, entry: _Listening[C]) -> OSError | None:
        """Accept some of those who wait; return why no more could be, None if there may be more."""
        most = max(1, min(entry.waiting.turn, self._max_connections + 1 - len(self._connections)))
        accepted, problem = entry.waiting.accept(most, anyio.current_time())
        peers = {each: peer_of(each) for each in accepted}
        if len(peers) > 1:
            peers = {each: peers[each] for each in take_turns(peers, peers.__getitem__)}
            if entry.waiting.crowd > CROWD:
                ((loudest, _),) = Counter(peers.values()).most_common(1)
                reason = f"more than {CROWD} connections have waited to be accepted"
                self._warn("many_connections", reason=reason, **loudest.facts)
        for connection in entry.admit(peers) if peers else ():
            if self._refuse_when_full and not self._has_place(connection.group, crowded=entry.waiting.crowded):
                self._refuse(connection)
                continue
            self._connections[connection] = None
            self._count(connection, 1)
            entry.tasks.start_soon(self._serve, entry, connection)
        return problem

    def _has_place(self, newcomer: Hashable, *, crowded: bool) -> bool:
        """Tell whether there is a place; one is made if none is left. The last ones are kept for other users and processes."""
        if len(self._connections) >= self._max_connections:
            return self._evict(newcomer=newcomer)
        kept, owner = self._max_connections // KEPT_PART, owner_of(newcomer)
        of_owner, of_group = self._max_connections - kept, self._max_connections - 2 * kept
        if crowded:
            of_group = min(of_group, CROWD_PLACES)
        if newcomer == STRANGERS or (self._owners[owner] < of_owner and self._groups[newcomer] < of_group):
            return True  # strangers make room for whoever comes
        busy = Counter(each.group for each in self._connections if not each.idle)
        return busy[newcomer] < of_group and sum(busy[each] for each in busy if owner_of(each) == owner) < of_owner

    def _refuse(self, connection: C) -> None:
        self.refused += 1
        reason = "it has all connections that it may have, and none of them is idle"
        self._warn("connection_refused", reason=reason, **connection.peer.facts)
        connection.close()

    async def _serve(self, entry: _Listening[C], connection: C) -> None:
        try:
            await entry.serve(connection)
        finally:
            del self._connections[connection]
            self._ending.discard(connection)
            self._count(connection, -1)
            connection.close()
            self._left.notify_all()

    def _evict(self, reason: str = "", newcomer: Hashable = None) -> bool:
        """Have a connection end; False if none can."""
        evicted = self._find_evictable(newcomer)
        if evicted is None:
            return False
        self.evicted += 1
        self._ending.add(evicted)
        reason = reason or f"there are more than {self._max_connections} connections"
        self._warn("connection_evicted", reason=reason, **evicted.peer.facts)
        return True

    def _find_evictable(self, newcomer: Hashable) -> C | None:
        """Return a connection that has begun to end: one that is idle, or else, for another group's newcomer, any that waits.

        A newcomer over TCP is a stranger at first, even if it has the token.
        """
        groups = sorted(self._groups, key=self._weight, reverse=True)
        for group in groups:
            if newcomer not in {None, STRANGERS} and self._weight(group) < self._weight(newcomer):
                return None  # it has more than those that are left
            may_interrupt = group == STRANGERS or newcomer not in {None, group}
            for hard in (False, True) if may_interrupt else (False,):
                for connection in self._connections:
                    if connection.group == group and connection.evict(hard=hard):
                        return connection
        return None

    def _weight(self, group: Hashable) -> tuple[bool, int, int]:
        return group == STRANGERS, self._owners[owner_of(group)], self._groups[group]

    def _warn(self, event: str, **facts: object) -> None:
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.warning(event, **facts, suppressed=held_back)
