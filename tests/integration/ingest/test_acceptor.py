"""Who is let in, who has to go and who is refused when many come at once: by user, and then by process."""

import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from agent.accept_queue import (
    BACKLOG,
    CALM_SECONDS,
    CROWD,
    CROWD_TURN_CLIENTS,
    CROWDED_BACKLOG,
    LONG_CROWD,
    SHORT_TURN_CLIENTS,
    TURN_CLIENTS,
    AcceptQueue,
)
from agent.acceptor import Acceptor, Connection
from agent.peers import Peer
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio


class Visitor(Connection):
    """A connection that is served until it has to go, or for good if it is `busy`."""

    __slots__ = ("busy", "leave", "leaving")

    def __init__(self, accepted: socket.socket, peer: Peer, *, busy: bool) -> None:
        super().__init__(accepted, peer)
        self.busy = busy
        self.leaving = False
        self.leave = anyio.Event()

    @property
    def idle(self) -> bool:
        return not self.busy

    def evict(self, *, hard: bool = False) -> bool:
        if self.busy or self.leaving:
            return False
        self.leaving = True
        self.leave.set()
        return True

    def end(self) -> None:
        self.leave.set()


class Door:
    """A listening socket whose visitors are of the users and processes that `peers` gives one by one."""

    def __init__(self, path: Path, acceptor: Acceptor[Visitor], peers: Iterator[Peer], *, busy: bool) -> None:
        self.path = path
        self.acceptor = acceptor
        self.served: list[Visitor] = []
        self._peers = peers
        self._busy = busy

    def admit(self, accepted: Mapping[socket.socket, Peer]) -> list[Visitor]:
        return [Visitor(each, next(self._peers), busy=self._busy) for each in accepted]

    async def serve(self, visitor: Visitor) -> None:
        self.served.append(visitor)
        await visitor.leave.wait()

    async def visit(self) -> socket.socket:
        """Connect, and let everybody have a turn."""
        client = connected(self.path)
        await anyio.wait_all_tasks_blocked()
        return client


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


@asynccontextmanager
async def door(path: Path, acceptor: Acceptor[Visitor], *peers: Peer, busy: bool = False) -> AsyncIterator[Door]:
    made = Door(path, acceptor, iter(peers), busy=busy)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(BACKLOG)
        listening.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(acceptor.serve, listening, made.admit, made.serve, lambda: None)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(HUNG_AFTER):
                yield made
            acceptor.close()


async def visits(at: Door, count: int) -> contextlib.ExitStack:
    clients = contextlib.ExitStack()
    for _ in range(count):
        clients.enter_context(await at.visit())
    return clients


async def test_a_user_with_many_processes_makes_room_before_one_whose_only_process_has_more(tmp_path: Path) -> None:
    many = [Peer(pid, 1) for pid in range(3)]
    acceptor: Acceptor[Visitor] = Acceptor(4, "test")
    async with door(tmp_path / "s", acceptor, *[Peer(9, 2)] * 2, *many) as at:
        with await visits(at, 5):
            assert [visitor.peer for visitor in at.served if visitor.leaving] == [many[0]]
            assert acceptor.evicted == 1


async def test_of_a_users_processes_the_one_with_most_connections_makes_room(tmp_path: Path) -> None:
    acceptor: Acceptor[Visitor] = Acceptor(4, "test")
    async with door(tmp_path / "s", acceptor, Peer(1, 1), *[Peer(2, 1)] * 3, Peer(3, 1)) as at:
        with await visits(at, 5):
            assert [visitor.peer for visitor in at.served if visitor.leaving] == [Peer(2, 1)]


