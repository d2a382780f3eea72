"""Which event is tried when others were refused: the newest of another session."""

import pytest

from agent.delivery.batching import Batch
from agent.delivery.sampling import find_sample
from agent.events import encode_events
from agent.queue.cursor import Span
from tests.support.pipelines import PLAIN, event


def batch(first: int, *sessions: str) -> Batch:
    """A batch of events with numbers from `first` on, one of each of these sessions."""
    lines = encode_events([event(f"h{first + index}", session) for index, session in enumerate(sessions)])
    return Batch(PLAIN, lines, (Span(first, first + len(sessions)),))


OLD, NEW = batch(1, "a", "a", "b"), batch(4, "c", "a", "a")


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        pytest.param([], (NEW, 2), id="the newest"),
        pytest.param([batch(1, "a")], (NEW, 0), id="the newest of another session"),
        pytest.param([batch(1, "a"), batch(9, "c")], (OLD, 2), id="however old"),
        pytest.param([batch(1, "a", "b", "c")], (NEW, 2), id="no other session: the newest"),
        pytest.param([batch(5, "a", "a"), batch(10, "b", "c")], (NEW, 0), id="but none that was refused itself"),
        pytest.param([OLD, NEW], None, id="nothing else waits"),
    ],
)
def test_the_newest_event_of_another_session_is_taken(refused: list[Batch], expected: tuple[Batch, int] | None) -> None:
    assert find_sample([NEW, OLD], refused) == expected


def test_what_is_excepted_is_not_taken_though_it_is_of_another_session() -> None:
    refused = [batch(1, "a")]
    assert find_sample([NEW, OLD], refused, [Span(4, 6)]) == (OLD, 2)
    assert find_sample([NEW, OLD], refused, [Span(3, 6)]) == (NEW, 2)
    assert find_sample([NEW, OLD], refused, [Span(1, 7)]) is None


def test_a_session_is_not_taken_for_one_whose_name_begins_alike() -> None:
    assert find_sample([batch(4, "ab")], [batch(1, "a")]) == (batch(4, "ab"), 0)
    assert find_sample([batch(4, "a", "ab", "a")], [batch(1, "a")]) == (batch(4, "a", "ab", "a"), 1)


def test_lines_of_a_foreign_writer_have_no_session() -> None:
    foreign = Batch(PLAIN, b"{}\nnull\n", (Span(4, 6),))
    assert find_sample([foreign], [batch(1, "a")]) == (foreign, 1)
    assert find_sample([foreign], [Batch(PLAIN, b"x\n", (Span(1, 2),))]) == (foreign, 1)
    assert find_sample([batch(4, "a")], [Batch(PLAIN, b"x\n", (Span(1, 2),))]) == (batch(4, "a"), 0)
