"""What is full: an account's quota, a pool's part of the stream, the ledger.

Delivery waits, and goes on when there is room. The ledger makes room for itself: its oldest records go, which snapshots have.
"""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config.schema import RelayConfig
from agent.fleet import names
from agent.fleet.accounting import FleetLedger
from agent.fleet.engine import EngineError
from agent.fleet.following import snapshot_name
from agent.fleet.message import decode
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.overview import read_ledger
from agent.fleet.records import Released, encode_record
from agent.queue.cursor import Ledger
from tests.support.api_server import Answer, ApiServer
from tests.support.command import run_command
from tests.support.daemon import Daemon
from tests.support.forwarding import NOWHERE, forwarded, forwarding, hashes, lines, send
from tests.support.http_connection import HttpConnection
from tests.support.nats import SMALL, NatsCluster, free_port, nats_cluster
from tests.support.nats_limits import quota, set_quota
from tests.support.relay_process import World, readiness
from tests.support.waiting import HUNG_AFTER, eventually

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


async def _use_up_quota(cluster: NatsCluster, engine: NatsEngine) -> None:
    """Write records until not even the smallest one is taken: the first is of the largest kind."""
    await set_quota(cluster, engine, 128 * KIB)
    for size in (64 * KIB, 4 * KIB, 256, 1):
        assert EXCEEDED in await _refusal(engine, encode_record(Released("x" * size)))


async def _refusal(engine: NatsEngine, record: bytes) -> str:
    """Write a record again and again until it is refused, and return what was said."""
    try:
        while True:
            await engine.publish(names.ledger_subject("web"), record, {})
    except EngineError as error:
        return str(error)


def test_a_relay_that_cannot_write_down_its_requests_makes_none_and_goes_on_when_it_can(
    tmp_path: Path, cluster: NatsCluster
) -> None:
    port = free_port()
    with ApiServer() as api, World(tmp_path, cluster, api, f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as w:
        asyncio.run(_holds_up(w, port))
        assert [relay.terminate() for relay in w.relays[:1]] == [0]


async def _holds_up(w: World, port: int) -> None:
    engine, relay = w.cluster.engine(), w.relays[0]
    for number in range(5):
        await w.publish(engine, f"q{number}", EVENTS[20 * number : 20 * (number + 1)])
    await _use_up_quota(w.cluster, engine)
    relay.start()
    eventually(
        relay.log.read_text, lambda log: "engine_refuses" in log and "what='an intent'" in log and EXCEEDED in log
    )
    assert readiness(port) == (503, EXCEEDED)
    # It has given the request up by now, and waits before it tries again.
    eventually(relay.log.read_text, lambda log: "delivery_backing_off" in log and "the engine takes no record" in log)
    assert (w.api.posts(), relay.has_ended) == ([], False)
    await set_quota(w.cluster, engine, ROOM)
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


def test_what_was_delivered_while_the_quota_was_used_up_is_settled_when_there_is_room(
    tmp_path: Path, cluster: NatsCluster
) -> None:
    with HoldingApi() as api, World(tmp_path, cluster, api, api_timeout="60s") as w:
        try:
            asyncio.run(_settles_later(w, api))
        finally:
            api.go.set()


async def _settles_later(w: World, api: HoldingApi) -> None:
    engine, relay = w.cluster.engine(), w.relays[0]
    relay.start()
    await w.publish(engine, "q", EVENTS[:20])
    await asyncio.to_thread(api.wait_for_posts, 1)
    await _use_up_quota(w.cluster, engine)
    api.go.set()
    eventually(relay.log.read_text, lambda log: "what='a settlement'" in log and EXCEEDED in log)
    assert (await engine.stream_state(names.EVENTS)).messages == 1
    await set_quota(w.cluster, engine, ROOM)
    await w.drained(engine)
    ledger = await w.ledger(engine)
    await engine.aclose()
    assert w.taken() == dict.fromkeys(EVENTS[:20], 1)
    assert (ledger.sums, ledger.in_doubt) == ({"delivered": 20}, 0)


@pytest.mark.parametrize("flooder", ["web", "other"])
def test_a_ledger_that_is_full_drops_what_snapshots_have_and_holds_nobody_up(
    tmp_path: Path, cluster: NatsCluster, flooder: str
) -> None:
    with ApiServer() as api, World(tmp_path, cluster, api) as w:
        asyncio.run(_goes_on(w, flooder))
        for relay in w.relays:
            assert "ledger_records_gone" not in relay.log.read_text()
            assert "engine_refuses" not in relay.log.read_text()


async def _goes_on(w: World, flooder: str) -> None:
    """Fill the ledger twice while a relay works; another one that starts then knows what has become of each event."""
    engine = w.cluster.engine()
    w.relays[0].start()
    for number in range(3):
        await w.publish(engine, f"q{number}", EVENTS[20 * number : 20 * (number + 1)])
        await w.drained(engine)
        behind = (await engine.stream_state(names.LEDGER)).last_seq
        for _ in range(SIZES.ledger_max_bytes // (2 * 16 * KIB)):
            await engine.publish(names.ledger_subject(flooder), encode_record(Released("x" * 16 * KIB)), {})
        async with asyncio.timeout(HUNG_AFTER):
            while (await _accounts(engine)).passed <= behind:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)
    assert (await engine.stream_state(names.LEDGER)).first_seq > 8
    w.relays[0].kill()
    w.relays[1].start()
    await w.publish(engine, "q0", EVENTS[60:])
    await w.drained(engine)
    found = await read_ledger(engine, "web", await engine.load(snapshot_name("web")))
    await engine.aclose()
    assert w.taken() == dict.fromkeys(EVENTS, 1)
    assert (found.sums, found.in_doubt) == ({"delivered": 100}, 0)


async def _accounts(engine: NatsEngine) -> FleetLedger:
    """Return what the snapshot has."""
    data = await engine.load(snapshot_name("web"))
    return (FleetLedger.decode(data) if data is not None else None) or FleetLedger()
