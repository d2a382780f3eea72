"""The delivery worker under races: pauses, probes, new configurations and failures while batches are under way."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from agent.delivery.batching import BatchOptions
from agent.delivery.opening import DeliveryConfig
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.queue.store import Limits
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport, Rule, reject
from tests.support.pipelines import DIRECTORY, balanced, event, host, inline, numbered, submit, submit_events

pytestmark = pytest.mark.anyio
T = TypeVar("T")

BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required: pay", 402)
TRANSIENT = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
LONG = 4 * 3600.0  # longer than any probe is waited for, which is an hour and its jitter
PROBE = 300.0  # the default interval; with a jitter of 0.5 it is exact


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


def concurrent(slots: int = 4) -> DeliverySettings:
    """DeliverySettings under which a few small batches travel at once."""
    return DeliverySettings(max_events=10, concurrency=slots)


async def warm_up(pipeline: Pipeline, transport: FakeTransport) -> None:
    """Deliver enough for the worker to step up to its full concurrency."""
    await submit(pipeline, numbered(100, "warm")).wait()
    await pipeline.flush()
    transport.answered.clear()


async def test_concurrency_begins_with_one_and_steps_up() -> None:
    async with host() as h:
        h.settings, transport = concurrent(), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.hold()
        await submit(pipeline, numbered(100)).wait()
        await anyio.sleep(10)
        assert transport.in_flight == 1
        transport.before = lambda _context: anyio.sleep(0.1)
        transport.release()
        await pipeline.flush()
        assert transport.most_in_flight == 4
        assert sorted(transport.taken) == sorted(numbered(100))


async def test_an_operators_pause_while_batches_are_under_way_lets_them_end_and_sends_no_more() -> None:
    async with host() as h:
        h.settings, transport = concurrent(), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await warm_up(pipeline, transport)
        transport.hold()
        await submit(pipeline, numbered(100)).wait()
        await transport.wait_until(lambda t: t.in_flight == 4)
        pipeline.pause()
        transport.release()
        await anyio.sleep(LONG)
        assert sorted(transport.taken) == sorted(numbered(40))
        assert (await pipeline.status()).state == "paused"
        pipeline.resume()
        await pipeline.flush()
        assert sorted(transport.taken) == sorted(numbered(100))
        assert balanced(pipeline)


async def test_a_pause_and_resume_while_batches_are_under_way_sends_none_of_them_twice() -> None:
    async with host() as h:
        h.settings, transport = concurrent(), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await warm_up(pipeline, transport)
        transport.hold()
        await submit(pipeline, numbered(100)).wait()
        await transport.wait_until(lambda t: t.in_flight == 4)
        pipeline.pause()
        pipeline.resume()
        await anyio.sleep(1)
        transport.release()
        await pipeline.flush()
        assert sorted(transport.taken) == sorted(numbered(100))


async def test_a_block_while_others_are_accepted_returns_only_what_was_refused() -> None:
    async with host() as h:
        h.settings, transport = concurrent(), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await warm_up(pipeline, transport)
        transport.hold()
        transport.script([ACCEPTED, BLOCKED, BLOCKED, ACCEPTED])
        await submit(pipeline, numbered(40)).wait()
        await transport.wait_until(lambda t: t.in_flight == 4)
        transport.release()
        await transport.wait_until(lambda t: len(t.answered) == 4)
        await anyio.sleep(1)
        assert (await pipeline.status()).state == "paused"
        assert pipeline.ledger().queued == 20
        await pipeline.flush()
        assert sorted(transport.taken) == sorted(numbered(40))


@pytest.mark.parametrize("answer", [ACCEPTED, BLOCKED, TRANSIENT, Verdict(Kind.REJECTED, "no", 400)])
async def test_an_operators_pause_during_a_probe_stands(answer: Verdict) -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        transport.script([answer])
        answering = anyio.Event()
        transport.before = lambda _context: answering.wait()
        await transport.wait_until(lambda t: t.requests == 3)
        pipeline.pause()
        answering.set()
        await anyio.sleep(LONG)
        status = await pipeline.status()
        assert (status.state, status.reason) == ("paused", "operator: paused by an operator")
        assert len(transport.answered) == 2
        assert len(transport.taken) == (1 if answer is ACCEPTED else 0)
        assert status.ledger.dead_lettered == 0


async def test_an_operators_pause_during_the_servers_status_sends_no_event() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        transport.hold()
        await transport.wait_until(lambda t: len(t.probes) == 1)
        pipeline.pause()
        transport.release()
        await anyio.sleep(LONG)
        assert len(transport.answered) == 1
        assert (await pipeline.status()).reason == "operator: paused by an operator"


async def test_a_resume_during_a_probe_delivers_each_event_once() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        answering = anyio.Event()
        transport.before = lambda _context: answering.wait()
        await transport.wait_until(lambda t: t.requests == 3)
        pipeline.resume()
        answering.set()
        await pipeline.flush()
        assert sorted(transport.taken) == numbered(3)


async def test_a_late_refusal_of_the_old_token_does_not_pause_the_new_one() -> None:
    async with host() as h:
        old, new = FakeTransport(), FakeTransport()
        h.transport = old
        pipeline = h.start()
        old.hold()
        old.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await old.wait_until(lambda t: t.in_flight == 1)
        pipeline.reconfigure(DeliveryConfig(lambda _: new))
        old.release()
        began = anyio.current_time()
        await pipeline.flush()
        assert new.taken == numbered(3)
        assert anyio.current_time() - began < PROBE / 2
        assert old.closed


async def test_a_flush_that_waits_outlives_a_new_configuration() -> None:
    async with host() as h:
        old, new = FakeTransport(lambda _c, _e: TRANSIENT), FakeTransport()
        h.transport, h.options = old, BatchOptions(max_delay=3600)
        pipeline = h.start()
        await submit(pipeline, numbered(3)).wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.flush)
            await old.wait_until(lambda t: len(t.answered) == 2)
            pipeline.reconfigure(DeliveryConfig(lambda _: new, options=BatchOptions(max_delay=3600)))
        assert new.taken == numbered(3)
        assert anyio.current_time() < 3600


async def test_an_operators_pause_survives_a_new_configuration() -> None:
    async with host() as h:
        old, new = FakeTransport(), FakeTransport()
        h.transport = old
        pipeline = h.start()
        pipeline.pause()
        pipeline.reconfigure(DeliveryConfig(lambda _: new))
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(LONG)
        assert (old.requests, new.requests) == (0, 0)
        assert (await pipeline.status()).reason == "operator: paused by an operator"
        pipeline.resume()
        await pipeline.flush()
        assert new.taken == numbered(3)


async def test_one_batch_is_under_way_while_backing_off() -> None:
    async with host() as h:
        h.settings, transport = concurrent(), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await warm_up(pipeline, transport)
        transport.rule = lambda _c, _e: TRANSIENT
        await submit(pipeline, numbered(100)).wait()
        await transport.wait_until(lambda t: len(t.answered) == 4 and t.in_flight == 0)
        transport.most_in_flight = 0
        await transport.wait_until(lambda t: len(t.answered) == 10)
        assert transport.most_in_flight == 1
        transport.rule = lambda _c, _e: ACCEPTED
        await pipeline.flush()
        assert sorted(transport.taken) == sorted(numbered(100))


async def test_retry_after_is_honoured_although_another_batch_was_accepted_meanwhile() -> None:
    async with host() as h:
        h.settings, transport = concurrent(2), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await warm_up(pipeline, transport)
        transport.hold()
        transport.script([Verdict(Kind.TRANSIENT, "429", 429, 120.0), ACCEPTED])
        await submit(pipeline, numbered(40)).wait()
        await transport.wait_until(lambda t: t.in_flight == 2)
        asked = anyio.current_time()
        transport.release()
        await anyio.sleep(60)
        status = await pipeline.status()
        assert len(transport.answered) == 2
        assert status.state == "backing_off"
        assert status.until == pytest.approx(h.wall_clock() + 60, abs=1)
        await pipeline.flush()
        assert transport.answered[2].at - asked >= 120
        assert sorted(transport.taken) == sorted(numbered(40))


async def test_requests_keep_to_the_pace_however_many_may_be_under_way() -> None:
    async with host() as h:
        h.settings = DeliverySettings(max_events=10, concurrency=8, requests_per_minute=30)
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, numbered(100)).wait()
        await pipeline.flush()
        times = [sent.at for sent in transport.answered]
        assert all(later - earlier >= 1.999 for earlier, later in pairwise(times))
        assert len(transport.taken) == 100


async def test_a_probe_that_finds_the_queue_empty_ends_the_pause() -> None:
    async with host() as h:
        h.limits, transport = Limits(max_age=PROBE / 2), FakeTransport()
        h.options = BatchOptions(max_age=PROBE / 2)
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(PROBE + 10)
        assert (await pipeline.status()).state == "running"
        assert pipeline.ledger().dropped == {"expired": 3}
        assert len(transport.answered) == 1


async def test_a_probe_time_that_was_reached_while_the_daemon_was_down_is_kept() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(100)
        await h.stop()
        transport.closed = False
        pipeline = h.start()
        status = await pipeline.status()
        assert (status.state, status.reason) == ("paused", "blocked: 402 Payment Required: pay")
        assert status.until is not None
        assert status.until - h.wall_clock() == pytest.approx(PROBE - 98, abs=3)
        assert status.since == pytest.approx(h.wall_clock() - 98, abs=3)
        await pipeline.flush()
        assert anyio.current_time() == pytest.approx(PROBE + 2, abs=3)
        assert transport.taken == numbered(3)


async def test_a_clock_that_was_set_back_does_not_put_the_probe_off_for_ever() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(100)
        await h.stop()
        transport.closed = False
        h.skew = -365 * 86400
        pipeline = h.start()
        await pipeline.flush()
        assert anyio.current_time() < 3800
        assert transport.taken == numbered(3)


async def test_a_server_whose_status_says_enabled_but_refuses_the_token_stays_paused() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: Verdict(Kind.BLOCKED, "401 Unauthorized", 401))
        transport.status = Verdict(Kind.ACCEPTED, "enabled", 200)
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(86400)
        assert (await pipeline.status()).state == "paused"
        assert 20 <= len(transport.probes) <= 30
        assert [len(sent.events) for sent in transport.answered] == [3] + [1] * len(transport.probes)
        assert pipeline.ledger().queued == 3


async def test_an_account_that_says_blocked_is_sent_no_event() -> None:
    async with host() as h:
        transport = FakeTransport()
        transport.status = Verdict(Kind.BLOCKED, "over_limit", 200)
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(3 * 3600)
        assert len(transport.answered) == 1
        assert (await pipeline.status()).reason == "blocked: over_limit"
        transport.status = Verdict(Kind.ACCEPTED, "enabled", 200)
        await pipeline.flush()
        assert transport.taken == numbered(3)


async def test_a_status_route_that_makes_no_sense_is_no_reason_to_stay_paused() -> None:
    async with host() as h:
        transport = FakeTransport()
        transport.status = Verdict(Kind.MISCONFIGURED, "406 Not Acceptable", 406)
        h.transport = transport
        pipeline = h.start()
        transport.script([BLOCKED])
        await submit(pipeline, numbered(3)).wait()
        await pipeline.flush()
        assert transport.taken == numbered(3)


def too_many(most: int, kind: Kind = Kind.TOO_LARGE) -> Rule:
    """The rule of an API that takes no more events at once."""
    return lambda _context, events: Verdict(kind, "too many", 413) if len(events) > most else ACCEPTED


async def test_one_spurious_refusal_of_two_events_costs_a_handful_of_requests() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([Verdict(Kind.TOO_LARGE, "413", 413)])
        await submit(pipeline, numbered(2, "first")).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        await submit(pipeline, numbered(4000)).wait()
        await pipeline.flush()
        assert sorted(transport.taken) == sorted([*numbered(2, "first"), *numbered(4000)])
        assert len(transport.answered) <= 12
        assert (await pipeline.status()).batch_limit == (1000, 960 * 1024, None)


@pytest.mark.parametrize("kind", [Kind.TOO_LARGE, Kind.CUT_OFF, Kind.REJECTED])
async def test_a_limit_of_the_server_is_found_and_kept_to_whatever_it_says(kind: Kind) -> None:
    async with host() as h:
        transport = FakeTransport(too_many(300, kind))
        h.transport = transport
        pipeline = h.start()
        for part in range(20):
            await submit(pipeline, numbered(1000, f"{part}-")).wait()
        await pipeline.flush()
        assert len(set(transport.taken)) == len(transport.taken) == 20_000
        assert sum(not sent.taken for sent in transport.answered) <= 20
        assert len(transport.answered) <= 120
        events, _, reason = (await pipeline.status()).batch_limit
        assert 240 <= events <= 300
        assert reason == "too many"


async def test_a_poisoned_batch_says_nothing_of_sizes() -> None:
    async with host() as h:
        transport = FakeTransport(reject("h77"))
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, numbered(1000)).wait()
        await pipeline.flush()
        assert pipeline.ledger().dead_lettered == 1
        assert (await pipeline.status()).batch_limit == (1000, 960 * 1024, None)


async def test_one_request_at_a_time_finds_out_how_large_a_batch_may_be() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        for part in range(10):
            await submit(pipeline, numbered(1000, f"warm{part}-")).wait()
        await pipeline.flush()
        transport.most_in_flight, transport.rule = 0, too_many(0)
        transport.before = lambda _context: anyio.sleep(0.1)
        for part in range(10):
            await submit(pipeline, numbered(1000, f"{part}-")).wait()
        refused = len(transport.answered)
        await transport.wait_until(lambda t: not t.in_flight and len(t.answered) > refused)
        transport.most_in_flight = 0
        await transport.wait_until(lambda t: len(t.answered) >= refused + 8)
        assert transport.most_in_flight == 1


REFUSED = Verdict(Kind.REJECTED, "400 Bad Request", 400)


async def test_poisoned_events_do_not_hold_up_those_of_other_sessions() -> None:
    async with host() as h:
        bad = numbered(60, "bad")
        transport = FakeTransport(reject(*bad))
        h.transport = transport
        pipeline = h.start()
        pipeline.pause()
        await submit_events(pipeline, [event(name, "poisoned") for name in bad]).wait()
        for session in range(50):
            good = [event(name, f"s{session}") for name in numbered(10, f"good{session}-")]
            await submit_events(pipeline, good).wait()
        pipeline.resume()
        began = anyio.current_time()
        await pipeline.flush()
        assert len(transport.taken) == len(set(transport.taken)) == 500
        assert pipeline.ledger().dead_lettered == 60
        assert anyio.current_time() - began < PROBE / 2, "delivery paused"


@pytest.mark.parametrize("seed", range(3))
async def test_an_api_whose_refusals_are_accidents_costs_few_events(seed: int) -> None:
    chance = random.Random(seed)
    async with host() as h:
        h.settings = DeliverySettings(max_events=1)
        transport = FakeTransport(lambda _c, _e: REFUSED if chance.random() < 0.5 else ACCEPTED)
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, numbered(200)).wait()
        await pipeline.flush()
        assert pipeline.ledger().dead_lettered <= 10
        assert len(transport.taken) == len(set(transport.taken)) == 200 - pipeline.ledger().dead_lettered


async def test_an_event_is_given_up_only_when_it_is_refused_again_later_while_others_are_accepted() -> None:
    async with host() as h:
        transport = FakeTransport(reject("bad"))
        h.transport, h.options = transport, BatchOptions(max_delay=30.0)
        pipeline = h.start()
        await submit(pipeline, ["bad"]).wait()
        await submit(pipeline, numbered(9)).wait()
        await pipeline.flush()
        tried = [sent for sent in transport.answered if sent.hashes == ["bad"]]
        assert len(tried) == 2
        assert tried[1].at - tried[0].at >= 1.0
        between = transport.answered[transport.answered.index(tried[0]) : transport.answered.index(tried[1])]
        assert any(sent.taken for sent in between)
        assert pipeline.ledger().dead_lettered == 1


async def test_a_refusal_that_was_an_accident_costs_no_event() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([REFUSED])
        await submit(pipeline, ["only"]).wait()
        await pipeline.flush()
        assert transport.taken == ["only"]
        assert pipeline.ledger().dead_lettered == 0


async def test_a_bad_event_with_nothing_else_to_send_is_given_up_at_the_second_refusal() -> None:
    async with host() as h:
        transport = FakeTransport(reject("bad"))
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, ["bad"]).wait()
        await pipeline.flush()
        assert [sent.hashes for sent in transport.answered] == [["bad"], ["bad"]]
        assert pipeline.ledger().dead_lettered == 1


async def test_an_api_that_refuses_what_comes_one_by_one_costs_nineteen_events_at_most() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: REFUSED)
        h.transport = transport
        pipeline = h.start()
        for number in range(100):
            await submit_events(pipeline, [event(f"h{number}", f"s{number}")]).wait()
            await anyio.sleep(600)
        assert pipeline.ledger().dead_lettered <= 19
        assert (await pipeline.status()).state == "paused"


async def test_a_purge_takes_what_was_set_aside_too() -> None:
    async with host() as h:
        transport = FakeTransport(reject("bad"))
        h.transport, h.settings = transport, DeliverySettings(initial_delay=60.0)
        pipeline = h.start()
        await submit(pipeline, ["bad"]).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        await anyio.sleep(1)
        assert await pipeline.purge(10.0) == 1
        await anyio.sleep(LONG)
        assert len(transport.answered) == 1


async def test_an_api_that_refuses_everything_costs_nineteen_events_at_most() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: REFUSED)
        h.transport = transport
        pipeline = h.start()
        for session in range(10):
            await submit_events(pipeline, [event(f"h{session}-{n}", f"s{session}") for n in range(50)]).wait()
        await anyio.sleep(7 * 86400 / 2)
        status = await pipeline.status()
        assert (status.state, status.reason) == (
            "paused",
            "rejections: 400 Bad Request",
        )
        assert status.ledger.dead_lettered <= 19
        transport.rule = lambda _c, _e: ACCEPTED
        await pipeline.flush()
        assert len(transport.taken) == len(set(transport.taken)) == 500 - status.ledger.dead_lettered


async def test_a_pause_for_rejections_ends_with_a_sample_although_what_is_in_front_is_bad() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: REFUSED)
        h.transport = transport
        pipeline = h.start()
        bad = numbered(30, "bad")
        await submit_events(pipeline, [event(name, "poisoned") for name in bad]).wait()
        await anyio.sleep(PROBE / 2)
        assert (await pipeline.status()).state == "paused"
        transport.rule = reject(*bad)
        await submit_events(pipeline, [event(name, "other") for name in numbered(100, "good")]).wait()
        await pipeline.flush()
        assert sorted(transport.taken) == sorted(numbered(100, "good"))
        assert pipeline.ledger().dead_lettered == 30


class Steps:
    """Counts blocking calls, and ends a loop that makes them without end."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    async def __call__(self, call: Callable[[], T], /) -> T:
        """Run it, as `inline` does."""
        self.left -= 1
        assert self.left > 0, "the worker spins"
        return await inline(call)


