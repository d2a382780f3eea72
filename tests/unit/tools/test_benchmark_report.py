"""Medians, ratios and the table of the benchmarks."""

import json

import pytest

from tests.benchmarks.guard import too_slow
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.scale import event_counts

SAMPLES = [
    Sample("small", AGENT, {"rate": 100.0, "cost": 2.0}),
    Sample("small", "peer", {"rate": 50.0}),
    Sample("large", AGENT, {"rate": 5.0}),
    Sample("small", AGENT, {"rate": 300.0, "cost": 4.0}),
    Sample("small", "peer", {"rate": 100.0}),
    Sample("small", AGENT, {"rate": 200.0, "cost": 9.0}),
    Sample("small", "peer", {"rate": 20.0}),
]
REPORT = Report("speed", SAMPLES, {"rounds": 3}, baseline="peer")


def test_each_figure_is_the_median_of_its_rounds_and_cases_stay_together() -> None:
    assert REPORT.medians() == [
        Sample("small", AGENT, {"rate": 200.0, "cost": 4.0}),
        Sample("small", "peer", {"rate": 50.0}),
        Sample("large", AGENT, {"rate": 5.0}),
    ]


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    assert REPORT.ratios() == [
        Sample("small", "agent / peer", {"rate": 3.0})
    ]  # of 2, 3 and 10; of the medians it would be 4


def test_a_figure_that_the_baseline_lacks_or_has_as_zero_has_no_ratio() -> None:
    samples = [Sample("c", AGENT, {"a": 1.0, "b": 1.0, "c": 6.0}), Sample("c", "peer", {"b": 0.0, "c": 2.0})]
    assert Report("r", samples, baseline="peer").ratios() == [Sample("c", "agent / peer", {"c": 3.0})]


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Report("r", SAMPLES[:4], baseline="peer").ratios()


def test_the_table_shows_the_ratio_below_its_case() -> None:
    assert REPORT.text() == (
        "speed (rounds 3)\n"
        "                     rate  cost\n"
        "small  agent          200     4\n"
        "small  peer            50     -\n"
        "small  agent / peer     3     -\n"
        "large  agent            5     -\n"
    )


def test_the_json_holds_every_sample() -> None:
    report = json.loads(json.dumps(REPORT.as_json()))
    assert [Sample(**sample) for sample in report["samples"]] == SAMPLES
    assert [Sample(**sample) for sample in report["medians"]] == REPORT.medians()
    assert report["benchmark"] == "speed"


def test_the_guard_allows_a_third_more_and_nothing_beyond() -> None:
    assert too_slow({"intake": 12.0, "whole": 3.0}, {"intake": 9.0, "whole": 9.0}) == []
    assert too_slow({"intake": 12.01, "whole": 12.01}, {"intake": 9.0, "whole": 12.0}) == ["intake"]


@pytest.mark.parametrize(
    ("most", "counts"),
    [(10_000_000, [10_000, 100_000, 1_000_000, 10_000_000]), (20_000, [1_000, 2_000, 20_000]), (10, [1_000])],
)
def test_the_scale_goes_in_powers_of_ten_up_to_what_was_asked_for(most: int, counts: list[int]) -> None:
    assert event_counts(most) == counts
