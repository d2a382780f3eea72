"""Is a queue on disk what it should be: every byte read, every rule checked, every finding with its place, price and remedy.

A finding is a problem as long as something is not accounted for; what the cursor has settled already, or what costs nothing, is
worth a note. `agent.queue.maintenance.repair` accounts for the problems.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from agent.queue import segment
from agent.queue.cursor import SLOT_BYTES, Ledger, Span, decode_slot
from agent.queue.cursor_file import newest_in
from agent.queue.filesystem import DIRECTORY_MODE, FILE_MODE, UNFINISHED, Filesystem, is_file
from agent.queue.history import DIRECTORY as HISTORY
from agent.queue.history import is_kept_name
from agent.queue.maintenance.browse import missing, unsettled
from agent.queue.quarantine import DamagedBytes
from agent.queue.record import Frame, record_in
from agent.queue.segment import Gap
from agent.queue.snapshot import Contents, LogSnapshot, QueueSnapshot
from agent.queue.undelivered import FILE_NAME as UNDELIVERED

REPAIR = "artifacts-agent queue repair"
DIRECTORIES = ("", "segments", HISTORY, "quarantine", "dead-letters", "dead-letters/quarantine")
_COPY = ".bin"
_KNOWN_FILES = {"cursor", "cursor.unreadable", UNDELIVERED}


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it should be: the file, the offset there in bytes, what it is, what it costs, what to do.

    `costs` counts queued events (or dead letters) that can no longer be had. Files are named from the queue's directory.
    """

    file: str
    offset: int | None
    what: str
    costs: int = 0
    remedy: str | None = None


class Audit(msgspec.Struct, frozen=True):
    """What was looked at, and what was found: `ok` if there are no problems. `notes` ask for nothing."""

    ok: bool
    segments: int
    records: int
    events: int
    dead_letters: int
    problems: list[Finding]
    notes: list[Finding]
    ledger: Ledger


class _Tally:
    """Collects findings and counts."""

    def __init__(self) -> None:
        self.problems: list[Finding] = []
        self.notes: list[Finding] = []
        self.records = self.events = self.dead_letters = self.segments = 0

    def add(self, finding: Finding, *, problem: bool) -> None:
        (self.problems if problem else self.notes).append(finding)


def audit(
    queue: QueueSnapshot, slots: list[bytes], dead_letters: LogSnapshot, weigh: Callable[[Frame], int | None]
) -> Audit:
    """Check a queue, its cursor's `slots` and its dead letters, of which `weigh` says how many a frame is, None for none.

    Raises StorageError for a shortage.
    """
    tally, fs = _Tally(), queue.log.fs
    _check_cursor(queue, slots, tally)
    if lost := missing(queue):
        what = f"{_events(lost)} before the first segment {_are(lost)} missing: a segment is gone"
        tally.add(Finding("segments", None, what, lost, _accounts()), problem=True)
    for found in queue.log.all_contents():
        tally.segments += 1
        _check_segment(queue, found, tally)
    for found in dead_letters.all_contents():
        _check_dead_letters(queue.directory, dead_letters, found, weigh, tally)
    _check_files(fs, queue, tally)
    return Audit(
        ok=not tally.problems,
        segments=tally.segments,
        records=tally.records,
        events=tally.events,
        dead_letters=tally.dead_letters,
        problems=tally.problems,
        notes=tally.notes,
        ledger=queue.cursor.ledger(),
    )


# The cursor


def _check_cursor(queue: QueueSnapshot, slots: list[bytes], tally: _Tally) -> None:
    newest = newest_in(slots)
    for number, slot in enumerate(slots):
        if slot.strip(b"\0") and decode_slot(slot) is None:
            harmless = ", as a power cut may leave it; the other one counts" if newest is not None else ""
            what = f"slot {number + 1} of 2 is damaged{harmless}"
            tally.add(Finding("cursor", number * SLOT_BYTES, what, 0, f"write it anew: {REPAIR}"), problem=not harmless)
    if newest is None and queue.log.view.next_seq > 1:
        count = unsettled(queue, Span(1, queue.log.view.next_seq))
        what = f"there is no readable checkpoint: {_events(count)} count as queued, delivered or not; the ledger begins anew"
        tally.add(Finding("cursor", None, what, 0, f"write a new one: {REPAIR}"), problem=True)


