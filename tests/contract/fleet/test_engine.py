"""What the fleet may count on, whatever engine carries it: real JetStream and the fake in memory behave alike."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import anyio
import pytest

from agent.fleet import names
from agent.fleet.engine import ConflictError, ConsumerState, Engine, EngineError, MessageTooLargeError, StreamFullError
from tests.support.memory_engine import MemoryBroker, MemoryEngine
from tests.support.nats import NatsCluster, nats_cluster
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

EVENTS = names.events_subject("web", "linux")
RECORDS = names.ledger_subject("web")
CONSUMER = names.consumer("web")
SOON = 0.2


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The client of the real engine is asyncio's."""
    return str(request.param)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """A server for all tests: each has a team of its own there."""
    with nats_cluster(tmp_path_factory.mktemp("nats"), teams=()) as cluster:
        yield cluster


@dataclass
class World:
    """An engine, and another one to the same streams; what fills a stream, and what makes all of them anew."""

    engine: Engine
    other: Engine
    fill: Callable[[str], Awaitable[None]]
    renew: Callable[[], Awaitable[None]]


@pytest.fixture(params=["memory", "nats"])
def cluster(request: pytest.FixtureRequest) -> NatsCluster | None:
    """Real servers, or None for the fake."""
    return request.getfixturevalue("servers") if request.param == "nats" else None


@pytest.fixture
async def world(cluster: NatsCluster | None) -> AsyncIterator[World]:
    """A fresh engine of each kind."""
    if cluster is None:
        broker = MemoryBroker()

        async def fill_memory(stream: str) -> None:
            broker.full.add(stream)

        async def renew_memory() -> None:
            for name in broker.streams:
                broker.renew(name)

        yield World(MemoryEngine(broker), MemoryEngine(broker), fill_memory, renew_memory)
        return
    await cluster.renew(["web"])
    engine, other = cluster.engine(), cluster.engine()
    yield World(engine, other, cluster.fill, partial(cluster.renew, ["web"]))
    await engine.aclose()
    await other.aclose()


async def taken(engine: Engine, most: int = 10, seconds: float = HUNG_AFTER) -> list[bytes]:
    """Take messages, and return their bodies."""
    return [each.body for each in await engine.fetch(names.EVENTS, CONSUMER, most=most, seconds=seconds)]


async def test_what_was_published_is_taken_once_and_in_order(world: World) -> None:
    for body in (b"1\n", b"2\n", b"3\n"):
        assert await world.engine.publish(EVENTS, body, {"AA-Queue": "q"})
    first = await world.engine.fetch(names.EVENTS, CONSUMER, most=2, seconds=HUNG_AFTER)
    assert [(each.subject, each.body, each.seq, each.deliveries) for each in first] == [
        (EVENTS, b"1\n", first[0].seq, 1),
        (EVENTS, b"2\n", first[0].seq + 1, 1),
    ]
    assert first[0].headers["AA-Queue"] == "q"
    assert await taken(world.other) == [b"3\n"]


async def test_nobody_waits_longer_than_asked_when_nothing_comes(world: World) -> None:
    assert await taken(world.engine, seconds=SOON) == []


async def test_a_message_that_came_before_is_not_kept_twice(world: World) -> None:
    headers = {"Nats-Msg-Id": "q:1-1"}
    assert [await world.engine.publish(EVENTS, b"1\n", headers) for _ in range(3)] == [True, False, False]
    assert await taken(world.engine) == [b"1\n"]


async def test_what_was_acknowledged_is_gone(world: World) -> None:
    await world.engine.publish(EVENTS, b"1\n", {})
    for message in await world.engine.fetch(names.EVENTS, CONSUMER, most=1, seconds=HUNG_AFTER):
        await world.engine.ack(message)
    await world.engine.publish(EVENTS, b"2\n", {})
    assert await taken(world.engine) == [b"2\n"]  # which comes behind the acknowledgement
    assert (await world.engine.stream_state(names.EVENTS)).messages == 1


async def test_what_was_released_comes_again_and_says_so(world: World) -> None:
    await world.engine.publish(EVENTS, b"1\n", {})
    (message,) = await world.engine.fetch(names.EVENTS, CONSUMER, most=1, seconds=HUNG_AFTER)
    await world.engine.extend(message)
    await world.engine.release(message)
    (again,) = await world.other.fetch(names.EVENTS, CONSUMER, most=1, seconds=HUNG_AFTER)
    assert (again.seq, again.deliveries, again.body) == (message.seq, 2, b"1\n")


async def test_a_message_is_released_for_later(world: World) -> None:
    await world.engine.publish(EVENTS, b"1\n", {})
    (message,) = await world.engine.fetch(names.EVENTS, CONSUMER, most=1, seconds=HUNG_AFTER)
    await world.engine.release(message, 3600.0)
    assert await taken(world.engine, seconds=SOON) == []


