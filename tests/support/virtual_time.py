"""Time that passes at once: when every task waits, the clock jumps to the next deadline, on both anyio backends.

Nothing may use threads or sockets here, since their work takes no virtual time.
"""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import trio
from trio.testing import MockClock

T = TypeVar("T")

NAMES = ("asyncio", "trio")


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a deadline, moves the time there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits for ever")
        if not ready and timeout:
            self.now += timeout
        return ready


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def backend(name: str) -> tuple[str, dict[str, Any]]:
    """Return what an `anyio_backend` fixture returns, for one test: the clock begins at 0."""
    if name == "asyncio":
        return name, {"loop_factory": _JumpingLoop}
    return name, {"clock": MockClock(autojump_threshold=0)}


def run(name: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on that backend."""
    name, options = backend(name)
    if name == "trio":
        return trio.run(main, **options)  # anyio 4.9 does not hand options on to it
    return anyio.run(main, backend=name, backend_options=options)
