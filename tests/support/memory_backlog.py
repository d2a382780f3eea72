"""Events that wait in memory: the fake of agent.delivery.backlog."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch
from agent.delivery.sampling import find_sample
from agent.delivery.transport import Verdict
from agent.events import Context, encode_events
from agent.queue.cursor import Outcome, Pause, Span
from agent.runtime import Broadcast
from tests.support.pipelines import PLAIN, event


class Kept(NamedTuple):
    """A dead letter: the event's name, and what the API said."""

    name: str
    status: int | None
    message: str


class Waiting(NamedTuple):
    """An event, and when it came on the steady clock."""

    context: Context
    name: str
    session: str
    since: float


@dataclass
class Durable:
    """What another process finds: the events by number, what became of them, the dead letters and the pause."""

    events: dict[int, Waiting] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    dead_letters: list[Kept] = field(default_factory=list)
    pause: Pause | None = None

    def unsettled(self) -> list[int]:
        """Return the numbers of the events that wait, oldest first."""
        return [number for number in self.events if number not in self.outcomes]


class MemoryBacklog:
    """See `agent.delivery.backlog.Backlog`. A batch waits for `max_delay` seconds for more events."""

    def __init__(self, durable: Durable | None = None, max_delay: float = 2.0) -> None:
        self.durable = durable or Durable()
        self.changed = Broadcast()
        self.storage_error: str | None = None
        self.due_at = float("-inf")
        self._max_delay = max_delay
        self._taken: set[int] = set()
        self._returned: list[Batch] = []
        self._healed = Broadcast()

    def add(self, *names: str, context: Context = PLAIN, session: str = "s") -> None:
        """Let events with these hashes wait."""
        for name in names:
            waiting = Waiting(context.for_api, name, session, anyio.current_time())
            self.durable.events[len(self.durable.events) + 1] = waiting
        self.changed.notify_all()

    def refuse(self) -> None:
        """Let storage refuse everything from now on."""
        self.storage_error = "storage refuses"

    def heal(self) -> None:
        """Let storage take everything again."""
        self.storage_error = None
        self._healed.notify_all()

    @property
    def pause(self) -> Pause | None:
        """See `Backlog`."""
        return self.durable.pause

    def remember(self, pause: Pause | None) -> None:
        """See `Backlog`."""
        self.durable.pause = pause

    async def next_batch(self, limit: Size, *, at_once: bool) -> Batch | None:
        """See `Backlog`."""
        if self._returned:
            batch, rest = self._returned.pop(0).fit(limit)
            if rest is not None:
                self._returned.insert(0, rest)
            self._taken |= _numbers(batch)
            return batch
        waiting = [number for number in self.durable.unsettled() if number not in self._taken]
        self.due_at = float("inf")
        if not waiting:
            return None
        context, _, _, since = self.durable.events[waiting[0]]
        found = [number for number in waiting if self.durable.events[number].context == context]
        batch, rest = self._batch(found).fit(limit)
        full = rest is not None or batch.event_count == limit.events
        if not full and not at_once and anyio.current_time() < since + self._max_delay:
            self.due_at = since + self._max_delay
            return None
        self._taken |= _numbers(batch)
        return batch

    async def take_sample(self, refused: Sequence[Batch]) -> Batch | None:
        """See `Backlog`."""
        fresh = [self._batch([number]) for number in self.durable.unsettled() if number not in self._taken]
        waiting = sorted([*fresh, *self._returned], key=lambda batch: batch.spans[-1].stop, reverse=True)
        found = find_sample(waiting, refused)
        if found is None:
            return None
        sample, rest = found[0].take_out(found[1])
        self._returned = [batch for batch in self._returned if batch is not found[0]]
        self.put_back(*rest)
        self._taken |= _numbers(sample)
        return sample

    def put_back(self, *batches: Batch) -> None:
        """See `Backlog`."""
        self._returned = sorted([*self._returned, *batches], key=lambda batch: batch.spans[0])
        self.due_at = float("-inf")

    def holds(self, batch: Batch) -> bool:
        """See `Backlog`."""
        return True

    def rewind(self) -> None:
        """See `Backlog`."""
        self._taken.clear()
        self._returned.clear()
        self.due_at = float("-inf")

    async def settle(self, batch: Batch, outcome: Outcome) -> None:
        """See `Backlog`."""
        await self._storage()
        for number in _numbers(batch):
            self.durable.outcomes.setdefault(number, outcome)
        self.changed.notify_all()

    async def keep_dead_letter(self, batch: Batch, verdict: Verdict) -> None:
        """See `Backlog`."""
        await self._storage()
        name = self.durable.events[batch.spans[0].start].name
        self.durable.dead_letters.append(Kept(name, verdict.status, verdict.message))

    async def purge(self) -> int:
        """See `Backlog`."""
        waiting = self.durable.unsettled()
        self.durable.outcomes |= dict.fromkeys(waiting, Outcome.PURGED)
        self.rewind()
        return len(waiting)

    def _batch(self, numbers: Sequence[int]) -> Batch:
        found = [self.durable.events[number] for number in numbers]
        lines = encode_events([event(each.name, each.session) for each in found])
        return Batch(found[0].context, lines, tuple(Span(number, number + 1) for number in numbers))

    async def _storage(self) -> None:
        await anyio.lowlevel.checkpoint()
        while self.storage_error is not None:
            await self._healed.wait()


def _numbers(batch: Batch) -> set[int]:
    return {number for span in batch.spans for number in range(span.start, span.stop)}
