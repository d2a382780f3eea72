"""What code runs in: threads for blocking calls, the clock, chance, and the two ways in which a task wakes another one.

Everything here is passed in, so that a test can run it with threads, time and chance of its own.
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
    """What differs between production and tests: threads, clocks and chance."""

    run_blocking: RunBlocking
    wall_clock: Callable[[], float]
    random: Callable[[], float]


class Wakeup:
    """Remembers that it was set until somebody has waited for it."""

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
    """Wakes all who wait at the moment when it is told, and remembers nothing."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify_all(self) -> None:
        """Wake all who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Return when it is told next."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
