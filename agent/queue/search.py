"""Which of the queued events are a session's: a snapshot of the queue is looked through, a segment at a time.

What it finds goes to a barrier as sequence numbers, at a bit each. Segments without the session's name are not taken apart.
"""

from collections.abc import Sequence

from agent.queue.barrier import Numbers, SessionBarrier
from agent.queue.cursor import Span
from agent.queue.record import Frame, record_in
from agent.queue.snapshot import QueueSnapshot


class Search:
    """One search, for a barrier that was opened at the moment of the snapshot. Events that cannot be read are no session's."""

    def __init__(self, barrier: SessionBarrier, session_prefix: bytes, queue: QueueSnapshot) -> None:
        self.barrier = barrier
        self.queue = queue
        self._prefix = session_prefix
        self._found = Numbers()

    def look_into(self, index: int) -> None:
        """Look through a segment; it takes as long as reading one. Raises StorageError for a shortage."""
        log, cursor = self.queue.log, self.queue.cursor
        if log.view.limit(index) <= cursor.position or (found := log.contents(index, self._prefix)) is None:
            return
        for frame in found.frames:
            parts = cursor.unsettled(Span(frame.first_seq, min(frame.next_seq, self.barrier.stop)))
            if parts and self._prefix in frame.payload and (record := record_in(frame)) is not None:
                marks = _marks(record.lines, self._prefix) & _bits(frame, parts)
                self._found.add_marked(frame.first_seq, marks)

    def end(self) -> None:
        """Tell the barrier what has been found."""
        self.barrier.find(self._found)


def _marks(lines: bytes, session_prefix: bytes) -> int:
    """Return a number whose bits say which lines begin so; the lowest bit is the first line's."""
    digits = [line.startswith(session_prefix) for line in lines.split(b"\n")]
    return int("".join(map("01".__getitem__, reversed(digits))), 2)


def _bits(frame: Frame, parts: Sequence[Span]) -> int:
    """Return a number whose bits say which of a frame's events are in `parts`."""
    return sum(((1 << part.length) - 1) << (part.start - frame.first_seq) for part in parts)
