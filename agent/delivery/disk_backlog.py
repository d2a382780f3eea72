"""The backlog on disk: reads the queue in order, leaves out what is settled, groups the rest into batches, and settles them.

Everything that it holds in memory is also in the queue, so it can rewind: reading then begins again at the cursor.
"""

import errno
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import anyio
import structlog

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch, BatchOptions, Piece
from agent.delivery.ready import ReadyBatches
from agent.delivery.sampling import find_sample
from agent.delivery.transport import Verdict
from agent.errors import StorageError
from agent.events import split_lines
from agent.queue.committer import NO_ANSWER, STALL_SECONDS, Committer
from agent.queue.cursor import Outcome, Pause, Span
from agent.queue.dead_letters import DeadLetter, DeadLetters
from agent.queue.filesystem import FOREIGN
from agent.queue.log import LogView
from agent.queue.ownership import Owner
from agent.queue.quarantine import DIRECTORY, DamagedBytes
from agent.queue.reader import Reader
from agent.queue.record import Frame, Record, record_in
from agent.queue.segment import Gap
from agent.queue.store import Store
from agent.queue.writer import Writer
from agent.runtime import Broadcast, Runtime
from agent.throttle import Throttle

READ_BYTES = 1024 * 1024
READ_ATTEMPTS = 5
SAMPLED_RECORDS = 256
SAMPLED_SEGMENTS = 8  # at most so many of the newest are looked through for a sample
STORAGE_RETRY_SECONDS = 1.0
LOG_INTERVAL = 60.0
MAX_SHOWN_BYTES = 300

# A checkpoint has a fixed size, and lists what is settled beyond the cursor's position: at worst, all that is under way.
MAX_OPEN_SPANS = 1000

# What says that the bytes are gone. After anything else, such as too many open files, they may be readable later.
_DAMAGED = FOREIGN | {errno.EIO, errno.EBADMSG, errno.EUCLEAN}


class _Read(NamedTuple):
    """A record that was read, and the numbers of its events."""

    span: Span
    record: Record