async def test_the_last_places_are_kept_for_other_processes_and_other_users(tmp_path: Path) -> None:
    flood, same_user, other_user = Peer(1, 1), Peer(2, 1), Peer(3, 2)
    peers = [*[flood] * 8, *[same_user] * 2, *[other_user] * 2]
    acceptor: Acceptor[Visitor] = Acceptor(8, "test", refuse_when_full=True)
    async with door(tmp_path / "s", acceptor, *peers, busy=True) as at:
        with await visits(at, len(peers)):
            assert [visitor.peer for visitor in at.served] == [*[flood] * 6, same_user, other_user]
            assert (acceptor.refused, acceptor.evicted) == (4, 0)


async def test_who_keeps_most_places_busy_takes_none_from_another(tmp_path: Path) -> None:
    peers = [Peer(3, 2), *[Peer(1, 1)] * 4]
    acceptor: Acceptor[Visitor] = Acceptor(4, "test", refuse_when_full=True)
    async with door(tmp_path / "s", acceptor, *peers, busy=True) as at:
        with await visits(at, 1):
            at.served[0].busy = False
            with await visits(at, 4):
                assert [visitor.peer for visitor in at.served if not visitor.leaving] == peers[:4]
                assert (acceptor.refused, acceptor.evicted) == (1, 0)


async def test_a_process_that_others_wait_behind_keeps_no_more_places_busy_than_before(tmp_path: Path) -> None:
    flood, other, most = Peer(1, 1), Peer(2, 1), 512
    acceptor: Acceptor[Visitor] = Acceptor(most, "test", refuse_when_full=True)
    async with door(tmp_path / "s", acceptor, *[flood] * most, other, busy=True) as at:
        with contextlib.ExitStack() as clients:
            for _ in range(most + 1):  # all before the first of them is accepted
                clients.enter_context(connected(at.path))
            await anyio.wait_all_tasks_blocked()
            served = Counter(visitor.peer for visitor in at.served)
            assert served[flood] <= CROWD + TURN_CLIENTS
            assert served[other] == 1


def most_that_can_wait(path: Path) -> int:
    """Connect until the backlog is full; return how many could."""
    with contextlib.ExitStack() as clients:
        for count in range(2 * BACKLOG):
            try:
                clients.enter_context(connected(path))
            except BlockingIOError:
                return count
    raise AssertionError("the backlog has no end")


def flood(waiting: AcceptQueue, path: Path, now: float, *, until: Callable[[], bool]) -> None:
    """Accept a turn after the other while whoever is accepted is replaced at once, so that somebody always waits."""
    for _ in range(CROWDED_BACKLOG // 2):
        connected(path).close()
    while not until():
        for each in waiting.accept(CROWDED_BACKLOG // 4, now)[0]:
            each.close()
            connected(path).close()


def accept_all(waiting: AcceptQueue, now: float) -> None:
    while (found := waiting.accept(BACKLOG, now))[1] is None or found[0]:
        for each in found[0]:
            each.close()


def test_a_crowd_without_an_end_waits_in_a_short_line_until_it_is_calm(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(BACKLOG)
        listening.setblocking(False)
        waiting = AcceptQueue(listening)
        flood(waiting, path, 1.0, until=lambda: waiting.crowd >= LONG_CROWD)
        assert most_that_can_wait(path) <= CROWDED_BACKLOG
        assert waiting.turn == CROWD_TURN_CLIENTS  # many may wait still
        accept_all(waiting, 1.0 + CALM_SECONDS / 2)  # a moment without anybody is no calm
        assert most_that_can_wait(path) <= CROWDED_BACKLOG + 1
        accept_all(waiting, 1.0 + CALM_SECONDS / 2)
        flood(waiting, path, 1.0 + CALM_SECONDS / 2, until=lambda: waiting.crowd > 0)
        assert (waiting.most_waiting, waiting.turn) == (CROWDED_BACKLOG, SHORT_TURN_CLIENTS)
        accept_all(waiting, 1.0 + CALM_SECONDS / 2)
        accept_all(waiting, 1.0 + 3 * CALM_SECONDS)
        assert (waiting.most_waiting, waiting.turn) == (BACKLOG, TURN_CLIENTS)
        assert most_that_can_wait(path) > CROWDED_BACKLOG + 1
