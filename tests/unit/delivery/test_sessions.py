"""What is known of sessions: which lines are theirs, in memory and in the queue, whatever they are called."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery.batching import Batch
from agent.delivery.sessions import MAX_SESSIONS, Sessions
from agent.events import Context, Event, count_session_prefixes, encode_events, session_prefix
from agent.queue.cursor import Outcome, Span

PLAIN = Context()
# Names that try to look like the end of a session, the begin of a line, or an escape.
ODD = [
    "",
    "s",
    '"',
    "\\",
    '\\"',
    '","',
    '{"sessionId":"s",',
    '","source":"LOCAL"',
    "\n",
    "\u2028",
    "é",
    "\0",
    "🦀",
    "s\\",
]
NAMES = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=90))


def lines_of(*sessions: str) -> bytes:
    """Return a line of each of these sessions; their hashes quote other lines."""
    return encode_events([Event(session, "LOCAL", "HIT", 'x{"sessionId":"s",', 7) for session in sessions])


@given(st.lists(NAMES, min_size=1, max_size=20))
def test_lines_are_counted_by_session_whatever_it_is_called(sessions: list[str]) -> None:
    lines = lines_of(*sessions)
    counted = count_session_prefixes(lines, len(sessions))
    assert counted == {session_prefix(session): count for session, count in Counter(sessions).items()}
    for session in {*sessions, "s"}:
        assert lines.count(session_prefix(session)) == sessions.count(session)


def test_lines_that_something_else_wrote_are_nobodys() -> None:
    foreign = b'{"source":"LOCAL","sessionId":"s"}\n'
    assert count_session_prefixes(foreign, 1) == {}
    assert count_session_prefixes(b'{"sessionId":1,"x":"y","z":"\\n"}\n', 1) == {}
    assert count_session_prefixes(b"not even JSON\n" + lines_of("a", "b", "a"), 4) == {
        session_prefix("a"): 2,
        session_prefix("b"): 1,
    }


def test_a_session_has_its_counts_until_so_many_others_came_after_it() -> None:
    sessions = Sessions()
    sessions.count(lines_of("a", "b", "a"), 3, Outcome.DELIVERED)
    sessions.count(lines_of("a"), 1, Outcome.DEAD_LETTERED)
    for number in range(MAX_SESSIONS - 2):
        sessions.count(lines_of(f"n{number}"), 1, Outcome.DELIVERED)
    assert sessions.of(session_prefix("a")) == {Outcome.DELIVERED: 2, Outcome.DEAD_LETTERED: 1}
    sessions.count(lines_of("b", "one more"), 2, Outcome.DELIVERED)
    assert sessions.of(session_prefix("a")) == {}
    assert sessions.of(session_prefix("b")) == {Outcome.DELIVERED: 2}
    assert sessions.of(session_prefix("never seen")) == {}


def test_long_names_are_told_apart_by_their_ends() -> None:
    sessions = Sessions()
    sessions.count(lines_of("x" * 60_000 + "a"), 1, Outcome.DELIVERED)
    assert sessions.of(session_prefix("x" * 60_000 + "a")) == {Outcome.DELIVERED: 1}
    assert sessions.of(session_prefix("x" * 60_000 + "b")) == {}


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([(3, 5), (9, 12)], "abcde"),
        ([(4, 5), (9, 10), (11, 12)], "bce"),
        ([(3, 4)], "a"),
        ([], ""),
    ],
)
def test_the_lines_of_some_of_a_batchs_events_are_theirs(parts: list[tuple[int, int]], names: str) -> None:
    batch = Batch(PLAIN, lines_of(*"abcde"), (Span(3, 5), Span(9, 12)))
    assert batch.lines_in([Span(*part) for part in parts]) == lines_of(*names)


def test_a_session_prefix_is_what_the_sessions_lines_begin_with() -> None:
    for session in ODD:
        line = msgspec.json.encode(Event(session, "REMOTE", "MISS", "h"))
        assert line.startswith(session_prefix(session))
