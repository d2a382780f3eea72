"""A queue on a real disk whose events are counted, and what a report says of them."""

import contextlib
import random
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from agent.events import Context, Event, decode_event, encode_events
from agent.queue.cursor import Outcome, Span
from agent.queue.history import Heir
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.store import Limits
from agent.usage.counting import Sessions, Totals, count
from agent.usage.fold import BATCH_EVENTS, Folded, Keeping, query
from agent.usage.reading import KeptEvents
from agent.usage.report import Period, Question, Report, Summary, report
from agent.usage.store import UsageStore
from tests.support.open_queue import OpenQueue
from tests.support.unsynced import UnsyncedFilesystem

LIMITS = Limits(segment_bytes=2000, history_bytes=1 << 30, max_age=1e12)
NOW = 1_750_000_000.0
KEEPING = Keeping(tasks=30 * 86_400.0)
T = TypeVar("T")
SHARED_HASHES = 200_000
_ANSWERS: list[tuple[Literal["LOCAL", "REMOTE"], Literal["HIT", "MISS"]]] = [
    ("LOCAL", "HIT"),
    ("REMOTE", "HIT"),
    ("REMOTE", "MISS"),
    ("LOCAL", "MISS"),
]


class CountedQueue:
    """A queue below `root`, and all events that were ever appended."""

    def __init__(self, root: Path, limits: Limits = LIMITS) -> None:
        self.root = root
        self.now = NOW
        self.events: list[dict[str, Any]] = []
        self.jobs: list[str | None] = []  # of each of them
        self._adopted = 0
        self.fs = UnsyncedFilesystem()
        self._limits = limits
        self.queue = self._opened()

    @property
    def directory(self) -> Path:
        """Where the queue of the destination is."""
        return self.root / "default"

    def _opened(self) -> OpenQueue:
        return OpenQueue(self.fs, self.directory, self._limits)

    def append(self, *records: list[dict[str, Any]], ci: str | None = None, job: str | None = None) -> None:
        """Commit records of these events, of clients in a CI system, and of a job."""
        entries = []
        for events in records:
            lines = encode_events([decode_event(msgspec.json.encode(event)) for event in events])
            entries.append(Entry(len(events), encode_record(Record(self.now, Context(ci, job=job), lines))))
            self.events += events
            self.jobs += [job] * len(events)
        self.queue.commit(entries, self.now)

    def deliver(self) -> None:
        """Settle all that waits; segments go into the history."""
        cursor = self.queue.cursor
        self.queue.cursor.settle([Span(cursor.position, cursor.next_seq)], Outcome.DELIVERED)
        self.queue.commit((), self.now)

    def adopt(self, *records: list[dict[str, Any]], name: str | None = None, removed: bool = True) -> None:
        """Take over the history of a queue that is not there any more: these events, which are delivered."""
        self._adopted += 1
        name = name or f"spool{self._adopted}"
        other = CountedQueue(self.root / "spools" / name, self._limits)
        other.now = self.now
        for record in records:  # a segment each, if they are not small
            other.append(record)
            other.deliver()
        other.queue.close()
        Heir(self.directory, self._limits.history_bytes, self._limits.history_age).inherit(
            self.fs, name, other.directory, self.now, removed=removed
        )
        self.events += other.events
        self.jobs += other.jobs

    def restart(self) -> None:
        """End the queue in order, and open it again."""
        self.queue.close()
        self.queue = self._opened()

    def kept(self) -> KeptEvents:
        """Return what another process sees."""
        return KeptEvents.read(self.fs, self.directory)

    def asked(self, question: Question = Question(Period())) -> tuple[Report, Folded]:  # noqa: B008 - it is frozen
        """Fold, and return a report."""
        return query(self.fs, self.root, self.kept(), KEEPING, self.now, lambda store: report(store, question))

    def ask(self, question: Callable[[UsageStore], T]) -> T:
        """Fold, and return what a function finds in the file."""
        found, folded = query(self.fs, self.root, self.kept(), KEEPING, self.now, question)
        assert not folded.problems
        return found

    def report(self, question: Question = Question(Period())) -> Report:  # noqa: B008 - it is frozen
        """Fold, and return a report of which nothing is missing."""
        found, folded = self.asked(question)
        assert not folded.problems
        return found


def summary(found: Summary) -> dict[str, Any]:
    """Return those keys of a report that are promised to stay."""
    names = ("events", "tasks", "hits", "misses", "unanswered", "saved_ms", "hit_rate")
    return {name: msgspec.to_builtins(getattr(found, name)) for name in names}


def use(session: str, source: str, kind: str, hash_: str, **more: object) -> dict[str, Any]:
    """Return an event."""
    return {"sessionId": session, "source": source, "event": kind, "hash": hash_, **more}


def builds(recorded: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of recorded requests."""
    return [event for request in recorded for event in request["events"]]


def summary_of(totals: Totals) -> dict[str, Any]:
    """Return totals by the names of a report."""
    return {
        "events": totals.events,
        "tasks": totals.tasks,
        "hits": {"local": totals.local_hits, "remote": totals.remote_hits},
        "misses": totals.misses,
        "unanswered": totals.unanswered,
        "saved_ms": {"local": totals.local_saved_ms, "remote": totals.remote_saved_ms},
        "hit_rate": totals.hit_rate,
    }


def write_usage(directory: Path, events: int, *, builds: int, now: float, days: int = 30, each: int = 1) -> None:
    """Write `usage.sqlite3` as folds of so many events of builds over some days would have left it, without a queue.

    `now` is in seconds since the epoch. Each task is reported `each` times, seven in ten have one of SHARED_HASHES, and hits
    become more from build to build.
    """
    chance = random.Random(7)
    with contextlib.closing(UsageStore.open(directory)) as store:
        sessions = Sessions()
        for build in range(builds):
            name, at = str(uuid.UUID(int=chance.getrandbits(128))), now - days * 86_400.0 * (1 - (build + 1) / builds)
            made = _events_of_a_build(chance, name, events // builds // each, build / builds)
            count(sessions, made * each, "GITHUB_ACTIONS" if build % 3 else None, at)
            if sum(len(session.tasks) for session in sessions.values()) > BATCH_EVENTS or build == builds - 1:
                with store.transaction():
                    store.add(sessions, {name: {} for name in sessions})
                sessions = Sessions()


def _events_of_a_build(chance: random.Random, session: str, number: int, progress: float) -> list[Event]:
    """Return the events of a build of which more is cached the further the `progress`, from 0 to 1."""
    weights = [1 + 3 * progress, 1 + 2 * progress, 3 - 2 * progress, 0.1]
    return [
        Event(
            session,
            source,
            kind,
            f"{chance.randrange(SHARED_HASHES) if chance.random() < 0.7 else chance.getrandbits(64):016x}",
            chance.randrange(60_000) if kind == "HIT" else 0,
        )
        for source, kind in chance.choices(_ANSWERS, weights, k=number)
    ]
