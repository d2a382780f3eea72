"""The whole delivery table through a pipeline: what was submitted is delivered, dead-lettered or counted, and nothing else."""

import errno
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import pytest

from agent.delivery.batching import BatchOptions
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.events import Context, Event
from agent.queue.cursor import CursorState, Outcome, Pause, Span, encode_slot
from agent.queue.store import Limits
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, LOST, FakeTransport, Rule, reject
from tests.support.fault_filesystem import LoseAll, failing, no_errors
from tests.support.pipelines import DIRECTORY, balanced, dead_letters, host, inline, numbered, submit, submit_events
from tests.support.stories import BLOCKED, MISCONFIGURED, TRANSIENT

T = TypeVar("T")

NAMES = numbered(100)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


def at_most(limit: int) -> Rule:
    """Return the rule of an API that answers 413 to more events."""
    too_large = Verdict(Kind.TOO_LARGE, "413 Payload Too Large", 413)
    return lambda _context, events: too_large if len(events) > limit else ACCEPTED


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "at_least", "pauses"),
    [
        pytest.param([], 0, 0, id="accepted"),
        pytest.param([TRANSIENT] * 3, 1.5, 0, id="transient: 0.5, 1 and 2 seconds of jitter"),
        pytest.param([Verdict(Kind.TRANSIENT, "429", 429, 90.0)], 90, 0, id="transient with Retry-After"),
        pytest.param([Verdict(Kind.CUT_OFF, "reset")] * 2, 0.5, 0, id="cut off"),
        pytest.param([BLOCKED], 300, 1, id="blocked"),
        pytest.param([BLOCKED] * 3, 300 + 600 + 1200, 1, id="blocked, and the probes too"),
        pytest.param([MISCONFIGURED], 300, 1, id="misconfigured"),
        pytest.param([MISCONFIGURED, TRANSIENT, BLOCKED], 300 + 600 + 1200, 1, id="one after the other"),
    ],
)
async def test_whatever_passes_costs_time_and_no_event(script: list[Verdict], at_least: float, pauses: int) -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script(script)
        await submit(pipeline, NAMES).wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.flush)
            await transport.wait_until(lambda t: len(t.answered) == 1)
            await anyio.sleep(0.01)
            assert ((await pipeline.status()).state == "paused") == bool(pauses)
        assert sorted(transport.taken) == sorted(NAMES)
        ledger = pipeline.ledger()
        assert (ledger.accepted, ledger.delivered, ledger.dead_lettered, ledger.dropped) == (100, 100, 0, {})
        assert anyio.current_time() >= at_least
        assert (await pipeline.status()).state == "running"


@pytest.mark.anyio
async def test_only_the_bad_events_of_a_batch_are_dead_lettered_with_the_apis_message() -> None:
    async with host() as h:
        transport = FakeTransport(reject("h3", "h50", "h99"))
        h.transport = transport
        pipeline = h.start()
        context = Context("GITHUB_ACTIONS", 0)
        await submit(pipeline, NAMES, context).wait()
        await pipeline.flush()
        assert sorted(transport.taken) == sorted(set(NAMES) - {"h3", "h50", "h99"})
        letters = {letter.event.hash: letter for letter in dead_letters(h.fs)}
        assert letters.keys() == {"h3", "h50", "h99"}
        letter = letters["h50"]
        assert (letter.seq, letter.status, letter.context) == (51, 400, context)
        assert letter.message == "400 Bad Request: Invalid event h50"
        assert letter.rejected_at == pytest.approx(h.wall_clock(), abs=5)
        ledger = pipeline.ledger()
        assert (ledger.delivered, ledger.dead_lettered, ledger.queued) == (97, 3, 0)
        assert transport.requests < 60


@pytest.mark.anyio
async def test_a_size_that_was_refused_is_remembered() -> None:
    async with host() as h:
        transport = FakeTransport(at_most(30))
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, NAMES).wait()
        await pipeline.flush()
        assert [len(sent.events) for sent in transport.answered[:3]] == [100, 50, 25]
        assert sorted(transport.taken) == sorted(NAMES)
        transport.answered.clear()
        await submit(pipeline, numbered(100, "later")).wait()
        await pipeline.flush()
        assert sum(not sent.taken for sent in transport.answered) <= 3, "it is asked about again, but not each time"
        assert len(transport.taken) == 100


@pytest.mark.anyio
async def test_a_single_event_that_is_too_large_is_a_dead_letter() -> None:
    async with host() as h:
        transport = FakeTransport(at_most(0))
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, ["big"]).wait()
        await pipeline.flush()
        assert [letter.message for letter in dead_letters(h.fs)] == ["413 Payload Too Large"]
        assert pipeline.ledger().dead_lettered == 1


