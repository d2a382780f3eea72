"""Which submitted blocks become which records: small ones of one context that are committed together share one.

What follows a record through the queue costs the same for one event as for hundreds: the frame, reading it, and finding its
place in a batch. Clients that send one event each would pay that for each event.
"""

from collections.abc import Iterable
from typing import NamedTuple

from agent.events import Block, Context
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record

RECORD_BYTES = 64 * 1024
"""How much of its events' text a record has at most, unless it is one block alone."""


class Submitted(NamedTuple):
    """Events to be queued; `retried` says that they come back from dead letters."""

    block: Block
    retried: bool = False


class _Group:
    """Blocks that go into one record."""

    __slots__ = ("context", "count", "lines", "retried", "size")

    def __init__(self, context: Context, retried: bool) -> None:
        self.context = context
        self.retried = retried
        self.lines: list[bytes] = []
        self.count = 0
        self.size = 0

    def add(self, block: Block) -> None:
        self.lines.append(block.lines)
        self.count += block.event_count
        self.size += len(block.lines)

    def entry(self, now: float) -> Entry:
        return Entry(self.count, encode_record(Record(now, self.context, b"".join(self.lines))), self.retried)


def entries_of(submitted: Iterable[Submitted], now: float) -> list[Entry]:
    """Return what to append for blocks in the order they came, which each context keeps. `now` is in seconds since the epoch."""
    groups: list[_Group] = []
    last: dict[tuple[Context, bool], _Group] = {}
    for block, retried in submitted:
        key = block.context, retried
        group = last.get(key)
        if group is None or group.size + len(block.lines) > RECORD_BYTES:
            group = last[key] = _Group(*key)
            groups.append(group)
        group.add(block)
    return [group.entry(now) for group in groups]
