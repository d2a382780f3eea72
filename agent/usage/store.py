"""`usage.sqlite3`: what has been counted, beside the queue that it was counted from.

Every change is one transaction, with the progress of the fold in it: after a crash the same segments are folded again. Two
processes take turns. Whoever finds the file damaged puts it aside, and counts anew what is still there.

sessions  a row for each: when, in which CI system and job
usage     totals by hour and session: what reports are made of
tasks     each session's tasks, packed: only as long as more events of it may come
hashes    how often each was a miss and a hit, in different sessions
segments  how far each has been folded
losses    events that left the queue before they were folded, or were damaged
"""

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec

from agent.errors import StorageError
from agent.queue.filesystem import FILE_MODE, Filesystem, put_aside
from agent.usage.counting import Answer, SessionTasks, Task, totals_by_hour
from agent.usage.reading import Progress, SegmentKey

FILE_NAME = "usage.sqlite3"
VERSION = 2
APPLICATION_ID = 0x41415155
MAX_BYTES = 1024**3
"""The file grows no larger."""
DELETED = "deleted"
"""Events that left the queue and its history before they were folded."""
DAMAGED = "damaged"
"""Events whose bytes cannot be read."""
ADOPTED = "adopted"
"""The fact how many events of adopted spools have been folded."""
PAGE_BYTES = 4096
TURN_SECONDS = 60.0
_CACHE_KIB = 32 * 1024
_OPERATIONS = 10_000  # of SQLite's machine, between two looks at the clock: less than a millisecond
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE sessions (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, ci TEXT, first REAL NOT NULL, last REAL NOT NULL,
  job TEXT
);
CREATE TABLE usage (
  hour INTEGER NOT NULL, session INTEGER NOT NULL, events INTEGER NOT NULL, local_hits INTEGER NOT NULL,
  remote_hits INTEGER NOT NULL, misses INTEGER NOT NULL, unanswered INTEGER NOT NULL,
  local_saved_ms REAL NOT NULL, remote_saved_ms REAL NOT NULL, PRIMARY KEY (hour, session)
) WITHOUT ROWID;
CREATE INDEX usage_session ON usage (session);
CREATE TABLE tasks (session INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE hashes (
  hash TEXT PRIMARY KEY, misses INTEGER NOT NULL, hits INTEGER NOT NULL, last INTEGER NOT NULL, last_miss INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE segments (
  first_seq INTEGER NOT NULL, created_at REAL NOT NULL, queue TEXT NOT NULL, read_to INTEGER NOT NULL,
  complete INTEGER NOT NULL, PRIMARY KEY (queue, first_seq, created_at)
) WITHOUT ROWID;
CREATE TABLE losses (why TEXT PRIMARY KEY, events INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""
_MISS = Answer.MISS.value
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(dict[str, Task]).decode


class DamagedError(Exception):
    """The file is no database, a damaged one, or one of an earlier version."""


class UnwritableError(Exception):
    """The file cannot be written, or another process does not let go of it; what was in it stays."""


class UsageStore:
    """An open file. What its methods raise: DamagedError, and UnwritableError for anything else."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.connection = connection
        self._name = name

    @classmethod
    def open(cls, directory: Path, max_bytes: int = MAX_BYTES) -> Self:
        """Open the file in a queue directory, or create it, mode 0600. Raises StorageError for a later version's."""
        path = directory / FILE_NAME
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE))
        except OSError as error:
            raise UnwritableError(f"{path}: cannot be written: {error.strerror}") from error
        return cls._connected(str(path), str(path), max_bytes)

    @classmethod
    def in_memory(cls) -> Self:
        """Return one that is gone when it is closed, for when the disk takes no file."""
        return cls._connected(":memory:", "memory", MAX_BYTES)

    @classmethod
    def read_only(cls, directory: Path, seconds: float) -> Self | None:
        """Open the file in a queue directory as it is; None if nothing has been folded into it yet.

        A query that takes longer than `seconds`, or has to wait for another process as long, is an UnwritableError, and so is
        whatever else is in the way. Raises StorageError for a later version's file.
        """
        path = directory / FILE_NAME
        if not path.exists():
            return None
        with _translated(str(path)):
            store = cls(
                sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=seconds, isolation_level=None),
                str(path),
            )
        until = time.monotonic() + seconds
        store.connection.set_progress_handler(lambda: time.monotonic() > until, _OPERATIONS)
        try:
            with _translated(store._name):
                found = store._version()
        except BaseException:
            store.close()
            raise
        if found == VERSION:
            return store
        store.close()
        if found < VERSION:  # the next fold makes it anew
            return None
        raise _later_version(store._name)

    @classmethod
    def _connected(cls, target: str, name: str, max_bytes: int) -> Self:
        with _translated(name):
            store = cls(sqlite3.connect(target, timeout=TURN_SECONDS, isolation_level=None), name)
        try:
            with _translated(name):
                store._prepare(max_bytes)
        except BaseException:
            store.close()
            raise
        return store

    def _prepare(self, max_bytes: int) -> None:
        found = self._version()
        if found == 0:
            with contextlib.suppress(sqlite3.OperationalError):  # another process may have been faster
                self.connection.executescript(_SCHEMA)
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            found = self._version()
        if found == 0:
            self.connection.executescript(_SCHEMA)  # and says what is wrong
        elif found < VERSION:
            raise DamagedError(f"{self._name}: is of an older version of the agent")
        elif found > VERSION:
            raise _later_version(self._name)
        self.connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self.connection.execute(f"PRAGMA max_page_count = {max_bytes // PAGE_BYTES}")

    def _version(self) -> int:
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def close(self) -> None:
        """Close it; what is not committed is undone."""
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Have all of a block written, or nothing; other processes wait for it, and this one for theirs."""
        with _translated(self._name):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite ends it itself where the disk is full
                    self.connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Have all queries of a block see the same moment."""
        with _translated(self._name):
            self.connection.execute("BEGIN")
            try:
                yield self.connection
            finally:
                if self.connection.in_transaction:
                    self.connection.execute("COMMIT")

    # What a fold needs, inside of its transaction

    def progress(self) -> dict[SegmentKey, Progress]:
        """Return how far each segment has been folded."""
        rows = self.connection.execute("SELECT first_seq, created_at, queue, read_to, complete FROM segments")
        return {SegmentKey(*key): Progress(read_to, bool(done)) for *key, read_to, done in rows}

    def set_progress(self, progress: Mapping[SegmentKey, Progress], present: Iterable[SegmentKey]) -> None:
        """Note how far segments have been folded, and forget those that are not `present` any more."""
        kept = set(present)
        gone = [key for key in self.progress() if key not in kept]
        self.connection.executemany("DELETE FROM segments WHERE first_seq = ? AND created_at = ? AND queue = ?", gone)
        rows = ((*key, each.read_to, each.complete) for key, each in progress.items())
        self.connection.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)", rows)

    def fact(self, name: str) -> float | None:
        """Return a number that was noted under a name."""
        row = self.connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else float(row[0])

    def set_fact(self, name: str, value: float) -> None:
        """Note a number under a name."""
        self.connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def lose(self, why: str, events: int) -> None:
        """Note that events could not be counted."""
        self.connection.execute(
            "INSERT INTO losses VALUES (?, ?) ON CONFLICT (why) DO UPDATE SET events = events + excluded.events",
            (why, events),
        )

    def losses(self) -> dict[str, int]:
        """Return how many events could not be counted, by reason."""
        return dict(self.connection.execute("SELECT why, events FROM losses WHERE events > 0").fetchall())

    def tasks_of(self, name: str) -> dict[str, Task]:
        """Return the tasks of a session as far as they are known."""
        row = self.connection.execute(
            "SELECT packed FROM tasks JOIN sessions ON session = id WHERE name = ?", (name,)
        ).fetchone()
        try:
            return {} if row is None else _unpack(zlib.decompress(row[0]))
        except (zlib.error, msgspec.DecodeError) as error:
            raise DamagedError(f"{self._name}: tasks of a session cannot be read") from error

    def add(self, sessions: Mapping[str, SessionTasks], before: Mapping[str, Mapping[str, Task]]) -> None:
        """Write sessions, whose tasks replace those that were known `before`, and whose events are added."""
        self.connection.executemany(
            "INSERT INTO sessions (name, ci, job, first, last) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "ci = coalesce(ci, excluded.ci), job = coalesce(job, excluded.job), first = min(first, excluded.first), "
            "last = max(last, excluded.last)",
            ((name, each.ci, each.job, each.first, each.last) for name, each in sessions.items()),
        )
        select = "SELECT id FROM sessions WHERE name = ?"
        ids = {name: self.connection.execute(select, (name,)).fetchone()[0] for name in sessions}
        usage = (
            (hour, ids[name], *msgspec.structs.astuple(total))
            for name, each in sessions.items()
            for hour, total in totals_by_hour(each).items()
        )
        self.connection.executemany(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hour, session) DO UPDATE SET "
            "events = events + excluded.events, local_hits = excluded.local_hits, remote_hits = excluded.remote_hits, "
            "misses = excluded.misses, unanswered = excluded.unanswered, local_saved_ms = excluded.local_saved_ms, "
            "remote_saved_ms = excluded.remote_saved_ms",
            usage,
        )
        packed = ((ids[name], zlib.compress(_pack(each.tasks), 1)) for name, each in sessions.items())
        self.connection.executemany("INSERT OR REPLACE INTO tasks VALUES (?, ?)", packed)
        self._add_hashes(sessions, before)

    def _add_hashes(self, sessions: Mapping[str, SessionTasks], before: Mapping[str, Mapping[str, Task]]) -> None:
        changes: dict[str, _HashChange] = {}
        for name, session in sessions.items():
            known = before[name]
            for hash_, task in session.tasks.items():
                old = known.get(hash_)
                if old != task:
                    _note_change(changes, hash_, task, old)
        self.connection.executemany(
            "INSERT INTO hashes VALUES (?, ?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE SET "
            "misses = misses + excluded.misses, hits = hits + excluded.hits, last = max(last, excluded.last), "
            "last_miss = max(last_miss, excluded.last_miss)",
            map(changes.__getitem__, sorted(changes)),  # in the order of the table
        )

    def forget_before(self, tasks: float, usage: float) -> None:
        """Remove the tasks of sessions that were last seen before a time, and all that is from before another one.

        Both are in seconds since the epoch.
        """
        hour = int(usage // 3600)
        execute = self.connection.execute
        execute("DELETE FROM tasks WHERE session IN (SELECT id FROM sessions WHERE last < ?)", (tasks,))
        execute("DELETE FROM usage WHERE hour < ?", (hour,))
        execute("DELETE FROM hashes WHERE last < ?", (hour,))
        execute("DELETE FROM sessions WHERE last < ?", (usage,))


def _note_change(changes: dict[str, "_HashChange"], hash_: str, task: Task, old: Task | None) -> None:
    """Add what a task changes to the row of its hash."""
    answer, _, hour = task
    misses, hits = int(answer == _MISS), int(answer > _MISS)
    last_miss = hour if misses else 0
    if old is not None:
        misses -= old[0] == _MISS
        hits -= old[0] > _MISS
    row = changes.get(hash_)
    if row is not None:
        _, more_misses, more_hits, last, before = row
        misses, hits, hour, last_miss = misses + more_misses, hits + more_hits, max(hour, last), max(last_miss, before)
    changes[hash_] = (hash_, misses, hits, hour, last_miss)


_HashChange = tuple[str, int, int, int, int]
"""A row of `hashes`, whose numbers of misses and hits are added to those that are there; the last two are hours."""


def _later_version(name: str) -> StorageError:
    return StorageError(f"{name}: was written by a later version of the agent: move it away")


def set_aside(fs: Filesystem, directory: Path) -> None:
    """Give a damaged file another name. Raises StorageError."""
    try:
        with contextlib.suppress(FileNotFoundError):
            put_aside(fs, directory / FILE_NAME)
        fs.unlink(directory / f"{FILE_NAME}-journal")
    except OSError as error:
        raise StorageError(f"{directory / FILE_NAME}: cannot be put aside: {error.strerror}") from error


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Raise what SQLite says as errors of ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise DamagedError(f"{name}: {error}") from error
        raise UnwritableError(f"{name}: {error}") from error
