"""What code runs in: threads for blocking calls, the clock, randomness, and two ways for one task to wake another.

A `Runtime` is passed in, so that a test can run the same code with threads, time and randomness of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a blocking call without blocking the event loop, and returns what it returns."""

    async def __call__(self, call: Callable[[], T], /) -> T:
        """Run `call`; an exception passes through."""


async def run_in_thread(call: Callable[[], T]) -> T:
    """The RunBlocking of production: a worker thread; cancellation waits for the call to end."""
    return await anyio.to_thread.run_sync(call)


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