class DiskBacklog:
    """The events of one queue that wait; see `agent.delivery.backlog.Backlog`."""

    def __init__(
        self,
        store: Store,
        writer: Owner[Writer],
        committer: Committer,
        dead_letters: Owner[DeadLetters],
        options: BatchOptions,
        runtime: Runtime,
    ) -> None:
        self._store = store
        self._writer = writer
        self._committer = committer
        self._dead_letters = dead_letters
        self._runtime = runtime
        self._log = structlog.get_logger("agent.delivery")
        self._throttle = Throttle(LOG_INTERVAL)
        self._ready = ReadyBatches(options)
        self._taken: dict[int, int] = {}  # the first number of each batch that is under way, and how many spans it has
        self._sampled: set[int] = set()  # numbers that were taken before the reader came to them
        self._reader: Reader | None = None
        self._reading_since: float | None = None
        self._failures = 0
        self._read_error: str | None = None
        self._dead_letter_error: str | None = None
        self._dead_letter_lock = anyio.Lock()
        self.changed = Broadcast()

    def reconfigure(self, options: BatchOptions) -> None:
        """Form batches so from the next `rewind` on."""
        self._ready.options = options

    @property
    def storage_error(self) -> str | None:
        """See `Backlog`."""
        return (NO_ANSWER if self.stalled else None) or self._read_error or self._dead_letter_error

    @property
    def is_reading(self) -> bool:
        """Whether a read is under way."""
        return self._reading_since is not None

    @property
    def stalled(self) -> bool:
        """Whether the read that is under way has taken longer than STALL_SECONDS."""
        return self._reading_since is not None and anyio.current_time() - self._reading_since >= STALL_SECONDS

    def note_stall(self) -> None:
        """Say in the log that a read does not end."""
        self._complain("queue_unreadable", error=f"{self._store.directory}: {NO_ANSWER}")

    @property
    def pause(self) -> Pause | None:
        """See `Backlog`."""
        return self._store.cursor.pause

    def remember(self, pause: Pause | None) -> None:
        """See `Backlog`: the next checkpoint has it."""
        self._store.cursor.pause = pause
        self._committer.request()

    # Taking

    async def next_batch(self, limit: Size, *, at_once: bool) -> Batch | None:
        """See `Backlog`. Reads at most once."""
        self._ready.raise_limit(limit)
        if self._too_scattered:
            return None
        if not self._ready and self._has_unread:
            await self._read()
        if not self._ready and not self._has_unread:
            self._failures, self._read_error = 0, None  # what could not be read may have been settled meanwhile
            self._ready.close_filled(limit)
            self._ready.close_due(anyio.current_time(), at_once=at_once)
        batch = self._ready.take(limit)
        if batch is not None:
            self._taken[batch.spans[0].start] = len(batch.spans)
        return batch

    async def take_sample(self, refused: Sequence[Batch]) -> Batch | None:
        """See `Backlog`. What has been read comes in question, and what the newest segments hold beyond that."""
        if self._store.cursor.settled_beyond >= MAX_OPEN_SPANS:  # each sample that is settled leaves another gap
            return None
        unread: list[_Read] = []
        if self._has_unread:
            try:
                unread = await self._runtime.run_blocking(partial(self._newest_unread, self._store.view))
            except StorageError:
                return None  # the next batch meets the same bytes and says so
        self._ready.close_due(anyio.current_time(), at_once=True)
        read = self._ready.newest_first()
        waiting = chain((batch for each in unread for batch in reversed(self._batches_of(each))), read)
        found = find_sample(waiting, refused)
        if found is None:
            return None
        batch, index = found
        sample, rest = batch.take_out(index)
        if any(each is batch for each in read):
            self._ready.replace(batch, rest)
        else:
            self._sampled.add(sample.spans[0].start)
        self._taken[sample.spans[0].start] = 1
        return sample

    @property
    def due_at(self) -> float:
        """See `Backlog`."""
        if self._too_scattered:
            return float("inf")
        return float("-inf") if self._ready or self._has_unread else self._ready.due_at

    @property
    def _too_scattered(self) -> bool:
        """Whether a checkpoint might not take it if all that is under way, and more, were settled before what is in front."""
        return bool(self._taken) and sum(self._taken.values()) + self._store.cursor.settled_beyond > MAX_OPEN_SPANS

    @property
    def _has_unread(self) -> bool:
        cursor, reader = self._store.cursor, self._reader
        return (cursor.position if reader is None else reader.position) < cursor.next_seq

    def put_back(self, *batches: Batch) -> None:
        """See `Backlog`."""
        for batch in batches:
            self._taken.pop(batch.spans[0].start, None)
        self._ready.put_back(*batches)

    def holds(self, batch: Batch) -> bool:
        """See `Backlog`: nobody else has the queue."""
        return True

    def rewind(self) -> None:
        """See `Backlog`: the next read begins at the cursor."""
        self._ready.clear()
        self._taken.clear()
        self._sampled.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # Settling

    async def settle(self, batch: Batch, outcome: Outcome) -> None:
        """See `Backlog`. A disk that refuses the checkpoint holds delivery up: a crash would repeat too much."""
        self._store.cursor.settle(batch.spans, outcome)
        while (await self._committer.request().wait()).checkpoint_error is not None:  # noqa: ASYNC110 - a retry, not a poll
            await anyio.sleep(STORAGE_RETRY_SECONDS)
        self._taken.pop(batch.spans[0].start, None)
        self._sampled.discard(batch.spans[0].start)

    async def keep_dead_letter(self, batch: Batch, verdict: Verdict) -> None:
        """See `Backlog`."""
        now = self._runtime.wall_clock()
        letter = DeadLetter(batch.spans[0].start, now, verdict.status, verdict.message, batch.context, batch.lines)
        sent = letter.line[:MAX_SHOWN_BYTES].decode(errors="replace").rstrip()
        self._log.warning("event_dead_lettered", seq=letter.seq, sent=sent, message=verdict.message)
        async with self._dead_letter_lock:
            while True:
                try:
                    await self._dead_letters.run(partial(DeadLetters.append, dead_letter=letter, now=now))
                    break
                except StorageError as error:
                    self._dead_letter_error = str(error)
                    self._complain("dead_letter_not_kept", error=str(error))
                await anyio.sleep(STORAGE_RETRY_SECONDS)
            self._dead_letter_error = None

    async def purge(self) -> int:
        """See `Backlog`. Durable with the next checkpoint."""
        cursor = self._store.cursor
        count = cursor.settle([Span(cursor.position, cursor.next_seq)], Outcome.PURGED)
        self.rewind()
        return count

    # Reading

    async def _read(self) -> None:
        """Read what comes next into batches."""
        if self._reader is None:
            self._reader = self._store.reader()
        read = partial(self._read_and_decode, self._reader, self._store.view)
        self._reading_since = anyio.current_time()
        try:
            items, damaged = await self._runtime.run_blocking(read)
        except StorageError as error:
            self._reading_since = None
            await self._after_failure(self._reader, error)
            return
        finally:
            self._reading_since = None
        self._failures, self._read_error = 0, None
        if damaged:  # before it is settled, and its segment can go
            await self._writer.run(partial(Writer.quarantine, pieces=damaged))
        now, settled = anyio.current_time(), 0
        for item in items:
            settled += self._take(item, now)
        if settled:
            self._committer.request()

    def _take(self, item: _Read | Gap, now: float) -> int:
        """Put what is still to be delivered of it into batches; return how many events were settled instead."""
        if isinstance(item, Gap):
            return self._settle_gap(item.span)
        whole, record = item
        if record.enqueued_at < self._runtime.wall_clock() - self._ready.options.max_age:
            return self._store.cursor.settle([whole], Outcome.EXPIRED)
        found = self._batches_of(item)
        self._ready.add(
            (Piece(each.context, None, each.spans[0], each.lines, record.enqueued_at) for each in found), now
        )
        return 0

    def _batches_of(self, item: _Read) -> list[Batch]:
        """Return what is to be delivered of a record that was read, each stretch of numbers by itself."""
        whole, record = item
        context = record.context if record.context.job is None else record.context.for_api
        found = []
        for span in self._unsampled(self._store.cursor.unsettled(whole)):
            lines = record.lines
            if span != whole:
                lines = split_lines(split_lines(lines, span.start - whole.start)[1], span.length)[0]
            found.append(Batch(context, lines, (span,), enqueued_at=record.enqueued_at))
        return found

    def _unsampled(self, spans: Iterable[Span]) -> Iterator[Span]:
        for span in spans:
            start = span.start
            for number in sorted(each for each in self._sampled if span.start <= each < span.stop):
                if start < number:
                    yield Span(start, number)
                start = number + 1
            if start < span.stop:
                yield Span(start, span.stop)

    def _newest_unread(self, view: LogView) -> list[_Read]:
        """Do what a sample needs of the reading thread: return the last records, newest first. Raises StorageError."""
        position = self._reader.position if self._reader is not None else 0
        found: list[_Read] = []
        for index in range(len(view.segments) - 1, max(len(view.segments) - 1 - SAMPLED_SEGMENTS, -1), -1):
            limit = view.limit(index)
            if limit <= position or len(found) >= SAMPLED_RECORDS:
                break
            reader = self._store.reader(max(view.segments[index].first_seq, position))
            newest: deque[_Read] = deque(maxlen=SAMPLED_RECORDS)
            try:
                while reader.position < limit and (items := reader.read(view, READ_BYTES).items):
                    decoded = (self._decode(item, []) for item in items if isinstance(item, Frame))
                    newest.extend(each for each in decoded if isinstance(each, _Read) and each.span.start < limit)
            finally:
                reader.close()
            found += reversed(newest)
        return found

    async def _after_failure(self, reader: Reader, error: StorageError) -> None:
        """Let the disk have another try, but not for ever where it says that the bytes are gone."""
        self._failures += 1
        self._read_error = str(error)
        self._complain("queue_unreadable", error=str(error))
        cause = error.__cause__
        if self._failures >= READ_ATTEMPTS and isinstance(cause, OSError) and cause.errno in _DAMAGED:
            self._failures = 0
            if sum(self._settle_gap(gap.span) for gap in reader.skip(self._store.view)):
                self._committer.request()
        else:
            await anyio.sleep(STORAGE_RETRY_SECONDS)

    def _read_and_decode(self, reader: Reader, view: LogView) -> tuple[list[_Read | Gap], list[DamagedBytes]]:
        """Do what is to be done in the reading thread. At the end no file stays open."""
        read = reader.read(view, READ_BYTES)
        items = [item if isinstance(item, Gap) else self._decode(item, read.damaged) for item in read.items]
        if reader.position >= view.next_seq:
            reader.close()  # what is deleted while it is open still takes its room on the disk
        return items, read.damaged

    def _decode(self, frame: Frame, damaged: list[DamagedBytes]) -> _Read | Gap:
        span = Span(frame.first_seq, frame.next_seq)
        record = record_in(frame, own=frame.first_seq >= self._store.first_own_seq)
        if record is None:
            damaged.append(DamagedBytes(frame.first_seq, 0, frame.payload))
            return Gap(span)
        return _Read(span, record)

    def _settle_gap(self, span: Span) -> int:
        lost = self._store.cursor.settle([span], Outcome.CORRUPT)
        if lost:
            kept = str(self._store.directory / DIRECTORY)
            self._complain("events_corrupt", events=lost, first=span.start, quarantine=kept)
        return lost

    def _complain(self, event: str, **facts: object) -> None:
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.error(event, **facts, suppressed=held_back)
