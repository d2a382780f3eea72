"""A signal that one task waits for and others set, as often as they like."""

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
        with anyio.move_on_after(seconds):
            await self._event.wait()
        if self._event.is_set():
            self._event = anyio.Event()
