"""Looking into a queue: what its segments hold, and which events wait in it, page by page. Nothing is changed."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from agent.events import Context, Event, decode_event
from agent.queue.cursor import Ledger, Span
from agent.queue.record import Record, record_in
from agent.queue.segment import Gap
from agent.queue.snapshot import Contents, QueueSnapshot
from agent.timestamps import iso

PAGE_EVENTS = 1000
MAX_PAGE_EVENTS = 10_000


class EventFilter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events are meant: those of which all holds that is given. `before` and `after` are in seconds since the epoch."""

    session: str | UnsetType = UNSET
    source: Literal["LOCAL", "REMOTE"] | UnsetType = UNSET
    event: Literal["HIT", "MISS"] | UnsetType = UNSET
    before: float | UnsetType = UNSET
    after: float | UnsetType = UNSET

    def takes(self, event: Event, at: float) -> bool:
        """Tell whether an event from that time is meant."""
        return (
            self.session in (UNSET, event.session_id)
            and self.source in (UNSET, event.source)
            and self.event in (UNSET, event.event)
            and (self.before is UNSET or at < self.before)
            and (self.after is UNSET or at >= self.after)
        )


class Origin(msgspec.Struct, frozen=True):
    """A context, with names."""

    ci: str | None
    interactive: Literal[0, 1] | None

    @classmethod
    def of(cls, context: Context) -> "Origin":
        """Return what a context says."""
        return cls(context.ci, context.interactive)


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event that waits: its number, when it was accepted (ISO 8601), where it came from, and it."""

    seq: int
    enqueued_at: str
    context: Origin
    event: Event


class EventPage(msgspec.Struct, frozen=True):
    """Some of the queued events, in order; `next` is the number to go on from, None at the end.

    `unreadable` counts the events in this stretch of the queue that are damaged, or in a file that cannot be read now.
    """

    events: list[QueuedEvent]
    next: int | None
    unreadable: int


class SegmentReport(msgspec.Struct, frozen=True):
    """A segment: `queued` of its events wait. Times are of the oldest and newest record; `damaged` is in bytes.

    `unreadable` events wait, and cannot be read; `problem` says why nothing of the file could be.
    """

    file: str
    first_seq: int
    records: int
    events: int
    queued: int
    bytes: int
    oldest: str | None
    newest: str | None
    damaged: int
    unreadable: int
    problem: str | None


class Listing(msgspec.Struct, frozen=True):
    """All segments, oldest first. `unreadable` events are among the `queued`; some may have no segment at all."""

    segments: list[SegmentReport]
    records: int
    events: int
    queued: int
    bytes: int
    damaged: int
    unreadable: int
    ledger: Ledger


class Waiting(NamedTuple):
    """A queued event, and the record that it is in."""

    seq: int
    record: Record
    event: Event


def list_segments(queue: QueueSnapshot) -> Listing:
    """Look at every segment, one at a time. Raises StorageError for a shortage."""
    segments = [_report(queue, found) for found in queue.log.all_contents()]
    return Listing(
        segments,
        records=sum(each.records for each in segments),
        events=sum(each.events for each in segments),
        queued=queue.cursor.queued,
        bytes=sum(each.bytes for each in segments),
        damaged=sum(each.damaged for each in segments),
        unreadable=sum(each.unreadable for each in segments) + missing(queue),
        ledger=queue.cursor.ledger(),
    )


def event_page(queue: QueueSnapshot, wanted: EventFilter, start: int, limit: int) -> EventPage:
    """Return up to `limit` of the queued events that are meant, numbered from `start` on; of one segment at most.

    Raises StorageError for a shortage.
    """
    segments, cursor = queue.log.view.segments, queue.cursor
    start = max(start, cursor.position)
    if not segments or start >= cursor.next_seq:
        return EventPage([], None, missing(queue) if start <= cursor.position else 0)
    index = max(queue.log.view.index_of(start), 0)
    unreadable = missing(queue) if start == cursor.position else 0
    found = queue.log.contents(index)
    events: list[QueuedEvent] = []
    if found is not None:
        for item in queued_events(queue, found, start):
            if isinstance(item, Span):
                unreadable += item.length
            elif wanted.takes(item.event, item.record.enqueued_at):
                if len(events) == limit:
                    return EventPage(events, item.seq, unreadable)
                events.append(_queued(item))
    following = queue.log.view.limit(index)
    return EventPage(events, following if following < cursor.next_seq else None, unreadable)


def missing(queue: QueueSnapshot) -> int:
    """Count the queued events that are older than every segment."""
    segments = queue.log.view.segments
    first = segments[0].first_seq if segments else queue.cursor.next_seq
    return unsettled(queue, Span(queue.cursor.position, first))


def unsettled(queue: QueueSnapshot, span: Span) -> int:
    """Count the events of `span` that nothing has settled yet."""
    return sum(part.length for part in queue.cursor.unsettled(span))


def queued_events(queue: QueueSnapshot, found: Contents, start: int) -> Iterator[Waiting | Span]:
    """Yield the queued events of a segment from `start` on, in order; a span where they cannot be read."""
    for item, span in found.accounted():
        clipped = Span(max(span.start, start), span.stop)
        parts = queue.cursor.unsettled(clipped) if clipped.start < clipped.stop else []
        if not parts:
            continue
        if isinstance(item, Gap) or (record := record_in(item)) is None:
            yield from parts
        else:
            yield from _waiting(item.first_seq, record, parts)


def _waiting(first_seq: int, record: Record, parts: list[Span]) -> Iterator[Waiting | Span]:
    """Yield these events of a record; a span for a line that is no event, which only another writer can have written."""
    lines = record.lines.split(b"\n")
    for seq in (seq for part in parts for seq in range(part.start, part.stop)):
        try:
            yield Waiting(seq, record, decode_event(lines[seq - first_seq]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            yield Span(seq, seq + 1)


def _queued(item: Waiting) -> QueuedEvent:
    return QueuedEvent(item.seq, iso(item.record.enqueued_at), Origin.of(item.record.context), item.event)


def _report(queue: QueueSnapshot, found: Contents) -> SegmentReport:
    first, limit = found.segment.first_seq, found.limit
    times, readable, unreadable = _survey(queue, found)
    return SegmentReport(
        file=found.path.name,
        first_seq=first,
        records=len(times),
        events=readable,
        queued=unsettled(queue, Span(first, limit)),
        bytes=len(found.data) if found.error is None else found.segment.size,
        oldest=iso(min(times)) if times else None,
        newest=iso(max(times)) if times else None,
        damaged=sum(each.end - each.start for each in found.damage),
        unreadable=unreadable,
        problem=found.error,
    )


def _survey(queue: QueueSnapshot, found: Contents) -> tuple[list[float], int, int]:
    """Return when each readable record was enqueued, their events, and how many queued events cannot be read."""
    times, readable, lost = [], 0, 0
    for item, span in found.accounted():
        if isinstance(item, Gap) or (record := record_in(item)) is None:
            lost += unsettled(queue, span)
        else:
            times.append(record.enqueued_at)
            readable += span.length
    return times, readable, lost