# Segments


def _check_segment(queue: QueueSnapshot, found: Contents, tally: _Tally) -> None:
    file = f"segments/{found.path.name}"
    whole = Span(found.segment.first_seq, found.limit)
    if found.error is not None:
        waiting = unsettled(queue, whole)
        remedy = "make it readable for the daemon's user, then verify again; nothing of it is given up until then"
        tally.add(Finding(file, None, f"cannot be read: {found.error}", waiting, remedy), problem=True)
        return
    _check_header(queue.directory / "quarantine", queue.log.fs, found, file, tally)
    _check_order(found, file, tally)
    for frame in found.frames:
        if record_in(frame) is not None:
            tally.records += 1
            tally.events += frame.item_count
            continue
        span = Span(frame.first_seq, frame.next_seq)
        what = f"a record of {_events(span.length)} from number {span.start} on holds other things than it says"
        _add_lost(queue, tally, file, frame.start, what, span)
    for gap in found.gaps:
        _add_lost(queue, tally, file, gap.start, _describe(gap, found.lost_blocks), gap.span)
    _note_the_rest(found, file, tally)


def _add_lost(queue: QueueSnapshot, tally: _Tally, file: str, offset: int, what: str, span: Span) -> None:
    cost = unsettled(queue, span)
    if cost:
        tally.add(Finding(file, offset, what, cost, _accounts()), problem=True)
    else:
        tally.add(Finding(file, offset, f"{what}; all of them are settled already"), problem=False)


def _describe(gap: Gap, lost_blocks: int) -> str:
    numbers = f"{_events(gap.span.length)} from number {gap.span.start} on"
    if gap.start >= gap.end:
        return f"{numbers} {_are(gap.span.length)} missing: the file has no bytes of them"
    blocks = ", some of which the disk does not give back" if lost_blocks else ""
    return f"{gap.end - gap.start:,} damaged bytes{blocks} in the place of {numbers}"


def _check_header(quarantine: Path, fs: Filesystem, found: Contents, file: str, tally: _Tally) -> None:
    """A damaged header costs nothing, and a segment is never written again: it is a problem until somebody has seen it."""
    if not found.header_damaged:
        return
    header = found.data[: segment.HEADER_BYTES]
    seen = DamagedBytes(found.segment.first_seq, 0, header).name in _names(fs, quarantine)
    remedy = None if seen else f"keep a copy in quarantine: {REPAIR}"
    what = "the header is damaged, or another segment's; it costs no event, and goes with the segment"
    tally.add(Finding(file, 0, what, 0, remedy), problem=not seen)


def _check_order(found: Contents, file: str, tally: _Tally) -> None:
    expected = found.segment.first_seq
    for frame in found.frames:
        if frame.first_seq < expected:
            what = f"numbers come twice: a record begins with {frame.first_seq} where {expected} comes next"
            tally.add(Finding(file, frame.start, what, 0, "please report it"), problem=True)
        expected = max(expected, frame.next_seq)


def _note_the_rest(found: Contents, file: str, tally: _Tally) -> None:
    between = [
        each for each in found.damage if not any(gap.start <= each.start and each.end <= gap.end for gap in found.gaps)
    ]
    for each in between:
        what = f"{each.end - each.start:,} bytes that are no record; no event is missing"
        tally.add(Finding(file, each.start, what), problem=False)
    if found.leftover:
        what = f"{found.leftover:,} bytes of a write that failed, and was done again in the next segment"
        tally.add(Finding(file, len(found.data) - found.leftover, what), problem=False)
    if found.torn:
        what = f"{found.torn:,} bytes of a write that was cut short, and never acknowledged"
        tally.add(
            Finding(file, len(found.data), what, 0, "none: the daemon cuts them off when it starts"), problem=False
        )


# Dead letters


