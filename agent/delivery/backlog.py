"""Where the worker's batches come from: reads the queue in order, trims what is settled, and groups the rest.

It knows the queue's reader and batches. It must never know answers or pauses.

Everything it holds in memory is also in the queue, so it can forget: reading then begins again at the cursor.
"""

import errno
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import anyio
import msgspec
import structlog

from agent.delivery.batching import Batch, Batcher, Piece
from agent.errors import StorageError
from agent.events import decode_events, encode_events, split_lines
from agent.queue.cursor import Outcome, Span
from agent.queue.filesystem import FOREIGN
from agent.queue.log import LogView
from agent.queue.ownership import Owner
from agent.queue.quarantine import DIRECTORY, DamagedBytes
from agent.queue.reader import Reader
from agent.queue.record import Frame, Record, record_in
from agent.queue.segment import Gap
from agent.queue.store import Store
from agent.queue.writer import Writer
from agent.runtime import Runtime
from agent.throttle import Throttle

READ_BYTES = 1024 * 1024
READ_ATTEMPTS = 5
READ_RETRY_SECONDS = 1.0
LOG_INTERVAL = 60.0
MAX_HELD_BYTES = 4 * 1024 * 1024
MAX_HELD_SPANS = 500  # what is settled out of order must fit into a checkpoint

# What says that the bytes are gone. After anything else, such as too many open files, they may be readable later.
_DAMAGED = FOREIGN | {errno.EIO, errno.EBADMSG, errno.EUCLEAN}


@dataclass(frozen=True)
class BatchOptions:
    """How batches are formed. Sizes in bytes, times in seconds."""

    max_bytes: int = 960 * 1024
    max_delay: float = 2.0
    max_age: float = 7 * 86400
    split_sessions: bool = False


class _Read(NamedTuple):
    """A record that was read, and the numbers of its events."""

    span: Span
    record: Record


class DiskBacklog:
    """The batches of one queue, from the cursor's position on; `settled` counts the events it found expired or damaged,
    `error` says why the queue cannot be read just now."""

    def __init__(self, store: Store, writer: Owner[Writer], options: BatchOptions, runtime: Runtime) -> None:
        self._store = store
        self._writer = writer
        self._options = options
        self._runtime = runtime
        self._log = structlog.get_logger("agent.delivery")
        self._ready: deque[Batch] = deque()
        self._batcher = Batcher(options.max_bytes)
        self._reader: Reader | None = None
        self._failures = 0
        self.error: str | None = None
        self._throttle = Throttle(LOG_INTERVAL)
        self.settled = 0

    def next_batch(self, max_events: int) -> Batch | None:
        """Take the next closed batch, or the first part of it that has at most `max_events` events."""
        while self._ready:
            batch = self._ready.popleft()
            if batch.event_count <= max_events and len(batch.spans) <= MAX_HELD_SPANS:
                return batch
            self.put_back(*batch.split())
        return None

    def put_back(self, *batches: Batch) -> None:
        """Let `batches` be the next ones; of several that come back one by one, the oldest is the first."""
        self._ready = deque(sorted([*batches, *self._ready], key=lambda batch: batch.spans[0].start))

    def close_due(self, now: float, *, at_once: bool) -> bool:
        """Close the open batches that have waited long enough, or all; tell whether a batch is ready."""
        if at_once:
            self._ready.extend(self._batcher.due(now))
        elif now >= self.due_at:
            # Compared exactly as others wait for it: a difference that is rounded otherwise would have them ask for ever.
            self._ready.extend(self._batcher.due(max(now - self._options.max_delay, self._batcher.oldest)))
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
        """Read what comes next into batches of at most `max_events`; False only at the end of the queue."""
        if self._reader is None:
            self._reader = self._store.reader()
        try:
            read = partial(self._read_and_decode, self._reader, self._store.view)
            items, damaged = await self._runtime.run_blocking(read)
        except StorageError as error:
            await self._after_failure(self._reader, error)
            return True
        self._failures, self.error = 0, None
        if damaged:  # before it is settled, and its segment can go
            await self._writer.run(partial(Writer.quarantine, pieces=damaged))
        now = anyio.current_time()
        for item in items:
            self._take(item, max_events, now)
        return bool(items)

    def _take(self, item: _Read | Gap, max_events: int, now: float) -> None:
        if isinstance(item, Gap):
            self._settle_gap(item.span)
            return
        for piece in self._pieces(item):
            self._ready.extend(self._batcher.add(piece, max_events, now))
        if self._batcher.held_spans > MAX_HELD_SPANS or self._batcher.held_bytes > MAX_HELD_BYTES:
            self.close_due(now, at_once=True)

    async def _after_failure(self, reader: Reader, error: StorageError) -> None:
        """Let the disk have another try, but not for ever where it says that the bytes are gone."""
        self._failures += 1
        self.error = str(error)
        held_back = self._throttle.allow("queue_unreadable", anyio.current_time())
        if held_back is not None:
            self._log.error("queue_unreadable", error=str(error), suppressed=held_back)
        cause = error.__cause__
        if self._failures >= READ_ATTEMPTS and isinstance(cause, OSError) and cause.errno in _DAMAGED:
            self._failures = 0
            for gap in reader.skip(self._store.view):
                self._settle_gap(gap.span)
        else:
            await anyio.sleep(READ_RETRY_SECONDS)

    def _read_and_decode(self, reader: Reader, view: LogView) -> tuple[list[_Read | Gap], list[DamagedBytes]]:
        """Do what is to be done in the reading thread."""
        read = reader.read(view, READ_BYTES)
        items = [item if isinstance(item, Gap) else self._decode(item, read.damaged) for item in read.items]
        return items, read.damaged

    def _pieces(self, read: _Read) -> Iterator[Piece]:
        """Yield what of a record is still to be delivered, by session if that is asked for."""
        whole, record = read
        if record.enqueued_at < self._runtime.wall_clock() - self._options.max_age:
            self.settled += self._store.cursor.settle([whole], Outcome.EXPIRED)
            return
        for span in self._store.cursor.unsettled(whole):
            lines = record.lines
            if span != whole:
                lines = split_lines(split_lines(lines, span.start - whole.start)[1], span.length)[0]
            piece = Piece(record.context, None, span, lines)
            yield from _by_session(piece) if self._options.split_sessions else (piece,)

    def _decode(self, frame: Frame, damaged: list[DamagedBytes]) -> _Read | Gap:
        span = Span(frame.first_seq, frame.next_seq)
        record = record_in(frame, own=frame.first_seq >= self._store.first_own_seq)
        if record is None:
            damaged.append(DamagedBytes(frame.first_seq, 0, frame.payload))
            return Gap(span)
        return _Read(span, record)

    def _settle_gap(self, span: Span) -> None:
        lost = self._store.cursor.settle([span], Outcome.CORRUPT)
        self.settled += lost
        held_back = self._throttle.allow("events_corrupt", anyio.current_time()) if lost else None
        if held_back is not None:
            kept = str(self._store.directory / DIRECTORY)
            self._log.error("events_corrupt", events=lost, first=span.start, quarantine=kept, suppressed=held_back)


def _by_session(piece: Piece) -> Iterator[Piece]:
    try:
        decoded = decode_events(piece.lines)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = []
    if encode_events(decoded) != piece.lines:  # written by something else: let the API say what it thinks of it
        yield piece
        return
    seq = piece.span.start
    for session, group in groupby(decoded, attrgetter("session_id")):
        events = list(group)
        yield Piece(piece.context, session, Span(seq, seq + len(events)), encode_events(events))
        seq += len(events)
