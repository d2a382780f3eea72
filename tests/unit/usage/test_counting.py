"""Tasks are counted as a person would count them: by session and hash, the best answer, the time that this one saved."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demo import recording
from agent.events import Event, decode_event, encode_events
from agent.usage.counting import (
    MAX_NAME,
    MAX_SAVED_MS,
    Sessions,
    Totals,
    count,
    events_in,
    shortened,
    totals_by_hour,
    totals_of,
)
from tests.support.naive_usage import naive_count
from tests.support.recordings import Recorded
from tests.support.usage import use

KINDS = [("LOCAL", "MISS"), ("REMOTE", "MISS"), ("REMOTE", "HIT"), ("LOCAL", "HIT")]
durations = st.one_of(st.none(), st.integers(-5, 10_000), st.floats(0, 1e4, allow_nan=False))
events = st.builds(
    lambda session, kind, hash_, duration: use(
        session, kind[0], kind[1], hash_, **({} if duration is None else {"duration": duration})
    ),
    st.sampled_from(["s-1", "s-2", "x" * 200, ""]),
    st.sampled_from(KINDS),
    st.sampled_from(["h-1", "h-2", "h-3", "y" * 200]),
    durations,
)


def event(raw: dict[str, Any]) -> Event:
    return decode_event(msgspec.json.encode(raw))


def counted(*raw: dict[str, Any]) -> Totals:
    sessions = Sessions()
    count(sessions, [event(each) for each in raw], None, 0.0)
    return totals_of(sessions.values())


def stable(total: Totals) -> dict[str, Any]:
    """Return totals with the names of a report."""
    return {
        "events": total.events,
        "tasks": total.tasks,
        "hits": {"local": total.local_hits, "remote": total.remote_hits},
        "misses": total.misses,
        "unanswered": total.unanswered,
        "saved_ms": {"local": round(total.local_saved_ms), "remote": round(total.remote_saved_ms)},
        "hit_rate": total.hit_rate,
    }


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("LM", Totals(events=1, unanswered=1)),
        ("LM RM", Totals(events=2, misses=1)),
        ("LM RH", Totals(events=2, remote_hits=1, remote_saved_ms=7.0)),
        ("RH LM", Totals(events=2, remote_hits=1, remote_saved_ms=7.0)),
        ("LH", Totals(events=1, local_hits=1, local_saved_ms=7.0)),
        ("LM RM LH", Totals(events=3, local_hits=1, local_saved_ms=7.0)),
        ("RM RM RM", Totals(events=3, misses=1)),
    ],
)
def test_the_best_answer_to_a_task_counts(kinds: str, expected: Totals) -> None:
    names = {"L": "LOCAL", "R": "REMOTE", "H": "HIT", "M": "MISS"}
    assert counted(*(use("s", names[kind[0]], names[kind[1]], "h", duration=7) for kind in kinds.split())) == expected


def test_the_time_saved_is_that_of_the_hit_that_counted() -> None:
    remote, local = use("s", "REMOTE", "HIT", "h", duration=900), use("s", "LOCAL", "HIT", "h", duration=40)
    assert counted(remote, local, {**local, "duration": 50}).saved_ms == 40.0
    assert counted(use("s", "LOCAL", "HIT", "h"), use("s", "LOCAL", "HIT", "i", duration=-3)).saved_ms == 0.0
    assert counted(use("s", "LOCAL", "HIT", "h", duration=1e308)).saved_ms == MAX_SAVED_MS


def test_a_rate_has_tasks_below_it() -> None:
    assert counted().hit_rate is None
    assert counted(use("s", "LOCAL", "HIT", "h"), use("s", "LOCAL", "MISS", "i")).hit_rate == 0.5


@given(st.lists(events, max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_it_counts_as_the_plainest_way_does_however_events_are_cut(raw: list[dict[str, Any]], cuts: list[int]) -> None:
    sessions = Sessions()
    bounds = [0, *sorted(cuts), len(raw)]
    for start, stop in pairwise(bounds):
        count(sessions, [event(each) for each in raw[start:stop]], None, start * 1000.0)
    assert stable(totals_of(sessions.values())) == naive_count(raw)
    parts = [total for session in sessions.values() for total in totals_by_hour(session).values()]
    whole = [sum(values) for values in zip(*map(msgspec.structs.astuple, parts), strict=True)]
    assert whole == pytest.approx(list(msgspec.structs.astuple(totals_of(sessions.values()))) if parts else [])


def test_a_task_belongs_to_the_hour_in_which_it_was_first_reported_and_a_session_to_its_first_ci() -> None:
    sessions = Sessions()
    count(sessions, [event(use("s", "LOCAL", "MISS", "h"))], None, 3599.0)
    count(sessions, [event(use("s", "REMOTE", "HIT", "h", duration=5))], "GITLAB_CI", 3600.0)
    count(sessions, [event(use("s", "LOCAL", "HIT", "i"))], "VERCEL", 3601.0)
    session = sessions["s"]
    assert (session.ci, session.first, session.last) == ("GITLAB_CI", 3599.0, 3601.0)
    hours = totals_by_hour(session)
    assert hours[0] == Totals(events=1, remote_hits=1, remote_saved_ms=5.0)
    assert hours[1] == Totals(events=2, local_hits=1)


def test_what_is_known_of_a_session_already_counts() -> None:
    first = Sessions()
    count(first, [event(use("s", "LOCAL", "HIT", "h", duration=5))], None, 0.0)
    later = Sessions(lambda name: first[name].tasks.copy())
    count(later, [event(use("s", "LOCAL", "MISS", "h"))], None, 0.0)
    assert totals_of(later.values()) == Totals(events=1, local_hits=1, local_saved_ms=5.0)


def test_the_recordings_come_to_what_was_counted_by_hand(recorded_requests: list[Recorded]) -> None:
    total = counted(*(each for request in recorded_requests for each in request.events))
    assert (total.events, total.tasks) == (2539, 1303)
    assert (total.local_hits, total.remote_hits, total.misses, total.unanswered) == (30, 10, 1236, 27)
    demo = [each for run in recording.load().values() for each in run.events]
    assert round(sum(each.event == "HIT" for each in demo) / len(demo), 2) == 0.13
    sessions = Sessions()
    count(sessions, demo, None, 0.0)
    assert round(totals_of(sessions.values()).hit_rate or 0, 2) == 0.23


def test_lines_that_are_no_events_cost_nothing_but_themselves() -> None:
    good = encode_events([event(use("s", "LOCAL", "HIT", "h"))])
    assert events_in(good * 2)[1] == 0
    found, others = events_in(good + b"{}\n\xff\n" + good)
    assert (len(found), others) == (2, 2)


def test_long_names_are_shortened_and_stay_different() -> None:
    names = ["a" * MAX_NAME, "a" * 1000, "a" * 1001, "\ud800" * 1000]
    assert shortened(names[0]) == names[0]
    assert len({shortened(name) for name in names}) == 4
    assert all(len(shortened(name)) == MAX_NAME for name in names)
