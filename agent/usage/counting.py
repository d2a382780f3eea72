"""Counts tasks, as a person would count them. Pure.

For one task a build tool may report several events: LOCAL MISS, and then REMOTE HIT. A *task* is a hash in a session, however
often it is reported, and its best answer counts. LOCAL MISS without anything REMOTE is *unanswered*: the remote cache was off, or
failing. The time that a hit saved is that of the task, in ms: tasks run in parallel, so that the sum is more than the build got
shorter by.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from operator import attrgetter

import msgspec
from msgspec import UNSET

from agent.events import Event, decode_event, decode_events

HOUR_SECONDS = 3600
MAX_NAME = 128
"""Longer names of sessions and hashes are shortened: no real one is, and a report is kept for long."""

MAX_SAVED_MS = 1e12
"""No task takes longer: more is nonsense, and would make the sum nonsense."""
_LAST = 253_402_300_800.0  # the year 10000


class Answer(IntEnum):
    """What the cache said to a task, the best last."""

    UNANSWERED = 0
    MISS = 1
    REMOTE_HIT = 2
    LOCAL_HIT = 3


_ANSWERS = {
    "LOCALMISS": Answer.UNANSWERED.value,
    "REMOTEMISS": Answer.MISS.value,
    "REMOTEHIT": Answer.REMOTE_HIT.value,
    "LOCALHIT": Answer.LOCAL_HIT.value,
}
_HIT = Answer.REMOTE_HIT.value


Task = tuple[int, float, int]
"""A task: its best answer so far (an `Answer`), the ms that this saved, and the hour in which it was first reported.

Hours are counted from the epoch. It is no class: there are millions.
"""


class Totals(msgspec.Struct, frozen=True):
    """What some tasks come to; times in ms of task time."""

    events: int = 0
    local_hits: int = 0
    remote_hits: int = 0
    misses: int = 0
    unanswered: int = 0
    local_saved_ms: float = 0.0
    remote_saved_ms: float = 0.0

    @property
    def tasks(self) -> int:
        """All of them."""
        return self.hits + self.misses + self.unanswered

    @property
    def hits(self) -> int:
        """Those that the cache had."""
        return self.local_hits + self.remote_hits

    @property
    def saved_ms(self) -> float:
        """The time that all hits saved."""
        return self.local_saved_ms + self.remote_saved_ms

    @property
    def hit_rate(self) -> float | None:
        """The share of hits, 0.0 to 1.0; None without tasks."""
        return self.hits / self.tasks if self.tasks else None


class SessionTasks:
    """The tasks of a session. `first` and `last` are seconds since the epoch, `ci` and `job` are the first that it named.

    `events` has the number of events by hour.
    """

    __slots__ = ("ci", "events", "first", "job", "last", "tasks")

    def __init__(self, tasks: dict[str, Task]) -> None:
        self.ci: str | None = None
        self.job: str | None = None
        self.first = float("inf")
        self.last = float("-inf")
        self.events: Counter[int] = Counter()
        self.tasks = tasks


class Sessions(dict[str, SessionTasks]):
    """Sessions by name; `known_tasks` returns what tasks one has that is not here yet."""

    def __init__(self, known_tasks: Callable[[str], dict[str, Task]] = lambda _: {}) -> None:
        super().__init__()
        self._known_tasks = known_tasks

    def __missing__(self, name: str) -> SessionTasks:
        session = self[name] = SessionTasks(self._known_tasks(name))
        return session


def count(sessions: Sessions, events: Sequence[Event], ci: str | None, at: float, job: str | None = None) -> None:
    """Add events that were accepted at one moment (seconds since the epoch), of one CI system and job, to their sessions."""
    at = at if 0 <= at < _LAST else 0.0  # a record of another program may say anything
    hour = int(at // HOUR_SECONDS)
    for session_id, number in Counter(map(attrgetter("session_id"), events)).items():
        session = sessions[shortened(session_id)]
        session.events[hour] += number
        session.ci = session.ci or ci
        session.job = session.job or job
        session.first, session.last = min(session.first, at), max(session.last, at)
    last_id, tasks = None, dict[str, Task]()
    for event in events:  # the only loop over events: it costs half a microsecond for each
        if event.session_id != last_id:
            last_id = event.session_id
            tasks = sessions[shortened(last_id)].tasks
        name, answer = event.hash, _ANSWERS[event.source + event.event]
        known = tasks.get(name)
        if known is None and len(name) > MAX_NAME:
            name = shortened(name)
            known = tasks.get(name)
        if known is None or answer > known[0]:
            saved = 0.0 if answer < _HIT or event.duration is UNSET else min(max(event.duration, 0.0), MAX_SAVED_MS)
            tasks[name] = (answer, saved, hour if known is None else known[2])


def totals(tasks: Iterable[Task], events: int) -> Totals:
    """Sum tasks up; `events` is how many events reported them."""
    numbers, saved = [0, 0, 0, 0], [0.0, 0.0, 0.0, 0.0]
    for answer, saved_ms, _ in tasks:
        numbers[answer] += 1
        saved[answer] += saved_ms
    return Totals(
        events=events,
        local_hits=numbers[Answer.LOCAL_HIT],
        remote_hits=numbers[Answer.REMOTE_HIT],
        misses=numbers[Answer.MISS],
        unanswered=numbers[Answer.UNANSWERED],
        local_saved_ms=saved[Answer.LOCAL_HIT],
        remote_saved_ms=saved[Answer.REMOTE_HIT],
    )


def totals_by_hour(session: SessionTasks) -> dict[int, Totals]:
    """Sum a session's tasks up by the hour in which they were first reported, and its events by theirs."""
    hours: dict[int, list[Task]] = {hour: [] for hour in session.events}
    for task in session.tasks.values():
        hours.setdefault(task[2], []).append(task)
    return {hour: totals(tasks, session.events[hour]) for hour, tasks in hours.items()}


def totals_of(sessions: Iterable[SessionTasks]) -> Totals:
    """Sum up all tasks of some sessions."""
    found = list(sessions)
    tasks = (task for session in found for task in session.tasks.values())
    return totals(tasks, sum(session.events.total() for session in found))


def events_in(lines: bytes) -> tuple[list[Event], int]:
    """Return the events of a record, and how many of its lines are none: only another program can have written such a line."""
    try:
        return decode_events(lines), 0
    except ValueError:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        pass
    events, others = [], 0
    for line in lines.split(b"\n")[:-1]:
        try:
            events.append(decode_event(line))
        except ValueError:
            others += 1
    return events, others


def shortened(name: str) -> str:
    """Return the name of a session or hash as it is counted."""
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{name[: MAX_NAME - len(digest) - 1]}…{digest}"
