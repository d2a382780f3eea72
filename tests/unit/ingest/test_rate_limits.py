"""Rate limits: over any time a sender gets its rate through, a second's worth more at most, and nobody pays for another."""

from hypothesis import given
from hypothesis import strategies as st

from agent.ingest.rate_limits import REMEMBERED, RateLimits

STEPS = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 40), st.integers(1, 4000)), min_size=1, max_size=60)


def test_a_seconds_worth_passes_at_once_and_then_the_rate() -> None:
    limits = RateLimits()
    assert [limits.take("a", (2, None), (1, 100), 0.0) for _ in range(3)] == [True, True, False]
    assert not limits.take("a", (2, None), (1, 100), 0.0)
    assert limits.take("a", (2, None), (1, 100), 0.5)
    assert not limits.take("a", (2, None), (1, 100), 0.5)


def test_what_comes_in_one_go_may_overdraw_and_is_waited_for() -> None:
    limits = RateLimits()
    assert limits.take("a", (10, None), (35, 1), 0.0)
    assert not limits.take("a", (10, None), (1, 1), 2.5)
    assert limits.take("a", (10, None), (1, 1), 2.6)


def test_it_holds_no_more_than_a_second_however_long_nothing_comes() -> None:
    limits = RateLimits()
    assert limits.take("a", (3, None), (3, 1), 0.0)
    assert [limits.take("a", (3, None), (1, 1), 1000.0) for _ in range(4)] == [True, True, True, False]


def test_bytes_are_limited_as_events_are_and_what_one_refuses_costs_nothing_of_the_other() -> None:
    limits = RateLimits()
    assert limits.take("a", (5, 100), (1, 100), 0.0)
    assert not limits.take("a", (5, 100), (1, 1), 0.0)
    assert [limits.take("a", (5, 100), (1, 1), 1.0) for _ in range(6)] == [True] * 5 + [False]


def test_without_a_limit_everything_passes() -> None:
    limits = RateLimits()
    assert all(limits.take("a", (None, None), (10**9, 10**12), 0.0) for _ in range(10))


def test_each_sender_has_its_own() -> None:
    limits = RateLimits()
    assert limits.take("a", (1, None), (1, 1), 0.0)
    assert limits.take("b", (1, None), (1, 1), 0.0)
    assert not limits.take("a", (1, None), (1, 1), 0.0)


def test_of_too_many_senders_the_one_that_came_longest_ago_is_forgotten() -> None:
    limits = RateLimits()
    for sender in range(REMEMBERED):
        assert limits.take(sender, (1, None), (1, 1), 0.0)
    assert not limits.take(0, (1, None), (1, 1), 0.0)
    assert limits.take("one more", (1, None), (1, 1), 0.0)
    assert not limits.take(0, (1, None), (1, 1), 0.0)
    assert limits.take(1, (1, None), (1, 1), 0.0)


@given(STEPS, st.integers(1, 50), st.integers(1, 5000))
def test_over_any_time_no_more_passes_than_the_rate_allows(
    steps: list[tuple[float, int, int]], events_per_second: int, bytes_per_second: int
) -> None:
    limits, now, passed = RateLimits(), 0.0, (0, 0)
    for pause, events, size in steps:
        now += pause
        if limits.take("a", (events_per_second, bytes_per_second), (events, size), now):
            before = passed
            passed = before[0] + events, before[1] + size
            # What came before this was within a second's worth and the rate; this may overdraw it.
            assert before[0] < events_per_second * (1 + now) + 1e-6
            assert before[1] < bytes_per_second * (1 + now) + 1e-6
