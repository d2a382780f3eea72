"""The sessions of the last minutes are followed as events come; what is old, too much or unreadable is left out and said."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.errors import StorageError
from agent.queue.filesystem import File
from agent.queue.store import Limits
from agent.usage.counting import Totals
from agent.usage.recent import MOST_SESSIONS, Recent, RecentSession, RecentSessions, of_all
from tests.support.naive_usage import naive_count
from tests.support.recordings import Recorded
from tests.support.unsynced import UnsyncedFilesystem
from tests.support.usage import NOW, CountedQueue, summary_of, use


class CountingFilesystem(UnsyncedFilesystem):
    """Knows which files were opened, and can refuse those with some suffix."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.refused = "nothing"

    def open(self, path: Path, *, writable: bool = False) -> File:
        self.opened.append(path.name)
        if path.name.endswith(self.refused):
            raise PermissionError(13, "Permission denied")
        return super().open(path, writable=writable)


@pytest.fixture
def queue(tmp_path: Path) -> CountedQueue:
    return CountedQueue(tmp_path)


def follow(queue: CountedQueue, **bounds: Any) -> RecentSessions:
    return RecentSessions(queue.fs, queue.directory, **bounds)


def names(recent: Recent) -> list[str]:
    return [each.name for each in recent.sessions]


def test_sessions_are_counted_as_they_go_on_the_newest_first(queue: CountedQueue) -> None:
    recent = follow(queue)
    assert recent.read(NOW) == Recent((), 600.0, 0)
    queue.append([use("a", "LOCAL", "MISS", "h"), use("b", "LOCAL", "HIT", "h", duration=5)], ci="GITHUB_ACTIONS")
    queue.now += 10
    queue.append([use("a", "REMOTE", "HIT", "h", duration=7)])
    found = recent.read(queue.now)
    assert names(found) == ["a", "b"]
    assert found.complete
    totals = Totals(events=2, remote_hits=1, remote_saved_ms=7.0)
    assert found.sessions[0] == RecentSession("a", "GITHUB_ACTIONS", NOW + 10, totals)
    queue.deliver()
    queue.now += 1
    queue.append([use("b", "REMOTE", "MISS", "g")])
    found = recent.read(queue.now)
    assert names(found) == ["b", "a"]
    assert found.sessions[0].totals == Totals(events=2, local_hits=1, misses=1, local_saved_ms=5.0)


def test_it_counts_as_the_plainest_way_does(queue: CountedQueue, recorded_requests: list[Recorded]) -> None:
    recent = follow(queue)
    for number, request in enumerate(recorded_requests):
        queue.append(request.events)
        if number % 7 == 0:
            recent.read(queue.now)
        if number % 11 == 0:
            queue.deliver()
    found = recent.read(queue.now)
    assert found.number == len(found.sessions) > 10
    for each in found.sessions:
        mine = [event for event in queue.events if event["sessionId"] == each.name]
        assert summary_of(each.totals) == naive_count(mine)


def test_what_is_over_is_forgotten_and_not_even_read(queue: CountedQueue) -> None:
    for minute in range(60):
        queue.now = NOW + minute * 60
        queue.append([use(f"s-{minute}", "LOCAL", "MISS", f"h-{number}") for number in range(15)])
    fs = CountingFilesystem()
    recent = RecentSessions(fs, queue.directory)
    assert names(recent.read(queue.now)) == [f"s-{minute}" for minute in range(59, 48, -1)]
    assert recent.read(queue.now + 599).number == 1
    assert recent.read(queue.now + 601) == Recent((), 600.0, 0)


def test_while_nothing_comes_no_segment_is_opened(queue: CountedQueue) -> None:
    queue.append([use("s", "LOCAL", "MISS", "h")])
    fs = CountingFilesystem()
    recent = RecentSessions(fs, queue.directory)
    before = recent.read(NOW)
    fs.opened.clear()
    assert recent.read(NOW + 1) == before
    assert fs.opened == ["cursor"]


def test_what_other_queues_have_handed_over_is_followed_too(queue: CountedQueue) -> None:
    queue.append([use("own", "LOCAL", "MISS", "h")])
    recent = follow(queue)
    assert names(recent.read(NOW)) == ["own"]
    queue.now += 1
    queue.adopt([use("job", "REMOTE", "HIT", "h", duration=7)], name="job-1")
    found = recent.read(queue.now)  # nothing new has come to the queue itself
    assert names(found) == ["job", "own"]
    assert found.sessions[0].totals == Totals(events=1, remote_hits=1, remote_saved_ms=7.0)
    queue.adopt(
        *([use(f"s-{number}", "LOCAL", "MISS", f"h-{each}") for each in range(15)] for number in range(3)), name="spool"
    )
    queue.now += 1
    queue.append([use("own", "LOCAL", "MISS", "g")])
    for again in (recent, follow(queue)):
        found = again.read(queue.now)
        assert (found.number, found.complete, found.problem) == (5, True, None)
        assert sum(each.totals.events for each in found.sessions) == 3 + 45
        assert again.read(queue.now) == found


