"""One event loop that goes on from input to input, so that a server need not be started anew for each.

It knows asyncio. It must never know what runs in it.
"""

import asyncio
import atexit
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar, cast

import anyio

T = TypeVar("T")
SECONDS = 120.0


class Resource(Protocol):
    """Something that runs in the background for as long as the process."""

    async def run(self, started: anyio.Event) -> None:
        """Run until cancelled; set `started` when it may be used."""


R = TypeVar("R", bound=Resource)


class Loop:
    """The loop and what runs in it. It is made at the first use, and ends with the process."""

    def __init__(self) -> None:
        self._runner: asyncio.Runner | None = None
        self._resources: dict[type[Resource], tuple[Resource, asyncio.Task[None]]] = {}

    def resource(self, kind: Callable[[], R]) -> R:
        """Return the one resource of this kind, running."""
        return self.run(lambda: self._running(kind))

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run `main`, and in the background everything else, until it returns. TimeoutError after SECONDS."""
        if self._runner is None:
            self._runner = asyncio.Runner()
            atexit.register(self.close)
        return self._runner.run(_in_time(main))

    def close(self) -> None:
        """End everything."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None
            self._resources.clear()

    async def _running(self, kind: Callable[[], R]) -> R:
        key = cast(type[Resource], kind)
        if key not in self._resources:
            made, started = kind(), anyio.Event()
            self._resources[key] = made, asyncio.create_task(made.run(started))
            await started.wait()
        found, task = self._resources[key]
        assert not task.done(), task
        return cast(R, found)


async def _in_time(main: Callable[[], Awaitable[T]]) -> T:
    with anyio.fail_after(SECONDS):
        return await main()
