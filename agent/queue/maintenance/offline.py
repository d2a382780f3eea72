"""A queue whose daemon does not run, in the hands of a command that holds its lock.

What only looks opens nothing and changes nothing (`agent.queue.snapshot`); what changes something opens the queue as a daemon
does, which recovers it.
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
from agent.queue.ownership import Inline
from agent.queue.shares import NOBODY
from agent.queue.store import Committed, Limits, Plan, Store
from agent.queue.writer import Writer

T = TypeVar("T")


class OfflineQueue:
    """An open queue without a daemon: a `QueueHandle`. Everything happens at once, in this thread."""

    def __init__(self, fs: Filesystem, directory: Path, limits: Limits, wall_clock: Callable[[], float]) -> None:
        """Open the queue and recover it. Raises StorageError."""
        writer, dead_letters = Writer(fs, directory, limits), DeadLetters.beside(fs, directory, limits)
        self._writer, self._dead_letters = writer, dead_letters
        self.fs = fs
        self.store = Store(fs, directory, limits, writer.recovered)
        self.writer, self.dead_letters = Inline(writer), Inline(dead_letters)
        self.wall_clock = wall_clock

    async def run_blocking(self, call: Callable[[], T]) -> T:
        """Run a call."""
        return call()

    async def checkpoint(self, *, reclaim: bool = False) -> Committed:
        """Write what the cursor says, and with `reclaim` delete all that is settled. Raises StorageError if it is not written."""
        committed = self._commit(self.store.checkpoint(reclaim=reclaim), self.wall_clock())
        if committed.checkpoint_error is not None:
            raise StorageError(committed.checkpoint_error)
        return committed

    async def put_back(self, block: Block) -> Outcome | None:
        """Queue events of dead letters; return why they are not. It pushes nothing out."""
        now = self.wall_clock()
        accepted, refused, _ = self.store.admit([Submitted((block,), NOBODY, retried=True)], now)
        if refused:
            return refused[0][1]
        return self._commit(self.store.plan(entries_of(accepted, now), now), now).refused

    async def purge(self, seconds: float) -> int | None:
        """Settle all that is queued as purged; return how many events that was."""
        cursor = self.store.cursor
        return cursor.settle([Span(cursor.position, cursor.next_seq)], Outcome.PURGED)

    def close(self) -> None:
        """Make everything durable and close the files. Raises StorageError."""
        try:
            self._dead_letters.close()
        finally:
            self._writer.close(self.store.checkpoint())

    def _commit(self, plan: Plan, now: float) -> Committed:
        committed = self._writer.commit(plan, now)
        self.store.apply(plan, committed)
        return committed


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
    queue = OfflineQueue(fs, directory, limits, wall_clock)
    try:
        yield queue
    finally:
        queue.close()
