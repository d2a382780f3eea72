"""Rates and latencies from the counters of two samples or more: right across restarts, resets and missing answers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.top.samples import (
    Measured,
    Sample,
    gained,
    quantile,
    rates,
    recent_buckets,
    sparkline,
    within,
)
from agent.control.schema import StatusReport


def sample(at: float, requests: int, pid: int = 7, uptime: float | None = None, *counts: float) -> Sample:
    """A sample in which `rejected` is the counter, with a histogram of three buckets."""
    buckets = tuple(zip((0.1, 1.0, math.inf), counts, strict=True)) if counts else ()
    report = StatusReport(pid=pid, uptime=at if uptime is None else uptime, rejected=requests)
    return Sample(at, report, {"default": Measured(buckets)} if counts else {})


def counter(of: Sample) -> float:
    return of.status.rejected


@pytest.mark.parametrize(
    ("samples", "expected", "gain"),
    [
        ([], [], 0),
        ([sample(1, 5)], [], 0),
        ([sample(1, 5), sample(3, 9)], [2.0], 4),
        ([sample(1, 5), sample(2, 5), sample(4, 6)], [0.0, 0.5], 1),
        ([sample(1, 5), sample(2, 3), sample(3, 4)], [None, 1.0], 1),  # the counter began anew
        ([sample(1, 5), sample(2, 9, pid=8)], [None], 0),  # another process
        ([sample(5, 5), sample(6, 9, uptime=0.1)], [None], 0),  # the same number for another process
        ([sample(1, 5), sample(1, 9)], [], 4),  # no time has passed
    ],
)
def test_a_rate_is_of_two_samples_that_can_be_compared(
    samples: list[Sample], expected: list[float | None], gain: float
) -> None:
    assert rates(samples, counter) == expected
    assert gained(samples, counter) == gain


def test_only_the_last_seconds_count() -> None:
    samples = [sample(at, 0) for at in (1, 5, 9, 10)]
    assert [each.at for each in within(samples, 5)] == [5, 9, 10]


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""),
        ([1.0], 0, ""),
        ([0.0, 0.0], 5, "▁▁"),
        ([0.0, 1.0, 2.0], 5, "▁▅█"),
        ([9.0, 1.0, 2.0], 2, "▅█"),
        ([None, 1.0, None], 5, " █ "),
        ([None], 5, " "),
    ],
)
def test_a_sparkline_has_a_bar_for_each_of_the_last_values(
    values: list[float | None], width: int, expected: str
) -> None:
    assert sparkline(values, width) == expected


@given(st.lists(st.none() | st.floats(0, 1e300)), st.integers(-1, 50))
def test_a_sparkline_is_never_wider_than_its_place(values: list[float | None], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), max(width, 0))


def test_latencies_are_of_the_requests_between_the_samples() -> None:
    before, after = sample(1, 0, 7, None, 100, 100, 100), sample(2, 0, 7, None, 101, 110, 120)
    found = recent_buckets([before, after], "default")
    assert found == ((0.1, 1.0), (1.0, 10.0), (math.inf, 20.0))
    assert [quantile(found, share) for share in (0.0, 0.05, 0.5, 0.95)] == [0.1, 0.1, 1.0, math.inf]


@pytest.mark.parametrize(
    "samples",
    [
        [sample(1, 0, 7, None, 1, 1, 1)],
        [sample(1, 0, 7, None, 1, 1, 1), sample(2, 0, 7, None, 1, 1, 1)],
        [sample(1, 0, 7, None, 1, 1, 1), sample(2, 0, 8, None, 5, 5, 5)],
        [sample(1, 0, 7, None, 1, 1, 1), sample(2, 0)],
    ],
    ids=["one sample", "no request", "another daemon", "no metrics"],
)
def test_without_requests_there_is_no_latency(samples: list[Sample]) -> None:
    assert recent_buckets(samples, "default") == ()
