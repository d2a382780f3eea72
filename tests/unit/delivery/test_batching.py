"""What `agent.delivery.batching` promises: every event comes out once, with its number, in batches that are not too large."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch, Batcher, Piece
from agent.events import ARRAY_OVERHEAD, Context, Event, decode_events, encode_events
from agent.queue.cursor import Span
from tests.support.json_array import to_json_array

VERCEL, GITHUB = Context("VERCEL", 0), Context("GITHUB_ACTIONS", 0)


def event(seq: int, padding: int = 0) -> Event:
    """An event that tells its number, and has `padding` bytes more than others."""
    return Event("s", "LOCAL", "HIT", "x" * padding, 100_000 + seq)


def events(*spans: tuple[int, int], padding: int = 0) -> list[Event]:
    return [event(seq, padding) for span in spans for seq in range(*span)]


EVENT_BYTES = len(encode_events([event(1)]))
"""What an event takes, with its line end or the comma behind it."""


def room_for(count: int) -> int:
    """The size of a body of so many events."""
    return len(to_json_array(encode_events(events((0, count)))))


def piece(start: int, stop: int, context: Context = VERCEL, session: str | None = None, *, padding: int = 0) -> Piece:
    return Piece(context, session, Span(start, stop), encode_events(events((start, stop), padding=padding)))


def batch(*spans: tuple[int, int], context: Context = VERCEL, padding: int = 0) -> Batch:
    """The batch that holds the events with these numbers."""
    return Batch(context, encode_events(events(*spans, padding=padding)), tuple(Span(*s) for s in spans))


def limited(max_events: int, max_bytes: int = 1_000_000) -> Size:
    """A limit that is one of events, unless it says otherwise."""
    return Size(max_events, max_bytes)


def fill(
    pieces: Iterable[Piece], *, max_events: int = 1000, max_bytes: int = 1_000_000
) -> tuple[list[Batch], list[Batch]]:
    """The batches that these pieces fill, and those that stay open."""
    batcher, limit = Batcher(), Size(max_events, max_bytes)
    full = [each for given_ in pieces for each in batcher.add(given_, limit, 0.0)]
    return full, batcher.due(0.0)


# --- splitting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "fits", "rest"),
    [
        (limited(4), batch((5, 7), (8, 10)), None),
        (limited(3), batch((5, 7), (8, 9)), batch((9, 10))),
        (limited(1), batch((5, 6)), batch((6, 7), (8, 10))),
        (limited(4, room_for(4)), batch((5, 7), (8, 10)), None),
        (limited(4, room_for(4) - 1), batch((5, 7), (8, 9)), batch((9, 10))),
        (limited(4, 1), batch((5, 6)), batch((6, 7), (8, 10))),
    ],
)
def test_a_batch_is_cut_to_a_limit_but_never_below_one_event(limit: Size, fits: Batch, rest: Batch | None) -> None:
    assert batch((5, 7), (8, 10)).fit(limit) == (fits, rest)
    assert batch((5, 6)).fit(Size(1, 1)) == (batch((5, 6)), None)


def test_the_size_of_a_batch_is_that_of_its_request() -> None:
    assert batch((5, 8)).size == Size(3, room_for(3))


def test_the_halves_of_a_refused_batch_know_it_and_what_is_cut_from_them_does_not() -> None:
    whole = batch((1, 9))
    left, right = whole.split("400 Bad Request")
    assert left.half_of is not None
    assert right.half_of is left.half_of
    assert (left.half_of.size, left.half_of.message) == (whole.size, "400 Bad Request")
    assert left.fit(limited(4))[0].half_of is left.half_of
    assert [part.half_of for part in left.fit(limited(2)) if part] == [None, None]
    assert [half.half_of for half in whole.split()] == [None, None]


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


def test_a_batch_counts_its_events_by_their_numbers() -> None:
    assert batch((5, 6), (8, 12), (20, 21)).event_count == 6


def test_halves_have_the_very_bytes_of_the_whole() -> None:
    mixed = encode_events([event(1, 5), event(2, 900), event(3), event(4, 70)])
    left, right = Batch(VERCEL, mixed, (Span(1, 5),)).split()
    assert (left.lines, right.lines) == (
        encode_events([event(1, 5), event(2, 900)]),
        encode_events([event(3), event(4, 70)]),
    )


numbers = st.lists(st.integers(1, 60), min_size=2, max_size=40, unique=True).map(sorted)


@settings(max_examples=200, deadline=None)
@given(numbers)
def test_bisection_down_to_single_events_keeps_every_number_with_its_event(seqs: list[int]) -> None:
    [whole], _ = fill([piece(seq, seq + 1) for seq in seqs], max_events=len(seqs))
    open_, singles = [whole], []
    while open_:
        half = open_.pop()
        if half.event_count == 1:
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


def test_a_batch_is_full_before_its_body_exceeds_max_bytes() -> None:
    exact = room_for(4)
    assert exact == 4 * EVENT_BYTES + ARRAY_OVERHEAD
    assert fill([piece(1, 5)], max_bytes=exact) == ([], [batch((1, 5))])
    assert fill([piece(1, 6)], max_bytes=exact) == ([batch((1, 5))], [batch((5, 6))])
    assert fill([piece(1, 6)], max_bytes=exact - 1) == ([batch((1, 4))], [batch((4, 6))])
    assert fill([piece(1, 5), piece(5, 6)], max_bytes=exact + EVENT_BYTES - 1) == ([batch((1, 5))], [batch((5, 6))])
    assert fill([piece(1, 5), piece(5, 6)], max_bytes=exact + EVENT_BYTES) == ([], [batch((1, 6))])


def test_events_of_unequal_sizes_fill_a_batch_to_the_byte() -> None:
    small, large = piece(1, 3), piece(3, 5, padding=500)
    exact = len(to_json_array(small.lines + encode_events([event(3, 500)])))
    mixed = Piece(VERCEL, None, Span(1, 5), small.lines + large.lines)
    for pieces in ([mixed], [small, large]):
        [full], [left] = fill(pieces, max_bytes=exact)
        assert (full.spans, left.spans) == ((Span(1, 4),), (Span(4, 5),))
        assert len(to_json_array(full.lines)) == exact
        [first, *_], _ = fill(pieces, max_bytes=exact - 1)
        assert first.spans == (Span(1, 3),)


def test_an_event_that_is_larger_than_a_batch_travels_alone() -> None:
    huge = piece(5, 6, padding=999)
    full, left = fill([piece(1, 5), huge, piece(6, 8)], max_bytes=room_for(6))
    assert [*full, *left] == [batch((1, 5)), batch((5, 6), padding=999), batch((6, 8))]


def test_an_event_that_is_larger_than_a_batch_travels_alone_wherever_it_is_in_its_record() -> None:
    lines = encode_events([event(1), event(2, 999), event(3)])
    full, left = fill([Piece(VERCEL, None, Span(1, 4), lines)], max_bytes=room_for(3))
    assert [*full, *left] == [batch((1, 2)), batch((2, 3), padding=999), batch((3, 4))]


def test_events_that_are_each_larger_than_a_batch_travel_one_by_one() -> None:
    full, left = fill([piece(1, 4, padding=1000)], max_bytes=100)
    assert [*full, *left] == [batch((seq, seq + 1), padding=1000) for seq in (1, 2, 3)]


def test_even_a_limit_that_holds_nothing_lets_events_travel_one_by_one() -> None:
    full, left = fill([piece(1, 4)], max_bytes=0)
    assert [*full, *left] == [batch((seq, seq + 1)) for seq in (1, 2, 3)]


def test_a_limit_that_has_become_smaller_closes_what_is_over_it() -> None:
    batcher = Batcher()
    assert batcher.add(piece(1, 9), limited(1000), 0.0) == []
    assert batcher.add(piece(9, 11), limited(2), 0.0) == [batch((1, 9)), batch((9, 11))]
    assert batcher.due(0.0) == []


def test_a_limit_that_has_become_smaller_closes_what_fills_it() -> None:
    batcher = Batcher()
    batcher.add(piece(1, 4), limited(1000), 0.0)
    batcher.add(piece(4, 5, GITHUB), limited(1000), 0.0)
    assert batcher.filled(limited(4)) == []
    assert batcher.filled(limited(4, room_for(3) + 1)) == []
    assert batcher.filled(limited(3)) == [batch((1, 4))]
    assert batcher.filled(limited(4, room_for(1))) == [batch((4, 5), context=GITHUB)]
    assert (batcher.held_bytes, batcher.held_spans) == (0, 0)


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
    batcher = Batcher()
    assert batcher.oldest == float("inf")
    batcher.add(piece(1, 2), limited(1000), 10.0)
    batcher.add(piece(2, 3, GITHUB), limited(1000), 11.0)
    batcher.add(piece(3, 4), limited(1000), 12.0)
    assert batcher.oldest == 10.0
    assert batcher.due(9.9) == []
    assert batcher.due(10.0) == [batch((1, 2), (3, 4))]
    assert batcher.oldest == 11.0
    assert batcher.due(99.0) == [batch((2, 3), context=GITHUB)]
    assert batcher.oldest == float("inf")


def test_the_rest_of_a_piece_begins_a_batch_of_its_own_age() -> None:
    batcher = Batcher()
    batcher.add(piece(1, 2), limited(4), 10.0)
    assert batcher.add(piece(2, 7), limited(4), 20.0) == [batch((1, 5))]
    assert batcher.oldest == 20.0


def test_the_spans_of_open_batches_are_counted() -> None:
    batcher = Batcher()
    assert batcher.held_spans == 0
    for each in (piece(1, 2), piece(2, 3), piece(4, 5), piece(5, 6, GITHUB)):
        batcher.add(each, limited(1000), 0.0)
    assert batcher.held_spans == 3
    batcher.due(0.0)
    assert batcher.held_spans == 0


def test_the_bytes_of_open_batches_are_counted() -> None:
    batcher = Batcher()
    batcher.add(piece(1, 3, padding=100), limited(1000), 0.0)
    batcher.add(piece(3, 4, GITHUB), limited(1000), 0.0)
    assert batcher.held_bytes == 2 * (EVENT_BYTES + 100) + EVENT_BYTES
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
        lines = encode_events([event(each, draw(st.integers(0, 40))) for each in range(seq, seq + count)])
        pieces.append(Piece(context, session, Span(seq, seq + count), lines))
        seq += count
    return pieces


def sequence(lines: bytes) -> list[int]:
    """The numbers that events tell."""
    return [int(each.duration or 0) - 100_000 for each in decode_events(lines)]


@settings(max_examples=300, deadline=None)
@given(random_pieces(), st.integers(1, 8), st.integers(1, 800))
def test_every_event_comes_out_once_in_order_within_the_limits(
    pieces: list[Piece], max_events: int, max_bytes: int
) -> None:
    full, left = fill(pieces, max_events=max_events, max_bytes=max_bytes)
    found = [*full, *left]
    for each in found:
        assert 1 <= each.event_count <= max_events
        assert len(to_json_array(each.lines)) <= max_bytes or each.event_count == 1
        assert sequence(each.lines) == [seq for span in each.spans for seq in range(*span)]
        assert all(one.stop < two.start for one, two in zip(each.spans, each.spans[1:], strict=False))
    for context in (VERCEL, GITHUB):
        sent = [line for each in found if each.context == context for line in each.lines.splitlines()]
        taken = [line for each in pieces if each.context == context for line in each.lines.splitlines()]
        assert sorted(sent, key=lambda line: sequence(line)[0]) == taken


@settings(max_examples=100, deadline=None)
@given(random_pieces(), st.integers(1, 8), st.integers(1, 800))
def test_no_batch_is_closed_while_the_next_event_would_still_fit(
    pieces: list[Piece], max_events: int, max_bytes: int
) -> None:
    pieces = [each._replace(session=None, context=VERCEL) for each in pieces]
    full, left = fill(pieces, max_events=max_events, max_bytes=max_bytes)
    found = [*full, *left]
    for each, following in pairwise(found):
        first = following.lines.splitlines(keepends=True)[0]
        assert each.event_count == max_events or len(to_json_array(each.lines + first)) > max_bytes


@settings(max_examples=100, deadline=None)
@given(random_pieces(), st.integers(1, 8))
def test_the_batches_of_a_context_keep_its_order(pieces: list[Piece], max_events: int) -> None:
    pieces = [each._replace(session=None) for each in pieces]
    full, left = fill(pieces, max_events=max_events)
    for context in (VERCEL, GITHUB):
        sent = b"".join(each.lines for each in [*full, *left] if each.context == context)
        assert sent == b"".join(each.lines for each in pieces if each.context == context)
