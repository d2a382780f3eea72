"""What charts are drawn of: every hour or day of a time, those without tasks as well."""

from pathlib import Path

import pytest

from agent.usage.report import MAX_COLUMNS, Group, Period, Timeline, timeline
from tests.support.usage import NOW, CountedQueue, use

HOUR = int(NOW // 3600)  # 2025-06-15, from 15:00 on


@pytest.fixture
def queue(tmp_path: Path) -> CountedQueue:
    """A build two hours ago, and another one now."""
    queue = CountedQueue(tmp_path)
    queue.now = NOW - 2 * 3600
    queue.append([use("old", "LOCAL", "HIT", "h", duration=5), use("old", "REMOTE", "MISS", "i")])
    queue.now = NOW
    queue.append([use("new", "LOCAL", "MISS", "h")])
    return queue


def asked(queue: CountedQueue, period: Period) -> Timeline:
    return queue.ask(lambda store: timeline(store, period, HOUR))


def tasks(parts: list[Group]) -> dict[str | None, int]:
    return {each.name: each.tasks for each in parts}


def test_hours_without_tasks_are_there_as_well(queue: CountedQueue) -> None:
    found = asked(queue, Period(since=HOUR - 3))
    assert found.by == "hour"
    assert tasks(found.parts) == {
        "2025-06-15T12:00:00.000Z": 0,
        "2025-06-15T13:00:00.000Z": 2,
        "2025-06-15T14:00:00.000Z": 0,
        "2025-06-15T15:00:00.000Z": 1,
    }
    assert tasks(found.days) == {"2025-06-15": 3}
    assert found.parts[0].hit_rate is None


def test_more_than_eight_days_are_by_day(queue: CountedQueue) -> None:
    assert asked(queue, Period(since=HOUR + 1 - 8 * 24)).by == "hour"
    found = asked(queue, Period(since=HOUR - 8 * 24))
    assert (found.by, found.parts) == ("day", found.days)
    assert tasks(found.days) == {f"2025-06-{day:02}": 3 * (day == 15) for day in range(7, 16)}


def test_what_is_to_come_is_not_drawn(queue: CountedQueue) -> None:
    now = asked(queue, Period(since=HOUR - 1, until=HOUR + 1000))
    assert list(tasks(now.parts)) == ["2025-06-15T14:00:00.000Z", "2025-06-15T15:00:00.000Z"]
    assert asked(queue, Period(since=HOUR + 5)).parts == []


def test_an_end_is_kept_to(queue: CountedQueue) -> None:
    assert list(tasks(asked(queue, Period(since=HOUR - 2, until=HOUR)).parts)) == [
        "2025-06-15T13:00:00.000Z",
        "2025-06-15T14:00:00.000Z",
    ]


def test_a_session_is_drawn_from_its_first_task_to_its_last(queue: CountedQueue) -> None:
    assert tasks(asked(queue, Period(session="old")).parts) == {"2025-06-15T13:00:00.000Z": 2}


@pytest.mark.parametrize("period", [Period(), Period(since=0)])
def test_however_long_a_time_is_not_too_much_is_drawn(period: Period, queue: CountedQueue) -> None:
    queue.now = 0.0  # of a machine without a clock
    queue.append([use("lost", "LOCAL", "HIT", "h")])
    found = asked(queue, period)
    assert len(found.parts) == MAX_COLUMNS
    assert found.parts[-1].name == "2025-06-15"


def test_nothing_is_a_timeline_without_tasks(tmp_path: Path) -> None:
    found = asked(CountedQueue(tmp_path), Period(since=HOUR))
    assert tasks(found.parts) == {"2025-06-15T15:00:00.000Z": 0}
