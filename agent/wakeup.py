"""What a task waits for and others set, as often as they like: remembered until it was waited for, or for those alone who wait.

Making an event takes longer than most of what is told with it, so one is made only where somebody waits.
"""

import anyio


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


class News:
    """Wakes all who wait at the moment when it is told, and remembers nothing."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def tell(self) -> None:
        """Wake all who wait."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Return when it is told next."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()