@pytest.mark.anyio
async def test_many_rejections_in_a_row_pause_instead_of_shredding_the_backlog() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: Verdict(Kind.REJECTED, "400: Missing Authorization header", 400))
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, NAMES).wait()
        await anyio.sleep(200)
        status = await pipeline.status()
        assert status.state == "paused"
        assert status.reason is not None
        assert "Missing Authorization header" in status.reason
        assert status.ledger.dead_lettered == 0
        assert status.ledger.queued == 100
        transport.rule = lambda _c, _e: ACCEPTED
        await pipeline.flush()
        assert pipeline.ledger().delivered == 100
        assert balanced(pipeline)


@pytest.mark.anyio
async def test_a_lost_answer_repeats_its_batch_and_loses_nothing() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.script([LOST])
        await submit(pipeline, NAMES).wait()
        await pipeline.flush()
        assert Counter(transport.taken) == dict.fromkeys(NAMES, 2)
        assert pipeline.ledger().delivered == 100


@pytest.mark.anyio
async def test_after_a_power_loss_the_batches_of_the_last_moments_are_sent_again_and_counted_once() -> None:
    """A checkpoint is written at every batch, and synced only when that has a reason: a sync for each would cost more."""
    async with host() as h:
        h.settings, transport = DeliverySettings(max_events=10, concurrency=1), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, NAMES).wait()
        await pipeline.flush()
        await h.kill(LoseAll())
        pipeline = h.start()
        await pipeline.flush()
        times = Counter(transport.taken)
        assert times.keys() == set(NAMES)
        assert set(times.values()) <= {1, 2}
        assert times.total() > len(NAMES)
        assert (pipeline.ledger().accepted, pipeline.ledger().delivered) == (100, 100)


@pytest.mark.anyio
async def test_a_batch_has_one_context_and_keeps_the_order_of_its_events() -> None:
    contexts = [Context("A", 0), Context("A", 1), Context("B", 0), Context()]
    async with host() as h:
        h.settings = DeliverySettings(max_events=7, concurrency=1)
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        for number, name in enumerate(NAMES):
            submit(pipeline, [name], contexts[number % 4])
        await pipeline.flush()
        for number, context in enumerate(contexts):
            mine = [name for sent in transport.answered if sent.context == context for name in sent.hashes]
            assert mine == NAMES[number::4]
        assert all(len(sent.events) <= 7 for sent in transport.answered)


@pytest.mark.anyio
async def test_a_batch_goes_when_it_is_full_or_old_enough() -> None:
    async with host() as h:
        h.settings, h.options = DeliverySettings(max_events=10), BatchOptions(max_delay=60)
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, numbered(15)).wait()
        await anyio.sleep(1)
        assert len(transport.taken) == 10
        await anyio.sleep(58)
        assert len(transport.taken) == 10
        await anyio.sleep(2)
        assert transport.taken == numbered(15)


@pytest.mark.anyio
async def test_what_is_older_than_max_age_is_dropped_by_that_name() -> None:
    async with host() as h:
        h.limits, h.options = Limits(max_age=3600), BatchOptions(max_age=3600)
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, numbered(5, "old")).wait()
        await anyio.sleep(3599)
        await submit(pipeline, numbered(5, "new")).wait()
        await anyio.sleep(2)
        pipeline.resume()
        await pipeline.flush()
        assert transport.taken == numbered(5, "new")
        assert pipeline.ledger().dropped == {"expired": 5}
        assert balanced(pipeline)


@pytest.mark.anyio
async def test_a_clock_that_jumps_ahead_by_more_than_max_age_lets_what_waits_expire_by_that_name() -> None:
    async with host() as h:
        h.limits, h.options = Limits(max_age=3600), BatchOptions(max_age=3600)
        h.transport = transport = FakeTransport()
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, numbered(5, "old")).wait()
        h.skew = 3601
        await submit(pipeline, numbered(5, "new")).wait()
        pipeline.resume()
        await pipeline.flush()
        assert transport.taken == numbered(5, "new")
        assert pipeline.ledger().dropped == {"expired": 5}
        assert balanced(pipeline)


@pytest.mark.anyio
async def test_a_record_that_makes_no_sense_is_counted_and_kept_apart() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, numbered(5)).wait()
        await submit(pipeline, numbered(5, "damaged")).wait()
        await submit(pipeline, numbered(5, "later")).wait()
        path = next(path for path in h.fs.paths() if path.parent == DIRECTORY / "segments")
        h.fs.flip(path, h.fs.read_bytes(path).index(b"damaged3"), 0)
        pipeline.resume()
        await pipeline.flush()
        assert transport.taken == numbered(5) + numbered(5, "later")
        assert pipeline.ledger().dropped == {"corrupt": 5}
        kept = [path for path in h.fs.paths() if path.parent == DIRECTORY / "quarantine"]
        assert b"damaged1" in h.fs.read_bytes(kept[0])


