"""What `agent.delivery.batch` promises: every event comes out once, with its number, in batches that are not too large."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.delivery.batch import Batch, Batcher, Piece
from agent.events import Context, Event
from agent.queue.cursor import Span

VERCEL, GITHUB = Context("VERCEL", 0), Context("GITHUB_ACTIONS", 0)
EVENT_SIZE = 10


def event(seq: int) -> Event:
    """An event that tells its number."""
    return Event("s", "LOCAL", "HIT", "h", seq)


def events(*spans: tuple[int, int]) -> list[Event]:
    return [event(seq) for span in spans for seq in range(*span)]


def piece(start: int, stop: int, context: Context = VERCEL, session: str | None = None) -> Piece:
    return Piece(context, session, start, events((start, stop)), EVENT_SIZE * (stop - start))


def batch(*spans: tuple[int, int], context: Context = VERCEL, size: int | None = None) -> Batch:
    """The batch that holds the events with these numbers."""
    found = events(*spans)
    return Batch(context, found, tuple(Span(*s) for s in spans), EVENT_SIZE * len(found) if size is None else size)


def fill(
    pieces: Iterable[Piece], *, max_events: int = 1000, max_bytes: int = 10_000
) -> tuple[list[Batch], list[Batch]]:
    """The batches that these pieces fill, and those that stay open."""
    batcher = Batcher(max_bytes)
    full = [each for given_ in pieces for each in batcher.add(given_, max_events, 0.0)]
    return full, batcher.due(0.0)


# --- splitting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "left", "right"),
    [
        (batch((5, 7)), batch((5, 6)), batch((6, 7))),
        (batch((5, 9)), batch((5, 7)), batch((7, 9))),
        (batch((5, 10)), batch((5, 8)), batch((8, 10))),
        (batch((5, 6), (8, 9)), batch((5, 6)), batch((8, 9))),
        (batch((5, 6), (8, 12), (20, 21)), batch((5, 6), (8, 10)), batch((10, 12), (20, 21))),
        (batch((5, 7), (8, 10)), batch((5, 7)), batch((8, 10))),
        (batch((1, 2), (3, 4), (5, 6)), batch((1, 2), (3, 4)), batch((5, 6))),
    ],
)
def test_a_batch_splits_into_halves_that_know_their_numbers(whole: Batch, left: Batch, right: Batch) -> None:
    assert whole.split() == (left, right)


def test_the_size_is_shared_out_by_the_number_of_events() -> None:
    left, right = batch((1, 4), size=100).split()
    assert (left.size, right.size) == (66, 33)


numbers = st.lists(st.integers(1, 60), min_size=2, max_size=40, unique=True).map(sorted)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_bisection_down_to_single_events_keeps_every_number_with_its_event(seqs: list[int]) -> None:
    [whole], _ = fill([piece(seq, seq + 1) for seq in seqs], max_events=len(seqs))
    open_, singles = [whole], []
    while open_:
        half = open_.pop()
        if len(half.events) == 1:
            singles.append(half)
        else:
            open_.extend(reversed(half.split()))
    assert singles == [batch((seq, seq + 1)) for seq in seqs]


# --- closing ------------------------------------------------------------------------------------------------------


def test_a_batch_is_full_at_max_events() -> None:
    assert fill([piece(1, 4)], max_events=4) == ([], [batch((1, 4))])
    assert fill([piece(1, 5)], max_events=4) == ([batch((1, 5))], [])
    assert fill([piece(1, 6)], max_events=4) == ([batch((1, 5))], [batch((5, 6))])
    assert fill([piece(1, 12)], max_events=4) == ([batch((1, 5)), batch((5, 9))], [batch((9, 12))])
    assert fill([piece(1, 4), piece(4, 7)], max_events=4) == ([batch((1, 5))], [batch((5, 7))])


def test_a_batch_is_full_before_max_bytes_are_exceeded() -> None:
    assert fill([piece(1, 5)], max_bytes=40) == ([], [batch((1, 5))])
    assert fill([piece(1, 6)], max_bytes=40) == ([batch((1, 5))], [batch((5, 6))])
    assert fill([piece(1, 5), piece(5, 6)], max_bytes=49) == ([batch((1, 5))], [batch((5, 6))])


def test_an_event_that_is_larger_than_a_batch_travels_alone() -> None:
    huge = Piece(VERCEL, None, 5, events((5, 6)), 999)
    full, left = fill([piece(1, 5), huge, piece(6, 8)], max_bytes=100)
    assert [*full, *left] == [batch((1, 5)), batch((5, 6), size=999), batch((6, 8))]


def test_events_that_are_each_larger_than_a_batch_travel_one_by_one() -> None:
    full, left = fill([Piece(VERCEL, None, 1, events((1, 4)), 3000)], max_bytes=100)
    assert [*full, *left] == [batch((seq, seq + 1), size=1000) for seq in (1, 2, 3)]


def test_an_event_counts_at_least_one_byte() -> None:
    assert fill([Piece(VERCEL, None, 1, events((1, 4)), 0)], max_bytes=2) == (
        [batch((1, 3), size=2)],
        [batch((3, 4), size=1)],
    )


def test_a_limit_that_has_become_smaller_closes_what_is_over_it() -> None:
    batcher = Batcher(10_000)
    assert batcher.add(piece(1, 9), 1000, 0.0) == []
    assert batcher.add(piece(9, 11), 2, 0.0) == [batch((1, 9)), batch((9, 11))]
    assert batcher.due(0.0) == []


def test_numbers_that_follow_each_other_are_one_span() -> None:
    [whole], _ = fill([piece(1, 3), piece(3, 4), piece(6, 8), piece(8, 9)], max_events=6)
    assert whole == batch((1, 4), (6, 9))


def test_a_batch_has_one_context_and_one_session() -> None:
    pieces = [
        piece(1, 3),
        piece(3, 4, GITHUB),
        piece(4, 5, session="a"),
        piece(5, 7),
        piece(7, 8, GITHUB),
        piece(8, 9, session="a"),
    ]
    assert fill(pieces) == ([], [batch((1, 3), (5, 7)), batch((3, 4), (7, 8), context=GITHUB), batch((4, 5), (8, 9))])


def test_equal_contexts_are_one() -> None:
    assert fill([piece(1, 2, Context("X", 1)), piece(2, 3, Context("X", 1))])[1] == [
        batch((1, 3), context=Context("X", 1))
    ]


def test_a_batch_is_due_when_its_first_event_has_waited() -> None:
    batcher = Batcher(10_000)
    assert batcher.oldest == float("inf")
    batcher.add(piece(1, 2), 1000, 10.0)
    batcher.add(piece(2, 3, GITHUB), 1000, 11.0)
    batcher.add(piece(3, 4), 1000, 12.0)
    assert batcher.oldest == 10.0
    assert batcher.due(9.9) == []
    assert batcher.due(10.0) == [batch((1, 2), (3, 4))]
    assert batcher.oldest == 11.0
    assert batcher.due(99.0) == [batch((2, 3), context=GITHUB)]
    assert batcher.oldest == float("inf")


def test_the_rest_of_a_piece_begins_a_batch_of_its_own_age() -> None:
    batcher = Batcher(10_000)
    batcher.add(piece(1, 2), 4, 10.0)
    assert batcher.add(piece(2, 7), 4, 20.0) == [batch((1, 5))]
    assert batcher.oldest == 20.0


def test_the_spans_of_open_batches_are_counted() -> None:
    batcher = Batcher(10_000)
    assert batcher.held_spans == 0
    for each in (piece(1, 2), piece(2, 3), piece(4, 5), piece(5, 6, GITHUB)):
        batcher.add(each, 1000, 0.0)
    assert batcher.held_spans == 3
    batcher.due(0.0)
    assert batcher.held_spans == 0


def test_the_bytes_of_open_batches_are_counted() -> None:
    batcher = Batcher(10_000)
    batcher.add(Piece(VERCEL, None, 1, events((1, 3)), 200), 1000, 0.0)
    batcher.add(Piece(GITHUB, None, 3, events((3, 4)), 70), 1000, 0.0)
    assert batcher.held_bytes == 270
    batcher.due(0.0)
    assert batcher.held_bytes == 0


# --- whatever comes -----------------------------------------------------------------------------------------------


@st.composite
def random_pieces(draw: st.DrawFn) -> list[Piece]:
    """Pieces as the queue brings them: numbers grow, with gaps."""
    pieces, seq = [], 1
    for _ in range(draw(st.integers(0, 12))):
        seq += draw(st.integers(0, 3))
        count = draw(st.integers(1, 9))
        context, session = draw(st.sampled_from([VERCEL, GITHUB])), draw(st.sampled_from([None, "a"]))
        pieces.append(Piece(context, session, seq, events((seq, seq + count)), draw(st.integers(0, 400))))
        seq += count
    return pieces


@settings(max_examples=300, deadline=None)
@given(random_pieces(), st.integers(1, 8), st.integers(1, 300))
def test_every_event_comes_out_once_in_order_within_the_limits(
    pieces: list[Piece], max_events: int, max_bytes: int
) -> None:
    full, left = fill(pieces, max_events=max_events, max_bytes=max_bytes)
    found = [*full, *left]
    for each in found:
        assert 1 <= len(each.events) <= max_events
        assert each.size <= max_bytes or len(each.events) == 1
        assert list(each.events) == events(*each.spans)
        assert all(one.stop < two.start for one, two in zip(each.spans, each.spans[1:], strict=False))
    for context in (VERCEL, GITHUB):
        sent = [e for each in found if each.context == context for e in each.events]
        taken = [e for each in pieces if each.context == context for e in each.events]
        assert sorted(sent, key=lambda e: e.duration or 0) == taken


@settings(max_examples=100, deadline=None)
@given(random_pieces(), st.integers(1, 8))
def test_the_batches_of_a_context_keep_its_order(pieces: list[Piece], max_events: int) -> None:
    pieces = [each._replace(session=None) for each in pieces]
    full, left = fill(pieces, max_events=max_events)
    for context in (VERCEL, GITHUB):
        sent = [e for each in [*full, *left] if each.context == context for e in each.events]
        assert sent == [e for each in pieces if each.context == context for e in each.events]
