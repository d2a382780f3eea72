"""A queue directory as a daemon left it, and what may happen to its bytes."""

import os
import random
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.events import decode_events
from agent.queue import record, segment
from agent.queue.record import decode_record


class Place(NamedTuple):
    """A record: its segment's name, the bytes [start, end) of its frame, and the hashes of its events."""

    segment: str
    start: int
    end: int
    hashes: tuple[str, ...]


@dataclass
class Rot:
    """A copy of a queue, and what was done to it: `touched` has every record that lost a byte, `damaged` what it became."""

    queue: Path
    touched: set[Place] = field(default_factory=set)
    damaged: list[bytes] = field(default_factory=list)

    @property
    def segments(self) -> Path:
        """Where the segments are."""
        return self.queue / "default" / "segments"

    def places(self) -> list[Place]:
        """Every whole record, in order."""
        return [place for path in sorted(self.segments.glob("*.seg")) for place in _places(path)]

    def change(self, place: Place, chance: random.Random) -> None:
        """Flip a bit, or overwrite some bytes with zeros or others, somewhere in a record."""
        path = self.segments / place.segment
        data, offset = bytearray(path.read_bytes()), chance.randrange(place.start, place.end)
        length = min(chance.choice([1, 1, 4, 100]), place.end - offset)
        for index in range(offset, offset + length):
            data[index] ^= 1 << chance.randrange(8) if length == 1 else chance.randrange(1, 256)
        if length == 4 and any(data[offset : offset + 4]):
            data[offset : offset + 4] = bytes(b ^ 0xFF for b in data[offset : offset + 4])
        path.write_bytes(data)
        self.touched.add(place)
        self.damaged.append(bytes(data[place.start : place.end]))

    def truncate(self, place: Place, offset: int) -> None:
        """Cut the segment off within a record."""
        path = self.segments / place.segment
        self.touched |= {each for each in _places(path) if each.end > place.start + offset}
        self.damaged.append(path.read_bytes()[place.start : place.start + offset])
        os.truncate(path, place.start + offset)

    def append(self, name: str, junk: bytes) -> None:
        """Add bytes to a segment; no record is touched."""
        with (self.segments / name).open("ab") as file:
            file.write(junk)

    def replace(self, name: str, put: Callable[[Path], None]) -> None:
        """Put something else in a segment's place."""
        path = self.segments / name
        self.touched |= {*_places(path)}
        path.unlink()
        put(path)


def _places(path: Path) -> list[Place]:
    found = segment.scan(path.read_bytes(), segment.HEADER_BYTES, whole=True)
    return [
        Place(
            path.name,
            frame.end - record.HEADER_BYTES - len(frame.payload),
            frame.end,
            tuple(event.hash for event in decode_events(decode_record(frame.payload).lines)),
        )
        for frame in found.frames
    ]


def copied(queue: Path, target: Path) -> Rot:
    """Copy a queue directory."""
    return Rot(Path(shutil.copytree(queue, target)))


def far_apart(places: Sequence[Place], count: int, chance: random.Random) -> list[Place]:
    """Choose records of which no two are neighbours."""
    return [places[2 * index] for index in sorted(chance.sample(range(len(places) // 2), count))]


# What may stand in a file's place


def gone(_path: Path) -> None:
    """Nothing."""


def directory(path: Path) -> None:
    """A directory with something in it."""
    path.mkdir()
    (path / "file").write_bytes(b"x")


def link(path: Path) -> None:
    """A link to a file that must not be written to."""
    path.symlink_to("/etc/passwd")


def dangling_link(path: Path) -> None:
    """A link to nothing."""
    path.symlink_to("nowhere")


def unix_socket(path: Path) -> None:
    """A socket. Its path may be longer than a socket's may be."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def junk(path: Path) -> None:
    """A file of bytes that mean nothing."""
    path.write_bytes(random.Random(1).randbytes(5000))


def zeros(path: Path) -> None:
    """A file of zeros, of an odd length."""
    path.write_bytes(bytes(70_001))


def foreign(path: Path) -> None:
    """Everything that is no file of ours, under all kinds of names."""
    os.mkfifo(path / "fifo")
    directory(path / "directory")
    link(path / "link")
    dangling_link(path / "dangling")
    unix_socket(path / "socket")
    for name in [
        b"x" * 255,
        b"\xff\xfe.seg",
        b"1.seg",
        b"00000000000000000001.seg.new",
        b"99999999999999999999.seg",
        b" \n",
    ]:
        Path(os.fsdecode(os.fsencode(path) + b"/" + name)).write_bytes(b"x")
