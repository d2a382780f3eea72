"""What relays share, alone over an engine in memory: the pause, the rate and the lease, and who is refused alone."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.fleet import names
from agent.fleet.inspection import probe_now
from agent.fleet.shared import YIELD_SECONDS, SharedTurns
from agent.fleet.shared_lease import LEASE_MARGIN, LEASE_SECONDS, Lease
from agent.fleet.shared_pause import SharedPause, decode_pause, encode_pause
from agent.fleet.shared_rate import PATIENCE_SECONDS, SharedRate
from agent.queue.cursor import Pause
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport
from tests.support.memory_engine import MemoryBroker, MemoryEngine
from tests.support.pipelines import EPOCH, numbered
from tests.support.relays import TEAM, Fleet, fleet

pytestmark = pytest.mark.anyio

REFUSED = Verdict(Kind.BLOCKED, "403 Forbidden", 403)
PAUSE = Pause("blocked", "402 Payment Required", EPOCH, EPOCH + 300.0, 1)
LATER = Pause("blocked", "402 Payment Required", EPOCH, EPOCH + 900.0, 2)
KEY = names.pause_key(TEAM)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


# The rate

INTERVAL = 0.6


def rate_of(broker: MemoryBroker, relay: str, latency: float = 0.0) -> SharedRate:
    """Return the rate as one relay sees it."""
    rate = SharedRate(MemoryEngine(broker, latency), names.rate_key(TEAM), relay)
    rate.interval = INTERVAL
    return rate


@asynccontextmanager
async def taking(broker: MemoryBroker, latencies: Sequence[float]) -> AsyncIterator[list[tuple[float, str]]]:
    """Have relays take all the turns that they get, each with two requests that always wait; yield when who had one."""
    taken: list[tuple[float, str]] = []

    async def take(rate: SharedRate, relay: str) -> None:
        while await rate.take(lambda: True):
            taken.append((anyio.current_time(), relay))

    async with anyio.create_task_group() as tasks:
        for index, latency in enumerate(latencies):
            rate = rate_of(broker, f"r{index}", latency)
            for _ in range(2):
                tasks.start_soon(take, rate, f"r{index}")
        yield taken
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("latencies", [(0.001,) * 3, (0.001, 0.002, 0.005), (0.001, 0.02, 0.1)])
async def test_each_relay_has_its_share_of_the_rate_however_far_from_the_engine(latencies: Sequence[float]) -> None:
    async with taking(MemoryBroker(), latencies) as taken:
        await anyio.sleep(300)
    shares = Counter(relay for _, relay in taken)
    assert len(shares) == 3
    assert max(shares.values()) - min(shares.values()) <= 3


@pytest.mark.parametrize("latencies", [(0.001,), (0.001, 0.002, 0.005)])
async def test_the_rate_is_kept_to_and_nearly_used_up(latencies: Sequence[float]) -> None:
    async with taking(MemoryBroker(), latencies) as taken:
        await anyio.sleep(300)
    assert all(later - sooner >= INTERVAL - 1e-9 for (sooner, _), (later, _) in pairwise(taken))
    assert len(taken) >= 0.9 * 300 / INTERVAL


async def test_a_relay_that_waits_for_its_turn_and_is_gone_holds_others_up_once() -> None:
    broker = MemoryBroker()
    await rate_of(broker, "before").take(lambda: True)
    with anyio.move_on_after(INTERVAL / 2):
        await rate_of(broker, "gone").take(lambda: True)
    with anyio.move_on_after(INTERVAL / 4):
        await rate_of(broker, "gone too").take(lambda: True)
    async with taking(broker, [0.001]) as taken:
        await anyio.sleep(60)
    first, second = taken[0][0], taken[1][0]
    assert 2 * PATIENCE_SECONDS < first < 2 * PATIENCE_SECONDS + 4 * INTERVAL
    assert second - first < 2 * INTERVAL


async def test_a_turn_that_is_not_wanted_any_more_is_not_taken() -> None:
    broker = MemoryBroker()
    await rate_of(broker, "before").take(lambda: True)
    until = anyio.current_time() + INTERVAL / 2
    assert not await rate_of(broker, "r").take(lambda: anyio.current_time() < until)


async def test_a_key_of_the_rate_that_cannot_be_read_is_a_turn_that_was_taken() -> None:
    broker = MemoryBroker()
    await MemoryEngine(broker).put(names.rate_key(TEAM), b"\xff")
    begun = anyio.current_time()
    assert await rate_of(broker, "r").take(lambda: True)
    assert anyio.current_time() - begun >= INTERVAL


async def test_a_turn_whose_answer_is_lost_counts_as_taken() -> None:
    broker = MemoryBroker()
    turns = SharedTurns(MemoryEngine(broker), TEAM, "r", 10)
    broker.lose_key_answers = 1
    assert await turns.take(probing=False)
    assert anyio.current_time() >= 6.0


# The pause


def pause_of(broker: MemoryBroker, relay: str) -> tuple[SharedPause, list[Pause | None]]:
    """Return the pause as one relay sees it, and what it hears of others."""
    heard: list[Pause | None] = []
    pause = SharedPause(MemoryEngine(broker), KEY, relay)
    pause.on_change = heard.append
    return pause, heard


async def test_a_pause_and_its_end_reach_the_others() -> None:
    broker = MemoryBroker()
    (mine, own), (theirs, heard) = pause_of(broker, "r1"), pause_of(broker, "r2")
    mine.remember(PAUSE)
    await mine.write()
    assert (await theirs.look(), await theirs.look()) == (True, False)
    theirs.remember(None)
    await theirs.write()
    assert await mine.look()
    assert (own, heard, broker.keys) == ([None], [PAUSE], {})


async def test_who_is_slower_follows_what_others_have_written() -> None:
    broker = MemoryBroker()
    (first, _), (second, heard) = pause_of(broker, "r1"), pause_of(broker, "r2")
    first.remember(LATER)
    await first.write()
    second.remember(PAUSE)
    await second.write()
    assert (second.known, second.unwritten, heard) == (LATER, False, [LATER])


async def test_a_pause_that_others_ended_meanwhile_is_written_anew() -> None:
    broker = MemoryBroker()
    (first, heard), (second, _) = pause_of(broker, "r1"), pause_of(broker, "r2")
    first.remember(PAUSE)
    await first.write()
    await second.look()
    second.remember(None)
    await second.write()
    first.remember(LATER)
    await first.write()
    assert (first.known, first.unwritten, heard) == (LATER, False, [])
    assert decode_pause(broker.keys[KEY].value) == LATER


async def test_a_pause_whose_answer_was_lost_is_known_to_be_written() -> None:
    broker = MemoryBroker()
    pause, heard = pause_of(broker, "r1")
    pause.remember(PAUSE)
    broker.lose_key_answers = 1
    with pytest.raises(Exception, match="no answer"):
        await pause.write()
    assert pause.unwritten
    await pause.write()
    assert (pause.unwritten, heard, await pause.look()) == (False, [], False)


async def test_what_is_to_be_written_is_not_given_up_for_what_is_there() -> None:
    broker = MemoryBroker()
    (mine, heard), (theirs, _) = pause_of(broker, "r1"), pause_of(broker, "r2")
    theirs.remember(PAUSE)
    await theirs.write()
    mine.remember(LATER)
    assert not await mine.look()
    assert (mine.known, heard) == (LATER, [])


async def test_a_key_of_a_pause_that_cannot_be_read_is_a_pause() -> None:
    broker = MemoryBroker()
    await MemoryEngine(broker).put(KEY, b"\xff")
    pause, heard = pause_of(broker, "r1")
    await pause.look()
    assert [each.reason for each in heard if each is not None] == ["blocked"]


# Who probes


def lease_of(broker: MemoryBroker, relay: str) -> Lease:
    """Return the lease as one relay sees it."""
    return Lease(MemoryEngine(broker), names.probe_key(TEAM), relay)


async def test_a_lease_is_one_relays_until_it_gives_it_back() -> None:
    broker = MemoryBroker()
    mine, theirs = lease_of(broker, "r1"), lease_of(broker, "r2")
    assert await mine.take()
    assert (await theirs.take(), mine.is_ours, theirs.is_ours) == (False, True, False)
    await mine.give_back()
    assert not mine.is_ours
    assert await theirs.take()


async def test_a_lease_is_used_for_less_time_than_others_wait_for_it() -> None:
    broker = MemoryBroker()
    mine, theirs = lease_of(broker, "r1"), lease_of(broker, "r2")
    assert await mine.take()
    assert not await theirs.take()
    await anyio.sleep(LEASE_SECONDS - LEASE_MARGIN - 1)
    assert mine.is_ours
    await anyio.sleep(1)
    assert not mine.is_ours
    await anyio.sleep(LEASE_MARGIN - 1)
    assert not await theirs.take()
    await anyio.sleep(1)
    assert await theirs.take()


async def test_who_probed_before_has_written_down_what_came_of_it() -> None:
    broker = MemoryBroker()
    await MemoryEngine(broker).put(KEY, encode_pause(PAUSE, "r9"))
    first, second = (SharedTurns(MemoryEngine(broker), TEAM, relay, None) for relay in ("r1", "r2"))
    for turns in (first, second):
        await turns.load()
    assert await first.may_probe() == 0.0
    assert await second.may_probe() > 0.0
    assert await first.take(probing=True)
    first.remember(None)
    await first.end_probe()
    assert await second.may_probe() > 0.0
    assert second.pause is None
    assert names.probe_key(TEAM) not in broker.keys


async def test_a_lease_is_kept_until_what_came_of_the_probe_is_written() -> None:
    broker = MemoryBroker()
    await MemoryEngine(broker).put(KEY, encode_pause(PAUSE, "r9"))
    turns = SharedTurns(MemoryEngine(broker), TEAM, "r1", None)
    await turns.load()
    assert await turns.may_probe() == 0.0
    turns.remember(None)
    broker.lose_key_answers = 1
    await turns.end_probe()
    assert names.probe_key(TEAM) in broker.keys
    assert turns.error == "no answer"


async def test_no_request_begins_but_the_probe_of_a_pause_that_is_known() -> None:
    broker = MemoryBroker()
    turns = SharedTurns(MemoryEngine(broker), TEAM, "r1", None)
    assert await turns.take(probing=False)
    assert not await turns.take(probing=True)
    await MemoryEngine(broker).put(KEY, encode_pause(PAUSE, "r9"))
    assert not await turns.take(probing=False)
    assert not await turns.take(probing=True)  # without the lease
    assert await turns.may_probe() == 0.0
    assert await turns.take(probing=True)
    await MemoryEngine(broker).put(KEY, encode_pause(LATER, "r9"), broker.keys[KEY].revision)
    assert not await turns.take(probing=True)  # another pause than that which it was to probe


async def test_a_relay_that_was_refused_lets_others_probe_first() -> None:
    broker = MemoryBroker()
    refused, other = (SharedTurns(MemoryEngine(broker), TEAM, relay, None) for relay in ("r1", "r2"))
    refused.remember(PAUSE)
    await refused.write()
    await other.load()
    begun = anyio.current_time()
    assert await refused.may_probe() > 0
    assert await other.may_probe() == 0
    await other.end_probe()
    while wait := await refused.may_probe():  # noqa: ASYNC110 - of virtual time
        await anyio.sleep(wait)
    assert YIELD_SECONDS <= anyio.current_time() - begun <= YIELD_SECONDS + 1


# Who is refused alone


async def feed(f: Fleet, seconds: float) -> None:
    """Publish an event each 10 seconds, for so long."""
    for number in range(int(seconds / 10)):
        await f.publish(f"e{number}")
        await anyio.sleep(10)


def refusing(*_: object) -> Verdict:
    """Refuse everything."""
    return REFUSED


@pytest.mark.parametrize("skew", [0.0, 5.0])
@pytest.mark.parametrize("bad", [1, 2])
async def test_relays_that_are_refused_alone_stop_the_others_for_a_while_and_then_themselves(
    bad: int, skew: float
) -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=10, initial_delay=0.1, probe_interval=60.0, max_probe_interval=600.0)
        wrong = FakeTransport(refusing)
        with capture_logs() as logs:
            alone = [await f.start(skew, transport=wrong) for _ in range(bad)]
            right = await f.start()
            await feed(f, 600)
            wrong.answered.clear()
            await feed(f, 3600)
            await f.settled()
        assert right.relay.turns.pause is None
        assert [life.relay.turns.refused_alone for life in alone] == ["403 Forbidden"] * bad
        assert len(wrong.answered) <= 8 * bad  # one in 10 minutes: events at hand are no reason for more
        assert [each["event"] for each in logs].count("relay_refused_alone") == bad
        ages = [sent.at for sent in f.transport.answered if sent.at > 700]
        assert max(later - sooner for sooner, later in pairwise(ages)) < 20  # nobody held events back


async def test_the_only_event_goes_from_a_relay_that_is_refused_to_one_that_is_not() -> None:
    async with fleet() as f:
        await f.start(transport=FakeTransport(refusing))
        await f.publish("a")
        await anyio.sleep(5)
        await f.start()
        with anyio.fail_after(400):
            await f.settled()
        assert f.transport.taken == ["a"]


async def test_a_relay_that_was_refused_alone_takes_part_again_once_it_is_accepted() -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=10, initial_delay=0.1, probe_interval=60.0, max_probe_interval=600.0)
        mended = FakeTransport(refusing)
        life = await f.start(transport=mended)
        other = await f.start()
        await feed(f, 600)
        assert life.relay.turns.refused_alone is not None
        mended.rule = lambda *_: ACCEPTED
        await other.kill()
        await f.publish(*numbered(9, "last"))
        await f.settled()
        assert life.relay.turns.refused_alone is None
        mended.rule = refusing
        await f.publish("z")
        await anyio.sleep(30)
        assert KEY in f.broker.keys  # that is a pause of all again


async def test_an_account_that_is_blocked_again_pauses_all() -> None:
    async with fleet() as f:
        f.settings = DeliverySettings(max_events=10, initial_delay=0.1, probe_interval=60.0, max_probe_interval=600.0)
        lives = [await f.start(), await f.start()]
        for turn in range(3):
            f.transport.rule = refusing
            await f.publish(f"a{turn}")
            await anyio.sleep(1800)
            f.transport.rule = lambda *_: ACCEPTED
            await f.settled()
            await anyio.sleep(5)
            assert [life.relay.turns.pause for life in lives] == [None, None]
        refused = len([sent for sent in f.transport.answered if sent.kind is Kind.BLOCKED])
        assert 3 * 4 <= refused <= 3 * 10


@pytest.mark.parametrize("relays", [1, 2])
async def test_an_operator_has_a_pause_probed_at_once_and_a_block_that_lasts_pauses_all_again(relays: int) -> None:
    async with fleet() as f:
        for _ in range(relays):
            await f.start()
        engine = MemoryEngine(f.broker)
        assert await probe_now(engine, TEAM) is None
        f.transport.rule = lambda *_: REFUSED
        await f.publish("a")
        await f.transport.wait_until(lambda api: len(api.answered) == 1)
        await anyio.sleep(5)
        assert await probe_now(engine, TEAM) is not None
        with anyio.fail_after(100):  # by itself it would be probed after 300 s
            await f.transport.wait_until(lambda api: len(api.answered) == 2)
        await anyio.sleep(5)
        found = await engine.get(KEY)
        assert found is not None
        assert decode_pause(found.value).probe_at > EPOCH + anyio.current_time() + 200
        assert all(life.relay.turns.alone is None for life in f.lives)
        f.transport.rule = lambda *_: ACCEPTED
        await probe_now(engine, TEAM)
        with anyio.fail_after(100):
            await f.settled()
        await anyio.sleep(1)  # until which the lease is given back
        assert f.broker.keys.keys() == set()


async def test_what_a_relay_writes_meanwhile_is_made_due_as_well() -> None:
    broker = MemoryBroker()
    engine = MemoryEngine(broker)
    first = await engine.put(KEY, encode_pause(PAUSE, "r1"))

    class Slow(MemoryEngine):
        """One that is asked to write once a relay has written."""

        async def put(self, key: str, value: bytes, revision: int = 0) -> int:
            if revision == first:
                await engine.put(KEY, encode_pause(LATER, "r1"), first)
            return await super().put(key, value, revision)

    assert await probe_now(Slow(broker), TEAM) == Pause("blocked", LATER.message, EPOCH, EPOCH, 0)
