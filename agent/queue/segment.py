"""Segments as names and bytes: the file header, what the bytes mean, and which segments may go.

All who read a segment do so with `interpret`: recovery, delivery, and the tools that look into a queue. FORMAT.md has its rules.

A segment's name is the number of its first item, and a segment ends where the next one's name begins: frames numbered beyond
that are leftovers of a write whose sync failed, and were written again into the next segment.
"""

import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from agent.queue import record
from agent.queue.cursor import Span
from agent.queue.record import MAX_SEQ, Frame, Torn

SUFFIX = ".seg"
MAGIC = b"AAQSEG"
VERSION = 1

_FIELDS = struct.Struct("<6sHQQ")  # magic, version, first_seq, created_at in ms since the epoch
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size


MAX_BYTES = 128 * 1024 * 1024
"""No segment is longer. What a file has beyond that, such as a hole without end, is not looked at."""


class Segment(NamedTuple):
    """A segment as the log sees it: `size` in bytes (of the active one: as far as committed), `created_at` in seconds."""

    first_seq: int
    size: int
    created_at: float | None


class Damage(NamedTuple):
    """Bytes [start, end) of a segment that hold no valid frame."""

    start: int
    end: int


class Gap(NamedTuple):
    """Numbers that no readable frame holds, and the bytes [start, end) in their place, as far as there are any."""

    span: Span
    start: int = 0
    end: int = 0


class Interpretation(NamedTuple):
    """What a stretch of a segment's bytes means.

    `items` account for each number once: frames that count, and gaps. `frames` are all below the limit, those too whose numbers
    came before. `damage` are bytes without a valid frame that nobody wrote like that, `leftover` bytes at the end of writes that
    failed and were done again in the next segment. `end` is the offset up to which the bytes are understood, `next_seq` the
    number after the last item.
    """

    items: list[Frame | Gap]
    frames: list[Frame]
    damage: list[Damage]
    leftover: int
    end: int
    next_seq: int


class End(NamedTuple):
    """Where a log ends: the bytes of its last segment that count, and the number that comes next."""

    size: int
    next_seq: int


class Scan(NamedTuple):
    """What a stretch of a segment holds; `end` is the offset up to which it has been understood."""

    frames: list[Frame]
    damage: list[Damage]
    end: int


def name(first_seq: int) -> str:
    """Return the file name of the segment that begins with `first_seq`."""
    return f"{first_seq:020d}{SUFFIX}"


def parse_name(text: str) -> int | None:
    """Return the first sequence number of a segment's name; None for a file that is none."""
    stem = text.removesuffix(SUFFIX)
    if stem == text or len(stem) != 20 or not (stem.isascii() and stem.isdigit()):
        return None
    first_seq = int(stem)
    return first_seq if 0 < first_seq <= MAX_SEQ else None


def encode_header(first_seq: int, created_at: float) -> bytes:
    """Return the bytes that a segment begins with."""
    fields = _FIELDS.pack(MAGIC, VERSION, first_seq, int(created_at * 1000))
    return fields + _CRC.pack(zlib.crc32(fields))


def decode_header(data: bytes) -> float | None:
    """Return when the segment was created, in seconds since the epoch; None for a header that is damaged or foreign."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, _, created_at = _FIELDS.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _FIELDS.size)
    if magic != MAGIC or version != VERSION or crc != zlib.crc32(data[: _FIELDS.size]):
        return None
    return float(created_at) / 1000


def is_header_of(data: bytes, first_seq: int) -> bool:
    """Tell whether a segment of that name begins as it should."""
    return decode_header(data) is not None and _FIELDS.unpack_from(data)[2] == first_seq


def scan(data: bytes, offset: int, *, whole: bool) -> Scan:
    """Walk the frames from `offset`; after damage, go on at the next frame whose CRC holds.

    `whole` says that `data` goes to the segment's end. Without it, bytes that are no frame yet are left for a longer read.
    """
    frames: list[Frame] = []
    damage: list[Damage] = []
    while offset < len(data):
        frame = record.decode_frame(data, offset)
        if isinstance(frame, Frame):
            frames.append(frame)
            offset = frame.end
            continue
        found = _next_frame(data, offset + 1) if whole else None
        if found is None:
            break
        damage.append(Damage(offset, found))
        offset = found
    return Scan(frames, damage, offset)


def _next_frame(data: bytes, offset: int) -> int | None:
    while (offset := data.find(record.MARKER, offset)) >= 0:
        if isinstance(record.decode_frame(data, offset), Frame):
            return offset
        offset += 1
    return None


def is_torn(tail: bytes) -> bool:
    """Tell whether the bytes after a segment's last frame are a write that was cut short: it was never acknowledged."""
    return not tail.strip(b"\0") or isinstance(record.decode_frame(tail, 0), Torn)


