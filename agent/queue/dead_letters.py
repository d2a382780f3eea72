"""The dead-letter log: events that the API refused one by one, with its reason, in the queue's own file format.

A log is only ever appended to. So dead letters are removed by writing those that stay, of the segments that hold one to go, once
more to the end; when they are durable there, those segments are deleted. A crash in between leaves dead letters twice, which the
rule for repeats covers. It changes their order, and takes no more room than those few segments.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from agent.errors import StorageError
from agent.events import Context, Event, decode_event, has_line_count
from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.filesystem import Filesystem
from agent.queue.log import AppendError, Entry, Log, LogView
from agent.queue.ownership import OneThreadAtATime, entry
from agent.queue.quarantine import DIRECTORY, DamagedBytes, Quarantine
from agent.queue.record import Frame
from agent.queue.segment import Gap, Segment
from agent.queue.snapshot import Contents, LogSnapshot
from agent.queue.store import Limits

T = TypeVar("T")

_CHUNK_BYTES = 256 * 1024


class DeadLetterKey(NamedTuple):
    """What makes two dead letters the same: not the number alone, which a lost cursor can give to another event."""

    seq: int
    context: Context
    line: bytes


class DeadLetter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A refused event: its number in the queue, when it was refused (seconds since the epoch), what the API said, and its line.

    It can come twice: a crash between this log and the cursor has the event refused again. The last one counts.
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
        """What dead letters about the same refused event have in common."""
        return DeadLetterKey(self.seq, self.context, self.line)


encode_dead_letter = msgspec.msgpack.Encoder().encode
_decode_dead_letter = msgspec.msgpack.Decoder(DeadLetter).decode


def decode_dead_letter(payload: bytes) -> DeadLetter:
    """Return the dead letter in a payload. Raises msgspec.DecodeError or UnicodeDecodeError if there is none."""
    try:
        return _decode_dead_letter(payload)
    except RecursionError as error:  # elements that a Context may have beyond those we know
        raise msgspec.DecodeError("nested too deeply") from error


def dead_letter_in(frame: Frame) -> DeadLetter | None:
    """Return the dead letter that a frame carries; None if there is none, or none about one event."""
    try:
        found = decode_dead_letter(frame.payload)
        decode_event(found.line)
        return found if frame.item_count == 1 and has_line_count(found.line, 1) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class StoredDeadLetter(NamedTuple):
    """A dead letter in its log: the index of its segment in the snapshot, and the number that the log gave it."""

    place: int
    number: int
    dead_letter: DeadLetter


Repeats = dict[DeadLetterKey, int]
"""Of the dead letters that come several times, the number of the last one."""


def repeats_in(log: LogSnapshot) -> Repeats:
    """Find the dead letters that come several times; holds a number for each of all meanwhile."""
    seen: set[int] = set()
    again: set[int] = set()
    for each in _all_stored(log):
        (again if each.dead_letter.seq in seen else seen).add(each.dead_letter.seq)
    if not again:
        return {}
    return {each.dead_letter.identity: each.number for each in _all_stored(log) if each.dead_letter.seq in again}


def weigh(repeats: Repeats, frame: Frame) -> int | None:
    """Return how many dead letters a frame counts for: 0 if it is repeated later; None if it carries none."""
    found = dead_letter_in(frame)
    if found is None:
        return None
    return int(repeats.get(found.identity, frame.first_seq) == frame.first_seq)


def dead_letters_in(log: LogSnapshot, repeats: Repeats, start: int = 0) -> Iterator[StoredDeadLetter]:
    """Read the dead letters that count, one for each refused event, from that number on. Raises StorageError for a shortage."""
    return (each for each in items_in(log, repeats, start) if isinstance(each, StoredDeadLetter))


def items_in(log: LogSnapshot, repeats: Repeats, start: int = 0) -> Iterator[StoredDeadLetter | Span]:
    """Yield what `dead_letters_in` does and, where they cannot be read, the numbers that the log gave them; all in order."""
    for item in _all_items(log, start):
        if isinstance(item, Span) or repeats.get(item.dead_letter.identity, item.number) == item.number:
            yield item


def unreadable_in(log: LogSnapshot, start: int = 0) -> int:
    """Count the dead letters from that number on that cannot be read. Raises StorageError for a shortage."""
    return sum(each.length for each in _all_items(log, start) if isinstance(each, Span))


def unopened_in(log: LogSnapshot, last: int) -> Contents | None:
    """Return the first segment up to that index that cannot be read at all: no dead letter behind it can be removed."""
    contents = (log.contents(index) for index in range(last + 1))
    return next((found for found in contents if found is not None and found.error is not None), None)


def _all_stored(log: LogSnapshot) -> Iterator[StoredDeadLetter]:
    return (each for each in _all_items(log, 0) if isinstance(each, StoredDeadLetter))


def _all_items(log: LogSnapshot, start: int) -> Iterator[StoredDeadLetter | Span]:
    for index in range(max(log.view.index_of(start), 0), len(log.view.segments)):
        found = log.contents(index)
        for item in _items(index, found) if found is not None else ():
            if isinstance(item, StoredDeadLetter):
                if item.number >= start:
                    yield item
            elif item.stop > start:
                yield Span(max(item.start, start), item.stop)


def _items(index: int, found: Contents) -> Iterator[StoredDeadLetter | Span]:
    """Yield the dead letters of a segment, and the numbers of those that are damaged, or in a file that cannot be read at all."""
    if found.error is not None:
        yield Span(found.segment.first_seq, found.limit)
    for item in found.items:
        if isinstance(item, Gap):
            if _is_lost(item):
                yield item.span
        elif (dead_letter := dead_letter_in(item)) is not None:
            yield StoredDeadLetter(index, item.first_seq, dead_letter)
        else:
            yield Span(item.first_seq, item.next_seq)


def _is_lost(gap: Gap) -> bool:
    """Tell whether a gap has bytes: numbers that are missing at the end may be of dead letters that were removed."""
    return gap.start < gap.end


class Removed(NamedTuple):
    """What a removal did: dead letters that went, and damaged ones of which only the bytes are kept, in quarantine.

    `unreadable` ones are left: damaged, or in files that cannot be read now.
    """

    removed: int
    damaged: int
    unreadable: int = 0


class DeadLetterCounts(NamedTuple):
    """How many dead letters there are, and how many were deleted since the start to make room for younger ones.

    `held` goes by their numbers: damaged ones count, and those that a crash has left twice count twice. None as long as nobody
    knows.
    """

    held: int | None
    discarded: int


class DeadLetters(OneThreadAtATime):
    """The log in `directory`, opened at the first dead letter; beyond `max_bytes` the oldest are discarded. Its calls block."""

    def __init__(self, fs: Filesystem, directory: Path, segment_bytes: int, max_bytes: int) -> None:
        super().__init__()
        self._fs = fs
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._discarded = 0
        self._log: Log | None = None
        self._repeats: tuple[LogView, Repeats] | None = None
        self._counted: LogView | None = None
        self._quarantine = Quarantine(fs, directory / DIRECTORY)

    @classmethod
    def beside(cls, fs: Filesystem, directory: Path, limits: Limits) -> "DeadLetters":
        """Return the log of the queue in `directory`, with an eighth of its room."""
        return cls(fs, directory / "dead-letters", limits.segment_bytes // 8, limits.max_bytes // 8)

    @property
    def counts(self) -> DeadLetterCounts:
        """How many there are, and how many went."""
        view = self._log.view if self._log is not None else self._counted
        if view is None:
            return DeadLetterCounts(None, self._discarded)
        return DeadLetterCounts(view.next_seq - view.segments[0].first_seq if view.segments else 0, self._discarded)

    @entry
    def append(self, dead_letter: DeadLetter, now: float) -> None:
        """Keep it; it is durable on return. Raises StorageError: the event must then stay in the queue."""
        log = self._open()
        excess = log.view.size - self._max_bytes
        if excess > 0:
            before = log.view.segments[0].first_seq
            log.delete_before(segment.overflow_before(log.view.segments, excess))
            self._discarded += log.view.segments[0].first_seq - before
        log.append([Entry(1, encode_dead_letter(dead_letter))], now)

    @entry
    def count(self) -> None:
        """Find out for `counts` how many there are, without opening the log; reads its end."""
        with contextlib.suppress(StorageError):  # then nobody knows, and whoever needs them is told why
            self._counted = self._snapshot().view

    @entry
    def read(self, call: Callable[[LogSnapshot, Repeats], T]) -> T:
        """Return what `call` makes of the dead letters, while none comes or goes; changes nothing. Raises StorageError."""
        log = self._snapshot()
        if self._repeats is None or self._repeats[0] != log.view:
            self._repeats = log.view, repeats_in(log)
        return call(log, self._repeats[1])

    @entry
    def remove(self, goes: Callable[[StoredDeadLetter], bool], now: float) -> Removed:
        """Remove dead letters, durably. Raises StorageError: then they are still there, some perhaps twice."""
        if not self._snapshot().view.segments:
            return Removed(0, 0)
        return self._removal().perform(goes, now, mend=False)

    @entry
    def repair(self, now: float) -> Removed:
        """Keep damaged bytes in quarantine, and the log without them; as `remove`."""
        if not any(_is_damaged(found) for found in self._snapshot().all_contents()):
            return Removed(0, 0)
        return self._removal().perform(lambda _: False, now, mend=True)

    @entry
    def tidy(self) -> list[Path]:
        """Remove what interrupted writes have left; return it. Raises StorageError."""
        try:
            return self._quarantine.tidy()
        except OSError as error:
            raise StorageError(f"{self._directory}: cannot remove leftovers: {error.strerror or error}") from error

    @entry
    def close(self) -> None:
        """Close the files."""
        if self._log is not None:
            self._log.seal()

    def _snapshot(self) -> LogSnapshot:
        if self._log is not None:
            return LogSnapshot(self._fs, self._directory, self._log.view, live=True)
        return LogSnapshot.read(self._fs, self._directory)

    def _open(self) -> Log:
        if self._log is None:
            self._log = Log.recover(self._fs, self._directory, self._quarantine, segment_bytes=self._segment_bytes)
        return self._log

    def _removal(self) -> "_Removal":
        log = self._open()
        return _Removal(log, self._snapshot(), self._quarantine)


class _Removal:
    """One rewriting of a log that nobody else uses meanwhile."""

    def __init__(self, log: Log, before: LogSnapshot, quarantine: Quarantine) -> None:
        self._log = log
        self._quarantine = quarantine
        self._before = before
        self._repeats = repeats_in(before)

    def perform(self, goes: Callable[[StoredDeadLetter], bool], now: float, *, mend: bool) -> Removed:
        count, last = 0, -1
        for each in dead_letters_in(self._before, self._repeats):
            if goes(each):
                count, last = count + 1, max(last, each.place)
        if mend:
            last = max([last, *(index for index, found in self._contents(len(self._segments)) if _is_damaged(found))])
        unreadable = unreadable_in(self._before, self._before.view.limit(last) if last >= 0 else 0)
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
        """Copy what is no dead letter in the segments that will go; return how many that was, as far as it tells."""
        damaged = 0
        for _, found in self._contents(last + 1):
            if found.error is not None:
                raise StorageError(f"{found.path}: cannot be read: {found.error}: no letter was removed")
            first_seq = found.segment.first_seq
            for each in found.damage:
                self._quarantine.keep(DamagedBytes(first_seq, each.start, found.data[each.start : each.end]))
            for frame in found.frames:
                if dead_letter_in(frame) is None:
                    self._quarantine.keep(DamagedBytes(frame.first_seq, 0, frame.payload))
                    damaged += frame.item_count
            damaged += sum(gap.span.length for gap in found.gaps if _is_lost(gap))
        return damaged

    def _rewrite(self, goes: Callable[[StoredDeadLetter], bool], last: int, now: float) -> None:
        """Write what stays of the segments up to `last` to the end of the log, then delete them."""
        position, is_all = self._before.view.limit(last), last == len(self._segments) - 1
        before = (each for each in dead_letters_in(self._before, self._repeats) if each.place <= last)
        stays = (each.dead_letter for each in before if not goes(each))
        if not self._append(stays, now, begin=is_all) and is_all:
            self._log.clear()
        else:
            self._log.delete_before(position)

    def _append(self, dead_letters: Iterator[DeadLetter], now: float, *, begin: bool) -> bool:
        """Tell whether there were any; with `begin` they go to a new segment."""
        some = False
        for chunk in _chunks(dead_letters):
            if begin and not some:
                self._log.seal()
            try:
                self._log.append(chunk, now)
            except AppendError as error:
                reason = f"{error}: no letter was removed"
                raise StorageError(f"{reason}; to purge all of them takes no room" if error.full else reason) from error
            some = True
        return some


def _chunks(dead_letters: Iterator[DeadLetter]) -> Iterator[list[Entry]]:
    chunk: list[Entry] = []
    size = 0
    for dead_letter in dead_letters:
        chunk.append(Entry(1, encode_dead_letter(dead_letter)))
        size += len(chunk[-1].payload)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _is_damaged(found: Contents) -> bool:
    """Tell whether a segment holds anything but dead letters; numbers missing at its end may be of one that was removed."""
    return found.error is None and (
        found.header_damaged
        or any(dead_letter_in(frame) is None for frame in found.frames)
        or any(_is_lost(gap) for gap in found.gaps)
    )
