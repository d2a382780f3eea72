"""Ways to wake a task: one is remembered until somebody has waited for it, the other wakes all who wait. Tasks used again.

And threads that calls of others cannot use up.
"""

import threading

import anyio
import anyio.lowlevel
import pytest

from agent.runtime import Broadcast, OwnThreads, TaskPool, Wakeup
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio


async def returns_at_once(wakeup: Wakeup) -> bool:
    returned = anyio.Event()

    async def wait() -> None:
        await wakeup.wait()
        returned.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return returned.is_set()


async def test_a_set_before_the_wait_is_remembered_once() -> None:
    wakeup = Wakeup()
    for _ in range(3):
        wakeup.set()
    assert await returns_at_once(wakeup)
    assert not await returns_at_once(wakeup)


async def test_a_set_wakes_who_waits() -> None:
    wakeup = Wakeup()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wakeup.wait)
        await anyio.lowlevel.checkpoint()
        wakeup.set()
    assert not await returns_at_once(wakeup)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001])
async def test_a_wait_ends_after_its_time(seconds: float) -> None:
    wakeup = Wakeup()
    with anyio.fail_after(HUNG_AFTER):
        await wakeup.wait(seconds)
    wakeup.set()
    assert await returns_at_once(wakeup)


async def test_a_cancelled_wait_forgets_nothing() -> None:
    wakeup = Wakeup()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await wakeup.wait()
    wakeup.set()
    assert await returns_at_once(wakeup)


async def test_a_broadcast_wakes_all_who_wait_and_nobody_who_comes_later() -> None:
    broadcast, woken = Broadcast(), []

    async def wait(name: str) -> None:
        await broadcast.wait()
        woken.append(name)

    async with anyio.create_task_group() as tasks:
        broadcast.notify_all()
        for name in "ab":
            tasks.start_soon(wait, name)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        broadcast.notify_all()
        await anyio.wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]
        tasks.start_soon(wait, "late")
        await anyio.wait_all_tasks_blocked()
        assert "late" not in woken
        broadcast.notify_all()
    assert woken[-1] == "late"


async def test_a_wait_that_names_what_was_seen_misses_no_notification() -> None:
    broadcast = Broadcast()
    seen = broadcast.count
    broadcast.notify_all()
    with anyio.fail_after(5):
        await broadcast.wait(seen=seen)
    with anyio.move_on_after(0.01) as scope:
        await broadcast.wait(seen=broadcast.count)
    assert scope.cancelled_caught


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.001])
async def test_a_wait_for_a_broadcast_ends_after_its_time(seconds: float) -> None:
    with anyio.fail_after(5):
        await Broadcast().wait(seconds=seconds)


async def test_a_task_of_a_pool_is_used_again_and_ends_when_the_pool_is_closed() -> None:
    ran: list[int] = []

    async def call() -> None:
        ran.append(anyio.get_current_task().id)
        await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        pool = TaskPool(tasks)
        for _ in range(3):
            pool.start_soon(call)
            pool.start_soon(call)
            await anyio.wait_all_tasks_blocked()
        pool.start_soon(call)  # it is under way when the pool is closed
        pool.close()
    assert (len(ran), len({*ran})) == (7, 2)


async def test_what_a_call_of_a_pool_raises_ends_the_group() -> None:
    async def fail() -> None:
        raise ValueError

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            TaskPool(tasks).start_soon(fail)
            await anyio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert [type(each) for each in caught.value.exceptions] == [ValueError]


async def test_calls_that_hang_take_no_threads_from_those_of_others() -> None:
    hanging, other, over, done = OwnThreads(8), OwnThreads(8), threading.Event(), list[bool]()

    async def hang() -> None:
        done.append(await hanging(lambda: over.wait(HUNG_AFTER)))

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(hang)
        await anyio.wait_all_tasks_blocked()
        try:
            assert await other(lambda: threading.current_thread() is not threading.main_thread())
            assert not done
        finally:
            over.set()
    assert done == [True] * 200
