"""Settled segments that are kept for a while, so that somebody can ask what was in them. Nothing else depends on them.

A segment moves here by a rename, without a sync. Whatever goes wrong, it is deleted, as it would have been without a history.
"""

import contextlib
from collections import deque
from pathlib import Path

from agent.queue import segment
from agent.queue.filesystem import Filesystem
from agent.queue.log import LogView, listing
from agent.queue.segment import Segment
from agent.queue.snapshot import LogSnapshot

DIRECTORY = "history"


class History:
    """The history of one open queue: up to `max_bytes`, for `max_age` seconds since a segment was begun. Its calls block."""

    def __init__(self, fs: Filesystem, directory: Path, *, max_bytes: int, max_age: float) -> None:
        self._fs = fs
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._segments: deque[Segment] | None = None
        self._size = 0  # of all of them: each commit asks for it

    def take(self, path: Path, settled: Segment) -> None:
        """Move a settled segment here, or delete it. Raises OSError if it cannot even be deleted."""
        if self._max_bytes and settled.size > segment.HEADER_BYTES:
            with contextlib.suppress(OSError):
                kept = self._kept()
                self._move(path)
                kept.append(settled)
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
        room, gone = min(self._max_bytes, room), set[Segment]()
        with contextlib.suppress(OSError):
            for each in self._kept():
                if self._size <= room and _begun(each) + self._max_age >= now:
                    break
                with contextlib.suppress(OSError):  # the others go all the same
                    self._fs.unlink(self._directory / segment.name(each.first_seq))
                    self._size -= each.size
                    gone.add(each)
            if gone:
                self._segments = deque(each for each in self._kept() if each not in gone)
        return bool(gone)

    def _kept(self) -> deque[Segment]:
        """Return what is here, oldest first; looked up once."""
        if self._segments is None:
            with contextlib.suppress(FileNotFoundError):
                self._segments = deque(listing(self._fs, self._directory)[0])
                self._size = sum(each.size for each in self._segments)
                return self._segments
            self._segments = deque()
        return self._segments

    @property
    def oldest(self) -> int | None:
        """The number of the first event that is here; None if there is none. It is known once `prune` has looked."""
        return self._segments[0].first_seq if self._segments else None


def _begun(kept: Segment) -> float:
    return 0.0 if kept.created_at is None else kept.created_at


def read_history(fs: Filesystem, directory: Path, until: int) -> LogSnapshot:
    """Return what a queue's history holds now, up to the number with which its segments begin. Raises OSError."""
    segments: list[Segment] = []
    with contextlib.suppress(FileNotFoundError):
        segments = [each for each in listing(fs, directory / DIRECTORY)[0] if each.first_seq < until]
    return LogSnapshot(fs, directory / DIRECTORY, LogView(tuple(segments), until), live=False)
