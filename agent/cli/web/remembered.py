"""What takes time to find: remembered for a while, looked for once at a time, and not waited for long."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class BusyError(Exception):
    """More is asked for than is looked for at one time."""


class Remembered(Generic[T]):
    """What `find` returned last. It is called when somebody asks and the last answer is older than `fresh` seconds.

    What `find` raises ends the task group that it is called in.
    """

    def __init__(self, find: Callable[[], Awaitable[T]], fresh: float, tasks: TaskGroup) -> None:
        self._find = find
        self._fresh = fresh
        self._tasks = tasks
        self._found: T | None = None
        self._until = float("-inf")
        self._looking: anyio.Event | None = None
        self._is_stale = False

    @property
    def is_looking(self) -> bool:
        """Whether it is being looked for."""
        return self._looking is not None

    def renew(self) -> None:
        """Have it looked for when it is asked for next, and once more if it is being looked for."""
        self._until = float("-inf")
        self._is_stale = True

    async def get(self, patience: float) -> T | None:
        """Return it; the old one if a new one takes longer than `patience` seconds, and None if there is none."""
        if anyio.current_time() >= self._until:
            if self._looking is None:
                self._looking = anyio.Event()
                self._tasks.start_soon(self._look, self._looking)
            with anyio.move_on_after(patience):
                await self._looking.wait()
        return self._found

    async def _look(self, found: anyio.Event) -> None:
        self._is_stale = False
        self._found = await self._find()
        if not self._is_stale:
            self._until = anyio.current_time() + self._fresh
        self._looking = None
        found.set()


class RememberedByKey(Generic[K, T]):
    """What `find` returned last for each of `most` keys, those that were asked for last. The rest is as for `Remembered`."""

    def __init__(self, find: Callable[[K], Awaitable[T]], fresh: float, most: int, tasks: TaskGroup) -> None:
        self._find = find
        self._fresh = fresh
        self._most = most
        self._tasks = tasks
        self._known: OrderedDict[K, Remembered[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def renew(self) -> None:
        """Have everything looked for when it is asked for next."""
        for known in self._known.values():
            known.renew()

    async def get(self, key: K, patience: float) -> T | None:
        """Return what is known of a key, as `Remembered.get`. Raises BusyError if all others are being looked for."""
        known = self._known.get(key)
        if known is None:
            self._make_room()
            known = self._known[key] = Remembered(partial(self._find, key), self._fresh, self._tasks)
        self._known.move_to_end(key)
        return await known.get(patience)

    def _make_room(self) -> None:
        if len(self._known) < self._most:
            return
        idle = next((key for key, known in self._known.items() if not known.is_looking), None)
        if idle is None:
            raise BusyError
        del self._known[idle]
