"""What is folded once is counted once, whatever happens in between; and what cannot be counted is said."""

import errno
import json
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StorageError
from agent.events import Context, decode_event, encode_events
from agent.queue import segment
from agent.queue.filesystem import File
from agent.queue.history import Heir
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.store import Limits
from agent.usage.fold import Keeping, fold, query
from agent.usage.reading import KeptEvents, count_all
from agent.usage.report import Period, Question, report
from agent.usage.store import FILE_NAME, UnwritableError, UsageStore
from tests.support.naive_usage import naive_count, naive_jobs
from tests.support.recordings import Recorded
from tests.support.unsynced import UnsyncedFilesystem
from tests.support.usage import KEEPING, LIMITS, NOW, CountedQueue, builds, summary, use
from tests.unit.usage.test_counting import events

DAY = 86_400.0


class CrashError(Exception):
    """The process ends here."""


class CrashingStore(UsageStore):
    """A store whose process is killed before it commits for the `left`-th time."""

    left = 1

    def set_fact(self, name: str, value: float) -> None:
        super().set_fact(name, value)
        self.left -= 1
        if self.left <= 0:
            raise CrashError


def crash(queue: CountedQueue, commits: int) -> None:
    """Fold in small transactions, up to a crash."""
    store = CrashingStore.open(queue.root)
    store.left = commits
    try:
        fold(store, queue.kept(), KEEPING, queue.now, batch_events=3)
    except CrashError:
        pass
    finally:
        store.close()


ACTIONS: Sequence[Callable[[CountedQueue], object]] = [
    CountedQueue.deliver,
    CountedQueue.restart,
    CountedQueue.report,
    lambda queue: queue.adopt(
        queue.events[:5] or [hit(7)], [use(f"spool-{queue.now}", "LOCAL", "HIT", "h", duration=3)]
    ),
    lambda queue: crash(queue, 1),
    lambda queue: crash(queue, 2),
]
steps = st.lists(st.one_of(st.lists(st.lists(events, min_size=1, max_size=8), max_size=3), st.sampled_from(ACTIONS)))


@given(steps)
def test_it_counts_as_the_plainest_way_does_whatever_happens_in_between(
    tmp_path_factory: pytest.TempPathFactory, story: list[Any]
) -> None:
    queue = CountedQueue(tmp_path_factory.mktemp("queue"))
    for number, step in enumerate(story):
        queue.now += 1000.0
        if isinstance(step, list):
            queue.append(*step, job=(None, "build 1", "build 2")[number % 3])
        else:
            step(queue)
    assert summary(queue.report()) == naive_count(queue.events)
    by_job = queue.report(Question(Period(), "job")).groups
    assert {each.name: summary(each) for each in by_job} == naive_jobs(zip(queue.jobs, queue.events, strict=True))
    assert summary(queue.report()) == naive_count(queue.events)


def hit(number: int) -> dict[str, Any]:
    return use(f"s-{number // 10}", "LOCAL", "HIT", f"{number:016x}", duration=1)


def filled(queue: CountedQueue, segments: int) -> None:
    """Have so many segments, of which all but the last are in the history."""
    for start in range(segments):
        queue.append([hit(start * 20 + number) for number in range(20)])
        queue.deliver()


def test_the_recordings_are_reported_as_they_were_counted_by_hand(
    tmp_path: Path, recorded_requests: list[Recorded]
) -> None:
    queue = CountedQueue(tmp_path)
    for request in recorded_requests:
        queue.append(request.events)
    found = queue.report()
    assert (found.events, found.tasks, found.misses, found.unanswered) == (2539, 1303, 1236, 27)
    assert (found.hits.local, found.hits.remote) == (30, 10)
    assert summary(found) == naive_count(builds([{"events": each.events} for each in recorded_requests]))


def test_a_fold_reads_only_what_is_new(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 5)
    assert queue.asked()[1].events == 100
    assert queue.asked()[1].events == 0
    queue.append([hit(1000)])
    assert queue.asked()[1].events == 1


def test_the_history_of_an_adopted_spool_is_counted_once(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 2)
    for start in (1000, 2000):
        queue.adopt([hit(start + number) for number in range(20)], [hit(start + 500)])
    queue.adopt([hit(3000)], name="job-1")
    assert count_all(queue.kept()).events == 40  # those of the queue itself
    found, folded = queue.asked()
    assert (found.events, folded.events, found.unknown.handed_over) == (83, 83, 42)
    assert (found.unknown.deleted, found.unknown.damaged) == (0, 0)
    found, folded = queue.asked()
    assert (found.events, folded.events, found.unknown.handed_over) == (83, 0, 42)
    for path in (queue.directory / "history").glob("spool*"):
        path.unlink()
    assert queue.report().events == 83


