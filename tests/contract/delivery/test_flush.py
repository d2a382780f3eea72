"""A flush against whatever can happen to a queue meanwhile: its report is of exactly the events accepted before it."""

from typing import Any

import anyio
import pytest

from agent.delivery.batching import BatchOptions
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.events import Context
from agent.queue.cursor import Watcher
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter
from agent.queue.maintenance.purge import purge
from agent.queue.maintenance.retry import retry
from agent.queue.store import Limits
from agent.queue.undelivered import UndeliveredLog
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport, reject
from tests.support.fault_filesystem import failing, no_errors
from tests.support.flushes import Ended, ask, begun, counts, ended, flushable
from tests.support.pipelines import (
    balanced,
    numbered,
    submit,
)
from tests.support.stories import BLOCKED, TRANSIENT

pytestmark = pytest.mark.anyio

EVERYTHING = DeadLetterFilter()


def barriers(pipeline: Pipeline) -> list[Watcher]:
    """Return what follows the events of a flush."""
    return [each for each in pipeline.store.cursor.watchers if not isinstance(each, UndeliveredLog)]


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


async def test_events_that_are_accepted_after_the_call_never_count_even_if_they_are_delivered_first() -> None:
    transport, slow, go_on = FakeTransport(), Context("SLOW"), anyio.Event()

    async def before(context: Context) -> None:
        if context == slow:
            await go_on.wait()

    transport.before = before
    async with flushable(transport, settings=DeliverySettings(max_events=5, concurrency=3)) as (h, pipeline):
        await submit(pipeline, numbered(100, "warm")).wait()
        await pipeline.flush()
        await submit(pipeline, numbered(5), slow).wait()
        flush = await begun(h)
        await submit(pipeline, numbered(30, "later")).wait()
        await transport.wait_until(lambda t: len(t.taken) == 130)
        assert not flush.ended.is_set()
        go_on.set()
        assert await flush.answer() == (200, counts(105), counts(5))
        assert pipeline.ledger().delivered == 135


async def test_a_flush_waits_for_no_batch_timer_and_the_timers_hold_again_after_it() -> None:
    transport = FakeTransport()
    async with flushable(transport, options=BatchOptions(max_delay=3600.0)) as (_, pipeline):
        for number in range(60):
            submit(pipeline, [f"h{number}"], Context(f"CI_{number}"))
        assert await ask(pipeline) == (200, counts(60), counts(60))
        assert anyio.current_time() < 1
        await submit(pipeline, ["after"]).wait()
        await anyio.sleep(3599)
        assert len(transport.taken) == 60
        await anyio.sleep(10)
        assert len(transport.taken) == 61


async def test_several_flushes_at_once_report_each_of_its_own_moment() -> None:
    transport = FakeTransport()
    transport.hold()
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        first = await begun(h)
        await submit(pipeline, numbered(4, "more")).wait()
        second = await begun(h)
        short = await begun(h, 1.0)
        assert await short.answer() == (504, counts(queued=7), counts(queued=7))
        transport.release()
        assert await first.answer() == (200, counts(3), counts(3))
        assert await second.answer() == (200, counts(7), counts(7))
        assert not barriers(pipeline)


async def test_a_pause_is_waited_out_and_what_it_keeps_is_reported_as_queued() -> None:
    transport = FakeTransport(lambda _c, _e: BLOCKED)
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        assert await ask(pipeline, 10.0) == (504, counts(queued=3), counts(queued=3))
        flush = await begun(h, 3600.0)
        await submit(pipeline, numbered(2, "more")).wait()
        transport.rule = lambda _c, _e: ACCEPTED
        pipeline.resume()
        assert await flush.answer() == (200, counts(3), counts(3))


async def test_a_flush_ends_when_nothing_can_be_delivered_before_its_deadline_and_says_why() -> None:
    transport = FakeTransport(lambda _c, _e: BLOCKED)
    async with flushable(transport) as (_, pipeline):
        await submit(pipeline, numbered(3)).wait()
        for session in (dict[str, str](), {"session": "s"}):
            status, _, held_up, seconds = await ended(pipeline, session)
            assert (status, seconds < 1) == (504, True)
            assert (held_up or "").startswith(f"paused: blocked: {BLOCKED.message}; the next attempt is in ")
        pipeline.pause()
        assert await ended(pipeline) == (504, 3, "paused: operator: paused by an operator", 0.0)


async def test_a_flush_ends_when_the_delay_after_a_failure_goes_on_beyond_its_deadline() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    settings = DeliverySettings(initial_delay=1000.0, max_delay=1000.0)
    async with flushable(transport, settings=settings) as (_, pipeline):
        await submit(pipeline, numbered(3)).wait()
        status, queued, held_up, seconds = await ended(pipeline)
        assert (status, queued, seconds < 1) == (504, 3, True)
        assert (held_up or "").startswith(f"backing off: {TRANSIENT.message}; the next attempt is in ")
        transport.rule = lambda _c, _e: ACCEPTED
        assert await ended(pipeline) == (200, 0, None, 0.0), "whoever asks for a flush has it tried once more"


