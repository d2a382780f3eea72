"""A search finds exactly the events of a session, numbered below its barrier, and what has become of them."""

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.events import Context, Event, encode_events, session_prefix
from agent.queue import segment
from agent.queue.barrier import FlushReport, SessionBarrier
from agent.queue.cursor import Outcome, Span
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.search import Search
from agent.queue.snapshot import snapshot_of
from agent.queue.store import Limits
from tests.support.fault_filesystem import FaultFilesystem
from tests.support.open_queue import OpenQueue

ROOT = Path("/queue")
SETTLING = [Outcome.DELIVERED, Outcome.DEAD_LETTERED, Outcome.EXPIRED]
MINE, OTHERS = 'my "session"', "s"


def appended(queue: OpenQueue, *records: list[bool]) -> None:
    """Commit records of events that are, or are not, of the session."""
    entries = []
    for record in records:
        events = [Event(MINE if mine else OTHERS, "LOCAL", "HIT", session_prefix(MINE).decode()) for mine in record]
        entries.append(Entry(len(record), encode_record(Record(0.0, Context(), encode_events(events)))))
    queue.commit(entries)


def search(fs: FaultFilesystem, queue: OpenQueue, barrier: SessionBarrier) -> FlushReport:
    """Search the queue as it is now, tell the barrier, and return its report."""
    search = Search(barrier, session_prefix(MINE), snapshot_of(fs, queue.store), queue.store.undelivered)
    for log in (search.queue.log, search.history()):
        for index in range(len(log.view.segments)):
            search.look_into(log, index)
    search.end()
    return barrier.report()


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from(SETTLING)), max_size=6),
    st.sampled_from([1, 1500, 100_000]),
    st.booleans(),
)
def test_what_is_found_is_what_was_queued_and_what_became_of_the_rest(
    records: list[list[bool]], settled: list[tuple[int, int, Outcome]], segment_bytes: int, restarted: bool
) -> None:
    fs, limits = FaultFilesystem(), Limits(segment_bytes=segment_bytes, history_bytes=1 << 20)
    queue = OpenQueue(fs, ROOT, limits)
    for record in records:
        appended(queue, record)
    mine = [seq for seq, each in enumerate((each for record in records for each in record), 1) if each]
    ends: dict[int, Outcome] = {}
    for first, last, outcome in settled:
        span = Span(min(first, last), min(max(first, last), queue.cursor.next_seq))
        for seq in range(*span):
            ends.setdefault(seq, outcome)
        if span.start < span.stop:
            queue.cursor.settle([span], outcome)
        queue.commit()
    if restarted:
        fs.kill()
        queue = OpenQueue(fs, ROOT, limits)
    queued = {seq for seq in mine if queue.cursor.unsettled(Span(seq, seq + 1))}
    assert queued == {*mine} - {*ends}

    barrier = SessionBarrier(queue.cursor)
    queue.cursor.watchers.append(barrier)
    appended(queue, [True] * 3)
    left = Counter(str(ends[seq]) for seq in mine if seq in ends)
    assert search(fs, queue, barrier) == FlushReport(queued=len(queued) + left.total()).settled(left)
    for seq in range(1, queue.cursor.next_seq):
        before = barrier.report().delivered
        queue.cursor.settle([Span(seq, seq + 1)], Outcome.DELIVERED)
        assert barrier.report().delivered - before == (seq in queued)
    assert barrier.passed


def test_a_record_that_something_else_wrote_and_a_segment_that_has_gone_are_passed_over() -> None:
    fs = FaultFilesystem()
    queue = OpenQueue(fs, ROOT, Limits(segment_bytes=1))
    queue.commit([Entry(2, b"no record: " + session_prefix(MINE))])
    appended(queue, [True, True])
    appended(queue, [False, True])
    gone = ROOT / "segments" / segment.name(queue.view.segments[1].first_seq)
    fs.unlink(gone)
    assert search(fs, queue, SessionBarrier(queue.cursor)).queued == 1
