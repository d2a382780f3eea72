"""Flush barriers: what becomes of exactly the events that were accepted before one moment.

A barrier begins with the counts of its moment and adds what the cursor settles below its number from then on. An event has one
number and is settled once, so that the counts add up to what had been accepted, whatever comes in or is settled out of order
meanwhile. A dead letter that is put back is a new event: its old number stays dead-lettered, its new one lies where it came in.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, Self

import msgspec

from agent.queue.cursor import NOT_DROPPED, Cursor, Ledger, Outcome, Span


class FlushReport(msgspec.Struct, frozen=True):
    """What has become of the events that a flush is about; `dropped` has only reasons that occurred."""

    delivered: int = 0
    queued: int = 0
    dead_lettered: int = 0
    dropped: dict[str, int] = {}
    forwarded: int = 0

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Return what a ledger says of all events."""
        return cls(ledger.delivered, ledger.queued, ledger.dead_lettered, dict(ledger.dropped), ledger.forwarded)

    def settled(self, counts: Mapping[str, int]) -> "FlushReport":
        """Return the report after some of the queued events have come to these ends."""
        dropped = dict(self.dropped)
        for outcome, count in counts.items():
            if count and outcome not in NOT_DROPPED:
                dropped[str(outcome)] = dropped.get(str(outcome), 0) + count
        return FlushReport(
            self.delivered + counts.get(Outcome.DELIVERED, 0),
            self.queued - sum(counts.values()),
            self.dead_lettered + counts.get(Outcome.DEAD_LETTERED, 0),
            dropped,
            self.forwarded + counts.get(Outcome.FORWARDED, 0),
        )

    def since(self, before: "FlushReport") -> "FlushReport":
        """Return what has come to an end since an earlier report of the same events, and how many are still queued."""
        dropped = {reason: count - before.dropped.get(reason, 0) for reason, count in self.dropped.items()}
        return FlushReport(
            self.delivered - before.delivered,
            self.queued,
            self.dead_lettered - before.dead_lettered,
            {reason: count for reason, count in dropped.items() if count},
            self.forwarded - before.forwarded,
        )

    @property
    def lost(self) -> int:
        """How many of the events will not be delivered by themselves."""
        return self.dead_lettered + sum(self.dropped.values())


def total(reports: Iterable[FlushReport]) -> FlushReport:
    """Return one report of what several are about."""
    found = list(reports)
    reasons = dict.fromkeys(reason for report in found for reason in report.dropped)
    return FlushReport(
        sum(report.delivered for report in found),
        sum(report.queued for report in found),
        sum(report.dead_lettered for report in found),
        {reason: sum(report.dropped.get(reason, 0) for report in found) for reason in reasons},
        sum(report.forwarded for report in found),
    )


class Barrier(Protocol):
    """Follows some of the events that have been accepted; see `agent.queue.cursor.Watcher`."""

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """Count what it follows of `spans`, which nothing had settled before."""

    def report(self) -> FlushReport:
        """Return what has become of the events so far."""

    @property
    def passed(self) -> bool:
        """Whether none of the events is queued any more."""


class WholeBarrier:
    """What becomes of all events that are accepted now: those numbered below `stop`, and those dropped without a number."""

    def __init__(self, cursor: Cursor) -> None:
        """Fix which events those are; the cursor is to tell `settled` from now on."""
        self.stop = cursor.next_seq
        self._before = FlushReport.of(cursor.ledger())
        self._counts: dict[str, int] = {}

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """Count what of `spans`, which nothing had settled before, lies below the barrier."""
        count = sum(max(min(span.stop, self.stop) - span.start, 0) for span in spans)
        self._counts[outcome] = self._counts.get(outcome, 0) + count

    def report(self) -> FlushReport:
        """Return what has become of the events so far."""
        return self._before.settled(self._counts)

    @property
    def passed(self) -> bool:
        """Whether none of the events is queued any more."""
        return self._before.queued == sum(self._counts.values())


class Numbers:
    """A set of sequence numbers, at a bit each where there are any: a page is an integer with a bit for each number."""

    __slots__ = ("pages",)

    _PAGE = 4096
    _ALL = (1 << _PAGE) - 1

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}

    def add(self, span: Span) -> None:
        """Add the numbers of a span."""
        for page, bits in self._bits(span):
            self.pages[page] = self.pages.get(page, 0) | bits

    def add_marked(self, first: int, marks: int) -> None:
        """Add `first` and those that follow it: those whose bits in `marks` are set, the lowest bit being that of `first`."""
        page, offset = divmod(first, self._PAGE)
        marks <<= offset
        while marks:
            self.pages[page] = self.pages.get(page, 0) | (marks & self._ALL)
            marks >>= self._PAGE
            page += 1

    def count(self, span: Span) -> int:
        """Return how many numbers of a span are in the set."""
        return sum((self.pages.get(page, 0) & bits).bit_count() for page, bits in self._bits(span))

    def common(self, other: "Numbers") -> int:
        """Return how many numbers are in both sets."""
        return sum((bits & other.pages.get(page, 0)).bit_count() for page, bits in self.pages.items())

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self.pages.values())

    def _bits(self, span: Span) -> Iterator[tuple[int, int]]:
        """Yield the pages that a span touches, with a bit for each of its numbers."""
        start = span.start
        while start < span.stop:
            page, offset = divmod(start, self._PAGE)
            length = min(span.stop - start, self._PAGE - offset)
            yield page, ((1 << length) - 1) << offset
            start += length


class SessionBarrier:
    """What becomes of the events of one session, as far as they are found: those that left the queue before it, and those that
    are queued now, which somebody finds out while they may already be leaving.
    """

    def __init__(self, cursor: Cursor) -> None:
        """Fix the moment; the cursor is to tell `settled` from now on."""
        self.stop = cursor.next_seq
        self._before = FlushReport()
        self._settled: dict[Outcome, Numbers] = {}
        self._queued: Numbers | None = None
        self._count = 0
        self._counts: dict[str, int] = {}

    def find(self, queued: Numbers, before: Mapping[str, int]) -> None:
        """Take which of the session's events were queued at that moment, and what had become of the others, by outcome."""
        self._queued, self._count = queued, len(queued)
        self._before = FlushReport(queued=sum(before.values())).settled(before)
        self._counts = {outcome: numbers.common(queued) for outcome, numbers in self._settled.items()}
        self._settled.clear()

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """Count what of `spans` is the session's, or remember them until that is known."""
        below = [Span(span.start, min(span.stop, self.stop)) for span in spans]
        if self._queued is not None:
            count = sum(map(self._queued.count, below))
            self._counts[outcome] = self._counts.get(outcome, 0) + count
            return
        for span in below:
            self._settled.setdefault(outcome, Numbers()).add(span)

    def report(self) -> FlushReport:
        """Return what has become of the session's events so far, without those that nobody has found yet."""
        return total([self._before, FlushReport(queued=self._count).settled(self._counts)])

    @property
    def passed(self) -> bool:
        """Whether they have been found, and none of them is queued any more."""
        return self._queued is not None and self._count == sum(self._counts.values())