def claimed_count(tail: bytes, expected_seq: int) -> int:
    """Return how many items the damaged frame at a segment's end held; 0 if it was torn or does not say.

    A complete frame may have been acknowledged before it was damaged, so its items are to be accounted for. It is complete
    if its CRC holds for the number that it should have and all the bytes there are, or if it is as long as it says.
    """
    claim = record.claimed_numbers(tail, 0)
    if claim is None:
        return 0
    first_seq, count = claim
    if record.holds(tail, expected_seq, count):
        return count
    plausible = first_seq == expected_seq and 0 < count <= len(tail)
    return count if plausible and not is_torn(tail) else 0


def interpret(data: bytes, offset: int, expected: int, limit: int | None, *, whole: bool) -> Interpretation:
    """Interpret `data` from `offset` on, where the item numbered `expected` comes next.

    `limit` is the number with which the next segment begins: frames that reach beyond it are leftovers. None if this is where the
    log's end is looked for. `whole` says that `data` goes to the segment's end, so that what is missing up to the limit is a gap.
    """
    scanned = scan(data, offset, whole=whole)
    items: list[Frame | Gap] = []
    frames = [frame for frame in scanned.frames if limit is None or frame.next_seq <= limit]
    for frame in frames:
        if frame.first_seq > expected:
            items.append(Gap(Span(expected, frame.first_seq), offset, frame.start))
        if frame.next_seq > expected:
            items.append(frame)
            expected = frame.next_seq
        offset = frame.end
    if limit is not None and expected >= limit:  # what follows the last number was written again elsewhere
        damage = [each for each in scanned.damage if each.end <= offset]
        return Interpretation(items, frames, damage, max(len(data) - offset, 0), scanned.end, expected)
    damage = scanned.damage
    if whole:
        if scanned.end < len(data):
            damage = [*damage, Damage(scanned.end, len(data))]
        if limit is not None:
            items.append(Gap(Span(expected, limit), offset, max(len(data), offset)))
            expected = limit
    return Interpretation(items, frames, damage, 0, scanned.end, expected)


def end_of(data: bytes, first_seq: int, known: int, *, all_read: bool) -> End:
    """Find where the log ends, in the bytes of its last segment; what lies beyond, no frame can be made of.

    `known` is the next number that the cursor remembers: it was written after the last commit, unless a crash came between.
    Without `all_read`, some of the bytes are not what the file holds.
    """
    found = interpret(data, HEADER_BYTES, first_seq, None, whole=True)
    next_seq = found.next_seq
    claimed = known - next_seq if known > next_seq else claimed_count(data[found.end :], next_seq)
    if not all_read:  # nothing may be cut off that was only not seen
        return End(len(data), max(next_seq + claimed, first_seq + 1))
    # A damaged frame that tells its count stays: the reader accounts for it.
    return End(len(data) if claimed else min(found.end, len(data)), next_seq + claimed)


def deletable(segments: Sequence[Segment], position: int) -> int:
    """Return how many of the oldest segments hold nothing from `position` on; the last one is never among them."""
    return max(bisect_right(segments, position, key=attrgetter("first_seq")) - 1, 0)


def expired_before(segments: Sequence[Segment], enqueued_before: float, span: float) -> int:
    """Return the position below which every item was enqueued before `enqueued_before`; the last segment stays.

    A segment takes items for at most `span` seconds after it was created. Nothing is made of when the next one was: the clock
    may have been set back in between. A segment whose header is damaged goes with the next one that tells its age.
    """
    position = 0
    for each, following in pairwise(segments):
        if each.created_at is None:
            continue
        if each.created_at + span > enqueued_before:
            break
        position = following.first_seq
    return position


def overflow_before(segments: Sequence[Segment], excess: int) -> int:
    """Return the position below which the oldest segments must go to free `excess` bytes; the last one stays."""
    position = 0
    for segment, following in pairwise(segments):
        if excess <= 0:
            break
        excess -= segment.size
        position = following.first_seq
    return position
