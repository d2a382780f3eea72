"""Batches: events of one context, closed by count, bytes or age.

It knows counts and clocks that are passed in. It must never know HTTP or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.events import Context, Event
from agent.queue.cursor import Span


@dataclass(frozen=True, slots=True)
class Batch:
    """Events to send in one request; `spans` are their numbers, in the same order; `size` is about their bytes."""

    context: Context
    events: Sequence[Event]
    spans: tuple[Span, ...]
    size: int

    def split(self) -> tuple["Batch", "Batch"]:
        """Return two halves of a batch of at least two events."""
        middle = (len(self.events) + 1) // 2
        return self._part(0, middle), self._part(middle, len(self.events))

    def _part(self, start: int, stop: int) -> "Batch":
        spans, offset = [], 0
        for span in self.spans:
            low, high = max(start - offset, 0), min(stop - offset, span.length)
            if low < high:
                spans.append(Span(span.start + low, span.start + high))
            offset += span.length
        size = self.size * (stop - start) // len(self.events)
        return Batch(self.context, self.events[start:stop], tuple(spans), size)


class Piece(NamedTuple):
    """Events of one record that are to be delivered: `first_seq` numbers the first, the others follow it."""

    context: Context
    session: str | None
    first_seq: int
    events: list[Event]
    size: int


class _Open:
    """A batch that still grows."""

    __slots__ = ("events", "opened_at", "size", "spans")

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.events: list[Event] = []
        self.spans: list[Span] = []
        self.size = 0

    def add(self, first_seq: int, events: list[Event], event_size: int) -> None:
        self.events += events
        self.size += event_size * len(events)
        stop = first_seq + len(events)
        if self.spans and self.spans[-1].stop == first_seq:
            self.spans[-1] = Span(self.spans[-1].start, stop)
        else:
            self.spans.append(Span(first_seq, stop))


class Batcher:
    """Collects pieces into batches of about `max_bytes` at most; the batches of a context keep its order."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[tuple[Context, str | None], _Open] = {}

    def add(self, piece: Piece, max_events: int, now: float) -> list[Batch]:
        """Take a piece at `now` on the steady clock; return the batches that it fills, of at most `max_events`."""
        full: list[Batch] = []
        key, first_seq, events = (piece.context, piece.session), piece.first_seq, piece.events
        event_size = max(piece.size // len(events), 1)
        while events:
            batch = self._open.get(key) or self._open.setdefault(key, _Open(now))
            fits = (self._max_bytes - batch.size) // event_size
            room = max(min(max_events - len(batch.events), fits), 0 if batch.events else 1)
            if room:
                batch.add(first_seq, events[:room], event_size)
            if room < len(events) or len(batch.events) >= max_events:
                full.append(self._close(key))
            first_seq, events = first_seq + room, events[room:]
        return full

    def due(self, opened_before: float) -> list[Batch]:
        """Close and return the batches that were opened before that time, on the steady clock."""
        return [self._close(key) for key, batch in list(self._open.items()) if batch.opened_at <= opened_before]

    @property
    def oldest(self) -> float:
        """When the oldest open batch was opened, on the steady clock; infinity if there is none."""
        return min((batch.opened_at for batch in self._open.values()), default=float("inf"))

    @property
    def held_bytes(self) -> int:
        """About how many bytes the open batches hold."""
        return sum(batch.size for batch in self._open.values())

    @property
    def held_spans(self) -> int:
        """How many spans the open batches hold."""
        return sum(len(batch.spans) for batch in self._open.values())

    def _close(self, key: tuple[Context, str | None]) -> Batch:
        batch = self._open.pop(key)
        return Batch(key[0], batch.events, tuple(batch.spans), batch.size)
