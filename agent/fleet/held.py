"""The messages that a relay holds, with numbers of its own for their events: batches are of these numbers.

A number counts from 1 and is never used again. What the fleet calls an event is (subject, queue, number of the queue).

Whoever may publish chooses how many spans a message has, and which of its events are settled: nothing here looks at all spans of
a message for each of some others.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter

from agent.fleet.engine import Message
from agent.fleet.message import Events
from agent.fleet.records import Part
from agent.queue.cursor import Cursor, Outcome, Span, union, without

_start, _stop = attrgetter("start"), attrgetter("stop")


@dataclass(eq=False, slots=True)
class Held:
    """A message, what it says, the local number of its first event, and when it was last known to be ours (steady clock).

    Of its events it stands for those in `own`, by the numbers of the queue. Others are settled, or other messages stand for them,
    its `blockers`: it comes to its end with the last of these. It is `checked` once the ledger, read up to after it was held, was
    asked what of it is settled.
    """

    message: Message
    events: Events
    first: int
    kept_at: float
    own: Sequence[Span] = ()
    blockers: "set[Held]" = field(default_factory=set)
    dependents: "list[Held]" = field(default_factory=list)
    checked: bool = False
    # The local number of each span's first event, and the one behind the last.
    _firsts: list[int] = field(init=False)
    # Where each line begins and the last ends, once asked for.
    _edges: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._firsts = list(accumulate([span.length for span in self.events.spans], initial=self.first))

    @property
    def span(self) -> Span:
        """The local numbers of its events."""
        return Span(self.first, self._firsts[-1])

    @property
    def part(self) -> Part:
        """All of its events, as the fleet knows them."""
        return Part(self.message.subject, self.events.queue, self.events.spans)

    def lines(self, span: Span) -> bytes:
        """Return some of its events, by local numbers."""
        if span == self.span:
            return self.events.lines
        if not self._edges:
            lengths = [len(line) + 1 for line in self.events.lines.split(b"\n")]
            self._edges = list(accumulate(lengths[:-1], initial=0))
        return self.events.lines[self._edges[span.start - self.first] : self._edges[span.stop - self.first]]

    def theirs(self, local: Span) -> Iterator[Span]:
        """Return local numbers of its own as numbers of the queue."""
        for index in range(bisect_right(self._firsts, local.start) - 1, bisect_left(self._firsts, local.stop)):
            offset = self.events.spans[index].start - self._firsts[index]
            low, high = max(local.start, self._firsts[index]), min(local.stop, self._firsts[index + 1])
            yield Span(low + offset, high + offset)

    def ours(self, theirs: Iterable[Span]) -> Iterator[Span]:
        """Return numbers of the queue as local ones, without those of other messages."""
        spans = self.events.spans
        for each in theirs:
            first = bisect_right(spans, each.start, key=_stop)
            for index in range(first, bisect_left(spans, each.stop, first, key=_start)):
                offset = self._firsts[index] - spans[index].start
                yield Span(max(each.start, spans[index].start) + offset, min(each.stop, spans[index].stop) + offset)


class HeldMessages:
    """The messages that are held, in the order in which they came."""

    def __init__(self) -> None:
        self._cursor = Cursor()
        self._held: dict[int, Held] = {}  # by the first local number
        self._firsts: list[int] = []
        self._by_seq: dict[int, Held] = {}
        self._by_queue: dict[tuple[str, str], list[Held]] = {}
        self.byte_count = 0

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def event_count(self) -> int:
        """How many events are held and not settled."""
        return self._cursor.queued

    def at(self, seq: int) -> Held | None:
        """Return the message with that number in the stream, if it is held."""
        return self._by_seq.get(seq)

    def standing_for(self, part: Part) -> Sequence[Held]:
        """Return the messages that stand for some of these events."""
        return [held for held in self._by_queue.get((part.subject, part.queue), ()) if _meet(held.own, part.spans)]

    def add(self, message: Message, events: Events, now: float, blockers: Sequence[Held] = ()) -> Held:
        """Hold a message; `blockers` are those that stand for some of its events."""
        others = union(span for each in blockers for span in each.own)
        own = tuple(part for span in events.spans for part in without(span, others))
        held = Held(message, events, self._cursor.next_seq, now, own, set(blockers))
        for each in blockers:
            each.dependents.append(held)
        self._cursor.next_seq = held.span.stop
        self._held[held.first] = self._by_seq[message.seq] = held
        self._firsts.append(held.first)
        self._by_queue.setdefault((message.subject, events.queue), []).append(held)
        self.byte_count += len(message.body)
        self._cursor.settle(without(held.span, list(held.ours(own))), Outcome.DELIVERED)
        return held

    def unsettled(self, span: Span) -> list[Span]:
        """Return which of these local numbers were not settled here."""
        return self._cursor.unsettled(span)

    def __contains__(self, held: Held) -> bool:
        return self._held.get(held.first) is held

    def holds(self, spans: Iterable[Span]) -> bool:
        """Whether all of these local numbers are of messages that are held."""
        spans = tuple(spans)
        return sum(piece.length for _, piece in self.pieces(spans)) == sum(span.length for span in spans)

    def parts(self, spans: Iterable[Span]) -> tuple[Part, ...]:
        """Return local numbers as the fleet knows these events."""
        found: dict[tuple[str, str], list[Span]] = {}
        for held, piece in self.pieces(spans):
            found.setdefault((held.message.subject, held.events.queue), []).extend(held.theirs(piece))
        return tuple(Part(subject, queue, tuple(union(theirs))) for (subject, queue), theirs in found.items())

    def settle(self, spans: Sequence[Span]) -> list[Held]:
        """Settle local numbers; return the messages that have come to their end, which are held no more."""
        touched = dict.fromkeys(held for held, _ in self.pieces(spans))
        self._cursor.settle(spans, Outcome.DELIVERED)  # here it matters only that they are settled
        done, ending = list[Held](), deque(touched)
        while ending:
            held = ending.popleft()
            if held in self and not held.blockers and not self.unsettled(held.span):
                self._forget(held)
                done.append(held)
                for each in held.dependents:
                    each.blockers.discard(held)
                    ending.append(each)
        return done

    def settle_but(self, held: Held, left: Sequence[Span]) -> list[Held]:
        """Settle what of a message is not in `left`, numbers of its queue; return as `settle` does."""
        return self.settle(without(held.span, list(held.ours(left))))

    def drop(self, held: Held) -> list[Held]:
        """Hold a message no more, nor those that wait for it: they are somebody else's, or will be. Return them all."""
        dropped, dropping = list[Held](), deque([held])
        while dropping:
            each = dropping.popleft()
            if each in self:
                self._cursor.settle([each.span], Outcome.DELIVERED)
                self._forget(each)
                dropped.append(each)
                dropping.extend(each.dependents)
        return dropped

    def _forget(self, held: Held) -> None:
        if self._held.pop(held.first, None) is not None:
            self.byte_count -= len(held.message.body)
            del self._firsts[bisect_left(self._firsts, held.first)]
            self._by_seq.pop(held.message.seq, None)
            queue = held.message.subject, held.events.queue
            self._by_queue[queue].remove(held)
            if not self._by_queue[queue]:
                del self._by_queue[queue]

    def pieces(self, spans: Iterable[Span]) -> Iterator[tuple[Held, Span]]:
        """Return the messages that these local numbers are of, and which are whose; without those that are held no more."""
        for span in spans:
            index = max(bisect_right(self._firsts, span.start) - 1, 0)
            for first in self._firsts[index : bisect_left(self._firsts, span.stop, index)]:
                held = self._held[first]
                low, high = max(span.start, first), min(span.stop, held.span.stop)
                if low < high:
                    yield held, Span(low, high)


def _meet(some: Sequence[Span], others: Sequence[Span]) -> bool:
    """Whether a number is in both; each is in order."""
    few, many = sorted((some, others), key=len)
    return any(bisect_right(many, span.start, key=_stop) < bisect_left(many, span.stop, key=_start) for span in few)
