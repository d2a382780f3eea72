"""The floor: the least that any implementation in Python must do to keep events and to send them, in one process without sockets.

It decodes lines by the API's schema, checks that they are canonical, frames them with a CRC, writes, and syncs, once for each
MiB or so, as a daemon with one busy client does; and it builds the bodies of the requests. It must never import the agent: what
the agent does otherwise tomorrow must not move the floor.
"""

import math
import os
import struct
import time
import zlib
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tests.benchmarks.load import SESSIONS, blocks

SUBJECT = "floor"
SYNC_BYTES = 1024 * 1024
LINES_A_READ = 512  # of about 125 bytes: a read of 64 KiB


class _Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    session_id: str
    source: Literal["LOCAL", "REMOTE"]
    event: Literal["HIT", "MISS"]
    hash: str
    duration: int | float | msgspec.UnsetType = msgspec.UNSET


class Done(NamedTuple):
    """How long it took, and the CPU of it, both in seconds, and how many bodies were built."""

    seconds: float
    cpu: float
    bodies: int


_HEADER = struct.Struct("<4sIIQI")
_decode = msgspec.json.Decoder(_Event).decode_lines
_encode = msgspec.json.Encoder().encode_lines


def run(events: int, path: Path, batch: int | None = None, sessions: int = SESSIONS) -> Done:
    """Keep so many events in a new file, and delete it; build a body of each `batch` of them, if it is given."""
    reads_a_batch = math.ceil((batch or LINES_A_READ) / LINES_A_READ)
    lines_a_read = (batch or LINES_A_READ) // reads_a_batch  # a batch is of whole reads: nothing has to be cut
    reads = list(blocks(min(events, 64 * lines_a_read), lines_a_read, sessions=sessions))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        cpu, begin = time.process_time(), time.perf_counter()
        kept = unsynced = bodies = 0
        unsent: list[bytes] = []
        for text in cycle(reads):
            kept, unsynced = kept + _keep(text, kept, descriptor), unsynced + len(text)
            is_last = kept >= events
            if unsynced >= SYNC_BYTES or is_last:
                os.fdatasync(descriptor)
                unsynced = 0
            if batch:
                unsent.append(text)
                if len(unsent) == reads_a_batch or is_last:
                    build_body(unsent)
                    unsent, bodies = [], bodies + 1
            if is_last:
                break
        return Done(time.perf_counter() - begin, time.process_time() - cpu, bodies)
    finally:
        os.close(descriptor)
        path.unlink()


def _keep(lines: bytes, first: int, descriptor: int) -> int:
    """Write lines as a frame, once it is sure that they are canonical; return how many they are."""
    events = _decode(lines)
    assert _encode(events) == lines
    header = _HEADER.pack(b"mark", len(lines), zlib.crc32(lines), first, len(events))
    os.writev(descriptor, (header, lines))
    return len(events)


def build_body(reads: Sequence[bytes]) -> bytes:
    """Return lines as a JSON array."""
    return b"[%b]" % b"".join(reads).replace(b"\n", b",")[:-1]
