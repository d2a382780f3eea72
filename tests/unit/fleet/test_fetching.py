"""A relay asks for more while it takes in what came, and holds no more than it may."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from agent.fleet import fetching, names
from agent.fleet.engine import Message
from agent.fleet.fetching import Fetcher
from agent.fleet.following import LedgerFollower
from agent.fleet.writing import FleetWriter
from agent.queue.cursor import Ledger
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.memory_engine import MemoryEngine
from tests.support.pipelines import EPOCH, inline
from tests.support.relays import TEAM, Fleet, fleet

pytestmark = pytest.mark.anyio


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class Far(MemoryEngine):
    """An engine to which each of these ways takes a second."""

    async def fetch(self, stream: str, consumer: str, *, most: int, seconds: float) -> Sequence[Message]:
        """See `Engine`."""
        await anyio.sleep(1)
        return await super().fetch(stream, consumer, most=most, seconds=seconds)

    async def last_seq(self, stream: str, subject: str) -> int:
        """See `Engine`."""
        await anyio.sleep(1)
        return await super().last_seq(stream, subject)


def start(f: Fleet, engine: MemoryEngine, max_held: int) -> Fetcher:
    """Let something fetch by an engine."""
    runtime = Runtime(inline, lambda: EPOCH + anyio.current_time(), lambda: 0.5)
    follower = LedgerFollower(engine, TEAM)
    found = Fetcher(FleetWriter(engine, TEAM, "r1"), follower, runtime, max_held)
    f.tasks.start_soon(follower.run)
    f.tasks.start_soon(found.run)
    return found


async def test_the_ledger_is_asked_while_the_next_messages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FETCH_MESSAGES", 1)
    async with fleet() as f:
        for number in range(10):
            await f.publish(f"h{number}")
        found = start(f, Far(f.broker), 100)
        while len(found.fresh) < 10:
            await found.changed.wait()
        assert [held.events.spans[0].start for held in found.fresh] == [*range(1, 11)]
        assert anyio.current_time() < 10 + 1 + 0.5


async def test_what_is_held_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_HELD_BYTES", 10_000)
    monkeypatch.setattr(fetching, "FETCH_MESSAGES", 2)
    async with fleet() as f:
        for number in range(50):
            await f.publish(f"{number:01000}")
        engine = MemoryEngine(f.broker)
        found = start(f, engine, 4000)
        await anyio.sleep(60)
        assert 10_000 <= found.held.byte_count < 10_000 + 2 * 2 * 1200
        while f.waiting:
            for held in found.held.settle([each.span for each in found.held]):
                await engine.ack(held.message)
            await found.changed.wait(seconds=1)


async def test_no_more_time_is_asked_for_what_ran_out_while_the_process_was_stopped() -> None:
    """The engine would take it, though it has given the message to somebody else."""
    async with fleet() as f:
        await f.publish("a")
        found = start(f, MemoryEngine(f.broker), 100)
        while not found.fresh:
            await found.changed.wait()
        (held,) = found.held
        held.kept_at -= fetching.ACK_WAIT
        await anyio.sleep(fetching.EXTEND_SECONDS + 1)
        assert (len(found.held), held.kept_at) == (0, -fetching.ACK_WAIT)


async def test_what_came_and_is_not_held_yet_counts_as_held() -> None:
    async with fleet() as f:
        for number in range(20):
            await f.publish(f"h{number}", ledger=Ledger(number, 0, 0, {}, 0, forwarded=number))
        f.broker.denied = {names.ledger_subject(TEAM)}
        engine = MemoryEngine(f.broker)
        found = start(f, engine, 4)
        await anyio.sleep(5)
        assert (await engine.consumer_state(names.EVENTS, names.consumer(TEAM))).held == 4
        assert len(found.held) == 0
        f.broker.denied = set()
        while len(found.fresh) < 4:
            await found.changed.wait()
        assert found.held.event_count == 4
        await found.stop()
