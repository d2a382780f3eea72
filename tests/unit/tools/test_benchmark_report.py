"""Medians, ratios and the table of the benchmarks."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.benchmarks import floor
from tests.benchmarks.guard import too_slow
from tests.benchmarks.load import EACH, blocks
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.scale import event_counts

ROOT = Path(__file__).parents[3]
SAMPLES = [
    Sample("small", AGENT, {"rate": 100.0, "cost": 2.0}),
    Sample("small", "peer", {"rate": 50.0}),
    Sample("large", AGENT, {"rate": 5.0}),
    Sample("small", AGENT, {"rate": 300.0, "cost": 4.0}),
    Sample("small", "peer", {"rate": 100.0}),
    Sample("small", AGENT, {"rate": 200.0, "cost": 9.0}),
    Sample("small", "peer", {"rate": 20.0}),
]
REPORT = Report("speed", SAMPLES, {"rounds": 3})


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


def test_the_agent_is_divided_by_each_other_subject_of_its_case_and_by_none_where_it_is_not() -> None:
    samples = [Sample("c", AGENT, {"a": 6.0}), Sample("c", "peer", {"a": 3.0}), Sample("c", "floor", {"a": 2.0})]
    assert Report("r", [*samples, Sample("d", "peer", {"a": 1.0})]).ratios() == [
        Sample("c", "agent / peer", {"a": 2.0}),
        Sample("c", "agent / floor", {"a": 3.0}),
    ]


def test_the_spread_is_what_lies_between_the_rounds_in_percent_of_their_median() -> None:
    spreads = {(sample.case, sample.subject): sample.figures for sample in REPORT.spreads()}
    assert spreads == {
        ("small", AGENT): {"rate": 100.0, "cost": 175.0},
        ("small", "peer"): {"rate": 160.0},
        ("small", "agent / peer"): {"rate": 800 / 3},
    }


def test_a_figure_that_the_other_subject_lacks_or_has_as_zero_has_no_ratio() -> None:
    samples = [Sample("c", AGENT, {"a": 1.0, "b": 1.0, "c": 6.0}), Sample("c", "peer", {"b": 0.0, "c": 2.0})]
    assert Report("r", samples).ratios() == [Sample("c", "agent / peer", {"c": 3.0})]


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Report("r", SAMPLES[:4]).ratios()


def test_the_table_shows_ratios_below_their_case_and_spreads_below_what_was_measured_more_than_once() -> None:
    assert REPORT.text() == (
        "speed (rounds 3)\n"
        "                     rate  cost\n"
        "small  agent          200     4\n"
        "         spread, %    100   175\n"
        "small  peer            50     -\n"
        "         spread, %    160     -\n"
        "small  agent / peer     3     -\n"
        "         spread, %    267     -\n"
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


def _sessions(lines: bytes) -> list[str]:
    return [json.loads(line)["sessionId"] for line in lines.splitlines()]


@pytest.mark.parametrize("sessions", [1, 20, EACH])
def test_each_thousand_events_are_of_so_many_sessions(sessions: int) -> None:
    found = _sessions(b"".join(blocks(3_000, sessions=sessions)))
    assert len(found) == 3_000
    assert [len(set(found[start : start + 1_000])) for start in (0, 1_000)] == [sessions, sessions]


@pytest.mark.parametrize(("sessions", "count"), [(20, 3 * 13 + 2 + 1), (EACH, 2_001)])
def test_no_session_comes_again_when_the_lines_do(sessions: int, count: int) -> None:
    found = _sessions(b"".join(blocks(2_001, 10, sessions=sessions)))  # 640 lines three times, 80 and 1
    assert (len(found), len(set(found))) == (2_001, count)


def test_the_floor_builds_a_body_of_each_batch(tmp_path: Path) -> None:
    assert [floor.run(1_000, tmp_path / "floor", batch).bodies for batch in (100, 1_000, 10_000, None)] == [10, 1, 1, 0]
    assert json.loads(floor.build_body(list(islice(blocks(6, 3), 2)))) == [
        json.loads(line) for block in blocks(6, 3) for line in block.splitlines()
    ]


def test_the_floor_does_not_import_the_agent() -> None:
    program = (
        "import sys, tests.benchmarks.floor; print(*(name for name in sys.modules if name.split('.')[0] == 'agent'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
