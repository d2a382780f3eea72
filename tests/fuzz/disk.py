"""Targets for what may stand on a disk: frames, records, segments, cursors, and a queue made of such bytes."""

import random
import struct
import zlib
from pathlib import Path

import msgspec

from agent.events import Context
from agent.queue import record, segment
from agent.queue.cursor import SLOT_BYTES, Cursor, CursorState, Outcome, Pause, Span, decode_slot, encode_slot
from agent.queue.log import Entry
from agent.queue.record import Corrupt, Frame, Record, Torn, decode_frame, decode_record, encode_frame, encode_record
from agent.queue.segment import Gap
from agent.queue.store import Limits
from tests.support import recordings
from tests.support.fault_filesystem import FaultFilesystem
from tests.support.open_queue import OpenQueue

ROOT = Path("/queue")
LIMITS = Limits(segment_bytes=4096, max_age=1e12)
NOW = 1_750_000_000.0
_SEPARATOR = b"\xff\x00\xff"


def frame(data: bytes) -> None:
    """Bytes are a frame that encodes to the same bytes, or are told to be none; so are they with a CRC that holds."""
    for candidate in (data, _with_crc(data)):
        found = decode_frame(candidate, 0)
        assert isinstance(found, Frame | Torn | Corrupt)
        if isinstance(found, Frame):
            assert found.item_count > 0
            assert encode_frame(found.first_seq, found.item_count, found.payload) == candidate[: found.end]
            _check_record(found.payload)


def _with_crc(data: bytes) -> bytes:
    """A frame of these numbers and this payload, whatever they are."""
    numbers, payload = data[:12].ljust(12, b"\0"), data[12:]
    return record.MARKER + struct.pack("<II", len(payload), zlib.crc32(numbers + payload)) + numbers + payload


