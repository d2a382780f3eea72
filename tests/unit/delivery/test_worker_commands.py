"""The worker's commands while requests are under way, with nothing but a backlog and an API in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from agent.delivery import policy
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.delivery.worker import Worker
from agent.queue.barrier import SessionBarrier
from agent.queue.cursor import Cursor, Outcome
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport
from tests.support.memory_backlog import MemoryBacklog
from tests.support.pipelines import EPOCH, inline, numbered

pytestmark = pytest.mark.anyio

SETTINGS = DeliverySettings(max_events=10)
BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required: pay", 402)
REJECTED = Verdict(Kind.REJECTED, "400 Bad Request", 400)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


@asynccontextmanager
async def working(transport: FakeTransport, backlog: MemoryBacklog) -> AsyncIterator[Worker]:
    """A worker that runs."""
    runtime = Runtime(inline, lambda: EPOCH + anyio.current_time(), lambda: 0.5)
    worker = Worker(backlog, transport, SETTINGS, runtime)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run)
        yield worker
        tasks.cancel_scope.cancel()


async def under_way(transport: FakeTransport, backlog: MemoryBacklog, events: int = 10) -> None:
    """Return when a request with these events is held under way."""
    transport.hold()
    backlog.add(*numbered(events))
    await transport.wait_until(lambda t: t.in_flight == 1)


async def all_settled(backlog: MemoryBacklog) -> None:
    """Return when nothing waits any more."""
    while backlog.durable.unsettled():
        await backlog.changed.wait()


async def test_a_request_under_way_ends_with_the_old_transport_which_is_closed_then() -> None:
    old, new, backlog = FakeTransport(), FakeTransport(), MemoryBacklog()
    async with working(old, backlog) as worker:
        await under_way(old, backlog)
        backlog.add("later")
        worker.reconfigure(new, SETTINGS)
        await anyio.sleep(60)
        assert (old.closed, new.requests) == (False, 0)
        old.release()
        await all_settled(backlog)
        assert (old.taken, new.taken) == (numbered(10), ["later"])
        assert old.closed


async def test_a_transport_that_is_replaced_before_it_was_used_is_closed_too() -> None:
    first, second, third, backlog = FakeTransport(), FakeTransport(), FakeTransport(), MemoryBacklog()
    async with working(first, backlog) as worker:
        worker.reconfigure(second, SETTINGS)
        worker.reconfigure(third, SETTINGS)
        backlog.add("h0")
        await all_settled(backlog)
        assert (first.closed, second.closed, third.closed) == (True, True, False)
        assert third.taken == ["h0"]


@pytest.mark.parametrize("answer", [BLOCKED, REJECTED, Verdict(Kind.TRANSIENT, "503", 503), Verdict(Kind.CUT_OFF)])
async def test_a_late_refusal_costs_the_new_configuration_nothing(answer: Verdict) -> None:
    old, new, backlog = FakeTransport(), FakeTransport(), MemoryBacklog()
    async with working(old, backlog) as worker:
        old.script([answer])
        await under_way(old, backlog, 1)
        worker.reconfigure(new, SETTINGS)
        old.release()
        began = anyio.current_time()
        await all_settled(backlog)
        assert anyio.current_time() - began < 5
        assert new.taken == ["h0"]
        assert backlog.durable.dead_letters == []
        assert worker.state.paused is None


@pytest.mark.parametrize("how", ["resume", "reconfigure"])
async def test_a_person_overrides_what_the_server_asked_for(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    transport, backlog = FakeTransport(), MemoryBacklog()
    transport.script([Verdict(Kind.TRANSIENT, "429 Too Many Requests", 429, 86_400.0)])
    async with working(transport, backlog) as worker:
        backlog.add("h0")
        await transport.wait_until(lambda t: len(t.answered) == 1)
        await anyio.sleep(100)
        if how == "resume":
            assert worker.resume() == pytest.approx(86_300, abs=5)
            assert worker.resume() is None
        else:
            transport = FakeTransport()
            worker.reconfigure(transport, SETTINGS)
        began = anyio.current_time()
        await all_settled(backlog)
        assert anyio.current_time() - began < 5
    said = capsys.readouterr().out
    assert said.count("retry_after_overridden") == 1
    assert "429 Too Many Requests" in said.partition("retry_after_overridden")[2]


async def test_nothing_is_called_recovered_while_the_server_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    transport, backlog = FakeTransport(), MemoryBacklog()
    async with working(transport, backlog) as worker:
        backlog.add(*numbered(30, "warm"))
        await all_settled(backlog)
        transport.hold()
        transport.script([Verdict(Kind.TRANSIENT, "429", 429, 120.0), ACCEPTED])
        backlog.add(*numbered(20))
        await transport.wait_until(lambda t: t.in_flight == 2)
        transport.release()
        await anyio.sleep(60)
        assert "delivery_recovered" not in capsys.readouterr().out
        assert policy.describe(worker.state, anyio.current_time()).reason == "429"
        await all_settled(backlog)
        assert capsys.readouterr().out.count("delivery_recovered") == 1


async def test_a_retry_after_that_comes_after_a_new_configuration_is_honored() -> None:
    old, new, backlog = FakeTransport(), FakeTransport(), MemoryBacklog()
    async with working(old, backlog) as worker:
        old.script([Verdict(Kind.TRANSIENT, "429", 429, 90.0)])
        await under_way(old, backlog)
        worker.reconfigure(new, SETTINGS)
        old.release()
        asked = anyio.current_time()
        await all_settled(backlog)
        assert new.answered[0].at - asked >= 90


async def test_a_new_configuration_ends_a_pause_but_not_an_operators() -> None:
    transport, backlog = FakeTransport(lambda _c, _e: BLOCKED), MemoryBacklog()
    async with working(transport, backlog) as worker:
        backlog.add("h0")
        await transport.wait_until(lambda t: len(t.answered) == 1)
        await anyio.sleep(1)
        assert backlog.pause is not None
        worker.reconfigure(FakeTransport(), SETTINGS)
        remembered: list[object] = [backlog.pause]
        assert remembered == [worker.state.paused] == [None]
        await all_settled(backlog)
        worker.pause()
        worker.reconfigure(FakeTransport(), SETTINGS)
        assert worker.state.paused is not None
        assert backlog.pause is not None


async def test_a_purge_waits_for_what_is_under_way_and_lets_nothing_begin() -> None:
    transport, backlog = FakeTransport(), MemoryBacklog()
    async with working(transport, backlog) as worker:
        await under_way(transport, backlog)
        backlog.add(*numbered(5, "more"))
        purged: list[int | None] = []

        async def purge() -> None:
            purged.append(await worker.purge(60.0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(purge)
            await anyio.sleep(30)
            transport.release()
        assert purged == [5]
        assert transport.taken == numbered(10)


async def test_a_purge_that_comes_to_its_deadline_purges_nothing_and_delivery_goes_on() -> None:
    transport, backlog = FakeTransport(), MemoryBacklog()
    async with working(transport, backlog) as worker:
        await under_way(transport, backlog)
        backlog.add("later")
        assert await worker.purge(5.0) is None
        transport.release()
        await all_settled(backlog)
        assert set(backlog.durable.outcomes.values()) == {Outcome.DELIVERED}


async def test_stop_waits_for_what_is_under_way_and_begins_no_more() -> None:
    transport, backlog = FakeTransport(), MemoryBacklog()
    async with working(transport, backlog) as worker:
        await under_way(transport, backlog)
        backlog.add("later")
        stopped = anyio.Event()

        async def stop() -> None:
            await worker.stop_after_inflight()
            stopped.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            await anyio.sleep(30)
            assert not stopped.is_set()
            transport.release()
        await anyio.sleep(30)
        assert transport.taken == numbered(10)


async def test_a_stop_during_a_probe_leaves_the_pause_as_it_is() -> None:
    transport, backlog = FakeTransport(), MemoryBacklog()
    transport.script([BLOCKED])
    async with working(transport, backlog) as worker:
        backlog.add("h0")
        await transport.wait_until(lambda t: len(t.answered) == 1)
        transport.hold()
        await transport.wait_until(lambda t: len(t.probes) == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.stop_after_inflight)
            await anyio.sleep(1)
            transport.release()
        assert backlog.pause is not None
        assert transport.taken == []


async def test_a_flush_that_waits_for_a_pause_ends_with_it() -> None:
    transport, backlog = FakeTransport(lambda _c, _e: Verdict(Kind.TRANSIENT, "503", 503)), MemoryBacklog()
    nothing_found_yet = SessionBarrier(Cursor())  # what nobody has found has not passed

    async with working(transport, backlog) as worker, anyio.create_task_group() as tasks:
        backlog.add("h0")
        tasks.start_soon(partial(worker.flush, nothing_found_yet, give_up=lambda state: state.paused is not None))
        await transport.wait_until(lambda t: len(t.answered) == 3)
        worker.pause()
