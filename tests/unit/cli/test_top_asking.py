"""What `top` understands of a daemon's answers."""

import math
from collections import Counter
from pathlib import Path

import pytest

from agent.cli.top.asking import Source, measured_in, said_of
from agent.cli.top.samples import Measured
from agent.control.client import ControlClient
from agent.control.metrics import render
from agent.control.schema import FlushVerdict, StatusReport
from agent.delivery.measures import REQUEST_BOUNDS, Measures
from agent.errors import AgentError, NotRunningError


def test_requests_and_answers_are_those_of_the_daemons_metrics() -> None:
    measures = Measures()
    for seconds in (0.001, 0.2, 99.0):
        measures.request_seconds.observe(seconds)
    measures.responses = Counter({"200": 2, "none": 1})
    text = render(StatusReport(), {"default": measures}, {}).decode()
    counts = [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3]
    buckets = tuple(zip((*REQUEST_BOUNDS, math.inf), map(float, counts), strict=True))
    assert measured_in(text) == {"default": Measured(buckets, {"200": 2.0, "none": 1.0})}


def test_a_daemon_without_these_metrics_has_none() -> None:
    assert measured_in("") == {}
    assert measured_in("artifacts_agent_requests_total 5\n") == {}


@pytest.mark.parametrize(
    "text",
    [
        'artifacts_agent_request_duration_seconds_bucket{le="1"} 5\n',
        'artifacts_agent_request_duration_seconds_bucket{destination="d",le="1"} five\n',
        'artifacts_agent_responses_total{destination="d" 5\n',
    ],
)
def test_metrics_that_are_not_understood_are_an_error(text: str) -> None:
    with pytest.raises(AgentError, match="not understood"):
        measured_in(f"# TYPE artifacts_agent_request_duration_seconds histogram\n{text}")


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (FlushVerdict(), "flushed: 0 events delivered"),
        (FlushVerdict(delivered=1), "flushed: 1 event delivered"),
        (FlushVerdict(delivered=5, queued=2), "flushed: 5 events delivered, 2 still queued"),
        (FlushVerdict(queued=2, held_up="paused"), "flushed: 0 events delivered, 2 still queued: paused"),
        (
            FlushVerdict(delivered=5, dead_lettered=1, dropped={"expired": 2}),
            "flushed: 5 events delivered, 1 dead-lettered, 2 dropped as expired",
        ),
    ],
)
def test_a_flush_is_told_in_a_line(verdict: FlushVerdict, said: str) -> None:
    assert said_of(verdict) == said


def test_without_a_daemon_or_a_queue_there_is_nothing_to_see(tmp_path: Path) -> None:
    source = Source(ControlClient(tmp_path / "none.sock"), lambda name: tmp_path / name)
    with pytest.raises(NotRunningError):
        source.sample()
    found = source.recent()
    assert isinstance(found, str)
    assert "there is no queue here" in found
    assert Source(ControlClient(tmp_path / "none.sock"), "no configuration").recent() == "no configuration"
