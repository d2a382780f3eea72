"""What the ledger's stream drops, because it is full, is in a snapshot of each team, whichever of them has filled it."""

from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from agent.fleet import following, names
from agent.fleet.accounting import FleetLedger
from agent.fleet.following import LedgerFollower, snapshot_name
from agent.fleet.records import Part, Released, Settled, encode_record
from agent.queue.cursor import Outcome, Span
from tests.support import virtual_time
from tests.support.memory_engine import MemoryEngine
from tests.support.relays import SUBJECT, TEAM, Fleet, fleet

pytestmark = pytest.mark.anyio

KIB = 1024
ROOM = 64 * KIB


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


async def follow(f: Fleet) -> LedgerFollower:
    """Return one that has begun, and reads."""
    follower = LedgerFollower(MemoryEngine(f.broker), TEAM)
    await follower.load()
    f.tasks.start_soon(follower.run)
    return follower


async def settle(f: Fleet, first: int, count: int = 1, team: str = TEAM) -> None:
    """Write down that events were delivered, in a record each."""
    for number in range(first, first + count):
        record = Settled(Outcome.DELIVERED, (Part(SUBJECT, "q", (Span(number, number + 1),)),))
        await MemoryEngine(f.broker).publish(names.ledger_subject(team), encode_record(record), {})


async def flood(f: Fleet, size: int, team: str = "other", record: int = KIB) -> None:
    """Write records down that change nothing, of so many bytes together."""
    for _ in range(0, size, record):
        await MemoryEngine(f.broker).publish(names.ledger_subject(team), encode_record(Released("x" * record)), {})


async def delivered_by_one_that_starts(f: Fleet) -> int:
    """Return the sum of one that begins with the snapshot."""
    follower = await follow(f)
    await follower.catch_up()
    return follower.ledger.sums["delivered"]


def saved(f: Fleet) -> FleetLedger | None:
    """Return what the snapshot says."""
    data = f.broker.objects.get(snapshot_name(TEAM))
    return FleetLedger.decode(data) if data is not None else None


def begins_at(f: Fleet) -> int:
    """Return the number of the first record that the stream has."""
    return min(f.broker.streams[names.LEDGER].messages)


async def test_records_of_a_team_that_fills_the_stream_are_in_its_snapshot_before_they_go() -> None:
    async with fleet() as f:
        f.broker.ledger_max_bytes = ROOM
        follower = await follow(f)
        for number in range(0, 4000, 100):
            await settle(f, number + 1, 100)
            await follower.catch_up()
        assert begins_at(f) > 2000
        with capture_logs() as logs:
            assert await delivered_by_one_that_starts(f) == 4000
        assert logs == []
        assert follower.ledger.sums == {"delivered": 4000}


@pytest.mark.parametrize("record", [100, 4 * KIB])
@pytest.mark.parametrize("own", [0, 1], ids=["idle", "at work"])
async def test_records_that_another_team_has_dropped_are_in_a_snapshot(own: int, record: int) -> None:
    """However large its records are, beside those that were there."""
    async with fleet() as f:
        f.broker.ledger_max_bytes = ROOM
        await flood(f, ROOM, record=200)
        await follow(f)
        await settle(f, 1, 3)
        for turn in range(40):
            await flood(f, ROOM // 16, record=record)
            await settle(f, 4 + turn, own)
            await anyio.sleep(following.READ_SECONDS + 1)
        assert begins_at(f) > f.broker.streams[names.LEDGER].last_seq // 2
        with capture_logs() as logs:
            assert await delivered_by_one_that_starts(f) == 3 + 40 * own
        assert logs == []


async def test_a_team_that_does_nothing_has_a_snapshot_soon_and_no_more_of_them() -> None:
    async with fleet() as f:
        await settle(f, 1, 10)
        follower = await follow(f)
        for settled, seconds in ((10, 1), (10, following.SNAPSHOT_SECONDS / 2), (11, following.SNAPSHOT_SECONDS)):
            await anyio.sleep(seconds)
            found = saved(f)
            assert found is not None
            assert found.sums == {"delivered": settled}
            if seconds == 1:
                await settle(f, 11)
        f.broker.objects.clear()
        await anyio.sleep(10 * following.SNAPSHOT_SECONDS)
        assert f.broker.objects == {}
        assert follower.ledger.sums == {"delivered": 11}


async def test_what_is_gone_is_said_of_a_team_that_had_records_or_may_have_had_some() -> None:
    async with fleet() as f:
        await flood(f, 8 * KIB)
        stored = f.broker.streams[names.LEDGER].messages
        del stored[1]
        for writes, said in ((False, []), (True, ["ledger_records_gone"])):
            if writes:
                await settle(f, 1)
            with capture_logs() as logs:
                await LedgerFollower(MemoryEngine(f.broker), TEAM).load()
            assert [each["event"] for each in logs] == said
        assert await delivered_by_one_that_starts(f) == 1


async def test_a_snapshot_that_was_not_kept_is_tried_again_and_not_at_once() -> None:
    async with fleet() as f:
        f.broker.ledger_max_bytes = ROOM
        await follow(f)
        f.broker.no_objects = True
        with capture_logs() as logs:
            for turn in range(20):
                await settle(f, 1 + 100 * turn, 100)
                await anyio.sleep(1)
        assert [each["event"] for each in logs] == ["ledger_snapshot_not_kept"]
        f.broker.no_objects = False
        await anyio.sleep(following.SAVE_AGAIN_SECONDS)
        await anyio.sleep(following.READ_SECONDS)
        found = saved(f)
        assert found is not None
        assert found.sums == {"delivered": 2000}
