"""Looks through a stream without taking anything. A request brings one message, so several are under way at once.

The numbers are divided among readers. One that has come to the end of its range takes half of what is left of the longest of
the others, so that wherever the messages lie no reader has nothing to do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from agent.fleet.engine import Engine, EngineError, Message

AT_ONCE = 32
SHORTEST = 16
"""A range with no more numbers than these is not divided: its reader will soon be done."""


@dataclass(eq=False)
class _Range:
    """The numbers behind `at`, up to `last`."""

    at: int
    last: int

    @property
    def left(self) -> int:
        return self.last - self.at


async def read_stored(
    engine: Engine, stream: str, subject: str, after: int, last: int, take: Callable[[Message], bool]
) -> None:
    """Hand the messages on a subject behind the number `after`, up to `last`, to `take`, in no order; until it returns False.

    Raises EngineError.
    """
    whole = _Range(after, last)
    ranges = [whole]
    failures: list[EngineError] = []

    async def read(mine: _Range) -> None:
        while mine.left > 0:
            found = await engine.next_stored(stream, subject, mine.at)
            if found is None or found.seq > mine.last:  # which another reader may have brought nearer meanwhile
                break
            mine.at = found.seq
            if not take(found):
                tasks.cancel_scope.cancel()
        ranges.remove(mine)

    async def work(mine: _Range | None) -> None:
        try:
            while mine is not None or (mine := _divide(ranges)) is not None:
                await read(mine)
                mine = None
        except EngineError as error:
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for each in (whole, *[None] * (AT_ONCE - 1)):
            tasks.start_soon(work, each)
    if failures:
        raise failures[0]


def _divide(ranges: list[_Range]) -> _Range | None:
    """Take the second half of the longest range as one of its own; None if that does not help any more."""
    longest = max(ranges, key=lambda each: each.left, default=None)
    if longest is None or longest.left <= SHORTEST:
        return None
    half = _Range(longest.last - longest.left // 2, longest.last)
    longest.last = half.at
    ranges.append(half)
    return half
