"""Which submitted blocks become which records: small ones of one owner and context that are committed together share one.

What follows a record through the queue costs the same for one event as for hundreds: the frame, reading it, and finding its
place in a batch. Clients that send one event each would pay that for each event.
"""

from collections.abc import Iterable, Sequence

from agent.events import Block, Context
from agent.queue.log import Entry
from agent.queue.record import HEADER_BYTES, Record, encode_record

RECORD_BYTES = 64 * 1024
"""How much of its events' text a record has at most, unless it is one block alone."""


RECORD_OVERHEAD = HEADER_BYTES + 72
"""How many bytes a record has at most beside its events' text and its job, its frame's header included."""


class Submitted:
    """Events of one owner to be queued, all or none; `retried` says that they come back from dead letters.

    They take at most `size` bytes in the queue, of which the owner has a share by its `weight`.
    """

    __slots__ = ("blocks", "owner", "retried", "size", "weight")

    def __init__(self, blocks: Sequence[Block], owner: int, weight: int = 1, *, retried: bool = False) -> None:
        self.blocks = blocks
        self.owner = owner
        self.weight = weight
        self.retried = retried
        self.size = RECORD_OVERHEAD * len(blocks)
        for block in blocks:
            self.size += len(block.lines) + len(block.context.job or "")

    @property
    def event_count(self) -> int:
        """How many events they are."""
        return sum(block.event_count for block in self.blocks)


class _Group:
    """Blocks that go into one record."""

    __slots__ = ("context", "count", "lines", "owner", "retried", "size")

    def __init__(self, context: Context, owner: int, retried: bool) -> None:
        self.context = context
        self.owner = owner
        self.retried = retried
        self.lines: list[bytes] = []
        self.count = 0
        self.size = 0

    def add(self, block: Block) -> None:
        self.lines.append(block.lines)
        self.count += block.event_count
        self.size += len(block.lines)

    def entry(self, now: float) -> Entry:
        return Entry(
            self.count, encode_record(Record(now, self.context, b"".join(self.lines))), self.retried, self.owner
        )


def entries_of(submitted: Iterable[Submitted], now: float) -> list[Entry]:
    """Return what to append for blocks in the order they came, which each owner's of a context keep. `now` is in seconds since
    the epoch."""
    groups: list[_Group] = []
    last: dict[tuple[Context, int, bool], _Group] = {}
    for each in submitted:
        for block in each.blocks:
            key = block.context, each.owner, each.retried
            group = last.get(key)
            if group is None or group.size + len(block.lines) > RECORD_BYTES:
                group = last[key] = _Group(*key)
                groups.append(group)
            group.add(block)
    return [group.entry(now) for group in groups]