def test_what_was_handed_over_long_ago_does_not_count_and_is_not_read(queue: CountedQueue) -> None:
    queue.append([use("own", "LOCAL", "MISS", "h")])
    for number in range(3):
        queue.adopt([use(f"job-{number}", "LOCAL", "MISS", "h")], name=f"job-{number}")
    for path in (queue.directory / "history").glob("job-[01]-*.seg"):
        os.utime(path, (NOW - 601, NOW - 601))
    fs = CountingFilesystem()
    found = RecentSessions(fs, queue.directory).read(NOW)
    assert set(names(found)) == {"own", "job-2"}
    assert found.complete
    assert {name[:5] for name in fs.opened if name.startswith("job")} == {"job-2"}


def test_of_too_much_the_newest_is_read_whichever_queue_it_is_of(queue: CountedQueue) -> None:
    queue.append([use("own", "LOCAL", "MISS", f"h-{number}") for number in range(15)])
    for number in range(5):
        queue.adopt([use(f"job-{number}", "LOCAL", "MISS", f"h-{each}") for each in range(15)], name=f"job-{number}")
    paths = sorted((queue.directory / "history").glob("job-*.seg"))
    for number, path in enumerate(paths):
        os.utime(path, (NOW - 100 + number, NOW - 100 + number))
    found = follow(queue, read_bytes=int(3.5 * paths[0].stat().st_size)).read(NOW)
    assert not found.complete
    assert set(names(found)) == {"own", "job-4", "job-3"}


def test_more_than_can_be_read_or_held_is_left_out_and_said(queue: CountedQueue) -> None:
    for number in range(40):
        queue.append([use(f"s-{number}", "LOCAL", "MISS", f"h-{each}") for each in range(15)])
        queue.now += 1
    few = follow(queue, read_bytes=2 * 2000).read(queue.now)
    assert not few.complete
    assert 1 <= few.number <= 3
    assert names(few)[0] == "s-39"
    held = follow(queue, max_tasks=31)
    assert names(held.read(queue.now)) == ["s-39", "s-38"]
    assert not held.read(queue.now + 599).complete
    assert held.read(queue.now + 601).complete


def test_several_destinations_share_what_may_be_held(queue: CountedQueue) -> None:
    for number in range(4):
        queue.append([use(f"s-{number}", "LOCAL", "MISS", f"h-{each}") for each in range(15)])
        queue.now += 1
    assert names(follow(queue, max_tasks=62).read(queue.now, 2)) == ["s-3", "s-2"]
    one_of_many = follow(queue, read_bytes=4 * 2000).read(queue.now, 4)
    assert (one_of_many.number < 4, one_of_many.complete) == (True, False)


def test_the_sessions_of_several_destinations_are_shown_together_the_newest_first() -> None:
    def recent(*lasts: float, **more: Any) -> Recent:
        return Recent(tuple(RecentSession(f"s-{last}", None, last, Totals()) for last in lasts), 600.0, 7, **more)

    found = of_all({"default": recent(5, 1), "web": recent(3, complete=False, problem="damaged")})
    assert [(each.name, each.destination) for each in found.sessions] == [
        ("s-5", "default"),
        ("s-3", "web"),
        ("s-1", "default"),
    ]
    assert (found.number, found.seconds, found.complete, found.problem) == (14, 600.0, False, "damaged")
    assert len(of_all({name: recent(*range(MOST_SESSIONS)) for name in ("a", "b")}).sessions) == MOST_SESSIONS


def test_there_are_no_more_than_can_be_shown(queue: CountedQueue) -> None:
    queue.append([use(f"s-{number}", "LOCAL", "MISS", "h") for number in range(MOST_SESSIONS + 5)])
    found = follow(queue).read(queue.now)
    assert (len(found.sessions), found.number) == (MOST_SESSIONS, MOST_SESSIONS + 5)


def test_a_segment_that_cannot_be_read_now_is_said_and_read_later(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path, Limits(segment_bytes=65536, history_bytes=1 << 30, max_age=1e12))
    queue.append([use("s", "LOCAL", "MISS", "h")])
    fs = CountingFilesystem()
    recent = RecentSessions(fs, queue.directory)
    fs.refused = ".seg"
    found = recent.read(NOW)
    assert found.sessions == ()
    assert "Permission denied" in (found.problem or "")
    fs.refused = "nothing"
    found = recent.read(NOW)
    assert (names(found), found.problem) == (["s"], None)


def test_a_queue_that_this_user_may_not_read_is_an_error(queue: CountedQueue) -> None:
    fs = CountingFilesystem()
    fs.refused = "cursor"
    with pytest.raises(StorageError, match="Permission denied"):
        RecentSessions(fs, queue.directory).read(NOW)
