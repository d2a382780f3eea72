"""What code runs in: threads for blocking calls, tasks, the clock, randomness, and two ways for one task to wake another.

A `Runtime` is passed in, so that a test can run the same code with threads, time and randomness of its own.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Never, Protocol, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

T = TypeVar("T")
Call = Callable[[], Awaitable[None]]

PATIENCE_SECONDS = 0.05
TURN_SECONDS = 0.2
SLOW_SECONDS = 10.0


class RunBlocking(Protocol):
    """Runs a blocking call without blocking the event loop, and returns what it returns."""

    async def __call__(self, call: Callable[[], T], /) -> T:
        """Run `call`; an exception passes through."""


async def run_in_thread(call: Callable[[], T]) -> T:
    """The RunBlocking of production: a worker thread; cancellation waits for the call to end."""
    return await anyio.to_thread.run_sync(call)


class Threads:
    """Threads for the blocking calls of several destinations, of which one at a time has a turn.

    Threads that compete for the interpreter cost each other more than they gain. Whoever waits for the disk (`waiting`) lets the
    next one have the turn, and nobody waits for one for longer than `patience`: then a call goes without. One that has kept its
    turn for `longest` seconds may wait for something else, perhaps for ever: it is taken away, and the calls of its destination
    go without for SLOW_SECONDS.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS, longest: float = TURN_SECONDS) -> None:
        self._patience = patience
        self._longest = longest
        self._turn = _Turn()
        self._this_thread = threading.local()

    def own(self, most: int) -> "OwnThreads":
        """Return the threads of one destination: `most` calls run at a time, however many of others do."""
        return OwnThreads(self, most)

    def run(self, call: Callable[[], T], lane: "OwnThreads") -> T:
        """Run a call of `lane` in this thread, with a turn if it gets one in time."""
        self._begin(lane)
        try:
            return call()
        finally:
            self._end()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let others have the turn that this thread may have, while the block waits for a disk."""
        turn: _Turn | None = getattr(self._this_thread, "turn", None)
        if turn is None or turn.lane is None:
            yield
            return
        lane = turn.lane
        self._end()
        try:
            yield
        finally:
            self._begin(lane)

    def _begin(self, lane: "OwnThreads") -> None:
        self._this_thread.turn = None
        if time.monotonic() < lane.slow_until:
            return
        turn = self._turn
        if turn.free.acquire(timeout=self._patience):
            turn.lane, turn.since = lane, time.monotonic()
            self._this_thread.turn = turn
        elif turn is self._turn and time.monotonic() - turn.since >= self._longest:
            if turn.lane is not None:
                turn.lane.slow_until = time.monotonic() + SLOW_SECONDS
            self._turn = _Turn()

    def _end(self) -> None:
        turn: _Turn | None = self._this_thread.turn
        if turn is not None:
            self._this_thread.turn = None
            turn.free.release()


class OwnThreads:
    """A RunBlocking of production: see `Threads`."""

    def __init__(self, threads: Threads, most: int) -> None:
        self._threads = threads
        self._limiter = anyio.CapacityLimiter(most)
        self.slow_until = float("-inf")

    async def __call__(self, call: Callable[[], T], /) -> T:
        """See `run_in_thread`."""
        return await anyio.to_thread.run_sync(self._threads.run, call, self, limiter=self._limiter)


class _Turn:
    """It is `lane`'s, `since` a time of the steady clock, unless it is free."""

    __slots__ = ("free", "lane", "since")

    def __init__(self) -> None:
        self.free = threading.Lock()
        self.lane: OwnThreads | None = None
        self.since = float("-inf")


@dataclass(frozen=True)
class Runtime:
    """What differs between production and tests.

    `wall_clock` returns seconds since the epoch; `random` a number in [0, 1).
    """

    run_blocking: RunBlocking
    wall_clock: Callable[[], float]
    random: Callable[[], float]


class Errand(Generic[T]):
    """A call that may never end, such as one to a disk: one is under way at a time, and whoever waits for it may go."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._under_way: _Answer[T] | None = None

    async def run(self, tasks: TaskGroup | None) -> T:
        """Return what the call returns, or raise what it raises; it runs in `tasks`, unless one is under way already.

        Without `tasks` it runs here.
        """
        if tasks is None:
            return await self._call()
        answer = self._under_way
        if answer is None:
            answer = self._under_way = _Answer(anyio.current_time())
            tasks.start_soon(self._find, answer)
        await answer.over.wait()
        return answer.get()

    def is_overdue(self, seconds: float) -> bool:
        """Tell whether the call under way has taken so long."""
        return self._under_way is not None and anyio.current_time() - self._under_way.since >= seconds

    async def _find(self, answer: "_Answer[T]") -> None:
        try:
            found = await self._call()
            answer.get = lambda: found
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            failure = error
            answer.get = lambda: _fail(failure)
        finally:
            self._under_way = None
            answer.over.set()


class _Answer(Generic[T]):
    """What an errand finds; its call began at `since`, on the steady clock, and `get` is as it ended."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.over = anyio.Event()
        self.get: Callable[[], T] = lambda: _fail(anyio.ClosedResourceError())


def _fail(error: Exception) -> Never:
    raise error


def begin_in_thread(call: Callable[[], T]) -> "Future[T]":
    """Begin a blocking call that may never end, in a thread that does not keep the process from its end."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised in another thread
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


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
