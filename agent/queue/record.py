"""One frame of a segment as bytes, and the record that it carries.

This is the byte layout of disk format version 1 (FORMAT.md beside it has all of it).

    marker u32 | length u32 | crc32 u32 | first_seq u64 | count u32 | payload        little-endian

`length` is the payload's, in bytes. The CRC is over everything after it: first_seq, count, payload.
"""

import struct
import zlib
from typing import NamedTuple

import msgspec

from agent.events import Context, has_line_count

MARKER = b"\xa4\xec\xe5R"
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_SEQ = 2**63 - 1  # more than any queue gets to

_PREFIX = struct.Struct("<4sII")
_NUMBERS = struct.Struct("<QI")
HEADER_BYTES = _PREFIX.size + _NUMBERS.size


class Frame(NamedTuple):
    """A frame whose CRC holds: `item_count` items numbered from `first_seq`, and the offset where the frame ends."""

    first_seq: int
    item_count: int
    payload: bytes
    end: int

    @property
    def start(self) -> int:
        """The offset where the frame begins."""
        return self.end - HEADER_BYTES - len(self.payload)

    @property
    def next_seq(self) -> int:
        """The number after the frame's last item."""
        return self.first_seq + self.item_count


class Torn(NamedTuple):
    """The bytes end before the frame does."""


class Corrupt(NamedTuple):
    """The bytes are no frame: a wrong marker, an absurd length, a CRC that does not hold, or numbers that nothing can have."""


def encode_frame(first_seq: int, count: int, payload: bytes) -> bytes:
    """Return the frame's bytes; raises ValueError for a payload that a reader would refuse."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload has {len(payload)} bytes; a frame takes {MAX_PAYLOAD_BYTES}")
    if not _are_numbers(first_seq, count):
        raise ValueError(f"a frame of {count} items from number {first_seq} on is none")
    numbers = _NUMBERS.pack(first_seq, count)
    crc = zlib.crc32(payload, zlib.crc32(numbers))
    return _PREFIX.pack(MARKER, len(payload), crc) + numbers + payload


def decode_frame(data: bytes, offset: int) -> Frame | Torn | Corrupt:
    """Read the frame at `offset`; the length is believed only below the cap, the rest only when the CRC holds."""
    if len(data) - offset < HEADER_BYTES:
        return Torn() if MARKER.startswith(data[offset : offset + len(MARKER)]) else Corrupt()
    marker, length, crc = _PREFIX.unpack_from(data, offset)
    if marker != MARKER or length > MAX_PAYLOAD_BYTES:
        return Corrupt()
    start, end = offset + HEADER_BYTES, offset + HEADER_BYTES + length
    if end > len(data):
        return Torn()
    payload = data[start:end]
    if zlib.crc32(payload, zlib.crc32(data[offset + _PREFIX.size : start])) != crc:
        return Corrupt()
    first_seq, count = _NUMBERS.unpack_from(data, offset + _PREFIX.size)
    return Frame(first_seq, count, payload, end) if _are_numbers(first_seq, count) else Corrupt()


def _are_numbers(first_seq: int, count: int) -> bool:
    return first_seq > 0 and count > 0 and first_seq + count <= MAX_SEQ


def claimed_numbers(data: bytes, offset: int) -> tuple[int, int] | None:
    """Return (first_seq, count) as a damaged frame's header states them; they may be wrong."""
    if len(data) - offset < HEADER_BYTES:
        return None
    first_seq, count = _NUMBERS.unpack_from(data, offset + _PREFIX.size)
    return first_seq, count


def holds(data: bytes, first_seq: int, count: int) -> bool:
    """Tell whether `data` is a frame with these numbers whose payload is all the rest, whatever its header says of them."""
    crc = _PREFIX.unpack_from(data)[2]
    return bool(zlib.crc32(data[HEADER_BYTES:], zlib.crc32(_NUMBERS.pack(first_seq, count))) == crc)


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Events written together: when they were enqueued (seconds since the epoch), by whom, and they, as `events.Block` has them.

    How many they are is the frame's to say.
    """

    enqueued_at: float
    context: Context
    lines: bytes


def record_in(frame: Frame, *, own: bool = False) -> Record | None:
    """Return the record that a frame carries; None if the payload is none, or has another number of events than it says.

    The events of a frame of this process's `own` need not be counted: its CRC says that it is as it was written.
    """
    try:
        record = decode_record(frame.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record if own or has_line_count(record.lines, frame.item_count) else None


encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(Record).decode


def decode_record(payload: bytes) -> Record:
    """Return the record in a payload. Raises msgspec.DecodeError or UnicodeDecodeError for what is none."""
    try:
        return _decode_record(payload)
    except RecursionError as error:  # elements that a Context may have beyond those we know
        raise msgspec.DecodeError("nested too deeply") from error
