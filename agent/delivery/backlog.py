"""The seam between the worker and whatever holds the events that wait: a queue on disk, or a stream of a broker.

`agent.delivery.disk_backlog` is the first implementation, `tests.support.memory_backlog` the one in memory.
"""

from collections.abc import Sequence
from typing import Protocol

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch
from agent.delivery.transport import Verdict
from agent.queue.cursor import Outcome, Pause
from agent.runtime import Broadcast


class Backlog(Protocol):
    """What one worker delivers from. Every event comes once until it is settled, put back, or the backlog is rewound.

    Nothing here raises for what storage does: what must be durable waits until it is, and `storage_error` says why.
    """

    @property
    def changed(self) -> Broadcast:
        """Notified when there may be more to deliver. The worker notifies those who wait for it here as well."""

    @property
    def storage_error(self) -> str | None:
        """Why events cannot be read, or a dead letter not be kept, just now."""

    @property
    def pause(self) -> Pause | None:
        """The pause that was remembered last, by an earlier process too."""

    def remember(self, pause: Pause | None) -> None:
        """Remember a pause, or that there is none: soon, and durably."""

    async def next_batch(self, limit: Size, *, at_once: bool) -> Batch | None:
        """Take the next batch: no larger than `limit`, or one event. `at_once` takes one that its timer would keep open.

        Returns None, after a bounded time, if there is none yet: `due_at` says when to ask again.
        """

    async def take_sample(self, refused: Sequence[Batch]) -> Batch | None:
        """Take one event out of turn: the newest of another session than those that were refused, or else the newest.

        None if there is no other than those, or it cannot be read now. No batch but those that were refused may be under way.
        """

    @property
    def due_at(self) -> float:
        """When to ask for a batch again if `changed` says nothing before: seconds on the steady clock.

        `-inf` means at once, because not all that waits has been looked at; `inf` means that nothing is known to wait.
        """

    def put_back(self, *batches: Batch) -> None:
        """Let a batch that was taken, or the parts of it, be the next ones, the oldest first."""

    def holds(self, batch: Batch) -> bool:
        """Whether a batch that was taken may still be sent; if not all of it may, it is to be put back."""

    def rewind(self) -> None:
        """Begin again with everything that is not settled. No batch that was taken may be under way."""

    async def settle(self, batch: Batch, outcome: Outcome) -> None:
        """Settle what nothing else has settled of a batch that was taken; return when that is durable."""

    async def keep_dead_letter(self, batch: Batch, verdict: Verdict) -> None:
        """Keep an event, a batch of its own, that the API has refused; return when it is durable. Settle it after that."""

    async def purge(self) -> int:
        """Settle all that waits as purged, and return how many events that was. No batch may be under way."""
