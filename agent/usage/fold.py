"""Folds a queue and its history into `usage.sqlite3`, as far as they have not been folded yet.

It runs in the process that wants a report: the daemon knows nothing of it. What is not folded when it leaves the history is lost
to reports, and is counted.
"""

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from agent.errors import StorageError
from agent.queue.filesystem import Filesystem
from agent.queue.history import JOB_PREFIX
from agent.usage.counting import Sessions, Task
from agent.usage.reading import KeptEvents, Piece, Progress, SegmentKey, count_piece
from agent.usage.store import ADOPTED, DAMAGED, DELETED, DamagedError, UnwritableError, UsageStore, set_aside

T = TypeVar("T")

BATCH_EVENTS = 200_000
"""What memory holds at one time."""
FORGET_SECONDS = 86_400.0
_NEXT = "next_seq"
_FORGOTTEN = "forgotten_at"


class Keeping(NamedTuple):
    """How long counted things are kept, in seconds: the tasks of a session after its last event, and all the rest."""

    tasks: float
    usage: float = 400 * 86_400.0


class Folded(NamedTuple):
    """What a fold did: how many events it added, and what there is to say about it, a line each."""

    events: int
    problems: tuple[str, ...] = ()


def query(
    fs: Filesystem,
    directory: Path,
    kept: KeptEvents,
    keeping: Keeping,
    now: float,
    ask: Callable[[UsageStore], T],
    *,
    may_write: bool = True,
) -> tuple[T, Folded]:
    """Fold into the file in a queue directory, and return what `ask` finds in it. `now` is in seconds since the epoch.

    A damaged file is put aside, and made anew of what there is. Where none can be written, or the disk has no room to spare (not
    `may_write`), what there is is counted in memory. Raises StorageError for what cannot be read.
    """
    said: tuple[str, ...] = ()
    for _ in range(2):
        try:
            if not may_write:
                raise UnwritableError(f"{directory}: less is free on the disk than queue.min_free_bytes")  # noqa: TRY301
            found, folded = _query(UsageStore.open(directory), kept, keeping, now, ask)
        except DamagedError as error:
            set_aside(fs, directory)
            said = (f"{error}: it was put aside, and made anew of what the queue and its history hold",)
        except UnwritableError as error:
            found, folded = _query(UsageStore.in_memory(), kept, keeping, now, ask)
            said = (f"{error}: this report is of what the queue and its history hold, and nothing of it is kept",)
            return found, Folded(folded.events, (*said, *folded.problems))
        else:
            return found, Folded(folded.events, (*said, *folded.problems))
    raise StorageError(*said)  # twice: it is the disk


def _query(
    store: UsageStore, kept: KeptEvents, keeping: Keeping, now: float, ask: Callable[[UsageStore], T]
) -> tuple[T, Folded]:
    with contextlib.closing(store):
        try:
            folded = fold(store, kept, keeping, now)
        except UnwritableError as error:
            folded = Folded(0, (f"{error}: what came last is not in this report",))
        return ask(store), folded


def fold(
    store: UsageStore, kept: KeptEvents, keeping: Keeping, now: float, *, batch_events: int = BATCH_EVENTS
) -> Folded:
    """Fold all that a queue holds and the store does not. `now` is in seconds since the epoch.

    After each `batch_events`, and the rest of their segment, it commits: that stays. Raises StorageError, UnwritableError and
    DamagedError.
    """
    events, problems = 0, dict[SegmentKey, str]()
    while True:
        with store.transaction():
            known = store.progress() | {key: Progress(key.first_seq, complete=True) for key in problems}
            batch = _Batch(store)
            complete = batch.take(kept.pieces(known), batch_events)
            batch.write(kept)
            if complete:
                _forget(store, keeping, now)
        events += batch.events
        problems |= batch.problems
        if complete:
            return Folded(events, tuple(problems.values()))


class _Batch:
    """What is folded in one transaction."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._before: dict[str, dict[str, Task]] = {}
        self._sessions = Sessions(self._tasks_of)
        self._pieces: list[tuple[SegmentKey, Progress]] = []
        self._lost = 0
        self._adopted = 0
        self.events = 0
        self.problems: dict[SegmentKey, str] = {}

    def take(self, pieces: Iterable[Piece], enough: int) -> bool:
        """Count pieces until there are enough; return whether these were all."""
        for piece in pieces:
            self._pieces.append((piece.key, piece.progress))
            if piece.problem is not None:
                self.problems[piece.key] = piece.problem
                continue
            events, lost = count_piece(self._sessions, piece)
            self.events += events
            self._lost += lost
            if piece.key.queue and not piece.key.queue.startswith(JOB_PREFIX):
                self._adopted += events + lost
            if self.events >= enough:
                return False
        return True

    def write(self, kept: KeptEvents) -> None:
        """Write what was counted, and how far."""
        store = self._store
        store.add(self._sessions, self._before)
        store.lose(DAMAGED, self._lost)
        store.lose(DELETED, self._count_deleted(kept))
        if self._adopted:
            store.set_fact(ADOPTED, (store.fact(ADOPTED) or 0.0) + self._adopted)
        done = {key: progress for key, progress in self._pieces if key not in self.problems}
        store.set_progress(done, kept.keys)

    def _count_deleted(self, kept: KeptEvents) -> int:
        """Return how many events were deleted before they were folded: their numbers are missing between segments."""
        own = [(key, progress) for key, progress in self._pieces if not key.queue]
        expected = int(self._store.fact(_NEXT) or kept.origin)
        if expected > kept.committed:  # the queue is another one, or has lost its cursor: its numbers began anew
            expected = own[0][0].first_seq if own else kept.committed
        deleted = 0
        for key, progress in own:
            deleted += max(key.first_seq - expected, 0)
            expected = max(expected, progress.read_to)
        self._store.set_fact(_NEXT, expected)
        return deleted

    def _tasks_of(self, name: str) -> dict[str, Task]:
        tasks = self._store.tasks_of(name)
        self._before[name] = tasks.copy()
        return tasks


def _forget(store: UsageStore, keeping: Keeping, now: float) -> None:
    """Remove what is too old, once a day."""
    if now - (store.fact(_FORGOTTEN) or 0.0) >= FORGET_SECONDS:
        store.forget_before(now - keeping.tasks, now - keeping.usage)
        store.set_fact(_FORGOTTEN, now)
