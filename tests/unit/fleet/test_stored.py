"""Several readers of a stream find each of its messages once, wherever they lie, and none has nothing to do for long."""

import random
from typing import Any

import anyio
import pytest

from agent.fleet import names, stored
from agent.fleet.engine import EngineError, Message
from agent.fleet.stored import AT_ONCE, read_stored
from tests.support import virtual_time
from tests.support.memory_engine import MemoryBroker, MemoryEngine

pytestmark = pytest.mark.anyio

OURS, OTHERS = names.events_subject("web", "linux"), names.events_subject("api", "linux")


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class Counting(MemoryEngine):
    """Counts what is asked, and how much of it at once at the most; each answer takes a second."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.asked = 0
        self.now = 0
        self.most = 0

    async def next_stored(self, stream: str, subject: str, after: int) -> Message | None:
        """See `Engine`."""
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(1)
            return await super().next_stored(stream, subject, after)
        finally:
            self.now -= 1


def stream(count: int, keep: float, seed: int = 7) -> tuple[Counting, list[int]]:
    """Return an engine with so many numbers, a share of them the team's messages, and those in order."""
    chance, broker = random.Random(seed), MemoryBroker()
    for _ in range(count):
        broker.publish(OURS if chance.random() < keep else OTHERS, b"{}\n", {})
    messages = broker.streams[names.EVENTS].messages
    for seq in list(messages):
        if chance.random() < 0.2:
            del messages[seq]
    return Counting(broker), [seq for seq, message in messages.items() if message.subject == OURS]


async def read(engine: MemoryEngine, after: int, last: int, most: int = 10**6) -> list[int]:
    """Return the numbers that were found, in the order in which they came."""
    found: list[int] = []

    def take(message: Message) -> bool:
        found.append(message.seq)
        return len(found) < most

    await read_stored(engine, names.EVENTS, names.team_events("web"), after, last, take)
    return found


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 1, 15, 17, 400])
async def test_each_message_between_two_numbers_is_found_once(count: int, keep: float) -> None:
    engine, wanted = stream(count, keep)
    assert sorted(await read(engine, 0, count)) == wanted
    first, last = count // 3, count // 2
    assert sorted(await read(engine, first, last)) == [seq for seq in wanted if first < seq <= last]
    assert engine.most <= AT_ONCE


@pytest.mark.parametrize("at", [0, 9_000, 19_500])
async def test_readers_share_the_work_wherever_the_messages_lie(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "AT_ONCE", 4)
    broker = MemoryBroker()
    for _ in range(at):
        broker.publish(OTHERS, b"{}\n", {})
    for _ in range(400):
        broker.publish(OURS, b"{}\n", {})
    engine, begin = Counting(broker), anyio.current_time()
    last = broker.streams[names.EVENTS].last_seq
    assert len(await read(engine, 0, last)) == 400
    assert anyio.current_time() - begin < 400 / 4 * 1.4
    assert engine.asked < 400 + 100


async def test_nobody_reads_on_when_it_is_enough() -> None:
    engine, _ = stream(400, 1.0)
    assert len(await read(engine, 0, 400, most=50)) == 50
    assert engine.now == 0


async def test_an_engine_that_fails_is_an_error_of_its_own_kind() -> None:
    engine, _ = stream(100, 1.0)
    engine.broker.down = True
    with pytest.raises(EngineError):
        await read(engine, 0, 100)
