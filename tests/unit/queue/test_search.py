"""A search finds exactly the queued events of a session, numbered below its barrier, in whatever records they are."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.events import Context, Event, encode_events, session_prefix
from agent.queue.barrier import SessionBarrier
from agent.queue.cursor import Outcome, Span
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.search import Search
from agent.queue.snapshot import snapshot_of
from agent.queue.store import Limits, Plan, Store
from tests.support.fault_filesystem import FaultFilesystem

ROOT = Path("/queue")
MINE, OTHERS = 'my "session"', "s"


def appended(store: Store, *records: list[bool]) -> None:
    """Commit records of events that are, or are not, of the session."""
    entries = []
    for record in records:
        events = [Event(MINE if mine else OTHERS, "LOCAL", "HIT", session_prefix(MINE).decode()) for mine in record]
        entries.append(Entry(len(record), encode_record(Record(0.0, Context(), encode_events(events)))))
    store.commit(Plan(entries, store.cursor.state(), None), 0.0)
    store.published()


def found_by(fs: FaultFilesystem, store: Store, barrier: SessionBarrier) -> int:
    """Search the queue as it is now; return how many events are queued, and remember which in the barrier."""
    search = Search(barrier, session_prefix(MINE), snapshot_of(fs, store))
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
    store = Store(fs, ROOT, Limits(segment_bytes=segment_bytes))
    for record in records:
        appended(store, record)
    mine = [seq for seq, each in enumerate((each for record in records for each in record), 1) if each]
    spans = [Span(min(pair), min(max(pair), store.cursor.next_seq)) for pair in settled]
    store.cursor.settle([span for span in spans if span.start < span.stop], Outcome.DELIVERED)
    queued = {seq for seq in mine if store.cursor.unsettled(Span(seq, seq + 1))}

    barrier = SessionBarrier(store.cursor, {})
    store.cursor.watchers.append(barrier)
    appended(store, [True] * 3)
    assert found_by(fs, store, barrier) == len(queued)
    for seq in range(1, store.cursor.next_seq):
        before = barrier.report().delivered
        store.cursor.settle([Span(seq, seq + 1)], Outcome.DELIVERED)
        assert barrier.report().delivered - before == (seq in queued)
    assert barrier.passed


def test_a_record_that_something_else_wrote_and_a_segment_that_has_gone_are_passed_over() -> None:
    fs = FaultFilesystem()
    store = Store(fs, ROOT, Limits(segment_bytes=1))
    store.commit(Plan([Entry(2, b"no record: " + session_prefix(MINE))], store.cursor.state(), None), 0.0)
    appended(store, [True, True])
    appended(store, [False, True])
    gone = store.log.path(store.log.view.segments[1].first_seq)
    fs.unlink(gone)
    barrier = SessionBarrier(store.cursor, {})
    assert found_by(fs, store, barrier) == 1