def _check_record(payload: bytes) -> None:
    try:
        found = decode_record(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    assert repr(decode_record(encode_record(found))) == repr(found)


def scan(data: bytes) -> None:
    """Frames, damage and the rest tile the bytes; frames encode to what they were; two stretches give the same as one."""
    whole = segment.scan(data, 0, whole=True)
    assert b"".join(_pieces(data, whole)) == data
    for cut in _cuts(data, 3):
        first = segment.scan(data[:cut], 0, whole=False)
        assert not first.damage
        rest = segment.scan(data, first.end, whole=True)
        assert first.frames + rest.frames == whole.frames
        assert (rest.damage, rest.end) == (whole.damage, whole.end)
    _check_helpers(data)


def _pieces(data: bytes, found: segment.Scan) -> list[bytes]:
    frames = [(each.end - record.HEADER_BYTES - len(each.payload), each) for each in found.frames]
    stretches = [(start, encode_frame(f.first_seq, f.item_count, f.payload)) for start, f in frames]
    stretches += [(damage.start, data[damage.start : damage.end]) for damage in found.damage]
    return [piece for _, piece in sorted(stretches)] + [data[found.end :]]


def _cuts(data: bytes, count: int) -> list[int]:
    chance = random.Random(zlib.crc32(data))
    return [chance.randint(0, len(data)) for _ in range(count)]


def _check_helpers(data: bytes) -> None:
    created = segment.decode_header(data)
    assert created is None or created >= 0
    claimed = segment.claimed_count(data, 5)
    assert claimed <= len(data) or record.holds(data, 5, claimed)  # beyond that only a CRC is believed
    assert isinstance(segment.is_torn(data), bool)
    text = data.decode("utf-8", "surrogateescape")
    first_seq = segment.parse_name(text)
    assert first_seq is None or segment.name(first_seq) == text


def cursor(data: bytes) -> None:
    """A slot is nothing, or a state that a queue can be in: so too when its CRC holds, and when one byte of it changed."""
    for slot in (data, _slot_with_crc(data), _touched(data)):
        checkpoint = decode_slot(slot)
        if checkpoint is None:
            continue
        _check_state(checkpoint.state)
        again = encode_slot(checkpoint.generation, checkpoint.state)
        assert repr(decode_slot(again)) == repr(checkpoint)


def _slot_with_crc(body: bytes) -> bytes:
    return struct.pack("<4sHII", b"AAQC", 1, len(body), zlib.crc32(body)) + body


def _touched(data: bytes) -> bytes:
    """A valid slot, with a byte changed as the data says."""
    slot, place = bytearray(encode_slot(7, STATE)), int.from_bytes(data[:2])
    slot[place % len(slot)] ^= data[2] if len(data) > 2 else 1
    return bytes(slot)


def _check_state(state: CursorState) -> None:
    cursor = Cursor.from_state(state)
    ledger = cursor.ledger()
    settled = ledger.delivered + ledger.forwarded + ledger.dead_lettered + sum(ledger.dropped.values())
    assert ledger.accepted == settled + ledger.queued
    assert min(ledger.accepted, ledger.queued, ledger.delivered, ledger.dead_lettered, *ledger.dropped.values(), 0) == 0
    assert sum(part.length for part in cursor.unsettled(Span(1, cursor.next_seq))) == ledger.queued
    if ledger.queued:
        assert cursor.settle([Span(1, cursor.next_seq)], Outcome.EXPIRED) == ledger.queued
    assert (cursor.position, cursor.queued, cursor.settled_beyond) == (cursor.next_seq, 0, 0)


def queue(data: bytes) -> None:
    """A queue of any bytes opens, accounts for what it holds, takes a new record, and still has that after a restart.

    The data is cut at a separator: a checkpoint's state, then one segment after another, each as numbers and payloads of frames
    whose CRCs hold, or as anything.
    """
    state, *segments = data.split(_SEPARATOR)
    disk = FaultFilesystem()
    disk.make_directory(ROOT / "segments")
    _put(disk, ROOT / "cursor", _slot_with_crc(state))
    for number, content in enumerate(segments[:4]):
        first_seq = int.from_bytes(content[:1]) + 8 * number
        if disk_has_no(disk, first_seq):
            _put(
                disk,
                ROOT / "segments" / segment.name(first_seq),
                segment.encode_header(first_seq, NOW) + _body(content[1:]),
            )
    queue = OpenQueue(disk, ROOT, LIMITS)
    _read_out(queue)
    committed = queue.commit([Entry(1, b"new")], NOW)
    if queue.view.next_seq == record.MAX_SEQ:  # somebody's frame has taken the last number there is
        assert committed.refused is Outcome.DISK_ERROR
        return
    assert committed.refused is None
    assert committed.checkpoint_error is None
    queue.close()
    again = OpenQueue(disk, ROOT, LIMITS)
    assert again.cursor.ledger() == queue.cursor.ledger()
    assert _read_out(again)[-1] == b"new"


def disk_has_no(disk: FaultFilesystem, first_seq: int) -> bool:
    """Tell whether there is no such segment yet."""
    return ROOT / "segments" / segment.name(first_seq) not in disk.paths()


def _body(content: bytes) -> bytes:
    """Frames whose CRC holds where a byte says so, in place of lengths and CRCs."""
    body = b""
    while content:
        kind, length = content[0], content[1] if len(content) > 1 else 0
        piece, content = content[2 : 2 + length], content[2 + length :]
        body += _with_crc(piece) if kind % 4 else piece
    return body


def _put(disk: FaultFilesystem, path: Path, data: bytes) -> None:
    file = disk.create(path)
    file.pwrite(data, 0)
    file.close()


def _read_out(queue: OpenQueue) -> list[bytes]:
    """Read everything and settle it; every number comes exactly once, in order."""
    payloads, expected = [], queue.cursor.position
    for item in queue.items(300):
        span = item.span if isinstance(item, Gap) else Span(item.first_seq, item.next_seq)
        assert span.start <= expected < span.stop
        expected = span.stop
        if isinstance(item, Frame):
            payloads.append(item.payload)
        queue.cursor.settle([span], Outcome.CORRUPT if isinstance(item, Gap) else Outcome.DELIVERED)
    assert expected == queue.view.next_seq
    assert queue.cursor.queued == 0
    return payloads


STATE = CursorState(
    12,
    40,
    3,
    [Span(14, 20), Span(22, 23)],
    {Outcome.DELIVERED: 13, Outcome.EXPIRED: 2, Outcome.DEAD_LETTERED: 1},
    {Outcome.STALLED: 4},
    Pause("blocked", "402 Payment Required", NOW, NOW + 300, 2),
)


def _payloads() -> list[bytes]:
    blocks = [b"".join(request.lines.splitlines(keepends=True)[:3]) for request in recordings.load()[:3]]
    return [encode_record(Record(NOW, Context("GITHUB_ACTIONS", 0), lines)) for lines in blocks]


def frame_seeds() -> list[bytes]:
    """Whole frames, and numbers with payloads."""
    payloads = _payloads()
    numbers = [struct.pack("<QI", 5, 3), struct.pack("<QI", 0, 0), struct.pack("<QI", 2**64 - 1, 2**32 - 1)]
    return [encode_frame(5, 3, payloads[0]), *(each + payloads[1] for each in numbers)]


def scan_seeds() -> list[bytes]:
    """Frames in a row, with damage before, between and after them, and long runs of markers."""
    frames, seq = [], 1
    for payload in (b"a", b"bb" * 20, b"", *_payloads()):
        frames.append(encode_frame(seq, 2, payload))
        seq += 2
    damaged = [each[:5] + b"!" + each[6:] for each in frames]
    return [
        b"".join(frames),
        frames[0] + damaged[1] + frames[2],
        damaged[0] + b"junk" + frames[1] + frames[2][:-1],
        frames[0] + bytes(64),
        record.MARKER * 40 + frames[0],
        (record.MARKER + struct.pack("<I", 64)) * 40,
        segment.encode_header(1, NOW) + frames[0],
        segment.name(17).encode(),
    ]


def cursor_seeds() -> list[bytes]:
    """Slots, and bodies of slots."""
    slots = [encode_slot(1, Cursor().state()), encode_slot(7, STATE)]
    assert all(len(slot) < SLOT_BYTES for slot in slots)
    return [*slots, *(slot[14:] for slot in slots), b"", b"AAQC"]


def queue_seeds() -> list[bytes]:
    """A state and segments that belong together, and some that do not."""
    piece = struct.pack("<QI", 14, 3) + b"payload"
    first = b"\x0c" + bytes([1, len(piece)]) + piece + bytes([1, 24]) + struct.pack("<QI", 17, 20) + b"x" * 12
    second = b"\x1d" + bytes([1, 13]) + struct.pack("<QI", 37, 3) + b"y"
    bodies = [slot[14:] for slot in cursor_seeds()[:2]]
    return [_SEPARATOR.join([body, first, second]) for body in bodies] + [_SEPARATOR.join([b"", b"\x01\x00\x05junk"])]
