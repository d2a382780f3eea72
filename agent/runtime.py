"""What code runs in: threads for blocking calls, tasks, the clock, randomness, and two ways for one task to wake another.

A `Runtime` is passed in, so that a test can run the same code with threads, time and randomness of its own.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

T = TypeVar("T")
Call = Callable[[], Awaitable[None]]


class RunBlocking(Protocol):
    """Runs a blocking call without blocking the event loop, and returns what it returns."""

    async def __call__(self, call: Callable[[], T], /) -> T:
        """Run `call`; an exception passes through."""


async def run_in_thread(call: Callable[[], T]) -> T:
    """The RunBlocking of production: a worker thread; cancellation waits for the call to end."""
    return await anyio.to_thread.run_sync(call)


class OwnThreads:
    """A RunBlocking of production that lets `most` calls run at a time, however many others do."""

    def __init__(self, most: int) -> None:
        self._limiter = anyio.CapacityLimiter(most)

    async def __call__(self, call: Callable[[], T], /) -> T:
        """See `run_in_thread`."""
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)


@dataclass(frozen=True)
class Runtime:
    """What differs between production and tests.

    `wall_clock` returns seconds since the epoch; `random` a number in [0, 1).
    """

    run_blocking: RunBlocking
    wall_clock: Callable[[], float]
    random: Callable[[], float]


class Wakeup:
    """Wakes one task. It remembers that it was set until that task has waited for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the waiting task, or let the next wait return at once."""
        self._event.set()

    async def wait(self, seconds: float = float("inf")) -> None:
        """Return when set, or after `seconds`."""
        if seconds == float("inf") or self._event.is_set():
            await self._event.wait()
        else:
            with anyio.move_on_after(seconds):
                await self._event.wait()
        if self._event.is_set():
            self._event = anyio.Event()


class TaskPool:
    """Runs calls in tasks of a group, and each task again for a later call: to start one costs more than many a call."""

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        self._idle: list[_PooledTask] = []
        self._closed = False

    def start_soon(self, call: Call) -> None:
        """Let a task run `call`."""
        if self._idle:
            self._idle.pop().resume(call)
        else:
            self._tasks.start_soon(self._work, call)

    def close(self) -> None:
        """Let the tasks end, each after its call: nothing more is started."""
        self._closed = True
        while self._idle:
            self._idle.pop().resume(None)

    async def _work(self, call: Call | None) -> None:
        task = _PooledTask()
        while call is not None:
            await call()
            if self._closed:
                return
            self._idle.append(task)
            call = await task.next_call()


class _PooledTask:
    __slots__ = ("_call", "_wakeup")

    def __init__(self) -> None:
        self._call: Call | None = None
        self._wakeup = Wakeup()

    def resume(self, call: Call | None) -> None:
        self._call = call
        self._wakeup.set()

    async def next_call(self) -> Call | None:
        await self._wakeup.wait()
        call, self._call = self._call, None
        return call


class Broadcast:
    """Wakes all who wait. `count` says how often it has, so that a task can tell what came before it waited."""

    __slots__ = ("_event", "count")

    def __init__(self) -> None:
        self.count = 0
        self._event: anyio.Event | None = None

    def notify_all(self) -> None:
        """Wake all who wait."""
        self.count += 1
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self, *, seen: int | None = None, seconds: float = float("inf")) -> None:
        """Return at the next notification, at once if there was one since `count` was `seen`, or after `seconds`."""
        if seen is not None and seen != self.count:
            return
        if self._event is None:
            self._event = anyio.Event()
        if seconds == float("inf"):
            await self._event.wait()
        else:
            with anyio.move_on_after(seconds):
                await self._event.wait()
