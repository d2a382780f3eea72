"""The floor: the least that any implementation in Python must do to keep events, in one process without sockets.

It decodes lines by the API's schema, encodes the events for a queue, frames them with a CRC, writes, and syncs, once for each
MiB or so, as a daemon with one busy client does. It must never import the agent: what the agent does otherwise tomorrow must
not move the floor.
"""

import os
import time
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tests.benchmarks.load import blocks

SYNC_BYTES = 1024 * 1024
LINES_A_READ = 512  # of about 125 bytes: a read of 64 KiB


class _Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    session_id: str
    source: Literal["LOCAL", "REMOTE"]
    event: Literal["HIT", "MISS"]
    hash: str
    duration: int | float | msgspec.UnsetType = msgspec.UNSET


class Done(NamedTuple):
    """How long it took, and the CPU of it, both in seconds."""

    seconds: float
    cpu: float


def run(events: int, path: Path) -> Done:
    """Keep so many events in a new file, and delete it."""
    decode, encode = msgspec.json.Decoder(_Event).decode_lines, msgspec.msgpack.Encoder().encode
    lines = list(blocks(min(events, 64 * LINES_A_READ), LINES_A_READ))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        cpu, begin, left, unsynced, index = time.process_time(), time.perf_counter(), events, 0, 0
        while left > 0:
            decoded = decode(lines[index % len(lines)])
            payload = encode(decoded)
            unsynced += os.write(descriptor, b"%b%b" % (zlib.crc32(payload).to_bytes(4, "little"), payload))
            if unsynced >= SYNC_BYTES:
                os.fdatasync(descriptor)
                unsynced = 0
            left, index = left - len(decoded), index + 1
        os.fdatasync(descriptor)
        return Done(time.perf_counter() - begin, time.process_time() - cpu)
    finally:
        os.close(descriptor)
        path.unlink()
