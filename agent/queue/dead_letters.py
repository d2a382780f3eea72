"""The dead-letter log: events that the API refused one by one, with its reason, in the queue's own file format.

It knows what is kept of a refused event, and how letters come and go. It must never know why an event was refused, or the queue
it came from.

A log is only ever appended to. So letters are removed by writing those that stay, of the segments that hold one to go, once
more to the end; when they are durable there, those segments are deleted. A crash in between leaves letters twice, which the
rule for repeats covers. It changes their order, and takes no more room than those few segments.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from agent.errors import StorageError
from agent.events import Context, Event, decode_event, has_line_count
from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.filesystem import Filesystem
from agent.queue.log import AppendError, Entry, Log, LogView
from agent.queue.quarantine import Quarantine
from agent.queue.record import Frame
from agent.queue.segment import Segment
from agent.queue.snapshot import Contents, Hole, LogSnapshot, holes
from agent.queue.store import Limits

T = TypeVar("T")

_CHUNK_BYTES = 256 * 1024


class DeadLetterKey(NamedTuple):
    """What makes two letters the same: not the number alone, which a lost cursor can give to another event."""

    seq: int
    context: Context
    line: bytes


class DeadLetter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A refused event: its number in the queue, when it was refused (seconds since the epoch), what the API said, and its line.

    A letter can come twice: a crash between this log and the cursor has the event refused again. The last one counts.
    """

    seq: int
    rejected_at: float
    status: int | None
    message: str
    context: Context
    line: bytes

    @property
    def event(self) -> Event:
        """The event. Raises msgspec.DecodeError or UnicodeDecodeError if something else wrote the line."""
        return decode_event(self.line)

    @property
    def identity(self) -> DeadLetterKey:
        """What letters about the same refused event have in common."""
        return DeadLetterKey(self.seq, self.context, self.line)


encode_dead_letter = msgspec.msgpack.Encoder().encode
_decode_dead_letter = msgspec.msgpack.Decoder(DeadLetter).decode


def decode_dead_letter(payload: bytes) -> DeadLetter:
    """Return the letter in a payload. Raises msgspec.DecodeError or UnicodeDecodeError for what is none."""
    try:
        return _decode_dead_letter(payload)
    except RecursionError as error:  # elements that a Context may have beyond those we know
        raise msgspec.DecodeError("nested too deeply") from error


def dead_letter_in(frame: Frame) -> DeadLetter | None:
    """Return the letter that a frame carries; None if it is none, or none about one event."""
    try:
        letter = decode_dead_letter(frame.payload)
        decode_event(letter.line)
        return letter if frame.item_count == 1 and has_line_count(letter.line, 1) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class StoredDeadLetter(NamedTuple):
    """A letter in its log: the place of its segment in the snapshot, and the number that the log gave it."""

    place: int
    number: int
    letter: DeadLetter


Repeats = dict[DeadLetterKey, int]
"""Of the letters that come several times, the number of the last one."""


def repeats_in(log: LogSnapshot) -> Repeats:
    """Find the letters that come several times; holds a number for each letter meanwhile."""
    seen: set[int] = set()
    again: set[int] = set()
    for kept in _all_kept(log, 0):
        (again if kept.letter.seq in seen else seen).add(kept.letter.seq)
    if not again:
        return {}
    return {kept.letter.identity: kept.number for kept in _all_kept(log, 0) if kept.letter.seq in again}


def weigh(repeats: Repeats, frame: Frame) -> int | None:
    """Return how many letters a frame counts for: none if it is repeated later; None if it carries no letter."""
    letter = dead_letter_in(frame)
    if letter is None:
        return None
    return int(repeats.get(letter.identity, frame.first_seq) == frame.first_seq)


def dead_letters_in(log: LogSnapshot, repeats: Repeats, start: int = 0) -> Iterator[StoredDeadLetter]:
    """Read the letters that count, one for each refused event, from that number on. Raises StorageError for a shortage."""
    return (each for each in pieces_in(log, repeats, start) if isinstance(each, StoredDeadLetter))


def pieces_in(log: LogSnapshot, repeats: Repeats, start: int = 0) -> Iterator[StoredDeadLetter | Span]:
    """Yield what `dead_letters_in` does and, where letters cannot be read, the numbers that the log gave them; all in order."""
    for piece in _all_pieces(log, start):
        if isinstance(piece, Span) or repeats.get(piece.letter.identity, piece.number) == piece.number:
            yield piece


def unreadable_in(log: LogSnapshot, start: int = 0) -> int:
    """Count the letters from that number on that cannot be read. Raises StorageError for a shortage."""
    return sum(each.length for each in _all_pieces(log, start) if isinstance(each, Span))


