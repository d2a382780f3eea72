"""Connecting to a host of several addresses, of which some do not answer, and sending more than a socket takes."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from functools import partial

import anyio
import anyio.lowlevel
import httpx
import pytest

from agent.http.dialing import (
    MAX_TUNNEL_HEAD_BYTES,
    TUNNEL_READ_BYTES,
    Address,
    Proxy,
    Route,
    connect_to_any,
    dial,
    perform,
    send_all,
)
from tests.support.raw_server import Endless, RawServer
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
Place = tuple[int, Address]


@pytest.fixture
def good() -> Iterator[Place]:
    with socket.create_server((HOST, 0)) as listening:
        yield socket.AF_INET, listening.getsockname()


@pytest.fixture
def silent() -> Iterator[Place]:
    """An address that answers nothing: its listener takes no more connections."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((HOST, 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield socket.AF_INET, listening.getsockname()


@pytest.fixture
def closed() -> Place:
    with socket.create_server((HOST, 0)) as listening:
        return socket.AF_INET, listening.getsockname()


async def test_the_next_address_is_tried_when_one_refuses_or_does_not_answer(
    good: Place, silent: Place, closed: Place
) -> None:
    for places in ([good, silent, closed], [closed, good], [silent, good], [silent, closed, good], [good, good]):
        with anyio.fail_after(HUNG_AFTER):
            connection = await connect_to_any(places)
        assert connection.getpeername() == good[1]
        connection.close()


async def test_the_reason_is_told_once_if_none_answers(closed: Place) -> None:
    with pytest.raises(OSError, match=r"^Connection refused$"):
        await connect_to_any([closed, closed])


async def test_who_gives_up_leaves_no_connection_behind(silent: Place) -> None:
    """Sockets that are left to the garbage collector are warned of, and warnings are errors."""
    with anyio.move_on_after(0.1) as scope:
        await connect_to_any([silent, silent])
    assert scope.cancelled_caught


@pytest.mark.parametrize("sizes", [[1], [1_000_000], [3, 7], [100, 2_000_000, 1], [2_000_000, 2_000_000]])
async def test_what_a_socket_does_not_take_at_once_follows(sizes: list[int]) -> None:
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.setblocking(False)
        receiver.setblocking(False)
        received = bytearray()

        async def receive() -> None:
            while len(received) < sum(sizes):
                received.extend(await perform(receiver, partial(receiver.recv, 65536)))

        with anyio.fail_after(HUNG_AFTER):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await send_all(sender, *parts)
    assert received == b"".join(parts)


async def test_a_socket_that_takes_nothing_more_is_given_up() -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sender.setblocking(False)
        with pytest.raises(TimeoutError):
            await send_all(sender, b"head", bytes(4_000_000), seconds=0.01)


@pytest.mark.parametrize("data", [b"HTTP/1.1 100 Continue\r\n\r\n", b"x"], ids=["informational answers", "no line"])
async def test_a_proxy_whose_answer_has_no_end_is_given_up_and_holds_up_nobody(data: bytes) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    with RawServer(b"") as proxy:
        proxy.script(Endless(data * 1000))
        route = Route(b"api.example.invalid", 443, ssl.create_default_context(), Proxy(HOST.encode(), proxy.port, []))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            with pytest.raises(httpx.ProxyError, match="longer than 16,384 bytes"):
                await dial(route)
            tasks.cancel_scope.cancel()
    assert turns >= MAX_TUNNEL_HEAD_BYTES // TUNNEL_READ_BYTES
