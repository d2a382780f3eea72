"""Rates, sparklines and quantiles from samples of a daemon's counters. Pure.

A counter falls when the daemon is restarted or has another queue. Two consecutive samples between which it did, or between which
another process has taken the daemon's place, say nothing of a rate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from agent.control.schema import StatusReport

_BARS = "▁▂▃▄▅▆▇█"


class Measured(NamedTuple):
    """What a daemon has measured of its requests with events since its start.

    `buckets` are upper bounds in seconds and how many requests took no longer, the last one infinite; `responses` are answers by
    status.
    """

    buckets: tuple[tuple[float, float], ...] = ()
    responses: Mapping[str, float] = {}


class Sample(NamedTuple):
    """What a daemon said at one moment; `at` is in seconds by a steady clock. `measured` is by destination."""

    at: float
    status: StatusReport
    measured: Mapping[str, Measured] = {}


Counter = Callable[[Sample], float]


def same_daemon(before: Sample, after: Sample) -> bool:
    """Tell whether two samples are of the same process."""
    return before.status.pid == after.status.pid and before.status.uptime <= after.status.uptime


def rates(samples: Sequence[Sample], counter: Counter) -> list[float | None]:
    """Return how fast a counter rose between each sample and the next, per second; None where that cannot be told."""
    return [
        None if rise is None else rise / (after.at - before.at)
        for before, after, rise in _rises(samples, counter)
        if after.at > before.at
    ]


def gained(samples: Sequence[Sample], counter: Counter) -> float:
    """Return by how much a counter rose over all samples."""
    return sum(rise or 0.0 for _, _, rise in _rises(samples, counter))


def _rises(samples: Sequence[Sample], counter: Counter) -> Iterator[tuple[Sample, Sample, float | None]]:
    for before, after in pairwise(samples):
        rise = counter(after) - counter(before)
        yield before, after, rise if rise >= 0 and same_daemon(before, after) else None


def within(samples: Sequence[Sample], seconds: float) -> list[Sample]:
    """Return the samples that are no more than so much older than the newest one."""
    return [each for each in samples if each.at >= samples[-1].at - seconds]


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return a bar for each of the last `width` values, the largest of which is as high as a bar can be; a blank for None."""
    shown = values[-width:] if width > 0 else []
    largest = max((value for value in shown if value is not None), default=0.0)
    return "".join(" " if value is None else _bar(value, largest) for value in shown)


def _bar(value: float, largest: float) -> str:
    return _BARS[round(value / largest * (len(_BARS) - 1))] if largest else _BARS[0]


def recent_buckets(samples: Sequence[Sample], destination: str) -> tuple[tuple[float, float], ...]:
    """Return the buckets of the requests that ended while the samples were taken; () without any."""
    bounds = [bound for bound, _ in _buckets_of(samples[-1], destination)]
    counts = [gained(samples, _requests_within(destination, bound)) for bound in bounds]
    return tuple(zip(bounds, counts, strict=True)) if counts and counts[-1] else ()


def _buckets_of(sample: Sample, destination: str) -> tuple[tuple[float, float], ...]:
    return sample.measured.get(destination, Measured()).buckets


def _requests_within(destination: str, bound: float) -> Counter:
    return lambda sample: dict(_buckets_of(sample, destination)).get(bound, 0.0)


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """Return the bound of the bucket within which that share of values lies; the last bound may be infinite."""
    total = buckets[-1][1]
    return next(bound for bound, count in buckets if count >= share * total)
