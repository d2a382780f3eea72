"""A queue that is open in one thread: its store and its writer, and a commit that goes through both."""

from collections.abc import Sequence
from pathlib import Path

from agent.queue.cursor import Cursor, Outcome
from agent.queue.filesystem import Filesystem
from agent.queue.grouping import Submitted
from agent.queue.log import Entry, LogView
from agent.queue.reader import Reader
from agent.queue.record import HEADER_BYTES, Frame
from agent.queue.segment import Gap
from agent.queue.shares import SharedDisk
from agent.queue.store import Committed, Limits, Plan, Store
from agent.queue.writer import Writer


class Entries(Submitted):
    """Entries of one owner, in the place of the blocks that they are made of."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__((), entries[0].owner, retried=entries[0].retried)
        self.size = sum(HEADER_BYTES + len(entry.payload) for entry in entries)
        self._event_count = sum(entry.item_count for entry in entries)

    @property
    def event_count(self) -> int:
        """How many events they are."""
        return self._event_count


class OpenQueue:
    """An open queue."""

    def __init__(self, fs: Filesystem, directory: Path, limits: Limits, disk: SharedDisk | None = None) -> None:
        """Open it and recover what a crash left. Raises StorageError."""
        self.writer = Writer(fs, directory, limits)
        self.store = Store(fs, directory, limits, self.writer.recovered, disk)

    @property
    def cursor(self) -> Cursor:
        """What is settled."""
        return self.store.cursor

    @property
    def view(self) -> LogView:
        """What the log holds."""
        return self.store.view

    def commit(self, entries: Sequence[Entry] = (), now: float = 0.0, *, reclaim: bool = False) -> Committed:
        """Admit, plan, commit and apply, as the committer does; the entries are all let in, or none."""
        refused = self.refusal(entries, now)
        committed = self.perform(self.store.plan(() if refused else entries, now, reclaim=reclaim), now)
        return committed._replace(refused=refused or committed.refused)

    def refusal(self, entries: Sequence[Entry], now: float) -> Outcome | None:
        """Have all of one owner's entries admitted; return why they are not."""
        refused = self.store.admit([Entries(entries)] if entries else (), now).refused
        return refused[0][1] if refused else None

    def perform(self, plan: Plan, now: float = 0.0) -> Committed:
        """Commit a plan and apply what became of it."""
        committed = self.writer.commit(plan, now)
        self.store.apply(plan, committed)
        return committed

    def items(self, max_bytes: int = 1 << 20) -> list[Frame | Gap]:
        """Read all that is not settled; what is damaged goes to quarantine."""
        return read_all(self.store.reader(), self.view, self.writer, max_bytes)

    def close(self) -> None:
        """End in order. Raises StorageError."""
        self.store.close()
        self.writer.close(self.store.checkpoint())


def read_all(
    reader: Reader, view: LogView, writer: Writer | None = None, max_bytes: int = 1 << 20
) -> list[Frame | Gap]:
    """Read to the end of a log; with a writer, what is damaged goes to quarantine."""
    everything: list[Frame | Gap] = []
    while True:
        read = reader.read(view, max_bytes)
        if writer is not None:
            writer.quarantine(read.damaged)
        if not read.items:
            reader.close()
            return everything
        everything += read.items
