"""A second reader of the queue on disk: all that it knows is in `agent/queue/FORMAT.md`, whose short cuts it takes."""

import json
import re
from contextlib import suppress
from pathlib import Path
from struct import pack, unpack_from
from typing import Any
from zlib import crc32

import msgpack

MARKER, MAX_PAYLOAD, MAX_SEGMENT, MAX_SEQ, SLOT = b"\xa4\xec\xe5\x52", 4194304, 134217728, 2**63 - 1, 32768
Frame = tuple[int, int, bytes]  # first_seq, count, payload


def scan(data: bytes, number: int) -> tuple[list[Frame], int, int]:
    """Return the valid frames of the segment of this number, the number after them, and how many items its tail claims."""
    frames, end = list[Frame](), 28
    for at in (match.start() for match in re.finditer(MARKER, data[:-20])):
        length, crc, first, count = unpack_from("<IIQI", data, at + 4)
        stop = at + 24 + length
        credible = length <= MAX_PAYLOAD and stop <= len(data) and first >= 1 <= count <= MAX_SEQ - first
        if at >= end and credible and crc32(data[at + 12 : stop]) == crc:
            frames.append((first, count, data[at + 24 : stop]))
            end, number = stop, max(number, first + count)
    tail = data[end:]
    marker, length, crc, first, count = unpack_from("<4sIIQI", tail.ljust(24, b"\0"))
    torn = not any(tail) or (marker == MARKER and len(tail) - 24 < length <= MAX_PAYLOAD)
    named = first == number and count <= len(tail) and not torn
    claims = len(tail) >= 24 and (named or crc == crc32(pack("<QI", number, count) + tail[24:]))
    return frames, number, int(claims) * count


def cursor(path: Path) -> list[Any] | None:
    """Return the State that counts, as far as version 1 knows it; None if the cursor is lost."""
    data, found = path.read_bytes() if path.exists() else b"", dict[int, list[Any]]()
    for slot in (data[SLOT:], data[:SLOT]):  # of two with the same generation the first one counts
        start, length, crc, generation = unpack_from("<6sIIQ", slot.ljust(22, b"\0"))
        body = slot[14:SLOT][:length]
        if start == b"AAQC\1\0" and 8 <= length == len(body) and crc32(body) == crc and generation < MAX_SEQ:
            found[generation] = msgpack.unpackb(body[8:])[:7]
    return found[max(found)] if found else None


def walk(directory: Path, known: list[Any] | None) -> tuple[list[Any], list[tuple[int, Frame]]]:
    """Return the State with the `next_seq` that counts, and the frames that count, with the number each does so from."""
    paths = sorted(directory.iterdir()) if directory.exists() else []
    named = {int(p.stem): p for p in paths if re.fullmatch("[0-9]{20}[.]seg", p.name) and 1 <= int(p.stem) <= MAX_SEQ}
    files = {n: path for n, path in named.items() if path.is_file() and not path.is_symlink()}
    scans = {n: scan(path.read_bytes()[:MAX_SEGMENT], n) for n, path in files.items()}
    next_seq = known[1] if known else 1
    for _, end, claimed in [*scans.values()][-1:]:
        next_seq = next_seq if next_seq > end else end + claimed
    begin, counting = min(scans, default=next_seq), list[tuple[int, Frame]]()
    position, _, *others = known or [begin, next_seq, begin, [], {}, {}, None]
    expected = max(position, begin)
    for limit, (frames, _, _) in zip([*scans, next_seq][1:], scans.values(), strict=False):
        for frame in frames:
            if expected < (stop := frame[0] + frame[1]) <= limit:
                counting.append((max(frame[0], expected), frame))
                expected = stop
        expected = max(expected, limit)
    return [position, next_seq, *others], counting


def items(frames: list[tuple[int, Frame]], size: int) -> dict[int, list[Any]]:
    """Return what payloads of this size say of each item, by number: with ci and interactive, the event and its line."""
    found = dict[int, list[Any]]()
    for start, (first, count, payload) in frames:
        with suppress(ValueError):
            *head, context, lines = msgpack.unpackb(payload)
            each = zip(range(first, first + count), lines.split(b"\n")[:-1], strict=True)
            if len(head) == size - 2 and lines.endswith(b"\n"):
                found |= {n: [*head, *[*context, None, None][:2], json.loads(at), at] for n, at in each if n >= start}
    return found


def queued_events(directory: Path) -> list[tuple[Any, ...]]:
    """Return (seq, enqueued_at, ci, interactive, event) of what is queued and readable, by number."""
    state, frames = walk(directory / "segments", cursor(directory / "cursor"))
    settled = {seq for span in state[3] for seq in range(*span)}
    return [(seq, *item[:-1]) for seq, item in items(frames, 3).items() if seq not in settled]


def ledger(directory: Path) -> dict[str, Any]:
    """Return what became of all that was accepted, with `dropped` by reason."""
    (position, next_seq, origin, spans, counts, shed, _), _ = walk(directory / "segments", cursor(directory / "cursor"))
    kept = {name: counts.pop(name, 0) for name in ("delivered", "forwarded", "dead_lettered")}
    dropped = {reason: counts.get(reason, 0) + shed.get(reason, 0) for reason in counts | shed}
    queued = next_seq - position - sum(stop - start for start, stop in spans)
    return {"accepted": next_seq - origin + sum(shed.values()), **kept, "dropped": dropped, "queued": queued}


def dead_letters(directory: Path) -> list[tuple[Any, ...]]:
    """Return (seq, rejected_at, status, message, ci, interactive, event) of the letters that count, by `seq`."""
    found = items(walk(directory / "dead-letters", None)[1], 6).values()
    letters = {(item[0], *item[4:6], item[-1]): tuple(item[:-1]) for item in found}
    return sorted(letters.values(), key=lambda letter: letter[0])