def test_a_spool_that_stays_hands_the_rest_over_when_it_goes(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.adopt([hit(number) for number in range(30)], [hit(30)], name="spool", removed=False)
    assert queue.report().events == 30
    Heir(queue.directory, 1 << 20, DAY).inherit(
        queue.fs, "spool", tmp_path / "spools" / "spool" / "default", NOW, removed=True
    )
    assert queue.report().events == 31


def test_a_dead_letter_that_was_put_back_is_one_task(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    refused = use("s", "REMOTE", "HIT", "h", duration=7)
    queue.append([use("s", "LOCAL", "MISS", "h"), refused])
    queue.report()
    queue.now += 29 * DAY
    queue.append([refused])
    found = queue.report()
    assert (found.events, found.tasks, found.hits.remote, found.saved_ms.remote) == (3, 1, 1, 7)


def test_usage_outlives_the_history(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 5)
    queue.report()
    for path in (queue.directory / "history").iterdir():
        path.unlink()
    found = queue.report()
    assert (found.events, found.unknown.deleted) == (100, 0)


def test_what_left_the_history_before_it_was_folded_is_counted_as_unknown(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 2)
    queue.report()
    filled(queue, 3)
    gone = sorted((queue.directory / "history").iterdir())[1:3]
    for path in gone:
        path.unlink()
    found = queue.report()
    assert (found.unknown.deleted, found.events) == (20, 80)  # of the first one, all had been folded
    assert queue.report().unknown.deleted == 20


def test_without_a_history_what_is_gone_is_unknown(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path, Limits(segment_bytes=2000))
    filled(queue, 3)
    found = queue.report()
    assert (found.events, found.unknown.deleted) == (20, 40)


def test_a_damaged_segment_costs_what_it_held(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 3)
    path = queue.directory / "history" / segment.name(21)
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\xff" * 50 + data[150:])
    found = queue.report()
    assert (found.events, found.unknown.damaged) == (40, 20)
    assert queue.report().unknown.damaged == 20


def test_lines_that_are_no_events_are_damaged(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.queue.commit([Entry(2, encode_record(Record(NOW, Context(), b"{}\nno\n")))], NOW)
    queue.append([hit(1)])
    found = queue.report()
    assert (found.events, found.unknown.damaged) == (1, 2)


def test_a_segment_that_cannot_be_read_now_is_read_later(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 3)
    path = queue.directory / "history" / segment.name(21)
    whole = path.read_bytes()
    path.unlink()
    path.symlink_to("elsewhere")  # what the agent does not follow: to a reader it is no segment
    assert queue.report().events == 40
    path.unlink()
    path.write_bytes(whole)
    assert queue.report().events == 60


def test_numbers_that_began_anew_are_other_events(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 3)
    queue.report()
    queue.queue.close()
    for path in [*(queue.directory / "history").iterdir(), *(queue.directory / "segments").iterdir()]:
        path.unlink()
    (queue.directory / "cursor").unlink()
    again = CountedQueue(tmp_path)
    again.now += 10.0
    again.append([use("later", "LOCAL", "HIT", "h")])
    found = again.report()
    assert (found.events, found.unknown.deleted) == (61, 0)


@pytest.mark.parametrize(
    "damage", [b"not a database, but long enough to be one" * 100, b"SQLite format 3\0" + b"\xff" * 4000]
)
def test_a_damaged_file_is_made_anew_of_what_there_is_and_said(tmp_path: Path, damage: bytes) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 3)
    (tmp_path / FILE_NAME).write_bytes(damage)
    found, folded = queue.asked()
    assert found.events == 60
    assert len(folded.problems) == 1
    assert "it was put aside, and made anew" in folded.problems[0]
    assert (tmp_path / f"{FILE_NAME}.unreadable").read_bytes() == damage
    assert queue.report().events == 60


def test_damage_in_the_middle_is_found_when_it_is_met(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    for number in range(40):
        queue.append([use(f"s-{number}-{'x' * 60}", "LOCAL", "MISS", f"{number}-{each}") for each in range(20)])
    queue.report()
    path = tmp_path / FILE_NAME
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    found, folded = queue.asked()
    assert found.events == 800
    assert folded.problems


def test_tasks_of_a_session_that_cannot_be_unpacked_are_damage(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 1)
    queue.report()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE tasks SET packed = x'00'")
    connection.close()
    queue.append([hit(1)])
    found, folded = queue.asked()
    assert (found.events, found.tasks, len(folded.problems)) == (21, 20, 1)


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.report()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StorageError, match="a later version"):
        queue.asked()


def test_a_file_of_an_earlier_version_is_made_anew_of_what_there_is(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 2)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("CREATE TABLE sessions (id INTEGER)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    found, folded = queue.asked()
    assert found.events == 40
    assert "an older version" in folded.problems[0]


def test_a_disk_that_fills_up_leaves_what_was_folded_before(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 2)
    queue.report()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.close()
    for number in range(50):
        queue.append([use(f"t-{number}", "LOCAL", "HIT", f"{number}-{each}") for each in range(20)])
    store = UsageStore.open(tmp_path, max_bytes=pages * 4096)
    with pytest.raises(UnwritableError, match="full"):
        fold(store, queue.kept(), KEEPING, NOW)
    assert report(store, Question(Period())).events == 40
    store.close()
    assert queue.report().events == 1040


def test_where_no_file_can_be_made_the_report_is_of_what_there_is(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 2)
    (tmp_path / FILE_NAME).mkdir()
    found, folded = queue.asked()
    assert found.events == 40
    assert "nothing of it is kept" in folded.problems[0]


def test_two_folds_at_once_take_turns(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    filled(queue, 20)
    found: list[int] = []
    start = threading.Barrier(4)

    def ask() -> None:
        start.wait()
        found.append(queue.asked()[0].events)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [400] * 4
    assert queue.report().unknown.deleted == 0


def test_the_file_is_its_users_alone(tmp_path: Path) -> None:
    CountedQueue(tmp_path).report()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_what_is_too_old_is_forgotten(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path, LIMITS)
    queue.append([use("old", "LOCAL", "HIT", "h")])
    queue.report()
    keeping = Keeping(tasks=DAY, usage=10 * DAY)
    with_tasks = "SELECT count(*) FROM tasks"
    for days, sessions, tasks in ((0.5, 1, 1), (2, 1, 0), (20, 0, 0)):
        store = UsageStore.open(tmp_path)
        fold(store, queue.kept(), keeping, NOW + days * DAY)
        (left,), (packed,) = (
            store.connection.execute(each).fetchone() for each in ("SELECT count(*) FROM sessions", with_tasks)
        )
        store.close()
        assert (left, packed) == (sessions, tasks), days


def test_only_what_is_committed_is_counted(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([hit(1), hit(2)])
    before = (queue.directory / "cursor").read_bytes()
    queue.append([hit(3)])
    after = (queue.directory / "cursor").read_bytes()
    (queue.directory / "cursor").write_bytes(before)
    assert queue.report(Question(Period())).events == 2
    (queue.directory / "cursor").write_bytes(after)
    assert queue.report().events == 3


class ForbiddingFilesystem(UnsyncedFilesystem):
    """Another user's directory, mode 0700."""

    def names(self, directory: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))

    def open(self, path: Path, *, writable: bool = False) -> File:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def test_a_queue_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    CountedQueue(tmp_path)
    with pytest.raises(StorageError, match="Permission denied"):
        KeptEvents.read(ForbiddingFilesystem(), tmp_path / "default")


def test_the_disk_that_the_queue_is_short_of_is_left_to_it(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([hit(1)])
    ask = partial(report, question=Question(Period()))
    found, folded = query(queue.fs, tmp_path, queue.kept(), KEEPING, NOW, ask, may_write=False)
    assert found.events == 1
    assert "queue.min_free_bytes" in folded.problems[0]
    assert not (tmp_path / FILE_NAME).exists()


def test_times_and_durations_that_are_nonsense_do_no_harm(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    for moment in (math.nan, math.inf, -1e300, 1e300):
        lines = encode_events([decode_event(json.dumps(use("s", "LOCAL", "HIT", f"h-{moment}", duration=1e308)))])
        queue.queue.commit([Entry(1, encode_record(Record(moment, Context(), lines)))], NOW)
    found, folded = queue.asked(Question(Period(), "hour"))
    assert (folded.events, folded.problems) == (4, ())
    assert found.events == 0  # it is from 1970, and forgotten
