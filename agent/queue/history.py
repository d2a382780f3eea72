"""Settled segments that are kept for a while, so that somebody can ask what was in them. Nothing else depends on them.

A segment moves here by a rename, without a sync. Whatever goes wrong, it is deleted, as it would have been without a history.
Queues that are removed hand theirs over to one that stays: the names of those segments begin with the queue that they are of.
"""

import contextlib
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.queue import segment
from agent.queue.filesystem import Filesystem
from agent.queue.log import LogView, describe, listing
from agent.queue.segment import Segment
from agent.queue.snapshot import LogSnapshot

DIRECTORY = "history"
SEGMENTS = "segments"
LOOK_SECONDS = 300.0
"""How long it may take until what others have handed over, or deleted, is known."""
MAX_FILES = 4000
JOB_PREFIX = "job-"
"""What the name of a queue that a job had to itself begins with, where it has handed its history over."""
_foreign_name = re.compile(r"(?P<queue>\w[\w-]{0,79})-(?P<name>\d{20}\.seg)", re.ASCII).fullmatch


class _Kept(NamedTuple):
    """A file that is here; `begun` is in seconds since the epoch, `own` the number of its first event if it is of this queue."""

    begun: float
    name: str
    size: int
    own: int | None


class History:
    """The history of one open queue: up to `max_bytes`, for `max_age` seconds since a segment was begun. Its calls block."""

    def __init__(self, fs: Filesystem, directory: Path, *, max_bytes: int, max_age: float) -> None:
        self._fs = fs
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._files: deque[_Kept] | None = None
        self._looked_at = 0.0
        self._size = 0  # of all of them: each commit asks for it

    def take(self, path: Path, settled: Segment) -> None:
        """Move a settled segment here, or delete it. Raises OSError if it cannot even be deleted."""
        if self._max_bytes and settled.size > segment.HEADER_BYTES:
            with contextlib.suppress(OSError):
                kept = self._kept()
                self._move(path)
                kept.append(_described(path.name, settled, settled.first_seq))
                self._size += settled.size
                return
        self._fs.unlink(path)

    def _move(self, path: Path) -> None:
        try:
            self._fs.rename(path, self._directory / path.name)
        except FileNotFoundError:
            self._fs.make_directory(self._directory)
            self._fs.rename(path, self._directory / path.name)

    def prune(self, now: float, room: int) -> bool:
        """Delete the oldest segments, those that are too old or that are more than `room` bytes; tell whether any went.

        `now` is in seconds since the epoch. What cannot be deleted is tried again the next time.
        """
        room, gone = min(self._max_bytes, room), set[_Kept]()
        if abs(now - self._looked_at) >= LOOK_SECONDS:
            self._files, self._looked_at = None, now
        with contextlib.suppress(OSError):
            for each in self._kept():
                fits = self._size <= room and len(self._kept()) - len(gone) <= MAX_FILES
                if fits and each.begun + self._max_age >= now:
                    break
                with contextlib.suppress(OSError):  # the others go all the same
                    self._fs.unlink(self._directory / each.name)
                    self._size -= each.size
                    gone.add(each)
            if gone:
                self._files = deque(each for each in self._kept() if each not in gone)
        return bool(gone)

    def _kept(self) -> deque[_Kept]:
        """Return what is here, oldest first; looked up now and then."""
        if self._files is None:
            with contextlib.suppress(FileNotFoundError):
                self._files = deque(sorted(_files_in(self._fs, self._directory)))
                self._size = sum(each.size for each in self._files)
                return self._files
            self._files = deque()
        return self._files

    @property
    def oldest(self) -> int | None:
        """The number of this queue's first event that is here; None if there is none. It is known once `prune` has looked."""
        return min((each.own for each in self._files or () if each.own is not None), default=None)


