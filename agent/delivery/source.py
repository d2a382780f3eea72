"""Where the worker's batches come from: reads the queue in order, trims what is settled, and groups the rest.

It knows the queue's reader and batches. It must never know answers or pauses.

Everything it holds in memory is also in the queue, so it can forget: reading then begins again at the cursor.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter

import anyio
import msgspec
import structlog

from agent.delivery.batch import Batch, Batcher, Piece
from agent.errors import StorageError
from agent.events import Event
from agent.queue.committer import RunBlocking
from agent.queue.cursor import Outcome, Span
from agent.queue.reader import Gap, Reader
from agent.queue.record import Frame, Record, decode_record
from agent.queue.store import Store

READ_BYTES = 256 * 1024
READ_ATTEMPTS = 5
READ_RETRY_SECONDS = 1.0
MAX_HELD_SPANS = 1024  # what is settled out of order must fit into a checkpoint

# What an event takes as JSON, against its part of a record as msgpack.
_JSON_RATIO = 1.25


@dataclass(frozen=True)
class Options:
    """How batches are formed. Sizes in bytes, times in seconds."""

    max_bytes: int = 960 * 1024
    max_delay: float = 2.0
    max_age: float = 7 * 86400
    split_sessions: bool = False


@dataclass(frozen=True)
class Seams:
    """What differs between production and tests: threads, clocks and chance."""

    run_blocking: RunBlocking
    wall_clock: Callable[[], float]
    random: Callable[[], float]


class Source:
    """The batches of one queue, from the cursor's position on."""

    def __init__(self, store: Store, options: Options, seams: Seams) -> None:
        self._store = store
        self._options = options
        self._seams = seams
        self._log = structlog.get_logger("agent.delivery")
        self._ready: deque[Batch] = deque()
        self._batcher = Batcher(options.max_bytes)
        self._reader: Reader | None = None
        self._failures = 0

    def next_batch(self, max_events: int) -> Batch | None:
        """Take the next closed batch, or the first part of it that has at most `max_events` events."""
        while self._ready:
            batch = self._ready.popleft()
            if len(batch.events) <= max_events:
                return batch
            self.put_back(*batch.split())
        return None

    def put_back(self, *batches: Batch) -> None:
        """Let `batches` be the next ones, in their order."""
        self._ready.extendleft(reversed(batches))

    def close_due(self, now: float, *, hurry: bool) -> bool:
        """Close the open batches that have waited long enough, or all; tell whether a batch is ready."""
        self._ready.extend(self._batcher.due(now if hurry else now - self._options.max_delay))
        return bool(self._ready)

    @property
    def due_at(self) -> float:
        """When the next open batch is due, on the steady clock; infinity if there is none."""
        return self._batcher.oldest + self._options.max_delay

    def forget(self) -> None:
        """Drop all that is held in memory; the next `read` begins at the cursor. Nothing may be in flight then."""
        self._ready.clear()
        self._batcher = Batcher(self._options.max_bytes)
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    async def read(self, max_events: int) -> bool:
        """Read what comes next into batches of at most `max_events`; False at the end of the queue."""
        if self._reader is None:
            self._reader = self._store.reader()
        items = await self._read_items(self._reader)
        now = anyio.current_time()
        for item in items:
            match item:
                case Frame() as frame:
                    for piece in self._pieces(frame):
                        self._ready.extend(self._batcher.add(piece, max_events, now))
                case Gap(span):
                    self._settle_gap(span)
        if self._batcher.held_spans > MAX_HELD_SPANS:
            self.close_due(now, hurry=True)
        return bool(items)

    async def _read_items(self, reader: Reader) -> list[Frame | Gap]:
        try:
            items = await self._seams.run_blocking(partial(reader.read, READ_BYTES))
        except StorageError as error:
            self._failures += 1
            self._log.error("queue_unreadable", error=str(error), attempt=self._failures, attempts=READ_ATTEMPTS)
            if self._failures < READ_ATTEMPTS:
                await anyio.sleep(READ_RETRY_SECONDS)
                return []
            items = reader.skip()
        self._failures = 0
        return items

    def _pieces(self, frame: Frame) -> Iterator[Piece]:
        """Yield what of a frame is still to be delivered, by session if that is asked for."""
        whole = Span(frame.first_seq, frame.next_seq)
        record = self._decode(frame)
        if record is None:
            return
        if record.enqueued_at < self._seams.wall_clock() - self._options.max_age:
            self._store.cursor.settle([whole], Outcome.EXPIRED)
            return
        event_size = int(len(frame.payload) / frame.item_count * _JSON_RATIO)
        for span in self._store.cursor.unsettled(whole):
            seq = span.start
            for session, events in self._by_session(record.events[seq - whole.start : span.stop - whole.start]):
                yield Piece(record.context, session, seq, events, event_size * len(events))
                seq += len(events)

    def _by_session(self, events: list[Event]) -> Iterator[tuple[str | None, list[Event]]]:
        if not self._options.split_sessions:
            return iter([(None, events)])
        return ((session, list(group)) for session, group in groupby(events, attrgetter("session_id")))

    def _decode(self, frame: Frame) -> Record | None:
        try:
            record = decode_record(frame.payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            record = None
        if record is None or len(record.events) != frame.item_count:
            self._store.quarantine.keep(frame.first_seq, 0, frame.payload)
            self._settle_gap(Span(frame.first_seq, frame.next_seq))
            return None
        return record

    def _settle_gap(self, span: Span) -> None:
        lost = self._store.cursor.settle([span], Outcome.CORRUPT)
        if lost:
            self._log.error(
                "events_corrupt", events=lost, first=span.start, quarantine=str(self._store.quarantine.directory)
            )
