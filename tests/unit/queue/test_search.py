"""A search finds exactly the queued events of a session, numbered below its barrier, in whatever records they are."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.events import Context, Event, encode_events, session_prefix
from agent.queue import segment
from agent.queue.barrier import SessionBarrier
from agent.queue.cursor import Outcome, Span
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.search import Search
from agent.queue.snapshot import snapshot_of
from agent.queue.store import Limits
from tests.support.fault_filesystem import FaultFilesystem
from tests.support.open_queue import OpenQueue

ROOT = Path("/queue")
MINE, OTHERS = 'my "session"', "s"


def appended(queue: OpenQueue, *records: list[bool]) -> None:
    """Commit records of events that are, or are not, of the session."""
    entries = []
    for record in records:
        events = [Event(MINE if mine else OTHERS, "LOCAL", "HIT", session_prefix(MINE).decode()) for mine in record]
        entries.append(Entry(len(record), encode_record(Record(0.0, Context(), encode_events(events)))))
    queue.commit(entries)


def found_by(fs: FaultFilesystem, queue: OpenQueue, barrier: SessionBarrier) -> int:
    """Search the queue as it is now; return how many events are queued, and remember which in the barrier."""
    search = Search(barrier, session_prefix(MINE), snapshot_of(fs, queue.store))
    for index in range(len(search.queue.log.view.segments)):
        search.look_into(index)
    search.end()
    return barrier.report().queued


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=4),
    st.sampled_from([1, 1500, 100_000]),
)
def test_what_is_found_is_what_was_queued(
    records: list[list[bool]], settled: list[tuple[int, int]], segment_bytes: int
) -> None:
    fs = FaultFilesystem()
    queue = OpenQueue(fs, ROOT, Limits(segment_bytes=segment_bytes))
    for record in records:
        appended(queue, record)
    mine = [seq for seq, each in enumerate((each for record in records for each in record), 1) if each]
    spans = [Span(min(pair), min(max(pair), queue.cursor.next_seq)) for pair in settled]
    queue.cursor.settle([span for span in spans if span.start < span.stop], Outcome.DELIVERED)
    queued = {seq for seq in mine if queue.cursor.unsettled(Span(seq, seq + 1))}

    barrier = SessionBarrier(queue.cursor, {})
    queue.cursor.watchers.append(barrier)
    appended(queue, [True] * 3)
    assert found_by(fs, queue, barrier) == len(queued)
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
    barrier = SessionBarrier(queue.cursor, {})
    assert found_by(fs, queue, barrier) == 1
