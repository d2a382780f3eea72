"""Batches: events of one context, closed by count, bytes or age."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from agent import events
from agent.delivery.batch_size import Size
from agent.events import Context
from agent.queue.cursor import Span


@dataclass(frozen=True)
class BatchOptions:
    """How batches are formed. Times are in seconds; events older than `max_age` expire instead."""

    max_delay: float = 2.0
    max_age: float = 7 * 86400
    split_sessions: bool = False


@dataclass(slots=True)
class Refused:
    """A batch that was refused as a whole, in which words, and how many of its two halves have been accepted since."""

    size: Size
    message: str
    accepted_halves: int = 0


class Suspicion(NamedTuple):
    """How often a single event was refused, and how many batches had been accepted when that happened last."""

    refusals: int
    accepted_before: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events to send in one request: `lines` as `events.Block` has them, and their numbers, in the same order.

    `half_of` is the refused batch that this is a half of; `suspicion` is that against a single event that was refused.
    `enqueued_at`, in seconds since the epoch, is when its first event was accepted, where that is known.
    """

    context: Context
    lines: bytes
    spans: tuple[Span, ...]
    half_of: Refused | None = field(default=None, compare=False)
    suspicion: Suspicion | None = field(default=None, compare=False)
    enqueued_at: float | None = field(default=None, compare=False)

    @property
    def event_count(self) -> int:
        """How many events it has."""
        return sum([span.stop - span.start for span in self.spans])

    @property
    def refusals(self) -> int:
        """How often it was refused as a single event."""
        return self.suspicion.refusals if self.suspicion is not None else 0

    @property
    def size(self) -> Size:
        """How large its request is."""
        return Size(self.event_count, len(self.lines) + events.ARRAY_OVERHEAD)

    def split(self, refused: str | None = None) -> tuple["Batch", "Batch"]:
        """Return two halves of a batch of at least two events; `refused` says why, if it was refused."""
        whole = None if refused is None else Refused(self.size, refused)
        return self._split_at((self.event_count + 1) // 2, whole)

    def fit(self, limit: Size) -> tuple["Batch", "Batch | None"]:
        """Return as much of its beginning as `limit` allows, but at least one event, and the rest if there is any."""
        count = self.event_count
        most = limit.bytes - events.ARRAY_OVERHEAD
        fitting = max(events.count_fitting(self.lines, min(count, limit.events), most), 1)
        return (self, None) if fitting >= count else self._split_at(fitting, None)

    def take_out(self, index: int) -> tuple["Batch", list["Batch"]]:
        """Return the event at that place, and what is before and behind it."""
        head, tail = (None, self) if index == 0 else self._split_at(index, None)
        one, rest = tail.fit(Size(1, len(tail.lines)))
        return one, [part for part in (head, rest) if part is not None]

    def _split_at(self, middle: int, whole: Refused | None) -> tuple["Batch", "Batch"]:
        head, tail = events.split_lines(self.lines, middle)
        return (
            Batch(self.context, head, tuple(self._numbers(0, middle)), whole, enqueued_at=self.enqueued_at),
            Batch(
                self.context, tail, tuple(self._numbers(middle, self.event_count)), whole, enqueued_at=self.enqueued_at
            ),
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
    enqueued_at: float | None = None


class _Open:
    """A batch that still grows; `size` is in bytes, as lines."""

    __slots__ = ("chunks", "count", "enqueued_at", "opened_at", "size", "spans")

    def __init__(self, opened_at: float, enqueued_at: float | None) -> None:
        self.opened_at = opened_at
        self.enqueued_at = enqueued_at
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
    """Collects pieces into batches; the batches of a context keep its order.

    `held_bytes` and `held_spans` is how much the open batches hold.
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.held_spans = 0
        self._open: dict[tuple[Context, str | None], _Open] = {}

    def add(self, piece: Piece, limit: Size, now: float) -> list[Batch]:
        """Take a piece at `now` on the steady clock; return the batches that it fills, which are no larger than `limit`."""
        full: list[Batch] = []
        key, span, lines = (piece.context, piece.session), piece.span, piece.lines
        most = limit.bytes - events.ARRAY_OVERHEAD
        while span.length:
            batch = self._open.get(key) or self._open.setdefault(key, _Open(now, piece.enqueued_at))
            room = max(limit.events - batch.count, 0)
            part = events.count_fitting(lines, min(span.length, room), most - batch.size)
            if not batch.count:
                part = max(part, 1)  # an event that is too large goes alone, and the API says what it thinks of it
            head, lines = (lines, b"") if part == span.length else events.split_lines(lines, part)
            if part:
                before = len(batch.spans)
                batch.add(Span(span.start, span.start + part), head)
                self.held_bytes += len(head)
                self.held_spans += len(batch.spans) - before
            span = Span(span.start + part, span.stop)
            if span.length or batch.count >= limit.events:
                full.append(self._close(key))
        return full

    def due(self, opened_before: float) -> list[Batch]:
        """Close and return the batches that were opened before that time, on the steady clock."""
        return [self._close(key) for key, batch in list(self._open.items()) if batch.opened_at <= opened_before]

    def filled(self, limit: Size) -> list[Batch]:
        """Close and return the batches that fill a limit, which may be lower than the one that they began with."""
        most = limit.bytes - events.ARRAY_OVERHEAD
        open_batches = list(self._open.items())
        return [self._close(key) for key, batch in open_batches if batch.count >= limit.events or batch.size >= most]

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
        return Batch(key[0], b"".join(batch.chunks), tuple(batch.spans), enqueued_at=batch.enqueued_at)
