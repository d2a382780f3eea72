"""The queue of one destination on disk: its log, its cursor, and what the limits say must go.

It knows in which order log and cursor must become durable. It must never know delivery, or who runs it in which thread:
`plan`, `published` and everything on `cursor` belong to one thread; `commit` and `sync` may run in any, and so may readers,
each in one at a time.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from agent.errors import StorageError
from agent.queue import record, segment
from agent.queue.cursor import SLOTS, Cursor, CursorState, Outcome, Pause, Span
from agent.queue.cursor_file import CursorFile, read_slots
from agent.queue.filesystem import Filesystem, remove_unfinished
from agent.queue.log import AppendError, Entry, Log, LogView
from agent.queue.quarantine import Quarantine
from agent.queue.reader import Reader
from agent.queue.record import Frame, decode_record
from agent.queue.segment import Segment

_READ_BYTES = 256 * 1024

# A segment takes events for this part of their greatest age, so that what it holds can expire together, soon enough.
_SEGMENTS_PER_AGE = 24


@dataclass(frozen=True)
class Limits:
    """What bounds a queue: sizes in bytes, ages in seconds.

    `sync` says when what is written becomes durable: at each commit, at each `Store.sync`, or when the system likes.
    """

    segment_bytes: int = 8 * 1024**2
    max_bytes: int = 1024**3
    max_age: float = 7 * 86400
    overflow: Literal["drop-oldest", "drop-newest"] = "drop-oldest"
    min_free_bytes: int = 0
    sync: Literal["commit", "interval", "off"] = "commit"


class Plan(NamedTuple):
    """What the next commit writes: the cursor's checkpoint, and the entries unless `refused` says why not."""

    entries: Sequence[Entry]
    checkpoint: CursorState
    refused: Outcome | None


class Committed(NamedTuple):
    """What became of a plan. A refused append lost its entries; a failed checkpoint is to be tried again.

    `append_error` says why events cannot be kept now, even if there were none in the plan.
    """

    refused: Outcome | None
    append_error: str | None
    checkpoint_error: str | None
    delete_error: str | None = None


class _Failure(NamedTuple):
    """Why nothing can be appended: the reason to count, and what to say."""

    reason: Outcome
    error: str


class Counts(NamedTuple):
    """How many events a plan's entries hold: those that come from clients, and those that come back from dead letters."""

    new: int
    retried: int


def counts(entries: Sequence[Entry]) -> Counts:
    """Count the events of `entries`."""
    retried = sum(entry.item_count for entry in entries if entry.retried)
    return Counts(sum(entry.item_count for entry in entries) - retried, retried)


