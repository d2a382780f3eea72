"""Empties an open queue, or removes dead letters."""

from functools import partial

import msgspec

from agent.errors import DeadlineError
from agent.queue.dead_letters import DeadLetters, StoredDeadLetter
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter
from agent.queue.maintenance.handle import QueueHandle


class Purged(msgspec.Struct, frozen=True):
    """What a purge did: the events that are settled as purged, the bytes that came back, and why not all of them did."""

    purged: int
    freed_bytes: int
    problem: str | None


class DeadLettersPurged(msgspec.Struct, frozen=True):
    """What a purge of dead letters did; `damaged` ones went with them, but for their bytes; `unreadable` ones are left."""

    purged: int
    damaged: int
    unreadable: int = 0


async def purge(handle: QueueHandle, seconds: float) -> Purged:
    """Settle all that is queued as purged, durably, and give the room back.

    Raises DeadlineError if that was not possible within `seconds`, and StorageError if it cannot be made durable: the events may
    then come back with a crash.
    """
    before = handle.store.view.size
    count = await handle.purge(seconds)
    if count is None:
        what = f"requests were under way for {seconds:g} s, and may deliver what is queued"
        raise DeadlineError(f"{what}: nothing was purged; try again, or stop the daemon first")
    committed = await handle.checkpoint(reclaim=True)
    return Purged(count, max(before - handle.store.view.size, 0), committed.delete_error)


async def purge_dead_letters(handle: QueueHandle, wanted: DeadLetterFilter) -> DeadLettersPurged:
    """Remove the dead letters that are meant. Raises StorageError: then they are still there."""

    def goes(stored: StoredDeadLetter) -> bool:
        return wanted.means(stored.dead_letter)

    removed = await handle.dead_letters.run(partial(DeadLetters.remove, goes=goes, now=handle.wall_clock()))
    return DeadLettersPurged(removed.removed, removed.damaged, removed.unreadable)