async def test_a_consumer_says_what_waits_what_is_held_and_who_asks(world: World) -> None:
    async def state() -> ConsumerState:
        return await world.other.consumer_state(names.EVENTS, CONSUMER)

    assert await state() == (0, 0, 0, None)
    for body in (b"1\n", b"2\n", b"3\n"):
        await world.engine.publish(EVENTS, body, {})
    found = await world.engine.fetch(names.EVENTS, CONSUMER, most=2, seconds=HUNG_AFTER)
    waiting, held, asking, taken_at = await state()
    assert (waiting, held, asking) == (1, 2, 0)
    assert taken_at is not None
    assert taken_at > 1_750_000_000 - 1
    await world.engine.ack(found[0])
    assert await taken(world.engine) == [b"3\n"]
    assert (await state())[:2] == (0, 2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(world.engine.fetch, names.EVENTS, CONSUMER, most=1, seconds=HUNG_AFTER))
        with anyio.fail_after(HUNG_AFTER):
            while (await state()).asking != 1:  # noqa: ASYNC110 - a server says so
                await anyio.sleep(0.01)
        await world.other.publish(EVENTS, b"4\n", {})
    assert (await state())[:3] == (0, 3, 0)


async def test_what_a_stream_holds_can_be_looked_at_without_taking_it(world: World) -> None:
    await world.engine.publish(EVENTS, b"1\n", {"AA-Queue": "q"})
    await world.engine.publish(EVENTS, b"2\n", {})
    one = await world.engine.next_stored(names.EVENTS, names.team_events("web"), 0)
    assert one is not None
    assert (one.subject, one.body, one.headers["AA-Queue"]) == (EVENTS, b"1\n", "q")
    two = await world.engine.next_stored(names.EVENTS, names.team_events("web"), one.seq)
    assert two is not None
    assert (two.body, await world.engine.next_stored(names.EVENTS, names.team_events("web"), two.seq)) == (b"2\n", None)
    assert len(await taken(world.engine)) == 2


async def test_a_reader_reads_on_from_any_place_and_waits_for_more(world: World) -> None:
    first = await world.engine.last_seq(names.LEDGER, RECORDS)
    assert first == 0
    for body in (b"1", b"2", b"3"):
        await world.engine.publish(RECORDS, body, {})
    last = await world.engine.last_seq(names.LEDGER, RECORDS)
    reader = world.other.reader(names.LEDGER, RECORDS, last - 2)
    assert [each.body for each in await reader.read(1, HUNG_AFTER)] == [b"2"]
    found = await reader.read(10, HUNG_AFTER)
    assert 0 < found[0].kept_at <= found[-1].kept_at
    assert [(each.body, each.seq) for each in found] == [(b"3", last)]
    assert list(await reader.read(10, SOON)) == []
    await world.engine.publish(RECORDS, b"4", {})
    assert [each.body for each in await reader.read(10, HUNG_AFTER)] == [b"4"]
    await reader.aclose()


async def test_a_key_is_changed_by_those_alone_who_have_read_it(world: World) -> None:
    assert await world.engine.get("pause.web") is None
    one = await world.engine.put("pause.web", b"1")
    with pytest.raises(ConflictError):
        await world.other.put("pause.web", b"2")
    found = await world.other.get("pause.web")
    assert found == (b"1", one)
    two = await world.other.put("pause.web", b"2", one)
    for stale in (world.engine.put("pause.web", b"3", one), world.engine.delete("pause.web", one)):
        with pytest.raises(ConflictError):
            await stale
    assert await world.engine.get("pause.web") == (b"2", two)
    await world.engine.delete("pause.web", two)
    assert await world.other.get("pause.web") is None
    with pytest.raises(ConflictError):
        await world.other.put("pause.web", b"4", two)
    await world.other.put("pause.web", b"5")


async def test_an_object_is_replaced_as_a_whole(world: World) -> None:
    assert await world.engine.load("web") is None
    large = bytes(range(256)) * 8000
    await world.engine.save("web", large)
    assert await world.other.load("web") == large
    await world.other.save("web", b"small")
    assert await world.engine.load("web") == b"small"


async def test_a_message_that_is_too_large_with_its_headers_is_refused_and_costs_nothing(world: World) -> None:
    room = world.engine.max_payload
    await world.engine.publish(RECORDS, b"known", {})  # a connection has been made, and said how much it takes
    with pytest.raises(MessageTooLargeError, match=f"the server takes {room} in a message"):
        await world.engine.publish(EVENTS, b"x" * (room - 40), {"AA-Queue": "q" * 40})
    assert await world.engine.publish(EVENTS, b"x" * (room - 200), {"AA-Queue": "q" * 40})


async def test_a_stream_that_is_full_says_so_and_the_others_go_on(world: World) -> None:
    dead = names.dead_subject("web")
    await world.fill(names.DEAD)
    with pytest.raises(StreamFullError, match="maximum bytes exceeded"):
        await world.engine.publish(dead, b"1" * 1000, {})
    assert await world.engine.publish(RECORDS, b"1", {})


async def test_a_stream_is_told_from_one_that_was_made_anew(world: World) -> None:
    await world.engine.publish(RECORDS, b"1", {})
    one, same = await world.engine.stream_state(names.LEDGER), await world.other.stream_state(names.LEDGER)
    assert one == same
    await world.renew()
    await world.engine.publish(RECORDS, b"1", {})
    assert (await world.engine.stream_state(names.LEDGER)).created != one.created


async def test_a_subject_of_no_stream_is_an_error(world: World) -> None:
    with pytest.raises(EngineError, match="there is no fleet yet"):
        await world.engine.publish("elsewhere", b"1", {})
