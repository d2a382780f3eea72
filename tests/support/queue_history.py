"""Writes a queue on a real disk with the agent's own code, and knows what a reader must find there: from what it did, never from
a reader.
"""

import errno
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.events import Context, Event, encode_events
from agent.queue import segment
from agent.queue.cursor import Outcome, Pause, Span
from agent.queue.dead_letters import DeadLetter, DeadLetters
from agent.queue.filesystem import File
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.store import Committed, Limits
from tests.support.open_queue import OpenQueue
from tests.support.unsynced import Unsynced, UnsyncedFilesystem

LIMITS = Limits(segment_bytes=900, max_age=1e9)
CONTEXTS = (Context(), Context("GITHUB_ACTIONS", 0), Context("GITLAB_CI"), Context(None, 1))
PAUSE = Pause("blocked", "402: the account is over its limit", 1750000000.25, 1750000300.5, 1)


class BreakableFilesystem(UnsyncedFilesystem):
    """Segments that have frames can be made to refuse their next syncs; such a one cannot be cut back after that."""

    def __init__(self) -> None:
        super().__init__()
        self.refused_syncs = 0

    def create(self, path: Path) -> File:
        file = super().create(path)
        return _Breakable(self, file) if path.suffix == segment.SUFFIX else file


class _Breakable(Unsynced):
    def __init__(self, fs: BreakableFilesystem, file: File) -> None:
        super().__init__(file)
        self._fs, self._broken = fs, False

    def sync(self) -> None:
        if self._fs.refused_syncs and self.size() > segment.HEADER_BYTES:
            self._fs.refused_syncs -= 1
            self._broken = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def truncate(self, size: int) -> None:
        if self._broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().truncate(size)


@dataclass
class Truth:
    """What a reader must find in a queue: what was appended, and what became of it."""

    rows: dict[int, tuple[float, str | None, int | None, dict[str, Any]]] = field(default_factory=dict)
    settled: dict[int, str] = field(default_factory=dict)
    shed: dict[str, int] = field(default_factory=dict)
    letters: dict[int, DeadLetter] = field(default_factory=dict)

    def queued(self, *, but: set[int] | frozenset[int] = frozenset()) -> list[tuple[Any, ...]]:
        """Return the queued events; `but` are the numbers that damage took."""
        return [(seq, *row) for seq, row in self.rows.items() if seq not in self.settled and seq not in but]

    def ledger(self) -> dict[str, Any]:
        """Return the ledger. What damage took is still queued: nobody has settled it."""
        outcomes = list(self.settled.values())
        dropped = dict(self.shed)
        for outcome in set(outcomes) - {Outcome.DELIVERED, Outcome.FORWARDED, Outcome.DEAD_LETTERED}:
            dropped[outcome] = dropped.get(outcome, 0) + outcomes.count(outcome)
        return {
            "accepted": len(self.rows) + sum(self.shed.values()),
            "delivered": outcomes.count(Outcome.DELIVERED),
            "forwarded": outcomes.count(Outcome.FORWARDED),
            "dead_lettered": outcomes.count(Outcome.DEAD_LETTERED),
            "dropped": dropped,
            "queued": len(self.rows) - len(self.settled),
        }

    def dead_letters(self) -> list[tuple[Any, ...]]:
        """Return the last letter of each number, by number."""
        return [
            (seq, letter.rejected_at, letter.status, letter.message, *self.rows[seq][1:])
            for seq, letter in sorted(self.letters.items())
        ]


