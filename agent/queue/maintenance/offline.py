"""A queue whose daemon does not run, in the hands of a command that holds its lock.

It knows how a command opens a queue. It must never know arguments or output. What only looks opens nothing and changes
nothing; what changes something opens the queue as a daemon does, which recovers it.
"""

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from agent.errors import StorageError
from agent.events import Block
from agent.queue.cursor import Outcome, Span
from agent.queue.dead_letters import DeadLetters
from agent.queue.filesystem import Filesystem
from agent.queue.grouping import Submitted, entries_of
from agent.queue.store import Limits, Plan, Store

T = TypeVar("T")


class OfflineQueue:
    """An open queue without a daemon; see `agent.queue.maintenance.changes.Host`. Everything happens at once, in this thread."""

    def __init__(self, fs: Filesystem, directory: Path, limits: Limits, wall_clock: Callable[[], float]) -> None:
        """Open the queue and recover it. Raises StorageError."""
        self.fs = fs
        self.store = Store(fs, directory, limits)
        self.dead_letters = DeadLetters.beside(fs, directory, limits)
        self.wall_clock = wall_clock

    async def run_blocking(self, call: Callable[[], T]) -> T:
        """Run a call."""
        return call()

    async def checkpoint(self) -> None:
        """Write what the cursor says. Raises StorageError."""
        committed = self.store.commit(Plan((), self.store.cursor.state(), None), self.wall_clock())
        if committed.checkpoint_error is not None:
            raise StorageError(committed.checkpoint_error)

    async def put_back(self, block: Block) -> Outcome | None:
        """Queue events of dead letters; return why they are not. It pushes nothing out."""
        now = self.wall_clock()
        entries = entries_of([Submitted(block, retried=True)], now)
        if not self.store.has_room(entries):
            return Outcome.OVERFLOW
        committed = self.store.commit(self.store.plan(entries, now), now)
        self.store.published()
        self.store.account(entries, committed.refused)
        return committed.refused

    async def purge(self, seconds: float) -> int | None:
        """Settle all that is queued as purged; return how many events that was."""
        cursor = self.store.cursor
        return cursor.settle([Span(cursor.position, cursor.next_seq)], Outcome.PURGED)

    def close(self) -> None:
        """Make everything durable and close the files. Raises StorageError."""
        try:
            self.dead_letters.close()
        finally:
            self.store.close()


def at_once(change: Coroutine[None, None, T]) -> T:
    """Return the result of a change to an OfflineQueue, which never waits, and so needs no event loop."""
    try:
        change.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    change.close()
    raise RuntimeError("a change waits for something, and nothing else runs here")


@contextmanager
def opened(fs: Filesystem, directory: Path, limits: Limits, wall_clock: Callable[[], float]) -> Iterator[OfflineQueue]:
    """Open the queue for the time of the block. Raises StorageError."""
    host = OfflineQueue(fs, directory, limits, wall_clock)
    try:
        yield host
    finally:
        host.close()