def _files_in(fs: Filesystem, directory: Path) -> Iterator[_Kept]:
    for name in fs.names(directory):
        foreign = _foreign_name(name)
        first_seq = segment.parse_name(foreign["name"] if foreign else name)
        if first_seq is not None and (found := describe(fs, directory / name, first_seq)) is not None:
            yield _described(name, found, None if foreign else first_seq)


def _described(name: str, found: Segment, own: int | None) -> _Kept:
    return _Kept(0.0 if found.created_at is None else found.created_at, name, found.size, own)


def read_history(fs: Filesystem, directory: Path, until: int) -> LogSnapshot:
    """Return what a queue's history holds of its own now, up to the number with which its segments begin. Raises OSError."""
    segments: list[Segment] = []
    with contextlib.suppress(FileNotFoundError):
        segments = [each for each in listing(fs, directory / DIRECTORY)[0] if each.first_seq < until]
    return LogSnapshot(fs, directory / DIRECTORY, LogView(tuple(segments), until), live=False)


# Of queues that have been removed


def handed_over(fs: Filesystem, directory: Path) -> dict[str, list[int]]:
    """Return the numbers of the segments in a queue's history that are of others, oldest first, by queue. Raises OSError."""
    found: dict[str, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in fs.names(directory / DIRECTORY):
            if (foreign := _foreign_name(name)) and (seq := segment.parse_name(foreign["name"])) is not None:
                found.setdefault(foreign["queue"], []).append(seq)
    return found


def handed_over_name(queue: str, first_seq: int) -> str:
    """Return the name of a segment that another queue has handed over."""
    return f"{queue}-{segment.name(first_seq)}"


def read_handed_over(fs: Filesystem, directory: Path, queue: str) -> LogSnapshot:
    """Return what a queue's history holds of another queue. Raises StorageError."""
    return LogSnapshot.read(fs, directory / DIRECTORY, prefix=f"{queue}-")


def is_kept_name(name: str) -> bool:
    """Tell whether this is the name of a segment in a history."""
    foreign = _foreign_name(name)
    return segment.parse_name(foreign["name"] if foreign else name) is not None


class Heir(NamedTuple):
    """The history that gets those of others, and its bounds: up to `max_bytes`, for `max_age` seconds.

    `directory` is its queue's.
    """

    directory: Path
    max_bytes: int
    max_age: float

    def inherit(self, fs: Filesystem, queue: str, directory: Path, now: float, *, removed: bool) -> None:
        """Take over the segments that the queue in `directory`, of which nothing waits, has: the last one if it is `removed`.

        A second time it goes on where the first one ended. What cannot be moved stays. Who calls it has the lock of that queue;
        that of its own is not needed, since nothing depends on a history.
        """
        with contextlib.suppress(OSError):
            if self.max_bytes and (moved := dict(_bequest(fs, queue, directory, removed=removed))):
                fs.make_directory(self.directory / DIRECTORY)
                for source, name in moved.items():
                    fs.rename(source, self.directory / DIRECTORY / name)
                fs.sync_directory(self.directory / DIRECTORY)
                History(fs, self.directory / DIRECTORY, max_bytes=self.max_bytes, max_age=self.max_age).prune(
                    now, self.max_bytes
                )


def _bequest(fs: Filesystem, queue: str, directory: Path, *, removed: bool) -> Iterator[tuple[Path, str]]:
    """Yield the files of a queue that are worth keeping, and their names in another one's history; of no link to elsewhere."""
    for place in (directory / DIRECTORY, directory / SEGMENTS):
        if fs.is_directory(directory) and fs.is_directory(place):
            named = [(name, segment.parse_name(name)) for name in fs.names(place) if is_kept_name(name)]
            if place.name == SEGMENTS and not removed:
                named = named[:-1]  # its name carries the numbers
            for name, own in named:
                target = name if own is None else f"{queue}-{name}"
                found = describe(fs, place / name, own or 1)
                if is_kept_name(target) and found is not None and found.size > segment.HEADER_BYTES:
                    yield place / name, target