class History:
    """A queue in `directory` in the making; `truth` keeps up with it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.truth = Truth()
        self._contexts: dict[int, Context] = {}
        self._events: dict[int, Event] = {}
        self._now = 1750000000.0
        self._fs = BreakableFilesystem()
        self._open()

    # What happens to the queue

    def append(self, *counts: int, context: Context = CONTEXTS[0]) -> None:
        """Append a record for each of `counts`, in one commit."""
        entries = []
        for count in counts:
            self._now += 0.25
            events = [self._new_event(context) for _ in range(count)]
            entries.append(Entry(count, encode_record(Record(self._now, context, encode_events(events)))))
        self._commit(entries)

    def append_with_failed_sync(self, *counts: int, context: Context = CONTEXTS[0]) -> None:
        """Append, with the first sync refused: the frames are left over where they were, and are written again."""
        self._fs.refused_syncs = 1
        self.append(*counts, context=context)

    def refuse(self, *counts: int) -> None:
        """Have an append refused by two segments. Its frames stay in the first, and its numbers go to what is appended next.

        Something must be: until then the frames in the second look like any others.
        """
        self._fs.refused_syncs = 2
        lines = encode_events([_event(0)])
        entries = [Entry(n, encode_record(Record(self._now, Context("REFUSED"), lines * n))) for n in counts]
        assert self._queue.commit(entries, self._now).refused is Outcome.DISK_ERROR
        self._count_shed(sum(counts), Outcome.DISK_ERROR)
        self.append(1)

    def settle(self, start: int, stop: int, outcome: Outcome = Outcome.DELIVERED) -> None:
        """Settle what of these numbers exists and is not settled, and write the checkpoint."""
        stop = min(stop, len(self.truth.rows) + 1)
        if start < stop:
            self._queue.cursor.settle([Span(start, stop)], outcome)
            self.truth.settled = dict.fromkeys(range(start, stop), str(outcome)) | self.truth.settled
            self._commit([])

    def dead_letter(self, seq: int, message: str) -> None:
        """Have the event refused; again if it was already, as after a crash."""
        line = encode_events([self._events[seq]])
        letter = DeadLetter(seq, self._now, 400, message, self._contexts[seq], line)
        self._letters.append(letter, self._now)
        self.truth.letters[seq] = letter
        self.settle(seq, seq + 1, Outcome.DEAD_LETTERED)

    def shed(self, count: int, reason: Outcome) -> None:
        """Drop events before they have numbers."""
        self._queue.cursor.shed(count, reason)
        self._count_shed(count, reason)
        self._commit([])

    def pause(self) -> None:
        """Have the account blocked."""
        self._queue.cursor.pause = PAUSE
        self._commit([])

    def restart(self) -> None:
        """End the daemon in order, and start another."""
        self.close()
        self._open()

    def close(self) -> Path:
        """End the daemon in order; return where the queue is."""
        self._letters.close()
        self._queue.close()
        return self.directory

    def kill(self) -> Path:
        """End the daemon; return where there is a copy of the queue as a SIGKILL would have left it."""
        killed = self.directory.with_name("killed")
        shutil.copytree(self.directory, killed)
        self.close()
        return killed

    def _open(self) -> None:
        self._queue = OpenQueue(self._fs, self.directory, LIMITS)
        self._letters = DeadLetters(self._fs, self.directory / "dead-letters", segment_bytes=300, max_bytes=1 << 20)

    def _count_shed(self, count: int, reason: Outcome) -> None:
        self.truth.shed[reason] = self.truth.shed.get(reason, 0) + count

    def _new_event(self, context: Context) -> Event:
        seq = len(self.truth.rows) + 1
        event = _event(seq)
        self._contexts[seq], self._events[seq] = context, event
        self.truth.rows[seq] = (self._now, context.ci, context.interactive, msgspec.to_builtins(event))
        return event

    def _commit(self, entries: list[Entry]) -> None:
        committed = self._queue.commit(entries, self._now)
        assert committed == Committed(self._queue.view), committed


def _event(seq: int) -> Event:
    """Return an event that no other number has; durations are absent, integers and floats in turn."""
    durations: tuple[msgspec.UnsetType | int | float, ...] = (msgspec.UNSET, seq, seq + 0.5)
    source: Literal["LOCAL", "REMOTE"] = "LOCAL" if seq % 2 else "REMOTE"
    kind: Literal["HIT", "MISS"] = "HIT" if seq % 5 else "MISS"
    return Event(f"s-{seq // 3}", source, kind, f"{seq:016x}é", durations[seq % 3])
