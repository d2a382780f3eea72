"""Writes the queue of one destination: its log, its cursor and its quarantine, in the order in which each must become durable.

data, then acknowledgement · log, then cursor · delivered, then durable cursor, then deletion
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import SLOTS, Cursor, CursorState, Outcome, Pause
from agent.queue.cursor_file import CursorFile, read_slots
from agent.queue.filesystem import Filesystem, remove_unfinished
from agent.queue.history import DIRECTORY as HISTORY
from agent.queue.history import History
from agent.queue.log import AppendError, Log, LogView
from agent.queue.ownership import OneThreadAtATime, entry
from agent.queue.quarantine import DIRECTORY, Copies, DamagedBytes, Quarantine
from agent.queue.store import SEGMENTS_PER_AGE, Committed, Limits, Plan, Recovered, recovered_cursor, runs_after
from agent.queue.undelivered import FILE_NAME as UNDELIVERED
from agent.queue.undelivered import UndeliveredFile


class _Failure(NamedTuple):
    """Why nothing can be appended: the reason to count, and what to say."""

    reason: Outcome
    error: str


class Writer(OneThreadAtATime):
    """An open queue's files. Its calls block; `recovered` says what was found when it was opened."""

    def __init__(self, fs: Filesystem, directory: Path, limits: Limits) -> None:
        """Open or create the queue in `directory` and recover what a crash left. Raises StorageError."""
        super().__init__()
        self._fs = fs
        self._directory = directory
        self._limits = limits
        try:
            fs.make_directory(directory)
        except OSError as error:
            raise StorageError(f"{directory}: the queue directory cannot be used: {error.strerror or error}") from error
        self._failing = False
        self._quarantine = Quarantine(fs, directory / DIRECTORY)
        self._cursor_file = CursorFile(fs, directory / "cursor")
        self._history = History(fs, directory / HISTORY, max_bytes=limits.history_bytes, max_age=limits.history_age)
        checkpoint = self._cursor_file.recovered
        try:
            self._log = Log.recover(
                fs,
                directory / "segments",
                self._quarantine,
                segment_bytes=limits.segment_bytes,
                segment_seconds=limits.max_age / SEGMENTS_PER_AGE,
                durable=limits.sync == "commit",
                next_seq=checkpoint.next_seq if checkpoint else 1,
                dispose=self._history.take,
            )
        except StorageError:
            self._cursor_file.close()
            raise
        self._written = recovered_cursor(checkpoint, self._log.view).state()
        self._undelivered = self._open_undelivered()
        self._durable_pause = self._written.pause
        self.recovered = Recovered(self._log.view, self._written, is_new=checkpoint is None)

    @property
    def quarantined(self) -> Copies:
        """How much was quarantined since the start."""
        return self._quarantine.copies

    @entry
    def commit(self, plan: Plan, now: float) -> Committed:
        """Write and sync what `plan` says; what a full or broken disk refuses is reported, never raised."""
        if plan.segment_bytes is not None:
            self._log.limit_segments(plan.segment_bytes)
        checkpoint, checkpoint_error, delete_error = plan.checkpoint, None, None
        undelivered_error = self._note_undelivered(plan)
        keep = plan.keep_segments and self._shortage() is None
        deletable = 0 if keep else segment.deletable(self._log.view.segments, checkpoint.position)
        if deletable or not plan.entries:
            checkpoint_error = self._write_checkpoint(checkpoint)
        if deletable and checkpoint_error is None:
            delete_error = self._delete_before(checkpoint.position)
        refused, append_error = self._append(plan, now)
        if plan.entries:  # only now: it must know the numbers that were given, and what was refused
            checkpoint_error = self._write_checkpoint(_checkpoint_after(plan, refused, self._log.view))
        if checkpoint.pause != self._durable_pause and self._limits.sync == "commit":
            checkpoint_error = checkpoint_error or self._sync_pause(checkpoint.pause)
        if plan.reclaim and not keep and checkpoint_error is None:
            delete_error = delete_error or self._reclaim(checkpoint.position, now)
        if self._history.prune(now, self._limits.max_bytes - self._log.view.size) or deletable:
            self._undelivered.forget_before(self._oldest)
        return Committed(self._log.view, refused, append_error, checkpoint_error, delete_error, undelivered_error)

    @entry
    def refresh(self) -> None:
        """Write the last checkpoint durably into both slots of the cursor. Raises StorageError."""
        for _ in range(SLOTS):
            self._cursor_file.write(self._written)
            self._cursor_file.sync()

    @entry
    def sync(self) -> None:
        """Make the log and the last checkpoint durable. Raises StorageError."""
        self._log.sync()
        self._cursor_file.sync()

    @entry
    def quarantine(self, pieces: Iterable[DamagedBytes]) -> Copies:
        """Keep copies of damaged bytes; return how many of these were new, and how many could not be kept."""
        before = self._quarantine.copies
        for piece in pieces:
            self._quarantine.keep(piece)
        after = self._quarantine.copies
        return Copies(after.kept - before.kept, after.lost - before.lost)

    @entry
    def tidy(self) -> list[Path]:
        """Remove what interrupted writes have left; return it. Raises StorageError."""
        try:
            return remove_unfinished(self._fs, self._directory) + self._quarantine.tidy()
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot remove leftovers: {error.strerror or error}") from error

    @entry
    def slots(self) -> list[bytes]:
        """Read the cursor's slots as they are on the disk, while nothing writes them. Raises StorageError."""
        return read_slots(self._fs, self._directory / "cursor")

    @entry
    def close(self, plan: Plan) -> None:
        """Make everything durable, this last plan's checkpoint too, and close the files. Raises StorageError."""
        self._note_undelivered(plan)
        self._undelivered.close()
        try:
            try:
                self._log.seal()
            finally:
                self._cursor_file.write(plan.checkpoint)
                self._cursor_file.sync()
        finally:
            self._cursor_file.close()

    def _open_undelivered(self) -> UndeliveredFile:
        path, settled = self._directory / UNDELIVERED, Cursor.from_state(self._written)
        try:
            return UndeliveredFile(self._fs, path, settled, durable=self._limits.sync == "commit")
        except OSError as error:
            self._cursor_file.close()
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error

    def _append(self, plan: Plan, now: float) -> tuple[Outcome | None, str | None]:
        """Append the plan's entries; return why they were refused, and what is wrong with the disk, entries or not."""
        failure = self._try_to_append(plan, now)
        for make_room in (self._clear_history, partial(self._make_room, plan.checkpoint)):
            if failure is not None and failure.reason is Outcome.DISK_FULL and make_room():
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
            self._log.append(plan.entries, now)
        except AppendError as error:
            self._failing = True
            return _Failure(Outcome.DISK_FULL if error.full else Outcome.DISK_ERROR, str(error))
        self._failing = False
        return None

    def _clear_history(self) -> bool:
        """Delete all that is kept of what is settled: it must never cost an event."""
        return self._history.prune(0.0, 0)

    def _make_room(self, state: CursorState) -> bool:
        """Cut the last segment back to its header if all in it is settled: it stays, and may be all that fits."""
        view = self._log.view
        if state.position < view.next_seq or all(s.size <= segment.HEADER_BYTES for s in view.segments):
            return False
        try:
            self._cursor_file.write(state)
            self._cursor_file.sync()
            self._log.truncate_settled()
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
    def _oldest(self) -> int:
        """The number of the oldest event that is on the disk, or of the next one."""
        view = self._log.view
        return self._history.oldest or (view.segments[0].first_seq if view.segments else view.next_seq)

    def _note_undelivered(self, plan: Plan) -> str | None:
        """Write what was not delivered, before the checkpoint that settles it; return why that is not possible now."""
        try:
            self._undelivered.append(plan.undelivered)
        except OSError as error:
            return f"{self._directory / UNDELIVERED}: {error.strerror or error}"
        return None

    def _write_checkpoint(self, state: CursorState) -> str | None:
        try:
            self._cursor_file.write(state)
        except StorageError as error:
            return str(error)
        self._written = state
        return None

    def _sync_pause(self, pause: Pause | None) -> str | None:
        """A pause, and the end of one, must survive a power cut too; both are rare enough for a sync of their own."""
        try:
            self._cursor_file.sync()
        except StorageError as error:
            return str(error)
        self._durable_pause = pause
        return None

    def _delete_before(self, position: int) -> str | None:
        """Delete what a durable checkpoint says is settled. What cannot be deleted is tried again at the next commit."""
        try:
            self._cursor_file.sync()
            self._log.delete_before(position)
        except StorageError as error:
            return str(error)
        return None

    def _reclaim(self, position: int, now: float) -> str | None:
        """Delete even the last segment: a new one begins. The older ones go first: on a full disk they are the room for it."""
        try:
            self._cursor_file.sync()
            self._log.delete_before(position)
            if self._log.view.segments and position >= self._log.view.next_seq:
                self._log.roll(now)
                self._log.delete_before(position)
        except StorageError as error:
            return str(error)
        return None


def _checkpoint_after(plan: Plan, refused: Outcome | None, view: LogView) -> CursorState:
    """Return the plan's checkpoint with what became of its entries, as `Store.apply` counts it."""
    before = plan.checkpoint
    shed, retried, runs = before.shed, before.retried, before.runs
    if refused is None:
        retried += plan.retried
        runs = runs if plan.is_known else runs_after(plan, view)
    elif plan.new:
        shed = {**shed, refused: shed.get(refused, 0) + plan.new}
    return CursorState(
        before.position, view.next_seq, before.origin, before.settled, before.counts, shed, before.pause, retried, runs
    )
