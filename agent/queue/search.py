"""Which events are a session's, and what has become of them: the queue and its history are looked through, a segment at a time.

What it finds goes to a barrier as sequence numbers, at a bit each. Segments without the session's name are not taken apart.
"""

from agent.errors import StorageError
from agent.queue.barrier import Numbers, SessionBarrier
from agent.queue.cursor import Outcome, Span
from agent.queue.history import read_history
from agent.queue.record import Frame, record_in
from agent.queue.snapshot import LogSnapshot, QueueSnapshot
from agent.queue.undelivered import Undelivered, read_undelivered


class Search:
    """One search, for a barrier that was opened at the moment of the snapshot. Events that cannot be read are no session's.

    `pending` are the rows that were not in the queue's file of undelivered events yet. Its calls block: `look_into` each part of
    the queue, then of `history`, then `end`. A segment moves only from the one to the other, so that none is missed.
    """

    def __init__(
        self, barrier: SessionBarrier, session_prefix: bytes, queue: QueueSnapshot, pending: tuple[Undelivered, ...]
    ) -> None:
        self.barrier = barrier
        self.queue = queue
        self._pending = pending
        self._prefix = session_prefix
        self._queued = Numbers()
        self._settled = Numbers()

    def history(self) -> LogSnapshot:
        """Return what is kept of what was settled. Raises StorageError."""
        try:
            return read_history(self.queue.log.fs, self.queue.directory, self.barrier.stop)
        except OSError as error:
            raise StorageError(f"{self.queue.directory}: the history cannot be read: {error.strerror}") from error

    def look_into(self, log: LogSnapshot, index: int) -> None:
        """Look through a segment; it takes as long as reading one. Raises StorageError for a shortage."""
        found = log.contents(index, self._prefix)
        for frame in () if found is None else found.frames:
            if self._prefix in frame.payload and (record := record_in(frame)) is not None:
                marks = _marks(record.lines, self._prefix)
                queued = marks & self._unsettled_bits(frame)
                self._queued.add_marked(frame.first_seq, queued)
                self._settled.add_marked(frame.first_seq, (marks ^ queued) & self._bits_below(frame))

    def end(self) -> None:
        """Tell the barrier what has been found. Raises StorageError."""
        try:
            rows = [*read_undelivered(self.queue.log.fs, self.queue.directory), *self._pending]
        except OSError as error:
            raise StorageError(
                f"{self.queue.directory}: what was not delivered cannot be read: {error.strerror}"
            ) from error
        self.barrier.find(self._queued, _outcomes(self._settled, rows))

    def _unsettled_bits(self, frame: Frame) -> int:
        """Return a number whose bits say which of a frame's events were queued at the barrier's moment."""
        parts = self.queue.cursor.unsettled(Span(frame.first_seq, min(frame.next_seq, self.barrier.stop)))
        return sum(((1 << part.length) - 1) << (part.start - frame.first_seq) for part in parts)

    def _bits_below(self, frame: Frame) -> int:
        """Return a number whose bits say which of a frame's events had been accepted at the barrier's moment."""
        return (1 << max(min(frame.next_seq, self.barrier.stop) - frame.first_seq, 0)) - 1


def _outcomes(settled: Numbers, rows: list[Undelivered]) -> dict[str, int]:
    """Return what became of settled events: what is in `rows`, or else they were delivered."""
    ends: dict[str, Numbers] = {}
    for row in rows:
        if settled.count(row.span):
            ends.setdefault(row.outcome, Numbers()).add(row.span)
    counts = {outcome: numbers.common(settled) for outcome, numbers in ends.items()}
    return {Outcome.DELIVERED: len(settled) - sum(counts.values()), **counts}


def _marks(lines: bytes, session_prefix: bytes) -> int:
    """Return a number whose bits say which lines begin so; the lowest bit is the first line's."""
    digits = [line.startswith(session_prefix) for line in lines.split(b"\n")]
    return int("".join(map("01".__getitem__, reversed(digits))), 2)
