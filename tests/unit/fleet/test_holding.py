"""What a relay holds is its own, and nothing of it is used before the ledger says what is settled."""

from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from agent.delivery.batch_size import Size
from agent.delivery.batching import BatchOptions
from agent.delivery.transport import Kind, Verdict
from agent.fleet import message, names
from agent.fleet.backlog import StreamBacklog
from agent.fleet.fetching import ACK_WAIT, SAFE_SECONDS
from agent.fleet.following import LedgerFollower
from agent.fleet.shared import SharedTurns
from agent.fleet.writing import FleetWriter
from agent.queue.cursor import Ledger, Pause
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.memory_engine import MemoryEngine
from tests.support.pipelines import EPOCH, inline
from tests.support.relays import SUBJECT, TEAM, Fleet, fleet

pytestmark = pytest.mark.anyio

ANY = Size(100, 1 << 20)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


async def backlog_of(f: Fleet) -> StreamBacklog:
    """Return the backlog of a relay that fetches, and delivers nothing by itself."""
    engine = MemoryEngine(f.broker)
    follower, turns = LedgerFollower(engine, TEAM), SharedTurns(engine, TEAM, "r", None)
    runtime = Runtime(inline, lambda: EPOCH + anyio.current_time(), lambda: 0.5)
    backlog = StreamBacklog(FleetWriter(engine, TEAM, "r"), follower, turns, BatchOptions(), runtime)
    await follower.load()
    f.tasks.start_soon(follower.run)
    f.tasks.start_soon(backlog.run)
    return backlog


async def test_events_are_used_once_the_ledger_is_read_up_to_them_however_late_that_comes() -> None:
    async with fleet() as f:
        await f.start()
        f.broker.reading_lag = 5.0
        await f.publish("a")
        await f.settled()
        f.broker.forget_ids()
        await f.publish("a", "b", first=1)
        await f.settled()
        assert f.transport.taken == ["a", "b"]


async def test_a_message_is_held_no_longer_than_it_is_sure_to_be_nobody_elses() -> None:
    async with fleet() as f:
        backlog = await backlog_of(f)
        await f.publish("a")
        await anyio.sleep(1)
        batch = await backlog.next_batch(ANY, at_once=True)
        assert batch is not None
        f.broker.no_more_time = True
        await anyio.sleep(ACK_WAIT - SAFE_SECONDS - 2)
        assert backlog.holds(batch)
        with capture_logs() as logs:
            await anyio.sleep(2)
            assert not backlog.holds(batch)
        assert "message_held_too_long" in [each["event"] for each in logs]
        assert backlog.held_events == 0


async def test_a_relay_that_is_refused_keeps_what_it_holds_until_no_request_is_under_way() -> None:
    """Others would send it again, though it may be accepted here yet."""
    async with fleet() as f:
        backlog = await backlog_of(f)
        await f.publish("a")
        await anyio.sleep(1)
        batch = await backlog.next_batch(ANY, at_once=True)
        assert batch is not None
        assert await backlog.write_intent(batch) is None
        backlog.remember(Pause("blocked", "402 Payment Required", EPOCH, EPOCH + 300, 0))
        await anyio.sleep(3)
        assert backlog.holds(batch)
        await backlog.note_answer(batch, Verdict(Kind.TRANSIENT, "503", 503), took_nothing=True)
        await anyio.sleep(3)
        assert not backlog.holds(batch)


async def test_no_request_is_made_for_a_message_that_ran_out_while_its_record_was_written() -> None:
    async with fleet() as f:
        backlog = await backlog_of(f)
        await f.publish("a")
        await anyio.sleep(1)
        batch = await backlog.next_batch(ANY, at_once=True)
        assert batch is not None
        f.broker.no_more_time, f.broker.full = True, {names.LEDGER}
        await anyio.sleep(ACK_WAIT - SAFE_SECONDS - 2)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_make_room, f)
            verdict = await backlog.write_intent(batch)
        assert verdict is not None
        assert verdict.kind is Kind.TRANSIENT
        assert (f.ledger.in_doubt, f.broker.bodies(names.LEDGER) != []) == (0, True)


async def test_a_message_waits_until_what_its_queue_says_of_itself_is_written() -> None:
    async with fleet() as f:
        await f.start()
        f.broker.full = {names.LEDGER}
        said = message.encode_ledger("q1", Ledger(5, 0, 0, {}, 0, forwarded=5))
        await MemoryEngine(f.broker).publish(SUBJECT, b"", said)
        await anyio.sleep(60)
        assert f.waiting == 1
        f.broker.full = set()
        await f.settled()
        assert f.ledger.forwarded == 5


async def _make_room(f: Fleet) -> None:
    await anyio.sleep(4)
    f.broker.full = set()
