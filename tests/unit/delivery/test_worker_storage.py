"""The delivery worker and the disk: what is read, written and waited for while the disk, or the process, fails."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from agent.delivery.batching import BatchOptions
from agent.delivery.disk_backlog import READ_ATTEMPTS
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.events import Context
from agent.queue.store import Limits
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport, reject
from tests.support.fault_filesystem import failing, no_errors
from tests.support.pipelines import DIRECTORY, balanced, dead_letters, host, numbered, submit

pytestmark = pytest.mark.anyio

BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required: pay", 402)
TRANSIENT = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
PROBE = 300.0  # the default interval; with a jitter of 0.5 it is exact


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


async def warm_up(pipeline: Pipeline, transport: FakeTransport) -> None:
    """Deliver enough for the worker to step up to its full concurrency."""
    await submit(pipeline, numbered(100, "warm")).wait()
    await pipeline.flush()
    transport.answered.clear()


async def test_a_queue_that_cannot_be_read_is_not_taken_for_an_empty_one_by_a_probe() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.rule = lambda _c, _e: BLOCKED
        await submit(pipeline, numbered(3)).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        h.fs.errors = _unreadable(errno.EMFILE)
        await anyio.sleep(PROBE + 10)
        assert (await pipeline.status()).state == "paused"
        h.fs.errors = no_errors
        transport.rule = lambda _c, _e: ACCEPTED
        await pipeline.flush()
        assert transport.taken == numbered(3)


async def test_too_many_open_files_hold_delivery_up_and_cost_no_event() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        h.fs.errors = _unreadable(errno.EMFILE)
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(10 * READ_ATTEMPTS)
        assert pipeline.ledger().dropped == {}
        assert "cannot read the queue" in str((await pipeline.status()).reason)
        h.fs.errors = no_errors
        await pipeline.flush()
        assert transport.taken == numbered(3)
        assert (await pipeline.status()).reason is None


async def test_a_segment_that_the_disk_has_lost_is_given_up_and_counted() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        h.fs.errors = _unreadable(errno.EIO)
        await submit(pipeline, numbered(3)).wait()
        await pipeline.flush()
        assert pipeline.ledger().dropped == {"corrupt": 3}
        assert transport.requests == 0
        assert anyio.current_time() < 2 * READ_ATTEMPTS


async def test_a_settlement_found_while_reading_wakes_a_flush_although_more_came_in_meanwhile() -> None:
    async with host() as h:
        h.options, transport = BatchOptions(max_age=10), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(11)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.flush)
            submit(pipeline, numbered(20, "new"))
            began = anyio.current_time()
            pipeline.resume()
        assert anyio.current_time() - began < 5
        assert pipeline.ledger().dropped == {"expired": 3}


async def test_segments_that_cannot_be_deleted_hold_nothing_up_and_show_in_the_status() -> None:
    async with host() as h:
        h.limits, transport = Limits(segment_bytes=1), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, ["a"]).wait()
        h.fs.errors = failing("unlink", errno.EPERM, DIRECTORY / "segments" / "00000000000000000001.seg")
        for name in ("b", "c"):
            await submit(pipeline, [name]).wait()
            await pipeline.flush()
        assert transport.taken == ["a", "b", "c"]
        assert "cannot delete old segments" in str((await pipeline.status()).storage_error)
        h.fs.errors = no_errors
        await pipeline.commit_once()
        assert (await pipeline.status()).storage_error is None
        assert len(h.fs.names(DIRECTORY / "segments")) == 1


@pytest.mark.parametrize("stuck", ["cursor", "dead-letters"])
async def test_a_disk_that_refuses_what_delivery_writes_holds_it_up_and_loses_nothing(stuck: str) -> None:
    async with host() as h:
        h.settings, transport = DeliverySettings(max_events=1, concurrency=1), FakeTransport(reject("h0"))
        h.transport = transport
        pipeline = h.start()
        h.fs.errors = lambda _o, path: OSError(errno.ENOSPC, "full") if stuck in path.parts else None
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(600)
        assert len(transport.answered) == (
            2 if stuck == "cursor" else 4
        )  # the bad event is sent again after the others
        assert balanced(pipeline)
        assert stuck in str((await pipeline.status()).storage_error)
        h.fs.errors = no_errors
        await pipeline.flush()
        assert (await pipeline.status()).storage_error is None
        assert transport.taken == ["h1", "h2"]
        assert [letter.event.hash for letter in dead_letters(h.fs)] == ["h0"]
        assert pipeline.ledger().dead_lettered == 1


async def test_a_full_disk_on_which_the_cursor_failed_to_sync_stops_delivery_until_64_kib_are_free() -> None:
    """The known limit: after a failed sync nothing but a new file can be trusted, and a new file takes room."""
    async with host() as h:
        h.settings, transport = DeliverySettings(max_events=1, concurrency=1), FakeTransport()
        h.transport = transport
        pipeline = h.start()
        await submit(pipeline, numbered(3)).wait()
        await pipeline.flush()
        h.fs.errors = lambda called, path: (
            OSError(errno.EIO, "no") if (called, path.stem) == ("sync", "cursor") else None
        )
        pipeline.pause()
        await submit(pipeline, numbered(3, "late")).wait()
        await pipeline.commit_once()
        h.fs.errors = no_errors
        h.fs.capacity = h.fs.used + 64 * 1024 - 1
        pipeline.resume()
        await anyio.sleep(600)
        taken = len(transport.taken)
        assert taken <= 3 + 1
        assert "No space left" in str((await pipeline.status()).storage_error)
        assert balanced(pipeline)
        h.fs.capacity += 1
        await pipeline.flush()
        assert set(transport.taken) == {*numbered(3), *numbered(3, "late")}
        assert len(transport.taken) <= 6 + 1
        assert (await pipeline.status()).storage_error is None


async def test_a_dead_letter_is_on_disk_before_its_event_is_settled() -> None:
    async with host() as h:
        transport = FakeTransport(reject("h0"))
        h.transport = transport
        pipeline = h.start()
        h.fs.errors = _failing_in(DIRECTORY / "dead-letters")
        await submit(pipeline, ["h0"]).wait()
        await transport.wait_until(lambda t: len(t.answered) == 1)
        await anyio.sleep(60)
        assert pipeline.ledger().dead_lettered == 0
        assert pipeline.ledger().queued == 1
        await h.kill()
        h.fs.errors = no_errors
        pipeline = h.start()
        await pipeline.flush()
        assert pipeline.ledger().dead_lettered == 1
        assert len(dead_letters(h.fs)) == 1


async def test_a_kill_in_mid_request_leaves_the_batch_in_the_queue() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.hold()
        await submit(pipeline, numbered(5)).wait()
        await transport.wait_until(lambda t: t.in_flight == 1)
        await h.kill()
        transport.release()
        pipeline = h.start()
        assert pipeline.ledger().queued == 5
        await pipeline.flush()
        assert transport.taken == numbered(5)


async def test_flush_returns_at_once_when_nothing_is_queued() -> None:
    async with host() as h:
        pipeline = h.start()
        await pipeline.flush()
        assert anyio.current_time() == 0
        assert pipeline.ledger().accepted == 0


async def test_flush_ends_when_overflow_takes_what_it_waits_for() -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: TRANSIENT)
        h.transport, h.limits = transport, Limits(segment_bytes=2048, max_bytes=8192)
        pipeline = h.start()
        await submit(pipeline, numbered(10)).wait()
        ended = anyio.Event()

        async def flush() -> None:
            await pipeline.flush()
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flush)
            await anyio.sleep(1)
            assert not ended.is_set()
            for number in range(30):
                await submit(pipeline, numbered(10, f"n{number}-")).wait()
            await anyio.lowlevel.checkpoint()
            assert ended.is_set()
        assert pipeline.ledger().dropped["overflow"] >= 10
        assert balanced(pipeline)


async def test_drain_ends_at_its_deadline_while_the_api_is_down() -> None:
    async with host() as h:
        h.transport = FakeTransport(lambda _c, _e: TRANSIENT)
        pipeline = h.start()
        await submit(pipeline, numbered(3)).wait()
        await h.stop(20)
        assert anyio.current_time() == pytest.approx(20, abs=0.1)
        assert h.open().ledger().queued == 3
        assert balanced(pipeline)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_drain_does_not_wait_for_a_paused_destination(when: str) -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: BLOCKED)
        h.transport, h.options = transport, BatchOptions(max_delay=3600)
        pipeline = h.start()
        await submit(pipeline, numbered(3)).wait()
        if when == "before":
            pipeline.pause()
        await h.stop(100)
        assert anyio.current_time() < 1
        assert len(transport.answered) == (0 if when == "before" else 1)
        assert h.open().ledger().queued == 3


async def test_what_is_settled_out_of_order_always_fits_into_a_checkpoint() -> None:
    """Two contexts take turns, event by event, and the batches of one are never answered."""
    contexts = [Context("A"), Context("B")]
    async with host() as h:
        transport = FakeTransport()
        h.settings, h.transport = DeliverySettings(max_events=100_000, concurrency=64), transport
        pipeline = h.start()
        await warm_up(pipeline, transport)
        for number in range(64):
            await submit(pipeline, numbered(10, f"warm{number}")).wait()
            await pipeline.flush()
        transport.answered.clear()
        stuck, at_once = anyio.Event(), transport.before

        async def slow(context: Context) -> None:
            await (stuck.wait() if context == contexts[0] else at_once(context))

        transport.before = slow
        for number in range(4_000):
            await submit(pipeline, [f"h{number}"], contexts[number % 2]).wait()
        await anyio.sleep(100)
        assert len(transport.taken) < 2_000
        stuck.set()
        await pipeline.flush()
        assert len(transport.taken) == len(set(transport.taken)) == 4_000
        assert pipeline.ledger().queued == 0


def _unreadable(code: int) -> Callable[[str, Path], OSError | None]:
    def rule(operation: str, path: Path) -> OSError | None:
        reading = operation in {"open", "pread"} and path.parent == DIRECTORY / "segments"
        return OSError(code, "no") if reading else None

    return rule


def _failing_in(directory: Path) -> Callable[[str, Path], OSError | None]:
    rule = failing("create", errno.EIO)
    return lambda operation, path: rule(operation, path) if path.parent == directory else None
