"""Memory for bodies that are received whole: who sends much, or slowly, must not keep others from sending."""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import anyio
import anyio.lowlevel
import h11

from agent.runtime import Broadcast

# A body counts from this size on; smaller ones are bounded by the number of connections.
SMALL_BODY_BYTES = 64 * 1024
# How long all bodies may keep each other waiting before one of them has to make room.
WAIT_SECONDS = 1.0


class HeldBody:
    """One body, and how much memory it has. `scope` is cancelled when it has to make room."""

    def __init__(self, memory: "BodyMemory", group: Hashable) -> None:
        self.group = group
        self.size = 0
        self.scope = anyio.CancelScope()
        self._memory = memory

    async def grow(self, size: int) -> None:
        """Have memory for `size` bytes; wait for it if need be."""
        if size > SMALL_BODY_BYTES:
            await self._memory.take(self, size - self.size)


class BodyMemory:
    """At most `size` bytes of bodies that are not yet whole.

    When they are used up, a body of another group makes room if that group holds more than half. Otherwise bodies wait for each
    other, and when they have done so for WAIT_SECONDS, one of the group that holds most makes room.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._bodies: list[HeldBody] = []  # the oldest one first
        self._freed = Broadcast()

    @contextmanager
    def hold(self, group: Hashable) -> Iterator[HeldBody]:
        """Give a body memory for the time of the block. Raises h11.RemoteProtocolError if it had to make room."""
        body = HeldBody(self, group)
        self._bodies.append(body)
        try:
            with body.scope:
                yield body
        finally:
            self._bodies.remove(body)
            self._free(body)
        if body.scope.cancelled_caught:
            raise h11.RemoteProtocolError("the memory for bodies is needed for other clients", error_status_hint=503)

    async def take(self, body: HeldBody, size: int) -> None:
        """See `HeldBody.grow`."""
        while self._lacks(size):
            if not self._make_room(body, self._size // 2):
                with anyio.move_on_after(WAIT_SECONDS) as waiting:
                    await self._freed.wait()
                if waiting.cancelled_caught and self._lacks(size):
                    self._make_room(None, 0)
                await anyio.lowlevel.checkpoint()  # it may be this one that has to make room
        body.size += size

    def _lacks(self, size: int) -> bool:
        return sum(each.size for each in self._bodies) + size > self._size

    def _make_room(self, body: HeldBody | None, more_than: int) -> bool:
        """Let the oldest body of the group that holds most make room, if that holds so much and is not that of `body`."""
        held: Counter[Hashable] = Counter()
        for each in self._bodies:
            held[each.group] += each.size
        group, size = held.most_common(1)[0]
        if size <= more_than or (body is not None and body.group == group):
            return False
        oldest = next(each for each in self._bodies if each.group == group and each.size)
        oldest.scope.cancel()
        self._free(oldest)
        return True

    def _free(self, body: HeldBody) -> None:
        body.size = 0
        self._freed.notify_all()
