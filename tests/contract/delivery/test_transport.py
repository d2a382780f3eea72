"""What the worker may count on, whatever is behind the seam: the fake and the real adapter answer alike."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import pytest

from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.transport import Kind, Transport, Verdict
from agent.events import Context
from tests.support.api_server import Answer, ApiServer, error
from tests.support.fake_transport import LOST, UNREACHED, FakeTransport
from tests.support.pipelines import batch_of, events

pytestmark = pytest.mark.anyio

# What the API says, as the server says it and as a verdict.
ANSWERS = {
    "ok": (Answer(200, body=b""), Verdict(Kind.ACCEPTED, "200 OK", 200)),
    "created, nothing in it": (Answer(201, body=b""), Verdict(Kind.ACCEPTED, "201 Created", 201)),
    "unavailable": (error(503, "x", "Later"), Verdict(Kind.TRANSIENT, "503 Service Unavailable: Later", 503)),
    "too many": (
        error(429, "x", "Slow down", {"retry-after": "7"}),
        Verdict(Kind.TRANSIENT, "429 Too Many Requests: Slow down", 429, 7.0),
    ),
    "bad": (error(400, "x", "Invalid event h1"), Verdict(Kind.REJECTED, "400 Bad Request: Invalid event h1", 400)),
    "large": (error(413, "x", "Fewer"), Verdict(Kind.TOO_LARGE, "413 Request Entity Too Large: Fewer", 413)),
    "unpaid": (error(402, "x", "Pay"), Verdict(Kind.BLOCKED, "402 Payment Required: Pay", 402)),
    "not here": (error(404, "x", "Gone"), Verdict(Kind.MISCONFIGURED, "404 Not Found: Gone", 404)),
}
STATUSES = {
    "enabled": Verdict(Kind.ACCEPTED, "enabled", 200),
    "over_limit": Verdict(Kind.BLOCKED, "the account's Remote Caching status is 'over_limit'", 200),
    None: None,
}


class World(Protocol):
    """An API to send to, in memory or on a socket."""

    def answer(self, name: str) -> None:
        """Give the next batch this answer of ANSWERS."""

    def lose(self) -> None:
        """Take the next batch, and let its answer be lost."""

    def leave(self) -> None:
        """Let there be nobody to connect to."""

    def status(self, status: str | None) -> None:
        """Let the account have this status; None: the server cannot say."""

    def taken(self) -> list[tuple[str | None, list[str]]]:
        """Return the batches that the API has accepted: the client's CI and the hashes."""

    def transport(self) -> Transport:
        """Return a transport to it."""


class InMemory:
    """The fake."""

    def __init__(self) -> None:
        self._fake = FakeTransport()

    def answer(self, name: str) -> None:
        self._fake.script([ANSWERS[name][1]])

    def lose(self) -> None:
        self._fake.script([LOST])

    def leave(self) -> None:
        self._fake.script([UNREACHED])

    def status(self, status: str | None) -> None:
        self._fake.status = STATUSES[status]

    def taken(self) -> list[tuple[str | None, list[str]]]:
        return [(sent.context.ci, sent.hashes) for sent in self._fake.answered if sent.taken]

    def transport(self) -> Transport:
        return self._fake


class OnASocket:
    """The adapter, and a real server."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def answer(self, name: str) -> None:
        self._server.script([ANSWERS[name][0]])

    def lose(self) -> None:
        self._server.script([Answer(mode="cut")])

    def leave(self) -> None:
        self._server.stop()

    def status(self, status: str | None) -> None:
        self._server.status = status

    def taken(self) -> list[tuple[str | None, list[str]]]:
        took = [request for request in self._server.posts() if request.accepted or request.status is None]
        return [(request.headers.get("x-artifact-client-ci"), [e["hash"] for e in request.events]) for request in took]

    def transport(self) -> Transport:
        return HttpTransport(Endpoint(self._server.url, "secret"), wall_clock=lambda: 1_750_000_000.0)


@pytest.fixture(params=["fake", "http"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each implementation in turn."""
    if request.param == "fake":
        yield InMemory()
        return
    with ApiServer() as server:
        yield OnASocket(server)
        assert server.violations == []


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[Transport]:
    """Yield a transport and close it."""
    transport = world.transport()
    try:
        yield transport
    finally:
        await transport.aclose()


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_a_verdict(world: World, name: str) -> None:
    async with connected(world) as transport:
        world.answer(name)
        verdict = await transport.send(batch_of(events("h1", "h2"), Context("CIRCLE", 0)))
    assert verdict._replace(message="") == ANSWERS[name][1]._replace(message="")
    assert verdict.message == ANSWERS[name][1].message
    accepted = verdict.kind is Kind.ACCEPTED
    assert world.taken() == ([("CIRCLE", ["h1", "h2"])] if accepted else [])


async def test_a_batch_that_was_never_sent_says_so(world: World) -> None:
    world.leave()
    async with connected(world) as transport:
        verdict = await transport.send(batch_of(events("h1")))
    assert (verdict.kind, verdict.status, verdict.unsent) == (Kind.TRANSIENT, None, True)
    assert world.taken() == []


async def test_a_refused_batch_can_be_sent_again(world: World) -> None:
    async with connected(world) as transport:
        world.answer("unavailable")
        batch = batch_of(events("h1"))
        assert (await transport.send(batch)).kind is Kind.TRANSIENT
        assert (await transport.send(batch)).kind is Kind.ACCEPTED
    assert world.taken() == [(None, ["h1"])]


async def test_a_lost_answer_is_not_taken_for_an_accepted_batch(world: World) -> None:
    async with connected(world) as transport:
        world.lose()
        verdict = await transport.send(batch_of(events("h1")))
    assert verdict.kind in {Kind.CUT_OFF, Kind.TRANSIENT}
    assert not verdict.unsent
    assert world.taken() == [(None, ["h1"])]


async def test_batches_may_be_under_way_at_once(world: World) -> None:
    async with connected(world) as transport, anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(transport.send, batch_of(events(f"h{number}")))
    assert sorted(names for _, names in world.taken()) == [["h0"], ["h1"], ["h2"], ["h3"]]


@pytest.mark.parametrize("status", STATUSES)
async def test_a_probe_says_what_the_account_may_do_and_sends_nothing(world: World, status: Any) -> None:
    async with connected(world) as transport:
        world.status(status)
        assert await transport.probe() == STATUSES[status]
    assert world.taken() == []


async def test_a_cancelled_request_leaves_the_transport_usable(world: World) -> None:
    async with connected(world) as transport:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await transport.send(batch_of(events("h1")))
        assert scope.cancelled_caught
        assert (await transport.send(batch_of(events("h2")))).kind is Kind.ACCEPTED
    assert (None, ["h2"]) in world.taken()