def _check_dead_letters(
    root: Path, log: LogSnapshot, found: Contents, weigh: Callable[[Frame], int | None], tally: _Tally
) -> None:
    file = str(found.path.relative_to(root))
    remedy = f"keep the bytes in quarantine, write the other letters anew: {REPAIR}"
    if found.error is not None:
        advice = "make it readable for the daemon's user, then verify again; nothing of it is given up until then"
        held = found.limit - found.segment.first_seq
        at_least = "" if log.live or found.segment != log.view.segments[-1] else "; it may hold more letters than one"
        tally.add(Finding(file, None, f"cannot be read: {found.error}{at_least}", held, advice), problem=True)
        return
    for frame in found.frames:
        if (count := weigh(frame)) is not None:
            tally.dead_letters += count
        else:
            tally.add(Finding(file, frame.start, "a record that is no dead letter", 1, remedy), problem=True)
    for gap in found.gaps:
        count = gap.span.length
        dead_letters = f"{count:,} dead letter{'' if count == 1 else 's'}"
        if gap.start < gap.end:
            what = f"{gap.end - gap.start:,} damaged bytes in the place of {dead_letters}"
            tally.add(Finding(file, gap.start, what, count, remedy), problem=True)
        else:
            cause = "a removal that was interrupted leaves that, or a file that is gone"
            what = f"after it, {dead_letters} {_are(count)} not there: {cause}"
            tally.add(Finding(file, gap.start, what), problem=False)
    if found.header_damaged:
        tally.add(Finding(file, 0, "the header is damaged, or another segment's", 0, remedy), problem=True)
    if found.torn:
        what = f"{found.torn:,} bytes of a write that was cut short; its event is still queued"
        tally.add(
            Finding(file, len(found.data), what, 0, "none: it is cut off when the next letter is kept"), problem=False
        )


# Files and permissions


def _check_files(fs: Filesystem, queue: QueueSnapshot, tally: _Tally) -> None:
    for directory, names in listing(fs, queue.directory):
        for name in names:
            file = name if not directory else f"{directory}/{name}"
            if name.endswith(UNFINISHED):
                tally.add(Finding(file, None, "left of a write that was interrupted", 0, REPAIR), problem=False)
            elif name == "cursor.unreadable":
                what = "a cursor without a readable checkpoint, put aside"
                tally.add(Finding(file, None, what, 0, "look at it, then remove it"), problem=False)
            elif is_ours(directory, name) and not is_file(fs, queue.directory / file):
                what = "is no file, so none of the queue: a daemon puts it aside when it starts"
                tally.add(Finding(file, None, what), problem=False)
            elif not is_ours(directory, name):
                tally.add(Finding(file, None, "is no file of the queue, and is ignored"), problem=False)
    for file, mode, wanted in wrong_modes(fs, queue.directory):
        tally.add(Finding(file, None, f"has mode {mode:04o} instead of {wanted:04o}", 0, REPAIR), problem=True)


def listing(fs: Filesystem, root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory of a queue that is there and can be listed, from its root, with the names in it."""
    for directory in DIRECTORIES:
        names = _names(fs, root / directory)
        yield directory, [name for name in names if f"{directory}/{name}".removeprefix("/") not in DIRECTORIES]


def is_ours(directory: str, name: str) -> bool:
    """Tell whether that is a name that the queue gives."""
    if not directory:
        return name in _KNOWN_FILES
    if directory == HISTORY:
        return is_kept_name(name)
    return name.endswith(_COPY) if directory.endswith("quarantine") else segment.parse_name(name) is not None


def wrong_modes(fs: Filesystem, root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield what others may look at, or the owner cannot use: the file, its mode, and what it should be.

    What a group may do is left to whoever gave it the right: Kubernetes does, with fsGroup.
    """
    for directory, names in listing(fs, root):
        for name, wanted in [("", DIRECTORY_MODE), *((name, FILE_MODE) for name in names if is_ours(directory, name))]:
            path = root / directory / name
            if name and not is_file(fs, path):
                continue
            try:
                mode = fs.mode(path)
            except OSError:  # it has gone meanwhile, or is not there at all
                continue
            if mode & 0o007 or mode & wanted != wanted:
                yield str(path.relative_to(root)), mode, wanted


def _names(fs: Filesystem, directory: Path) -> Iterable[str]:
    try:
        return fs.names(directory)
    except OSError:
        return []


def _accounts() -> str:
    return f"have them counted as corrupt, and the bytes kept in quarantine: {REPAIR} (delivery does the same when it gets there)"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _events(count: int) -> str:
    return f"{count:,} event{'' if count == 1 else 's'}"
