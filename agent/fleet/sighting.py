"""For how long a relay has seen the same: that goes by its own steady clock, and by no other's."""

from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Sighting(Generic[T]):
    """What was seen last, and since when (steady clock); what is there at first has been there for ever."""

    def __init__(self, value: T) -> None:
        self.value = value
        self.since = float("-inf")

    def note(self, value: T) -> None:
        """Say what is seen now."""
        if value != self.value:
            self.value, self.since = value, anyio.current_time()