async def test_a_flush_until_stalled_ends_with_the_first_failure_or_when_nothing_leaves_the_queue_for_a_while() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with flushable(transport, settings=DeliverySettings(max_events=1, concurrency=1)) as (_, pipeline):
        await submit(pipeline, numbered(3)).wait()
        assert (await ended(pipeline, {"until": "stalled"})).seconds < 0.1
        transport.rule, transport.before = (lambda _c, _e: ACCEPTED), lambda _context: anyio.sleep(1.5)
        assert await ended(pipeline, {"until": "stalled"}) == (200, 0, None, 4.5), "there is progress all the time"
        await submit(pipeline, numbered(2)).wait()
        transport.hold()
        status, queued, _, seconds = await ended(pipeline, {"until": "stalled"})
        assert (status, queued, seconds <= 3) == (504, 2, True)
        transport.release()


async def test_a_flush_until_durable_waits_for_no_delivery() -> None:
    transport = FakeTransport()
    transport.hold()
    async with flushable(transport) as (_, pipeline):
        submit(pipeline, numbered(3))
        assert await ended(pipeline, {"until": "durable"}) == Ended(200, 3, None, 0.0)
        assert pipeline.ledger().queued == 3
        transport.release()


async def test_a_batch_that_is_bisected_is_reported_event_by_event() -> None:
    transport = FakeTransport(reject("h3", "h50", "h99"))
    async with flushable(transport) as (_, pipeline):
        await submit(pipeline, numbered(100)).wait()
        assert await ask(pipeline) == (200, counts(97, 0, 3), counts(97, 0, 3))
        assert await ask(pipeline) == (200, counts(97, 0, 3), counts())


async def test_what_overflow_takes_of_the_events_before_is_reported_as_dropped() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    limits = Limits(segment_bytes=2048, max_bytes=8192)
    async with flushable(transport, limits=limits) as (h, pipeline):
        await submit(pipeline, numbered(10)).wait()
        flush = await begun(h)
        for number in range(30):
            await submit(pipeline, numbered(10, f"n{number}-")).wait()
        assert await flush.answer() == (200, counts(overflow=10), counts(overflow=10))
        assert pipeline.ledger().dropped["overflow"] > 10


async def test_what_expires_meanwhile_is_reported_as_dropped() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with flushable(transport, options=BatchOptions(max_age=10), limits=Limits(max_age=10)) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        flush = await begun(h)
        await anyio.sleep(8)
        await submit(pipeline, numbered(2, "young")).wait()
        await anyio.sleep(4)
        assert await flush.answer() == (200, counts(expired=3), counts(expired=3))


async def test_what_is_purged_meanwhile_is_reported_as_dropped() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        flush = await begun(h)
        await submit(pipeline, numbered(2, "more")).wait()
        assert (await purge(pipeline, 5.0)).purged == 5
        assert await flush.answer() == (200, counts(purged=3), counts(purged=3))


async def test_dead_letters_that_are_put_back_meanwhile_are_new_events() -> None:
    transport = FakeTransport(reject("h0", "h1"))
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        await pipeline.flush()
        transport.hold()
        await submit(pipeline, ["waits"]).wait()
        flush = await begun(h)
        assert (await retry(pipeline, EVERYTHING)).retried == 2
        transport.rule = lambda _c, _e: ACCEPTED
        transport.release()
        assert await flush.answer() == (200, counts(2, 0, 2), counts(1))
        assert (await ask(pipeline))[:2] == (200, counts(4, 0, 2))
        assert balanced(pipeline)


async def test_a_crash_in_between_leaves_a_ledger_that_the_next_flush_reports_of() -> None:
    transport = FakeTransport(reject("h1"))
    async with flushable(transport, settings=DeliverySettings(max_events=2)) as (h, pipeline):
        await submit(pipeline, numbered(4)).wait()
        await pipeline.flush()
        transport.hold()
        await submit(pipeline, numbered(3, "more")).wait()
        await begun(h)
        await h.kill()
        transport.release()
        assert await ask(h.start()) == (200, counts(6, 0, 1), counts(3))


async def test_what_the_disk_refuses_of_the_events_before_is_reported_as_dropped() -> None:
    async with flushable(FakeTransport()) as (h, pipeline):
        h.fs.errors = failing("pwrite", 28)
        submit(pipeline, numbered(3))
        pipeline.shed(2)
        answered = await ask(pipeline)
        assert answered.report["dropped"] == {"stalled": 2, "disk_full": 3}
        assert answered.verdict is not None
        assert answered.verdict["dropped"] == {"disk_full": 3}
        h.fs.errors = no_errors


class Deaf:
    """A listener that never catches up."""

    async def catch_up(self) -> None:
        await anyio.sleep_forever()


async def test_a_flush_that_could_not_take_what_was_written_does_not_say_that_all_has_left() -> None:
    async with flushable(FakeTransport()) as (_, pipeline):
        for session in (None, "s"):
            assert (await ask(pipeline, 5.0, [Deaf()], session=session)).status == 504


@pytest.mark.parametrize("session", [None, "s"])
async def test_a_client_that_hangs_up_ends_its_flush(session: str | None) -> None:
    transport = FakeTransport()
    transport.hold()
    async with flushable(transport) as (_, pipeline):
        await submit(pipeline, numbered(3)).wait()
        hung_up = anyio.Event()

        async def hang_up() -> None:
            await anyio.sleep(5)
            assert len(barriers(pipeline)) == 1
            hung_up.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang_up)
            answered = await ask(pipeline, 3600.0, hung_up=hung_up.wait, session=session)
        assert answered.status == 408
        assert anyio.current_time() < 6
        assert not barriers(pipeline)
