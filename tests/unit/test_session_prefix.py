"""What is known of sessions: which lines are theirs, in memory and in the queue, whatever they are called."""

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.events import Event, count_session_prefixes, encode_events, session_prefix

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


def test_a_session_prefix_is_what_the_sessions_lines_begin_with() -> None:
    for session in ODD:
        line = msgspec.json.encode(Event(session, "REMOTE", "MISS", "h"))
        assert line.startswith(session_prefix(session))
