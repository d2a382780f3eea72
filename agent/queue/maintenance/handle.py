"""What maintenance needs of whoever has a queue open: a daemon's pipeline, or a command that holds the queue's lock."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from agent.events import Block
from agent.queue.cursor import Outcome
from agent.queue.dead_letters import DeadLetters
from agent.queue.filesystem import Filesystem
from agent.queue.ownership import Owner
from agent.queue.store import Committed, Store
from agent.queue.writer import Writer

T = TypeVar("T")


class QueueHandle(Protocol):
    """An open queue."""

    @property
    def fs(self) -> Filesystem:
        """The disk."""

    @property
    def store(self) -> Store:
        """The queue's state; it belongs to this thread."""

    @property
    def writer(self) -> Owner[Writer]:
        """The queue's files."""

    @property
    def dead_letters(self) -> Owner[DeadLetters]:
        """Its dead letters."""

    async def run_blocking(self, call: Callable[[], T]) -> T:
        """Run a blocking call."""

    def wall_clock(self) -> float:
        """Return the time in seconds since the epoch."""

    async def checkpoint(self, *, reclaim: bool = False) -> Committed:
        """Write what the cursor says, and with `reclaim` delete all that is settled. Raises StorageError if it is not written."""

    async def put_back(self, block: Block) -> Outcome | None:
        """Queue events of dead letters; return when they are committed, or why they are not. It pushes nothing out."""

    async def purge(self, seconds: float) -> int | None:
        """Settle all that is queued as purged, in memory; None if that was not possible in time."""
