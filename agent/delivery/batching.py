"""Batches: events of one context, closed by count, bytes or age."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent import events
from agent.events import Context
from agent.queue.cursor import Span


@dataclass(frozen=True)
class BatchOptions:
    """How batches are formed. Sizes in bytes, times in seconds; events older than `max_age` expire instead."""

    max_bytes: int = 960 * 1024
    max_delay: float = 2.0
    max_age: float = 7 * 86400
    split_sessions: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Events to send in one request: `lines` as `events.Block` has them, and their numbers, in the same order."""

    context: Context
    lines: bytes
    spans: tuple[Span, ...]

    @property
    def event_count(self) -> int:
        """How many events it has."""
        return sum(span.length for span in self.spans)

    def lines_in(self, parts: Sequence[Span]) -> bytes:
        """Return the lines of those of its events whose numbers are in `parts`: as a rule, all of them."""
        if tuple(parts) == self.spans:
            return self.lines
        numbers = (number for span in self.spans for number in range(span.start, span.stop))
        lines = zip(numbers, self.lines.split(b"\n"), strict=False)
        return b"".join(line + b"\n" for number, line in lines if any(start <= number < stop for start, stop in parts))

    def split(self) -> tuple["Batch", "Batch"]:
        """Return two halves of a batch of at least two events."""
        count = self.event_count
        middle = (count + 1) // 2
        head, tail = events.split_lines(self.lines, middle)
        return (
            Batch(self.context, head, tuple(self._numbers(0, middle))),
            Batch(self.context, tail, tuple(self._numbers(middle, count))),
        )

    def _numbers(self, start: int, stop: int) -> Iterator[Span]:
        offset = 0
        for span in self.spans:
            low, high = max(start - offset, 0), min(stop - offset, span.length)
            if low < high:
                yield Span(span.start + low, span.start + high)
            offset += span.length


class Piece(NamedTuple):
    """Events of one record that are to be delivered, and their numbers; `session` is theirs where sessions are kept apart."""

    context: Context
    session: str | None
    span: Span
    lines: bytes


class _Open:
    """A batch that still grows; `size` is in bytes, as lines."""

    __slots__ = ("chunks", "count", "opened_at", "size", "spans")

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.chunks: list[bytes] = []
        self.spans: list[Span] = []
        self.count = 0
        self.size = 0

    def add(self, span: Span, lines: bytes) -> None:
        self.chunks.append(lines)
        self.count += span.length
        self.size += len(lines)
        if self.spans and self.spans[-1].stop == span.start:
            self.spans[-1] = Span(self.spans[-1].start, span.stop)
        else:
            self.spans.append(span)


class Batcher:
    """Collects pieces into batches whose bodies have at most `max_bytes`; the batches of a context keep its order.

    `held_bytes` and `held_spans` is how much the open batches hold.
    """

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self.held_spans = 0
        self._max_lines = max_bytes - events.ARRAY_OVERHEAD
        self._open: dict[tuple[Context, str | None], _Open] = {}

    def add(self, piece: Piece, max_events: int, now: float) -> list[Batch]:
        """Take a piece at `now` on the steady clock; return the batches that it fills, of at most `max_events`."""
        full: list[Batch] = []
        key, span, lines = (piece.context, piece.session), piece.span, piece.lines
        while span.length:
            batch = self._open.get(key) or self._open.setdefault(key, _Open(now))
            room = max(max_events - batch.count, 0)
            part = events.count_fitting(lines, min(span.length, room), self._max_lines - batch.size)
            if not batch.count:
                part = max(part, 1)  # an event that is too large goes alone, and the API says what it thinks of it
            head, lines = (lines, b"") if part == span.length else events.split_lines(lines, part)
            if part:
                before = len(batch.spans)
                batch.add(Span(span.start, span.start + part), head)
                self.held_bytes += len(head)
                self.held_spans += len(batch.spans) - before
            span = Span(span.start + part, span.stop)
            if span.length or batch.count >= max_events:
                full.append(self._close(key))
        return full

    def due(self, opened_before: float) -> list[Batch]:
        """Close and return the batches that were opened before that time, on the steady clock."""
        return [self._close(key) for key, batch in list(self._open.items()) if batch.opened_at <= opened_before]

    @property
    def oldest(self) -> float:
        """When the oldest open batch was opened, on the steady clock; infinity if there is none."""
        for batch in self._open.values():  # in the order in which they were opened
            return batch.opened_at
        return float("inf")

    def _close(self, key: tuple[Context, str | None]) -> Batch:
        batch = self._open.pop(key)
        self.held_bytes -= batch.size
        self.held_spans -= len(batch.spans)
        return Batch(key[0], b"".join(batch.chunks), tuple(batch.spans))