def unopened_in(log: LogSnapshot, last: int) -> Contents | None:
    """Return the first segment up to that place that cannot be read at all: no letter behind it can be removed."""
    contents = (log.contents(index) for index in range(last + 1))
    return next((found for found in contents if found is not None and found.error is not None), None)


def _all_kept(log: LogSnapshot, start: int) -> Iterator[StoredDeadLetter]:
    return (each for each in _all_pieces(log, start) if isinstance(each, StoredDeadLetter))


def _all_pieces(log: LogSnapshot, start: int) -> Iterator[StoredDeadLetter | Span]:
    for index in range(log.index_of(start), len(log.view.segments)):
        found = log.contents(index)
        for piece in _pieces(index, found) if found is not None else ():
            if isinstance(piece, StoredDeadLetter):
                if piece.number >= start:
                    yield piece
            elif piece.stop > start:
                yield Span(max(piece.start, start), piece.stop)


def _pieces(index: int, found: Contents) -> Iterator[StoredDeadLetter | Span]:
    """Yield the letters of a segment, and the numbers of those that are damaged, or in a file that cannot be read at all."""
    if found.error is not None:
        yield Span(found.segment.first_seq, found.limit)
        return
    whole: Iterator[StoredDeadLetter | Span] = (_piece(index, frame) for frame in found.frames)
    lost: Iterator[StoredDeadLetter | Span] = (hole.span for hole in _lost(found))
    yield from merge(whole, lost, key=_first_number)


def _piece(index: int, frame: Frame) -> StoredDeadLetter | Span:
    letter = dead_letter_in(frame)
    return Span(frame.first_seq, frame.next_seq) if letter is None else StoredDeadLetter(index, frame.first_seq, letter)


def _lost(found: Contents) -> Iterator[Hole]:
    """Yield the holes that have bytes: numbers that are missing at the end may be of letters that were removed."""
    return (hole for hole in holes(found) if hole.start < hole.end)


def _first_number(piece: StoredDeadLetter | Span) -> int:
    return piece.start if isinstance(piece, Span) else piece.number


class Removed(NamedTuple):
    """What a removal did: letters that went, and damaged ones of which only the bytes are kept, in quarantine.

    `unreadable` ones are left: damaged, or in files that cannot be read now.
    """

    letters: int
    damaged: int
    unreadable: int = 0