@pytest.mark.anyio
async def test_split_sessions_sends_each_session_apart() -> None:
    async with host() as h:
        h.options = BatchOptions(split_sessions=True)
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        mixed = [Event(f"s{number % 3}", "LOCAL", "HIT", name, 0) for number, name in enumerate(NAMES)]
        await submit_events(pipeline, mixed).wait()
        await pipeline.flush()
        assert [len({event.session_id for event in sent.events}) for sent in transport.answered] == [1, 1, 1]
        assert sorted(transport.taken) == sorted(NAMES)


@pytest.mark.anyio
async def test_an_operators_pause_survives_a_restart_and_waits_for_the_operator() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, NAMES).wait()
        await h.kill()
        pipeline = h.start()
        await anyio.sleep(4 * 3600)  # longer than any probe is waited for
        status = await pipeline.status()
        assert (status.state, status.until, transport.requests) == ("paused", None, 0)
        pipeline.resume()
        await pipeline.flush()
        assert transport.taken == NAMES
        await h.stop()
        assert (await h.open().status()).state == "running"


@pytest.mark.anyio
async def test_a_pause_for_a_reason_of_a_later_version_does_not_keep_the_daemon_from_starting() -> None:
    async with host() as h:
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, NAMES).wait()
        await h.stop()
        unknown = Pause("tomorrow", "", h.wall_clock(), float("inf"), 0)
        h.fs.write_bytes(DIRECTORY / "cursor", encode_slot(1, CursorState(1, len(NAMES) + 1, 1, [], {}, {}, unknown)))
        h.transport = transport = FakeTransport()
        pipeline = h.start()
        await pipeline.flush()
        assert transport.taken == NAMES
        assert (await pipeline.status()).since is None


@pytest.mark.anyio
async def test_the_status_tells_why_nothing_is_delivered_and_until_when() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503, 60.0))
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, NAMES).wait()
        submitted = h.wall_clock()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        await anyio.sleep(1)
        status = await pipeline.status()
        assert (status.state, status.reason) == ("backing_off", "503 Service Unavailable")
        assert status.until == pytest.approx(h.wall_clock() + 59, abs=0.1)
        assert status.oldest_event_at == pytest.approx(submitted, abs=0.1)
        assert (status.last_delivery_at, status.requests) == (None, 1)
        assert status.last_answer == "503 Service Unavailable"
        assert status.last_answer_at == pytest.approx(h.wall_clock() - 1, abs=0.1)
        transport.rule = lambda _c, _e: ACCEPTED
        pipeline.resume()  # a person decides, whatever the server asked for
        await pipeline.flush()
        status = await pipeline.status()
        assert (status.state, status.reason, status.oldest_event_at) == ("running", None, None)
        assert status.last_delivery_at == pytest.approx(h.wall_clock(), abs=0.1)


@pytest.mark.anyio
async def test_the_status_gives_no_age_of_an_event_that_is_settled_while_it_is_read() -> None:
    async with host() as h:
        everything = Span(1, 1 + len(NAMES))
        is_read = False

        async def settle_meanwhile(call: Callable[[], T]) -> T:
            found = await inline(call)
            if is_read:
                pipeline.store.cursor.settle([everything], Outcome.PURGED)
            return found

        h.run_blocking = settle_meanwhile
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, NAMES).wait()
        is_read = True
        status = await pipeline.status()
        assert (status.ledger.queued, status.oldest_event_at) == (0, None)


@pytest.mark.anyio
async def test_a_disk_that_fails_sheds_by_name_and_recovers_by_itself() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        h.fs.errors = failing("create", errno.ENOSPC)
        await submit(pipeline, numbered(5, "lost")).wait()
        assert (await pipeline.status()).storage_error is not None
        assert pipeline.ledger().dropped == {"disk_full": 5}
        h.fs.errors = no_errors
        await submit(pipeline, NAMES).wait()
        await pipeline.flush()
        assert await pipeline.healthy()
        assert transport.taken == NAMES
        assert balanced(pipeline)


@pytest.mark.anyio
async def test_with_sync_interval_events_survive_a_power_loss_two_seconds_later() -> None:
    async with host() as h:
        h.limits = Limits(sync="interval")
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, NAMES).wait()
        await anyio.sleep(2.0)
        await h.kill(LoseAll())
        assert h.open().ledger().queued == 100
