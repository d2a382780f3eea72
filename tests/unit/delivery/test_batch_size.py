"""Sizes are learned and unlearned: a table of single steps, and simulated servers whose limit is found."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from agent.delivery.batch_size import (
    FIRST_WAIT,
    MAX_WAIT,
    PATIENCE,
    BatchSize,
    Size,
    accepted,
    is_exploring,
    limit,
    refused,
)

MOST = Size(1000, 960 * 1024)
HOUR = 3600.0
FULL = Size(1000, 125_000)
HALF = Size(500, 62_500)
NO = 2**63
ONCE = BatchSize(bad=FULL, message="413")
CALM = BatchSize(good=HALF, bad=FULL, message="413")
ASKED = BatchSize(good=HALF, bad=FULL, repeats=1, ask_at=FIRST_WAIT, message="413")
FOUND = BatchSize(good=Size(900, 112_500), bad=FULL, repeats=2, ask_at=500.0, message="413")


@pytest.mark.parametrize(
    ("state", "now", "expected"),
    [
        pytest.param(BatchSize(), 0, MOST, id="nothing is known: the configured size"),
        pytest.param(BatchSize(good=HALF), 0, MOST, id="acceptances alone: the configured size"),
        pytest.param(ONCE, 0, HALF, id="refused: half"),
        pytest.param(BatchSize(bad=Size(1, 100)), 0, Size(1, 50), id="never less than one event"),
        pytest.param(CALM, 0, HALF, id="accepted at half: stay for a moment"),
        pytest.param(
            BatchSize(HALF, FULL, streak=PATIENCE),
            0,
            Size(1000, 140_625),
            id="ask once more, for an eighth more",
        ),
        pytest.param(ASKED, 0, Size(750, 93_750), id="refused again: bisect"),
        pytest.param(FOUND, 499, Size(900, 112_500), id="close enough: stay"),
        pytest.param(FOUND, 500, Size(1000, 140_625), id="its time has come: ask again"),
        pytest.param(BatchSize(HALF, Size(NO, 80_000), repeats=1), 0, Size(1000, 71_250), id="bytes alone are limited"),
        pytest.param(
            BatchSize(HALF, Size(600, NO), repeats=1), 0, Size(550, MOST.bytes), id="events alone are limited"
        ),
    ],
)
def test_the_limit_follows_from_what_is_known(state: BatchSize, now: float, expected: Size) -> None:
    assert limit(state, MOST, now) == expected


@pytest.mark.parametrize(
    ("state", "size", "expected"),
    [
        pytest.param(BatchSize(), HALF, BatchSize(good=HALF), id="the largest is remembered"),
        pytest.param(BatchSize(good=FULL), HALF, BatchSize(good=FULL), id="a smaller one teaches nothing"),
        pytest.param(ONCE, HALF, BatchSize(HALF, FULL, streak=1, message="413"), id="the first below a refusal"),
        pytest.param(CALM, Size(1, 125), CALM, id="a small batch says nothing about the limit"),
        pytest.param(CALM, FULL, BatchSize(good=FULL), id="what was refused is accepted: it was an accident"),
        pytest.param(
            CALM,
            Size(1000, 62_500),
            BatchSize(Size(1000, 62_500), Size(NO, 125_000), streak=1, message="413"),
            id="so many events are accepted: it was the bytes",
        ),
    ],
)
def test_an_acceptance_clears_what_it_contradicts(state: BatchSize, size: Size, expected: BatchSize) -> None:
    assert accepted(state, size, MOST, 0.0) == expected


@pytest.mark.parametrize(
    ("state", "size", "expected"),
    [
        pytest.param(BatchSize(), FULL, BatchSize(bad=FULL, message="no"), id="the first"),
        pytest.param(ONCE, HALF, BatchSize(bad=HALF, message="no"), id="half is too much as well"),
        pytest.param(BatchSize(good=FULL), FULL, BatchSize(bad=FULL, message="no"), id="it was accepted before"),
        pytest.param(
            BatchSize(good=Size(1000, 50_000)),
            Size(900, 60_000),
            BatchSize(Size(1000, 50_000), Size(NO, 60_000), message="no"),
            id="so many events were accepted before: the bytes are to blame",
        ),
        pytest.param(CALM, FULL, BatchSize(HALF, FULL, 1, FIRST_WAIT, message="no"), id="asked again"),
        pytest.param(FOUND, FULL, BatchSize(FOUND.good, FULL, 3, MAX_WAIT, message="no"), id="asked again, and again"),
        pytest.param(
            FOUND,
            Size(950, 118_000),
            BatchSize(FOUND.good, Size(950, 118_000), 3, MAX_WAIT, message="no"),
            id="asked again with a little less",
        ),
        pytest.param(
            ASKED,
            Size(750, 93_750),
            BatchSize(HALF, Size(750, 93_750), 1, FIRST_WAIT, message="no"),
            id="bisecting",
        ),
    ],
)
def test_a_refusal_lowers_the_limit(state: BatchSize, size: Size, expected: BatchSize) -> None:
    assert refused(state, size, "no", 0.0) == expected


@pytest.mark.parametrize(
    ("state", "now", "exploring"),
    [
        (BatchSize(), 0, False),
        (ONCE, 0, True),
        (CALM, 0, False),
        (ASKED, 0, True),
        (FOUND, 0, False),
        (FOUND, 500, True),
    ],
)
def test_sizes_that_are_not_known_to_be_good_are_tried_one_at_a_time(
    state: BatchSize, now: float, exploring: bool
) -> None:
    assert is_exploring(state, now) is exploring


@dataclass
class Simulation:
    """A server with a limit, and a queue that is never empty: a batch every two seconds."""

    fits: Callable[[Size], bool]
    event_bytes: Callable[[], int] = lambda: 125
    state: BatchSize = field(default_factory=BatchSize)
    now: float = 0.0
    refusals: list[float] = field(default_factory=list)

    def batches(self, hours: float) -> Iterator[tuple[Size, bool]]:
        """Yield the size of each batch and whether it was accepted."""
        end = self.now + hours * HOUR
        while self.now < end:
            size = self._next()
            fits = self.fits(size)
            yield size, fits
            if fits:
                self.state = accepted(self.state, size, MOST, self.now)
            elif size.events > 1:
                self.state = refused(self.state, size, "413", self.now)
                self.refusals.append(self.now)
            self.now += 2.0

    def _next(self) -> Size:
        top = limit(self.state, MOST, self.now)
        mean = self.event_bytes()  # of the events of this batch
        events = max(min(top.events, top.bytes // mean), 1)
        return Size(events, events * mean)


def most_in_an_hour(moments: list[float]) -> int:
    return max((sum(start <= moment < start + HOUR for moment in moments) for start in moments), default=0)


BUDGET = 2 * math.log2(MOST.events)


@pytest.mark.parametrize("true_limit", [1, 2, 3, 7, 10, 99, 250, 333, 500, 600, 750, 999])
def test_a_limit_of_events_is_found_with_few_refusals_and_then_asked_about_once_an_hour(true_limit: int) -> None:
    simulation = Simulation(lambda size: size.events <= true_limit)
    found_after = None
    for size, fits in simulation.batches(hours=8):
        if found_after is None and fits and size.events >= 0.8 * true_limit:
            found_after = len(simulation.refusals)
    assert found_after is not None
    assert found_after <= BUDGET
    assert most_in_an_hour(simulation.refusals[math.floor(BUDGET) :]) <= 1
    assert limit(simulation.state, MOST, simulation.now - HOUR).events >= min(0.8 * true_limit, MOST.events)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true_limit", [10_000, 64_000, 200_000, 500_000])
def test_a_limit_of_bytes_is_found_although_events_differ_in_size(true_limit: int, seed: int) -> None:
    chance = random.Random(seed)
    simulation = Simulation(lambda size: size.bytes <= true_limit, lambda: chance.randint(105, 145))
    sizes = [size for size, fits in simulation.batches(hours=8) if fits]
    assert len(simulation.refusals) <= BUDGET + 8
    assert most_in_an_hour(simulation.refusals[math.floor(BUDGET) :]) <= 1
    filled = [size for size in sizes[-200:] if size.events < MOST.events]
    assert all(size.bytes >= 0.8 * true_limit - 500 for size in filled)


@pytest.mark.parametrize("at", [0, 1, 5, 100])
def test_one_spurious_refusal_costs_less_than_ten_batches(at: int) -> None:
    numbers = iter(range(10_000))
    simulation = Simulation(lambda _size: next(numbers) != at)
    history = list(simulation.batches(hours=1))
    after = history[at + 1 :]
    assert not history[at][1]
    assert next(index for index, (size, _) in enumerate(after) if size.events == MOST.events) < 10


def test_a_spurious_refusal_of_two_events_costs_no_more() -> None:
    state = refused(BatchSize(), Size(2, 250), "413", 0.0)
    sizes = []
    while (top := limit(state, MOST, 0.0)) != MOST:
        sizes.append(top.events)
        state = accepted(state, Size(top.events, top.events * 125), MOST, 0.0)
    assert sizes == [1] * PATIENCE + [2]


def test_a_limit_that_is_raised_is_used_within_the_hour() -> None:
    limits = [100]
    simulation = Simulation(lambda size: size.events <= limits[0])
    list(simulation.batches(hours=3))
    limits[0] = 10_000
    list(simulation.batches(hours=1.1))
    assert limit(simulation.state, MOST, simulation.now) == MOST


@pytest.mark.parametrize("refusals", [1, 5])
@pytest.mark.parametrize("event_bytes", [60, 4000])
def test_events_that_are_smaller_or_larger_than_the_refused_ones_do_not_keep_the_limit_low(
    refusals: int, event_bytes: int
) -> None:
    refused_first = iter([False] * refusals)
    simulation = Simulation(lambda size: size.events == 1 or next(refused_first, True), lambda: event_bytes)
    simulation.state = refused(BatchSize(), Size(2, 250), "413", 0.0)
    list(simulation.batches(hours=8))
    assert limit(simulation.state, MOST, simulation.now) == MOST


@pytest.mark.parametrize("true_limit", [1, 2, 3, 7])
def test_a_low_limit_of_bytes_is_kept_to_although_no_batch_fills_it(true_limit: int) -> None:
    chance = random.Random(true_limit)
    simulation = Simulation(lambda size: size.bytes <= true_limit * 125, lambda: chance.randint(105, 125))
    sizes = [size for size, fits in simulation.batches(hours=8) if fits]
    assert most_in_an_hour(simulation.refusals[math.floor(BUDGET) :]) <= 1
    assert all(size.events >= true_limit - 1 for size in sizes[-200:])