@dataclass
class DeadLetters:
    """The log in `directory`, opened at the first letter; beyond `max_bytes` the oldest letters are `discarded`.

    Several threads may use it.
    """

    fs: Filesystem
    directory: Path
    segment_bytes: int
    max_bytes: int
    discarded: int = 0
    _log: Log | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _repeats: tuple[LogView, Repeats] | None = None
    _counted: LogView | None = None

    @classmethod
    def beside(cls, fs: Filesystem, directory: Path, limits: Limits) -> "DeadLetters":
        """Return the log of the queue in `directory`, with an eighth of its room."""
        return cls(
            fs, directory / "dead-letters", segment_bytes=limits.segment_bytes // 8, max_bytes=limits.max_bytes // 8
        )

    def append(self, letter: DeadLetter, now: float) -> None:
        """Keep `letter`; it is durable on return. Raises StorageError: the event must then stay in the queue."""
        with self._lock:
            log = self._open()
            excess = log.view.size - self.max_bytes
            if excess > 0:
                before = log.view.segments[0].first_seq
                log.delete_before(segment.overflow_before(log.view.segments, excess))
                self.discarded += log.view.segments[0].first_seq - before
            log.append([Entry(1, encode_dead_letter(letter))], now)

    def count(self) -> None:
        """Find out how many letters there are, for `held`, without opening the log; reads its end."""
        with (
            self._lock,
            contextlib.suppress(StorageError),
        ):  # then nobody knows, and whoever needs the letters is told why
            self._counted = self._snapshot().view

    @property
    def held(self) -> int | None:
        """How many letters there are, by their numbers; None until it is opened or counted. Never waits.

        Damaged ones count, and those that a crash has left twice count twice.
        """
        view = self._log.view if self._log is not None else self._counted
        if view is None:
            return None
        return view.next_seq - view.segments[0].first_seq if view.segments else 0

    def read(self, call: Callable[[LogSnapshot, Repeats], T]) -> T:
        """Return what `call` makes of the letters, while none comes or goes; changes nothing. Raises StorageError."""
        with self._lock:
            log = self._snapshot()
            if self._repeats is None or self._repeats[0] != log.view:
                self._repeats = log.view, repeats_in(log)
            return call(log, self._repeats[1])

    def remove(self, goes: Callable[[StoredDeadLetter], bool], now: float) -> Removed:
        """Remove letters, durably. Raises StorageError: then they are still there, some perhaps twice."""
        with self._lock:
            if not self._snapshot().view.segments:
                return Removed(0, 0)
            return _Removal(self.fs, self._open(), self._quarantine()).perform(goes, now, mend=False)

    def repair(self, now: float) -> Removed:
        """Keep damaged bytes in quarantine, and the log without them; as `remove`."""
        with self._lock:
            if not any(_is_damaged(found) for found in self._snapshot().all_contents()):
                return Removed(0, 0)
            return _Removal(self.fs, self._open(), self._quarantine()).perform(lambda _: False, now, mend=True)

    def tidy(self) -> list[Path]:
        """Remove what interrupted writes have left; return it. Raises StorageError."""
        with self._lock:
            try:
                return self._quarantine().tidy()
            except OSError as error:
                raise StorageError(f"{self.directory}: cannot remove leftovers: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the files."""
        if self._log is not None:
            self._log.seal()

    def _snapshot(self) -> LogSnapshot:
        if self._log is not None:
            return LogSnapshot.of(self.fs, self._log)
        return LogSnapshot.read(self.fs, self.directory)

    def _quarantine(self) -> Quarantine:
        return Quarantine(self.fs, self.directory / "quarantine")

    def _open(self) -> Log:
        if self._log is None:
            self._log = Log.recover(self.fs, self.directory, self._quarantine(), segment_bytes=self.segment_bytes)
        return self._log


class _Removal:
    """One rewriting of a log that nobody else uses meanwhile."""

    def __init__(self, fs: Filesystem, log: Log, quarantine: Quarantine) -> None:
        self._log = log
        self._quarantine = quarantine
        self._before = LogSnapshot.of(fs, log)
        self._repeats = repeats_in(self._before)

    def perform(self, goes: Callable[[StoredDeadLetter], bool], now: float, *, mend: bool) -> Removed:
        count, last = 0, -1
        for kept in dead_letters_in(self._before, self._repeats):
            if goes(kept):
                count, last = count + 1, max(last, kept.place)
        if mend:
            last = max([last, *(index for index, found in self._contents(len(self._segments)) if _is_damaged(found))])
        unreadable = unreadable_in(self._before, self._before.limit(last) if last >= 0 else 0)
        if last < 0:
            return Removed(0, 0, unreadable)
        damaged = self._keep_damage(last)
        self._rewrite(goes, last, now)
        return Removed(count, damaged, unreadable)

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return self._before.view.segments

    def _contents(self, stop: int) -> Iterator[tuple[int, Contents]]:
        for index in range(stop):
            if (found := self._before.contents(index)) is not None:
                yield index, found

    def _keep_damage(self, last: int) -> int:
        """Copy what is no letter in the segments that will go; return how many letters that was, as far as it tells."""
        damaged = 0
        for _, found in self._contents(last + 1):
            if found.error is not None:
                raise StorageError(f"{found.path}: cannot be read: {found.error}: no letter was removed")
            for piece in found.damage:
                self._quarantine.keep(found.segment.first_seq, piece.start, found.data[piece.start : piece.end])
            for frame in found.frames:
                if dead_letter_in(frame) is None:
                    self._quarantine.keep(frame.first_seq, 0, frame.payload)
                    damaged += frame.item_count
            damaged += sum(hole.span.length for hole in _lost(found))
        return damaged

    def _rewrite(self, goes: Callable[[StoredDeadLetter], bool], last: int, now: float) -> None:
        """Write what stays of the segments up to `last` to the end of the log, then delete them."""
        position, is_all = self._before.limit(last), last == len(self._segments) - 1
        kept = (each for each in dead_letters_in(self._before, self._repeats) if each.place <= last)
        stays = (each.letter for each in kept if not goes(each))
        if not self._append(stays, now, begin=is_all) and is_all:
            self._log.clear()
        else:
            self._log.delete_before(position)

    def _append(self, letters: Iterator[DeadLetter], now: float, *, begin: bool) -> bool:
        """Tell whether there were any; with `begin` they go to a new segment."""
        some = False
        for chunk in _chunks(letters):
            if begin and not some:
                self._log.seal()
            try:
                self._log.append(chunk, now)
            except AppendError as error:
                reason = f"{error}: no letter was removed"
                raise StorageError(f"{reason}; to purge all of them takes no room" if error.full else reason) from error
            some = True
        return some


def _chunks(letters: Iterator[DeadLetter]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    size = 0
    for letter in letters:
        entry = Entry(1, encode_dead_letter(letter))
        chunk.append(entry)
        size += len(entry.payload)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _is_damaged(found: Contents) -> bool:
    """Tell whether a segment holds anything but letters; numbers that are missing at its end may be of one that was removed."""
    return found.error is None and (
        found.header_damaged or any(dead_letter_in(frame) is None for frame in found.frames) or any(_lost(found))
    )
