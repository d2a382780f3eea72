"""Who may touch what: state of the event loop, and objects for blocking calls that one thread at a time may enter.

What makes blocking calls (`Writer`, `DeadLetters`) is reached through an `Owner` alone, which lets one call in after another.
Both kinds fail at once in a wrong thread.
"""

import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Concatenate, Generic, ParamSpec, Protocol, TypeVar

import anyio

from agent.runtime import RunBlocking

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")
V = TypeVar("V")
P = ParamSpec("P")


class WrongThreadError(RuntimeError):
    """State was touched by a thread that does not own it: a mistake in the program."""


class OneThread:
    """State that belongs to the thread that makes it."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def check(self) -> None:
        """Raise WrongThreadError in any other thread."""
        if threading.get_ident() != self._thread:
            raise WrongThreadError(
                f"{type(self).__name__} belongs to another thread than {threading.current_thread().name}"
            )


class OneThreadAtATime:
    """An object that any thread may enter, by its `entry` methods, but no two at once."""

    def __init__(self) -> None:
        self.entered = threading.Lock()


S = TypeVar("S", bound=OneThreadAtATime)


def entry(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let `method` raise WrongThreadError while another call of an entry of the same object is under way."""

    @wraps(method)
    def enter(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.entered.acquire(blocking=False):
            raise WrongThreadError(f"{type(self).__name__}.{method.__name__}: another call is under way")
        try:
            return method(self, *args, **kwargs)
        finally:
            self.entered.release()

    return enter


class Owner(Protocol[T_co]):
    """Lets calls use an object, one at a time."""

    async def run(self, call: Callable[[T_co], R], /) -> R:
        """Return what `call` returns; an exception passes through."""


class Exclusive(Generic[T, V]):
    """The owner in an event loop: calls block a thread, and have their turns in the order in which they came.

    `published` is what `publish` said of the object after the last call; the event loop may look at it at any time.
    """

    def __init__(self, owned: T, publish: Callable[[T], V], run_blocking: RunBlocking) -> None:
        self._owned = owned
        self._publish = publish
        self._run_blocking = run_blocking
        self._turn = anyio.Lock(fast_acquire=True)
        self.published = publish(owned)

    async def run(self, call: Callable[[T], R], /) -> R:
        """Return what `call` returns; an exception passes through."""
        async with self._turn:
            try:
                return await self._run_blocking(partial(call, self._owned))
            finally:
                self.published = self._publish(self._owned)  # nobody is in it now


class Inline(Generic[T]):
    """The owner where there are no threads, and no event loop: a command that holds the queue's lock."""

    def __init__(self, owned: T) -> None:
        self._owned = owned

    async def run(self, call: Callable[[T], R], /) -> R:
        """Return what `call` returns; an exception passes through."""
        return call(self._owned)
