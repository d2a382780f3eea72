"""Ways to wake a task: one is remembered until somebody has waited for it, the other wakes all who wait. Tasks used again.

And threads that calls of others cannot use up, and in which one has a turn at a time.
"""

import threading
import time

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from agent.runtime import Broadcast, Errand, TaskPool, Threads, Wakeup, begin_in_thread
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
    threads, over, done = Threads(), threading.Event(), list[bool]()
    hanging, other = threads.own(8), threads.own(8)

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


async def test_calls_of_several_destinations_have_turns() -> None:
    threads, under_way, most = Threads(patience=HUNG_AFTER), list[int](), list[int]()

    def call() -> None:
        under_way.append(1)
        time.sleep(0.001)  # which lets any other thread run
        most.append(len(under_way))
        under_way.pop()

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(threads.own(1), call)
    assert most == [1] * 10


async def test_who_waits_for_the_disk_lets_another_destination_have_the_turn() -> None:
    threads, synced = Threads(patience=HUNG_AFTER), threading.Event()

    def wait_for_the_disk() -> bool:
        with threads.waiting():
            return synced.wait(HUNG_AFTER)

    waited: list[bool] = []

    async def wait() -> None:
        waited.append(await threads.own(1)(wait_for_the_disk))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await threads.own(1)(synced.set)
    assert waited == [True]


async def test_a_turn_that_does_not_end_is_taken_away_and_its_destination_does_without() -> None:
    threads, over = Threads(patience=0.01, longest=0.01), threading.Event()
    hanging, other = threads.own(8), threads.own(8)

    async with anyio.create_task_group() as tasks:

        async def hang() -> None:
            began = threading.Event()

            def call() -> None:
                began.set()
                over.wait(HUNG_AFTER)

            tasks.start_soon(hanging, call)
            await anyio.to_thread.run_sync(began.wait, HUNG_AFTER)

        try:
            await hang()
            while hanging.slow_until < 0:
                assert await other(lambda: True)  # this one waits in vain for its turn, and goes without
            until = hanging.slow_until
            await hang()
            for _ in range(10):
                assert await other(lambda: True)
            assert (hanging.slow_until, other.slow_until) == (until, float("-inf"))
        finally:
            over.set()


async def test_outside_of_a_call_a_wait_for_the_disk_is_nobodys_turn() -> None:
    threads = Threads()
    with threads.waiting():
        assert await threads.own(1)(lambda: True)


async def test_who_waits_for_an_errand_may_go_and_later_ones_join_it() -> None:
    begun, over = list[str](), anyio.Event()

    async def call() -> int:
        begun.append("begun")
        await over.wait()
        return 7

    errand, found = Errand(call), list[int]()

    async with anyio.create_task_group() as tasks:

        async def ask() -> None:
            found.append(await errand.run(tasks))

        with anyio.move_on_after(0.01) as waiting:
            await errand.run(tasks)
        assert (waiting.cancelled_caught, errand.is_overdue(0.005), errand.is_overdue(3600)) == (True, True, False)
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        over.set()
    assert (begun, found, errand.is_overdue(0)) == (["begun"], [7], False)
    assert await errand.run(None) == 7


async def test_an_errand_that_fails_or_is_cancelled_fails_for_who_waits() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async with anyio.create_task_group() as tasks:
        with pytest.raises(ZeroDivisionError):
            await Errand(fail).run(tasks)

    errand, failed = Errand(anyio.sleep_forever), list[bool]()

    async with anyio.create_task_group() as waiting, anyio.create_task_group() as tasks:

        async def ask() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await errand.run(tasks)
            failed.append(True)

        waiting.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert failed == [True]


def test_a_call_that_was_begun_in_a_thread_may_never_end() -> None:
    over = threading.Event()
    hanging = begin_in_thread(lambda: over.wait(HUNG_AFTER))
    assert not hanging.cancel()
    with pytest.raises(TimeoutError):
        hanging.result(0.01)
    over.set()
    assert hanging.result(HUNG_AFTER)
    with pytest.raises(ZeroDivisionError):
        begin_in_thread(lambda: 1 // 0).result(HUNG_AFTER)


async def test_who_waits_for_a_turn_in_vain_goes_without_and_takes_it_from_nobody_too_soon() -> None:
    threads, began, over = Threads(patience=0.01, longest=HUNG_AFTER), threading.Event(), threading.Event()
    busy, other = threads.own(1), threads.own(1)

    def work() -> None:
        began.set()
        over.wait(HUNG_AFTER)

    async with anyio.create_task_group() as tasks:
        try:
            tasks.start_soon(busy, work)
            await anyio.to_thread.run_sync(began.wait, HUNG_AFTER)
            assert await other(lambda: True)
            assert busy.slow_until == float("-inf")
        finally:
            over.set()
