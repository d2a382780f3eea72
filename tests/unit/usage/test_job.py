"""What a job did is found by its label, in milliseconds, or not at all."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.queue.store import Limits
from agent.usage import job as usage_job
from agent.usage.counting import Totals
from agent.usage.job import count_job
from tests.support.naive_usage import naive_count
from tests.support.usage import NOW, CountedQueue, use
from tests.unit.usage.test_counting import events

JOB = "build https://ci/7"


def counted(queue: CountedQueue, job: str = JOB, since: float = 0.0) -> Totals | None:
    return count_job(queue.fs, [queue.directory], job, since)


def tasks(found: Totals | None) -> int:
    assert found is not None
    return found.tasks


@given(st.lists(st.tuples(st.sampled_from([None, JOB, f"{JOB}1"]), st.lists(events, min_size=1, max_size=8))))
def test_it_counts_what_the_plainest_way_does(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[str | None, list[dict[str, Any]]]]
) -> None:
    queue = CountedQueue(tmp_path_factory.mktemp("queue"), Limits(segment_bytes=500, history_bytes=1 << 30))
    for number, (job, block) in enumerate(blocks):
        queue.append(block, job=job)
        if number % 3 == 0:
            queue.deliver()
    naive = naive_count([event for job, block in blocks if job == JOB for event in block])
    found = counted(queue)
    assert found is not None
    assert (found.events, found.tasks, found.unanswered) == (naive["events"], naive["tasks"], naive["unanswered"])
    assert (found.local_hits, found.remote_hits) == tuple(naive["hits"].values())
    assert (round(found.local_saved_ms), round(found.remote_saved_ms)) == tuple(naive["saved_ms"].values())


def test_a_label_in_other_events_and_in_damaged_bytes_changes_nothing(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([use(JOB, "LOCAL", "HIT", JOB)], job="another")
    queue.append([use("s", "LOCAL", "HIT", "a")], job=JOB)
    queue.append([use("s", "LOCAL", "HIT", "b")], job=JOB)
    assert tasks(counted(queue)) == 2
    (path,) = (queue.directory / "segments").iterdir()
    data = path.read_bytes()
    place = data.rindex(b'"b"')
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :] + JOB.encode())
    assert tasks(counted(queue)) == 1


def test_only_what_came_since_a_time_counts(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([use("s", "LOCAL", "HIT", "a")], job=JOB)
    queue.now += 60.0
    queue.append([use("s", "LOCAL", "HIT", "b")], job=JOB)
    assert (tasks(counted(queue)), tasks(counted(queue, since=NOW + 60.0))) == (2, 1)


def test_what_would_take_too_long_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = CountedQueue(tmp_path)
    for number in range(6):
        queue.append([use(f"s-{number}-{each}", "LOCAL", "HIT", "h") for each in range(30)], job=f"job {number}")
        queue.deliver()
    monkeypatch.setattr(usage_job, "SEARCHED_BYTES", 6000)  # two segments
    found = Counter({number: counted(queue, f"job {number}") is not None for number in range(6)})
    assert found[5]
    assert not found[3]  # older ones may be elsewhere
    assert tasks(counted(queue, "job 0")) == 0
    monkeypatch.setattr(usage_job, "COUNTED_BYTES", 1000)
    assert counted(queue, "job 5") is None


def test_a_queue_that_is_not_there_has_no_tasks(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    assert count_job(queue.fs, [tmp_path / "nothing"], JOB) == Totals()
