"""Batches that have been formed and not been taken, and those that still grow: what every backlog has in memory."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter

import msgspec

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch, Batcher, BatchOptions, Piece
from agent.events import decode_events, encode_events
from agent.queue.cursor import Span

MAX_HELD_BYTES = 4 * 1024 * 1024
MAX_HELD_SPANS = 500  # of a batch, and of the open ones together


class ReadyBatches:
    """They are formed for the largest limit so far, and cut when they are taken. Times are on the steady clock."""

    def __init__(self, options: BatchOptions) -> None:
        self.options = options
        self._batcher = Batcher()
        self._most = Size(0, 0)
        self._ready: deque[Batch] = deque()

    def __bool__(self) -> bool:
        """Whether one can be taken."""
        return bool(self._ready)

    def raise_limit(self, limit: Size) -> None:
        """Form batches of this limit, too, from now on."""
        self._most = Size(*map(max, self._most, limit))

    def add(self, pieces: Iterable[Piece], now: float) -> None:
        """Put events into batches; closes all that are open when they hold too much."""
        for piece in pieces:
            for part in _by_session(piece) if self.options.split_sessions else (piece,):
                self._ready.extend(self._batcher.add(part, self._most, now))
        if self._batcher.held_spans > MAX_HELD_SPANS or self._batcher.held_bytes > MAX_HELD_BYTES:
            self.close_due(now, at_once=True)

    def close_filled(self, limit: Size) -> None:
        """Close the open batches that fill a limit, which may be lower than the one that they began with."""
        self._ready.extend(self._batcher.filled(limit))

    def close_due(self, now: float, *, at_once: bool) -> None:
        """Close the open batches that have waited long enough, or all."""
        oldest, max_delay = self._batcher.oldest, self.options.max_delay
        if at_once:
            self._ready.extend(self._batcher.due(now))
        elif now >= oldest + max_delay:
            # Compared exactly as others wait for it: a difference that is rounded otherwise would have them ask for ever.
            self._ready.extend(self._batcher.due(max(now - max_delay, oldest)))

    @property
    def due_at(self) -> float:
        """When the next open batch has waited long enough; infinity if there is none."""
        return self._batcher.oldest + self.options.max_delay

    def take(self, limit: Size) -> Batch | None:
        """Take the first batch, or as much of it as the limit allows."""
        while self._ready:
            batch = self._ready.popleft()
            if len(batch.spans) > MAX_HELD_SPANS:
                self._ready.extendleft(reversed(batch.split()))
                continue
            batch, rest = batch.fit(limit)
            if rest is not None:
                self._ready.appendleft(rest)
            return batch
        return None

    def put_back(self, *batches: Batch) -> None:
        """Let these be taken again, the oldest first."""
        self._ready = deque(sorted([*batches, *self._ready], key=lambda batch: batch.spans[0].start))

    def newest_first(self) -> list[Batch]:
        """Return what can be taken, the newest first."""
        return sorted(self._ready, key=lambda batch: batch.spans[-1].stop, reverse=True)

    def replace(self, batch: Batch, rest: Iterable[Batch]) -> None:
        """Put what is left of a batch of these in its place."""
        self._ready = deque(each for each in self._ready if each is not batch)
        self.put_back(*rest)

    def clear(self) -> None:
        """Forget all."""
        self._ready.clear()
        self._batcher = Batcher()


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
        span = Span(seq, seq + len(events))
        yield Piece(piece.context, session, span, encode_events(events), piece.enqueued_at)
        seq += len(events)
