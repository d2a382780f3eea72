"""What has been folded of the last day is read as it is: quickly, and without writing anything."""

import os
import sqlite3
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.usage import day
from agent.usage.counting import Totals
from agent.usage.day import last_day
from agent.usage.report import totals_since
from agent.usage.store import FILE_NAME, UnwritableError, UsageStore
from tests.support.usage import NOW, CountedQueue, use


@pytest.fixture
def queue(tmp_path: Path) -> CountedQueue:
    return CountedQueue(tmp_path)


def test_nothing_is_known_before_something_was_folded_and_no_file_is_made(queue: CountedQueue) -> None:
    queue.append([use("s", "LOCAL", "HIT", "h", duration=7)])
    assert last_day(queue.root, NOW) is None
    assert not (queue.root / FILE_NAME).exists()
    (queue.root / FILE_NAME).touch()  # somebody is about to make it
    assert last_day(queue.root, NOW) is None


def test_it_has_the_tasks_of_the_last_24_hours_as_far_as_they_were_folded(queue: CountedQueue) -> None:
    for hours in (26, 23, 0):
        queue.now = NOW - hours * 3600
        queue.append([use(f"s-{hours}", "LOCAL", "HIT", "h", duration=7), use(f"s-{hours}", "LOCAL", "MISS", "g")])
    queue.report()
    os.utime(queue.root / FILE_NAME, (NOW, NOW))
    before = (queue.root / FILE_NAME).read_bytes()
    queue.append([use("s-new", "REMOTE", "MISS", "h")])
    expected = Totals(events=4, local_hits=2, unanswered=2, local_saved_ms=14.0)
    assert last_day(queue.root, NOW) == (expected, NOW)
    assert (queue.root / FILE_NAME).read_bytes() == before
    assert not list(queue.root.glob(f"{FILE_NAME}-*"))


def test_while_somebody_writes_it_is_not_waited_for_long(queue: CountedQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.report()
    monkeypatch.setattr(day, "QUERY_SECONDS", 0.01)
    writer = sqlite3.connect(queue.root / FILE_NAME, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked"):
        last_day(queue.root, NOW)
    writer.close()
    assert last_day(queue.root, NOW) is not None


def test_a_query_that_takes_too_long_is_ended(queue: CountedQueue) -> None:
    queue.append([use(f"s-{number}", "LOCAL", "HIT", "h") for number in range(5000)])
    queue.report()
    store = UsageStore.read_only(queue.root, 0.0)
    assert store is not None
    with pytest.raises(UnwritableError, match="interrupted"):
        totals_since(store, 0)
    store.close()


def test_a_file_that_is_damaged_or_another_versions_is_said_and_left_alone(queue: CountedQueue) -> None:
    path = queue.root / FILE_NAME
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="not a database"):
        last_day(queue.root, NOW)
    assert path.read_bytes() == b"no database" * 1000
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StorageError, match="later version"):
        last_day(queue.root, NOW)
