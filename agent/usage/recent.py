"""The sessions of the last minutes, for a live screen: read from a queue and its history as events come, and kept in memory.

Nothing is written, and what was read before is not read again. What more comes than can be read at one time is left out, and that
is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue.cursor_file import newest_in, read_slots
from agent.queue.filesystem import Filesystem
from agent.queue.history import DIRECTORY as HISTORY
from agent.queue.history import handed_over, handed_over_name
from agent.usage.counting import Sessions, SessionTasks, Totals, totals_of
from agent.usage.reading import KeptEvents, Progress, SegmentKey, count_piece

WINDOW_SECONDS = 600.0
READ_BYTES = 16 * 1024 * 1024
"""The most that is read at one time: 130,000 events."""
MAX_TASKS = 200_000
"""What memory holds."""
MOST_SESSIONS = 100


class RecentSession(NamedTuple):
    """A session, of a destination; `last` is when its last event was accepted, in seconds since the epoch."""

    name: str
    ci: str | None
    last: float
    totals: Totals
    destination: str = ""


class Recent(NamedTuple):
    """The sessions of which an event was accepted within `seconds`, the newest first: MOST_SESSIONS at most of `number`.

    It is not `complete` if there was more than can be read or held, and `problem` says what could not be read.
    """

    sessions: tuple[RecentSession, ...]
    seconds: float
    number: int
    complete: bool = True
    problem: str | None = None


def of_all(found: Mapping[str, Recent]) -> Recent:
    """Return the sessions of several destinations together, each with its own; `found` is not empty."""
    each_one = [session._replace(destination=name) for name, recent in found.items() for session in recent.sessions]
    newest = sorted(each_one, key=lambda session: session.last, reverse=True)[:MOST_SESSIONS]
    return Recent(
        tuple(newest),
        max(recent.seconds for recent in found.values()),
        sum(recent.number for recent in found.values()),
        complete=all(recent.complete for recent in found.values()),
        problem=next((recent.problem for recent in found.values() if recent.problem is not None), None),
    )


class _Segment(NamedTuple):
    """A segment whose last event was accepted at `ended_at`, in seconds since the epoch, or before; its numbers end at `limit`.

    The `newest` of the queue is read, however large.
    """

    key: SegmentKey
    size: int
    limit: int
    ended_at: float
    newest: bool = False


class RecentSessions:
    """Follows the queue of a destination. Its calls block."""

    def __init__(
        self,
        fs: Filesystem,
        directory: Path,
        *,
        seconds: float = WINDOW_SECONDS,
        read_bytes: int = READ_BYTES,
        max_tasks: int = MAX_TASKS,
    ) -> None:
        self._fs = fs
        self._directory = directory
        self._seconds = seconds
        self._read_bytes = read_bytes
        self._max_tasks = max_tasks
        self._sessions = Sessions()
        self._totals: dict[str, Totals] = {}  # of sessions of which nothing new has come
        self._progress: dict[SegmentKey, Progress] = {}
        self._next_seq: int | None = None
        self._others: Mapping[str, Sequence[int]] = {}
        self._problem: str | None = None
        self._incomplete_until = float("-inf")

    def read(self, now: float, part: int = 1) -> Recent:
        """Read what is new, and return what is known then; `now` is in seconds since the epoch. Raises StorageError.

        No more is read and held than this `part` of all that may be: 2 for a half.
        """
        slots = read_slots(self._fs, self._directory / "cursor")
        if not slots:
            raise StorageError(f"{self._directory}: there is no queue here: queue.directory is that of another daemon")
        newest = newest_in(slots)
        next_seq = None if newest is None else newest.state.next_seq
        try:
            others = handed_over(self._fs, self._directory)
        except OSError as error:
            raise StorageError(f"{self._directory / HISTORY}: cannot be read: {error.strerror}") from error
        seen = (next_seq, others) == (self._next_seq, self._others)
        if next_seq is None or not seen or self._problem is not None:
            self._read_new(now, self._read_bytes // part)
            self._next_seq, self._others = next_seq, others
        self._forget(now, self._max_tasks // part)
        shown = tuple(self._shown(*each) for each in islice(self._sessions.items(), MOST_SESSIONS))
        complete = now >= self._incomplete_until
        return Recent(shown, self._seconds, len(self._sessions), complete=complete, problem=self._problem)

    def _shown(self, name: str, session: SessionTasks) -> RecentSession:
        known = self._totals.get(name)
        if known is None or known.events != session.events.total():
            known = self._totals[name] = totals_of([session])
        return RecentSession(name, session.ci, session.last, known)

    def _read_new(self, now: float, most_bytes: int) -> None:
        kept = KeptEvents.read(self._fs, self._directory)
        known = self._progress = self._unread(kept, now, most_bytes)
        self._problem = None
        for piece in kept.pieces(known):
            if piece.problem is not None:
                self._problem = piece.problem
                continue
            count_piece(self._sessions, piece)
            known[piece.key] = piece.progress

    def _unread(self, kept: KeptEvents, now: float, most_bytes: int) -> dict[SegmentKey, Progress]:
        """Return how far each segment has been read; one that is too old, or one too many, as if it had been."""
        progress, size = dict[SegmentKey, Progress](), 0
        for each in sorted(self._segments(kept, now), key=lambda each: each.ended_at, reverse=True):
            before = self._progress.get(each.key)
            if before is None or not before.complete:
                if each.ended_at < now - self._seconds:
                    before = Progress(each.limit, complete=True)
                else:
                    size += each.size
                    if size > most_bytes and not each.newest:
                        before = Progress(each.limit, complete=True)
                        self._incomplete_until = now + self._seconds
            if before is not None:
                progress[each.key] = before
        return progress

    def _segments(self, kept: KeptEvents, now: float) -> Iterator[_Segment]:
        """Yield the segments of the queue, the newest first, and those of others."""
        keys, ended_at = kept.own_keys, now
        for index in range(len(keys) - 1, -1, -1):
            newest = index == len(keys) - 1
            yield _Segment(keys[index], kept.view.segments[index].size, kept.view.limit(index), ended_at, newest)
            ended_at = keys[index].created_at
        for key in kept.other_keys:
            if key in self._progress:
                yield _Segment(key, 0, key.first_seq, now)
                continue
            path = self._directory / HISTORY / handed_over_name(key.queue, key.first_seq)
            try:
                found = path.stat()
            except FileNotFoundError:  # it has been deleted
                continue
            except OSError as error:
                raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
            yield _Segment(key, found.st_size, key.first_seq, min(found.st_mtime, now))

    def _forget(self, now: float, most_tasks: int) -> None:
        """Forget the sessions that have ended, and the oldest of those that are too many; put the newest first."""
        kept, tasks = Sessions(), 0
        for name, session in sorted(self._sessions.items(), key=_last, reverse=True):
            tasks += len(session.tasks)
            if session.last < now - self._seconds:
                break
            if tasks > most_tasks:
                self._incomplete_until = now + self._seconds
                break
            kept[name] = session
        self._sessions = kept
        self._totals = {name: totals for name, totals in self._totals.items() if name in kept}


def _last(item: tuple[str, SessionTasks]) -> float:
    return item[1].last