class Store:
    """An open queue. `cursor` says what is settled; `log` holds the rest, and from `first_own_seq` on what this process wrote.

    While there are `readers`, segments stay for them although all in them is settled, as long as the disk has room.
    """

    def __init__(self, fs: Filesystem, directory: Path, limits: Limits) -> None:
        """Open or create the queue in `directory` and recover what a crash left. Raises StorageError."""
        self._fs = fs
        self._directory = directory
        self._limits = limits
        try:
            fs.make_directory(directory)
        except OSError as error:
            raise StorageError(f"{directory}: the queue directory cannot be used: {error.strerror or error}") from error
        self._lock = threading.Lock()
        self._failing = False
        self.readers: set[object] = set()
        self.quarantine = Quarantine(fs, directory / "quarantine")
        self._cursor_file = CursorFile(fs, directory / "cursor")
        state = self._cursor_file.recovered
        try:
            self.log = self._recover_log(state)
        except StorageError:
            self._cursor_file.close()
            raise
        self.cursor = self._recover_cursor(state)
        self.first_own_seq = self.cursor.next_seq
        self._durable_pause = self.cursor.pause
        self._written = self.cursor.state()

    @property
    def directory(self) -> Path:
        """Where the queue is."""
        return self._directory

    def _recover_log(self, state: CursorState | None) -> Log:
        return Log.recover(
            self._fs,
            self._directory / "segments",
            self.quarantine,
            segment_bytes=self._limits.segment_bytes,
            segment_seconds=self._limits.max_age / _SEGMENTS_PER_AGE,
            durable=self._limits.sync == "commit",
            next_seq=state.next_seq if state else 1,
        )

    def _recover_cursor(self, state: CursorState | None) -> Cursor:
        view = self.log.view
        oldest = view.segments[0].first_seq if view.segments else view.next_seq
        cursor = Cursor.from_state(state) if state else Cursor(oldest)
        cursor.next_seq = view.next_seq
        return cursor

    def plan(self, entries: Sequence[Entry], now: float) -> Plan:
        """Settle what is too old or must make room for `entries`, and say what the next commit has to write."""
        view = self.log.view
        oldest, span = now - self._limits.max_age, self._limits.max_age / _SEGMENTS_PER_AGE
        self._drop_before(segment.expired_before(view.segments, oldest, span), Outcome.EXPIRED)
        segments = self._in_use(view)
        excess = sum(s.size for s in segments) + _size_on_disk(entries) - self._limits.max_bytes
        refused = None
        if excess > 0 and entries:
            if self._limits.overflow == "drop-oldest":
                self._drop_before(segment.overflow_before(segments, excess), Outcome.OVERFLOW)
            else:
                refused = Outcome.OVERFLOW
        return Plan(entries, self.cursor.state(), refused)

    def commit(self, plan: Plan, now: float) -> Committed:
        """Write and sync what `plan` says; what a full or broken disk refuses is reported, never raised.

        The caller counts them with `account`. The checkpoint has them already, or a kill would forget them.
        """
        checkpoint_error = delete_error = None
        with self._lock:
            deletable = 0 if self._is_read else segment.deletable(self.log.view.segments, plan.checkpoint.position)
            if deletable or not plan.entries:
                checkpoint_error = self._checkpoint(plan.checkpoint)
            if deletable and checkpoint_error is None:
                delete_error = self._delete_before(plan.checkpoint.position)
            refused, append_error = self._append(plan, now)
            if plan.entries:  # only now: it must know the numbers that were given, and what was refused
                checkpoint_error = self._checkpoint(_outcome(plan, refused, self.log.view.next_seq))
            checkpoint_error = checkpoint_error or self._keep_pause(plan.checkpoint.pause)
        return Committed(refused, append_error, checkpoint_error, delete_error)

    def published(self) -> None:
        """Count what the last commit made durable as queued."""
        self.cursor.next_seq = self.log.view.next_seq

    def account(self, entries: Sequence[Entry], refused: Outcome | None) -> None:
        """Count on `cursor` what the checkpoint of their commit has already: entries refused, and entries that came back."""
        found = counts(entries)
        if refused is None:
            self.cursor.retried += found.retried
        elif found.new:
            self.cursor.shed(found.new, refused)

    def refresh(self) -> None:
        """Write the last checkpoint durably into both slots of the cursor. Raises StorageError."""
        with self._lock:
            for _ in range(SLOTS):
                self._cursor_file.write(self._written)
                self._cursor_file.sync()

    def reclaim(self, now: float) -> None:
        """Delete what the last checkpoint says is settled, even the last segment: a new one begins. Raises StorageError.

        The older segments go first: on a full disk they are the room for the new one.
        """
        with self._lock:
            position = self._written.position
            self._cursor_file.write(self._written)
            self._cursor_file.sync()
            if self._is_read:
                return  # the next commit without readers deletes
            self.log.delete_before(position)
            if self.log.view.segments and position >= self.log.view.next_seq:
                self.log.roll(now)
                self.log.delete_before(position)

    def has_room(self, entries: Sequence[Entry]) -> bool:
        """Tell whether entries would push nothing out of the queue."""
        return sum(s.size for s in self._in_use(self.log.view)) + _size_on_disk(entries) <= self._limits.max_bytes

    def tidy(self) -> list[Path]:
        """Remove what interrupted writes have left; return it. Raises StorageError."""
        with self._lock:
            try:
                return remove_unfinished(self._fs, self._directory) + self.quarantine.tidy()
            except OSError as error:
                raise StorageError(f"{self._directory}: cannot remove leftovers: {error.strerror or error}") from error

    def slots(self) -> list[bytes]:
        """Read the cursor's slots as they are on the disk, while nothing writes them. Raises StorageError."""
        with self._lock:
            return read_slots(self._fs, self._directory / "cursor")

    def sync(self) -> None:
        """Make the log and the last checkpoint durable. Raises StorageError."""
        with self._lock:
            self.log.sync()
            self._cursor_file.sync()

    def reader(self) -> Reader:
        """Return a reader that begins at the first event that is not settled."""
        return Reader(self._fs, self.log, self.quarantine, self.cursor.position)

    def oldest_enqueued_at(self) -> float | None:
        """Read when the oldest queued event was enqueued, in seconds since the epoch; None if nothing readable is queued."""
        reader = self.reader()
        try:
            while items := reader.read(_READ_BYTES):
                for item in items:
                    if isinstance(item, Frame):
                        return decode_record(item.payload).enqueued_at
        except (StorageError, msgspec.DecodeError, UnicodeDecodeError):
            return None  # the worker meets the same bytes and accounts for them
        finally:
            reader.close()
        return None

    def close(self) -> None:
        """Make everything durable and close the files. Raises StorageError."""
        try:
            try:
                self.log.seal()
            finally:
                self._cursor_file.write(self.cursor.state())
                self._cursor_file.sync()
        finally:
            self._cursor_file.close()

    def _append(self, plan: Plan, now: float) -> tuple[Outcome | None, str | None]:
        """Append the plan's entries; return why they were refused, and what is wrong with the disk, entries or not."""
        if plan.refused is not None:
            return plan.refused, None
        failure = self._try_to_append(plan, now)
        if failure is not None and failure.reason is Outcome.DISK_FULL and self._make_room(plan.checkpoint):
            failure = self._try_to_append(plan, now)
        if failure is None:
            return None, None
        return failure.reason if plan.entries else None, failure.error

    def _try_to_append(self, plan: Plan, now: float) -> _Failure | None:
        """Append; after an error, no entries are the occasion to find out whether the disk is well again."""
        shortage = self._shortage()
        if shortage is not None:
            return _Failure(Outcome.DISK_FULL, shortage)
        if not plan.entries and not self._failing:
            return None
        try:
            self.log.append(plan.entries, now)
        except AppendError as error:
            self._failing = True
            return _Failure(Outcome.DISK_FULL if error.full else Outcome.DISK_ERROR, str(error))
        self._failing = False
        return None

    def _make_room(self, state: CursorState) -> bool:
        """Give back what a queue holds that is settled to its end: the last segment stays, and may be all that fits."""
        view = self.log.view
        if state.position < view.next_seq or all(s.size <= segment.HEADER_BYTES for s in view.segments):
            return False
        try:
            self._cursor_file.write(state)
            self._cursor_file.sync()
            self.log.truncate_settled()
        except StorageError:
            return False
        return True

    def _shortage(self) -> str | None:
        """Return what to say of a disk that is too full to be written to; None if it is not."""
        try:
            free, least = self._fs.free_bytes(self._directory), self._limits.min_free_bytes
        except OSError:  # the append will say what is wrong
            return None
        too_little = free < max(least, 1)
        return f"{self._directory}: {free} bytes are free, queue.min_free_bytes is {least}" if too_little else None

    @property
    def _is_read(self) -> bool:
        return bool(self.readers) and self._shortage() is None

    def _checkpoint(self, state: CursorState) -> str | None:
        try:
            self._cursor_file.write(state)
        except StorageError as error:
            return str(error)
        self._written = state
        return None

    def _keep_pause(self, pause: Pause | None) -> str | None:
        """A pause, and the end of one, must survive a power cut too; both are rare enough for a sync of their own."""
        if pause == self._durable_pause or self._limits.sync != "commit":
            return None
        try:
            self._cursor_file.sync()
        except StorageError as error:
            return str(error)
        self._durable_pause = pause
        return None

    def _delete_before(self, position: int) -> str | None:
        """Delivered, then durable cursor, then unlink. What cannot be deleted is tried again at the next commit."""
        try:
            self._cursor_file.sync()
            self.log.delete_before(position)
        except StorageError as error:
            return str(error)
        return None

    def _in_use(self, view: LogView) -> tuple[Segment, ...]:
        """Return the segments that hold something unsettled. The others can go, the last of them once another one follows."""
        if self.cursor.position >= view.next_seq:
            return ()
        return view.segments[segment.deletable(view.segments, self.cursor.position) :]

    def _drop_before(self, position: int, outcome: Outcome) -> None:
        if position > self.cursor.position:
            self.cursor.settle([Span(self.cursor.position, position)], outcome)


def _size_on_disk(entries: Sequence[Entry]) -> int:
    """Return what `entries` add to the log if they begin a new segment."""
    return segment.HEADER_BYTES + sum(record.HEADER_BYTES + len(entry.payload) for entry in entries)


def _outcome(plan: Plan, refused: Outcome | None, next_seq: int) -> CursorState:
    """Return the plan's checkpoint with what became of its entries."""
    found, shed = counts(plan.entries), plan.checkpoint.shed
    if refused is None:
        retried = plan.checkpoint.retried + found.retried
        return msgspec.structs.replace(plan.checkpoint, next_seq=next_seq, retried=retried)
    if found.new:
        shed = {**shed, refused: shed.get(refused, 0) + found.new}
    return msgspec.structs.replace(plan.checkpoint, next_seq=next_seq, shed=shed)
