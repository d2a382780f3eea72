"""Flush barriers: what becomes of exactly the events that were accepted before one moment.

It knows sequence numbers and counts. It must never know who waits, delivery or files.

A barrier begins with the counts of its moment and adds what the cursor settles below its number from then on. An event has one
number and is settled once, so that the counts add up to what had been accepted, whatever comes in or is settled out of order
meanwhile. A dead letter that is put back is a new event: its old number stays dead-lettered, its new one lies where it came in.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import msgspec

from agent.queue.cursor import Cursor, Ledger, Outcome, Span


class Report(msgspec.Struct, frozen=True):
    """What has become of the events that a flush is about; `dropped` has only reasons that occurred."""

    delivered: int = 0
    queued: int = 0
    dead_lettered: int = 0
    dropped: dict[str, int] = {}

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """Return what a ledger says of all events."""
        return cls(ledger.delivered, ledger.queued, ledger.dead_lettered, dict(ledger.dropped))

    def settled(self, counts: Mapping[Outcome, int]) -> "Report":
        """Return the report after some of the queued events have come to these ends."""
        dropped = dict(self.dropped)
        for outcome, count in counts.items():
            if count and outcome not in {Outcome.DELIVERED, Outcome.DEAD_LETTERED}:
                dropped[str(outcome)] = dropped.get(str(outcome), 0) + count
        return Report(
            self.delivered + counts.get(Outcome.DELIVERED, 0),
            self.queued - sum(counts.values()),
            self.dead_lettered + counts.get(Outcome.DEAD_LETTERED, 0),
            dropped,
        )

    def since(self, before: "Report") -> "Report":
        """Return what has come to an end since an earlier report of the same events, and how many are still queued."""
        dropped = {reason: count - before.dropped.get(reason, 0) for reason, count in self.dropped.items()}
        return Report(
            self.delivered - before.delivered,
            self.queued,
            self.dead_lettered - before.dead_lettered,
            {reason: count for reason, count in dropped.items() if count},
        )

    @property
    def lost(self) -> int:
        """How many of the events will not be delivered by themselves."""
        return self.dead_lettered + sum(self.dropped.values())


def total(reports: Iterable[Report]) -> Report:
    """Return one report of what several are about."""
    found = list(reports)
    reasons = dict.fromkeys(reason for report in found for reason in report.dropped)
    return Report(
        sum(report.delivered for report in found),
        sum(report.queued for report in found),
        sum(report.dead_lettered for report in found),
        {reason: sum(report.dropped.get(reason, 0) for report in found) for reason in reasons},
    )


class Barrier:
    """What becomes of all events that are accepted now: those numbered below `stop`, and those dropped without a number."""

    def __init__(self, cursor: Cursor) -> None:
        """Fix which events those are; the cursor is to tell `settled` from now on."""
        self.stop = cursor.next_seq
        self._before = Report.of(cursor.ledger())
        self._counts: dict[Outcome, int] = {}

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """Count what of `spans`, which nothing had settled before, lies below the barrier."""
        count = sum(max(min(span.stop, self.stop) - span.start, 0) for span in spans)
        self._counts[outcome] = self._counts.get(outcome, 0) + count

    def report(self) -> Report:
        """Return what has become of the events so far."""
        return self._before.settled(self._counts)

    @property
    def passed(self) -> bool:
        """Whether none of the events is queued any more."""
        return self._before.queued == sum(self._counts.values())
