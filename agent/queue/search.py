"""Which of the queued events are a session's: a snapshot of the queue is looked through, a segment at a time.

It knows segments, records and what a session's lines begin with. It must never know who asks, or change anything.

What it finds goes to a barrier as sequence numbers, at a bit each. Segments without the session's name are not taken apart.
"""

from collections.abc import Iterator, Sequence

from agent.queue.barrier import Numbers, SessionBarrier
from agent.queue.cursor import Span
from agent.queue.record import Frame, record_in
from agent.queue.snapshot import QueueSnapshot


class Search:
    """One search, for a barrier that was opened at the moment of the snapshot. Events that cannot be read are no session's."""

    def __init__(self, barrier: SessionBarrier, opening: bytes, queue: QueueSnapshot) -> None:
        self.barrier = barrier
        self.queue = queue
        self._opening = opening
        self._found = Numbers()

    def look_into(self, index: int) -> None:
        """Look through a segment; it takes as long as reading one. Raises StorageError for a shortage."""
        log, cursor = self.queue.log, self.queue.cursor
        if log.limit(index) <= cursor.position or (found := log.contents(index, self._opening)) is None:
            return
        for frame in found.frames:
            parts = cursor.unsettled(Span(frame.first_seq, min(frame.next_seq, self.barrier.stop)))
            if parts and self._opening in frame.payload:
                for span in _spans_in(frame, self._opening, parts):
                    self._found.add(span)

    def end(self) -> None:
        """Tell the barrier what has been found."""
        self.barrier.find(self._found)


def _spans_in(frame: Frame, opening: bytes, parts: Sequence[Span]) -> Iterator[Span]:
    """Yield which of the events in `parts` of a frame have lines that begin so."""
    record = record_in(frame)
    if record is None:
        return
    if record.lines.count(opening) == frame.item_count:
        yield from parts
        return
    for seq in _numbers_in(record.lines, opening, frame.first_seq):
        if any(part.start <= seq < part.stop for part in parts):
            yield Span(seq, seq + 1)


def _numbers_in(lines: bytes, opening: bytes, seq: int) -> Iterator[int]:
    """Yield the numbers of the lines that begin so; `seq` is the first line's."""
    before, at = 0, lines.find(opening)
    while at >= 0:
        seq += lines.count(b"\n", before, at)
        yield seq
        before, at = at, lines.find(opening, at + len(opening))