@pytest.mark.parametrize("opened_at", [0.0, 0.1, 0.3, 0.7, 234567.891])
async def test_an_idle_worker_takes_a_few_steps_and_no_more(opened_at: float) -> None:
    """However the times round: a batch that is due when its timer ends, not a moment later, ends no loop."""
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        await anyio.sleep(opened_at)
        steps = Steps(100)
        runtime = type(h.runtime)(steps, h.wall_clock, h.runtime.random)
        pipeline = Pipeline(h.fs, DIRECTORY, h.limits, h.delivery, runtime)
        h.tasks.start_soon(pipeline.run)
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(300)
        assert transport.taken == numbered(3)
        assert transport.answered[0].at == pytest.approx(opened_at + 2.0)


@pytest.mark.parametrize("verdict", [TRANSIENT, BLOCKED])
async def test_a_refused_worker_takes_a_few_steps_and_no_more(verdict: Verdict) -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: verdict)
        h.transport = transport
        runtime = type(h.runtime)(Steps(600), h.wall_clock, h.runtime.random)
        pipeline = Pipeline(h.fs, DIRECTORY, h.limits, h.delivery, runtime)
        h.tasks.start_soon(pipeline.run)
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(3600)
        assert 1 < len(transport.answered) < 40
        assert pipeline.ledger().queued == 3
