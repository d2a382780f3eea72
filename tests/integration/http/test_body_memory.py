"""Memory for bodies: who holds most of it makes room, and others wait for each other for a short while."""

import anyio
import anyio.lowlevel
import h11
import pytest

from agent.http.body_memory import SMALL_BODY_BYTES, BodyMemory, HeldBody

pytestmark = pytest.mark.anyio
LARGE = SMALL_BODY_BYTES + 1


async def hold(memory: BodyMemory, group: str, size: int, until: anyio.Event) -> str:
    """Hold that much until the event, or until it has to make room; return which it was."""
    try:
        with memory.hold(group) as body:
            await body.grow(size)
            await until.wait()
    except h11.RemoteProtocolError as error:
        return f"{error.error_status_hint}"
    return "held"


async def test_a_group_with_more_than_half_makes_room_at_once() -> None:
    memory, end, ended = BodyMemory(4 * LARGE), anyio.Event(), []

    async def note(group: str, size: int) -> None:
        ended.append((group, await hold(memory, group, size, end)))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(note, "hog", LARGE)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(note, "other", LARGE)
        await anyio.wait_all_tasks_blocked()
        assert ended == [("hog", "503")]
        end.set()
    assert sorted(ended[1:]) == [("hog", "held")] * 3 + [("other", "held")]


async def test_small_bodies_take_no_memory() -> None:
    memory = BodyMemory(1)
    with memory.hold("a") as body:
        await body.grow(SMALL_BODY_BYTES)


async def test_others_wait_until_one_is_whole() -> None:
    memory = BodyMemory(2 * LARGE)
    grown: list[HeldBody] = []

    async def third() -> None:
        with memory.hold("c") as body:
            await body.grow(LARGE)
            grown.append(body)

    async with anyio.create_task_group() as tasks:
        with memory.hold("a") as first, memory.hold("b") as second:
            await first.grow(LARGE)
            await second.grow(LARGE)
            tasks.start_soon(third)
            await anyio.wait_all_tasks_blocked()
            assert grown == []
    assert len(grown) == 1


async def test_of_bodies_that_keep_each_other_waiting_one_makes_room() -> None:
    memory, ends = BodyMemory(2 * LARGE), []

    async def grow(group: str) -> None:
        try:
            with memory.hold(group) as body:
                await body.grow(LARGE)
                await anyio.lowlevel.checkpoint()
                await body.grow(2 * LARGE)
                ends.append("whole")
        except h11.RemoteProtocolError:
            ends.append("made room")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(grow, "a")
            tasks.start_soon(grow, "b")
    assert sorted(ends) == ["made room", "whole"]
