"""What is full: an account's quota, the ledger, a pool's part of the stream. Delivery waits, and goes on when there is room."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config.schema import RelayConfig
from agent.fleet import names
from agent.fleet.engine import EngineError
from agent.fleet.message import decode
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.records import Released, encode_record
from agent.queue.cursor import Ledger
from tests.support.api_server import Answer, ApiServer
from tests.support.command import run_command
from tests.support.daemon import Daemon
from tests.support.forwarding import NOWHERE, forwarded, forwarding, hashes, lines, send
from tests.support.http_connection import HttpConnection
from tests.support.nats import SMALL, NatsCluster, free_port, nats_cluster
from tests.support.nats_limits import quota, set_quota, set_size
from tests.support.relay_process import World, readiness
from tests.support.waiting import eventually

Change = Callable[[NatsCluster, NatsEngine], Awaitable[None]]

KIB = 1024
ROOM = 4096 * KIB
SIZES = RelayConfig(
    replicas=1, events_max_bytes=1024 * KIB, ledger_max_bytes=1024 * KIB, dead_letters_max_bytes=64 * KIB
)
EXCEEDED = "resource limits exceeded for account"
EVENTS = [f"h{number}" for number in range(100)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """A server with an account that has a quota."""
    with nats_cluster(tmp_path / "nats", sizes=SIZES, options=quota(ROOM)) as found:
        yield found


async def _set_quota(cluster: NatsCluster, most_bytes: int) -> None:
    engine = cluster.engine()
    await set_quota(cluster, engine, most_bytes)
    await engine.aclose()


async def _forwarded_by(cluster: NatsCluster, pool: str) -> list[bytes]:
    """Return the bodies that the stream holds of a pool."""
    engine, found, after = cluster.engine(), list[bytes](), 0
    while (message := await engine.next_stored(names.EVENTS, names.events_subject("web", pool), after)) is not None:
        after = message.seq
        found.append(decode(message.headers, message.body).lines)
    await engine.aclose()
    return found


def test_what_the_accounts_quota_refuses_waits_in_the_runners_queue(tmp_path: Path, cluster: NatsCluster) -> None:
    with Daemon(tmp_path / "a", NOWHERE, forwarding(cluster)) as daemon:
        send(daemon, lines(1, 10))
        daemon.wait_destination(forwarded(10))
        asyncio.run(_set_quota(cluster, 1))
        send(daemon, lines(11, 100))
        waiting = daemon.wait_destination(lambda found: found.state == "backing_off")
        assert EXCEEDED in (waiting.reason or "")
        assert waiting.ledger == Ledger(110, 0, 0, {}, 100, 0, 10)
        shown = run_command("status", "--config", daemon.config).stdout
        assert EXCEEDED in shown, shown
        asyncio.run(_set_quota(cluster, ROOM))
        assert daemon.wait_destination(forwarded(110)).ledger == Ledger(110, 0, 0, {}, 0, 0, 110)
    assert hashes(asyncio.run(_forwarded_by(cluster, "ci"))) == hashes(lines(1, 110))


def test_a_pool_that_has_filled_its_part_of_the_stream_holds_no_other_one_up(tmp_path: Path) -> None:
    sizes = replace(SMALL, pool_max_messages=2)
    with (
        nats_cluster(tmp_path / "nats", sizes=sizes) as cluster,
        Daemon(tmp_path / "a", NOWHERE, {**forwarding(cluster), "batch": {"max_events": 10}}) as full,
        Daemon(tmp_path / "b", NOWHERE, forwarding(cluster, pool="mac")) as other,
    ):
        send(full, lines(1, 40))
        found = full.wait_destination(lambda found: found.state == "backing_off")
        assert "maximum messages per subject exceeded" in (found.reason or "")
        assert found.ledger == Ledger(40, 0, 0, {}, 20, 0, 20)
        send(other, lines(101, 40))
        other.wait_destination(forwarded(40))
        assert full.destination().ledger == found.ledger
        assert hashes(asyncio.run(_forwarded_by(cluster, "mac"))) == hashes(lines(101, 40))


# --- relays ------------------------------------------------------------------------------------------------------


async def _fill_ledger(engine: NatsEngine, said: str) -> None:
    """Write records until not even the smallest one is taken: the first is of the largest kind."""
    for size in (64 * KIB, 4 * KIB, 256, 1):
        assert said in await _refusal(engine, encode_record(Released("x" * size)))


async def _refusal(engine: NatsEngine, record: bytes) -> str:
    """Write a record again and again until it is refused, and return what was said."""
    try:
        while True:
            await engine.publish(names.ledger_subject("web"), record, {})
    except EngineError as error:
        return str(error)


async def _use_up_quota(cluster: NatsCluster, engine: NatsEngine) -> None:
    await set_quota(cluster, engine, 128 * KIB)
    await _fill_ledger(engine, EXCEEDED)


async def _raise_quota(cluster: NatsCluster, engine: NatsEngine) -> None:
    await set_quota(cluster, engine, ROOM)


async def _fill_stream(_: NatsCluster, engine: NatsEngine) -> None:
    await set_size(engine, names.LEDGER, 128 * KIB)
    await _fill_ledger(engine, "maximum bytes exceeded")


async def _enlarge_stream(_: NatsCluster, engine: NatsEngine) -> None:
    await set_size(engine, names.LEDGER, SIZES.ledger_max_bytes)


FULL = pytest.mark.parametrize(
    ("fill", "make_room", "said"),
    [
        pytest.param(_use_up_quota, _raise_quota, EXCEEDED, id="of the account"),
        pytest.param(_fill_stream, _enlarge_stream, "maximum bytes exceeded", id="of the ledger"),
    ],
)


@FULL
def test_a_relay_that_cannot_write_down_its_requests_makes_none_and_goes_on_when_it_can(
    tmp_path: Path, cluster: NatsCluster, fill: Change, make_room: Change, said: str
) -> None:
    port = free_port()
    with ApiServer() as api, World(tmp_path, cluster, api, f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as w:
        asyncio.run(_holds_up(w, port, fill, make_room, said))
        assert [relay.terminate() for relay in w.relays[:1]] == [0]


async def _holds_up(w: World, port: int, fill: Change, make_room: Change, said: str) -> None:
    engine, relay = w.cluster.engine(), w.relays[0]
    for number in range(5):
        await w.publish(engine, f"q{number}", EVENTS[20 * number : 20 * (number + 1)])
    await fill(w.cluster, engine)
    relay.start()
    eventually(relay.log.read_text, lambda log: "engine_refuses" in log and "what='an intent'" in log and said in log)
    assert readiness(port) == (503, said)
    # It has given the request up by now, and waits before it tries again.
    eventually(relay.log.read_text, lambda log: "delivery_backing_off" in log and "the engine takes no record" in log)
    assert (w.api.posts(), relay.has_ended) == ([], False)
    await make_room(w.cluster, engine)
    await w.drained(engine)
    ledger = await w.ledger(engine)
    await engine.aclose()
    assert w.taken() == dict.fromkeys(EVENTS, 1)
    assert (ledger.sums, ledger.in_doubt) == ({"delivered": 100}, 0)


class HoldingApi(ApiServer):
    """It answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    async def _perform(self, wire: HttpConnection, index: int, answer: Answer) -> bool:
        await asyncio.to_thread(self.go.wait)
        return await super()._perform(wire, index, answer)


@FULL
def test_what_was_delivered_while_the_ledger_filled_up_is_settled_when_there_is_room(
    tmp_path: Path, cluster: NatsCluster, fill: Change, make_room: Change, said: str
) -> None:
    with HoldingApi() as api, World(tmp_path, cluster, api, api_timeout="60s") as w:
        try:
            asyncio.run(_settles_later(w, api, fill, make_room, said))
        finally:
            api.go.set()


async def _settles_later(w: World, api: HoldingApi, fill: Change, make_room: Change, said: str) -> None:
    engine, relay = w.cluster.engine(), w.relays[0]
    relay.start()
    await w.publish(engine, "q", EVENTS[:20])
    await asyncio.to_thread(api.wait_for_posts, 1)
    await fill(w.cluster, engine)
    api.go.set()
    eventually(relay.log.read_text, lambda log: "what='a settlement'" in log and said in log)
    assert (await engine.stream_state(names.EVENTS)).messages == 1
    await make_room(w.cluster, engine)
    await w.drained(engine)
    ledger = await w.ledger(engine)
    await engine.aclose()
    assert w.taken() == dict.fromkeys(EVENTS[:20], 1)
    assert (ledger.sums, ledger.in_doubt) == ({"delivered": 20}, 0)
