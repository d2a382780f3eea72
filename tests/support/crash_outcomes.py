"""Every disk that a power cut may leave at one moment, to be tried one after the other.

`cuts` says where a torn write is worth cutting.

What is complete, and what is not:

- *One file.* Of up to MAX_CHANGES unsynced changes, each is lost or kept by itself, in every combination; of more, each number
  of first ones is kept, each is kept alone, and each is lost alone. In addition the last write is torn, after nothing and
  after all before it: only its length, a prefix of it up to each of `cuts`, and each of its 512-byte sectors alone, or
  missing alone. Only one write of a file is torn at a time; `crash_model.RandomChooser` tears several.
- *Names.* Every combination of unsynced creations, renames and removals that POSIX allows.
- *Together.* Every combination of names and contents up to `bound` of them. Beyond it, each by itself while all the others are
  lost, and while all the others are kept, and `bound` combinations by chance, from `seed`.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Final

from tests.support.crash_model import SECTOR, Inode, Names, Resize, Write

Cuts = Callable[[bytes], Iterable[int]]
"""Says up to where prefixes of a write are to survive."""

MAX_CHANGES: Final = 4


def every_byte(data: bytes) -> Iterable[int]:
    """Cut a write at each of its bytes."""
    return range(1, len(data))


@dataclass(frozen=True)
class Remains:
    """A disk after a power cut: its directories, and its files in the order of their paths. All of it is durable."""

    directories: tuple[Path, ...]
    files: tuple[tuple[Path, bytes], ...]


def every_remains(names: Names, cuts: Cuts, *, bound: int, seed: int) -> Iterator[Remains]:
    """Yield what a power cut now may leave, each once: the first has lost, the second has kept all that was not synced."""
    directories, seen = tuple(names.directories()), set()
    for files in _every_combination(names, cuts, bound=bound, seed=seed):
        remains = Remains(directories, tuple(sorted(files.items())))
        if remains not in seen:
            seen.add(remains)
            yield remains


def _every_combination(names: Names, cuts: Cuts, *, bound: int, seed: int) -> Iterator[dict[Path, bytes]]:
    mappings = names.outcomes()
    inodes = list({id(inode): inode for mapping in mappings for inode in mapping.values()}.values())
    contents = [every_content(inode, cuts) for inode in inodes]
    position = {id(inode): place for place, inode in enumerate(inodes)}
    for choice in _choices([len(mappings), *map(len, contents)], bound=bound, seed=seed):
        mapping, chosen = mappings[choice[0]], [contents[place][pick] for place, pick in enumerate(choice[1:])]
        yield {path: chosen[position[id(inode)]] for path, inode in mapping.items()}


def _choices(sizes: Sequence[int], *, bound: int, seed: int) -> Iterator[tuple[int, ...]]:
    least, most = (0,) * len(sizes), tuple(size - 1 for size in sizes)
    yield least
    yield most
    if prod(sizes) <= bound:
        yield from product(*map(range, sizes))
        return
    for base in (least, most):
        for place, size in enumerate(sizes):
            for pick in range(size):
                yield (*base[:place], pick, *base[place + 1 :])
    chance = random.Random(seed)
    for _ in range(bound):
        yield tuple(chance.randrange(size) for size in sizes)


def every_content(inode: Inode, cuts: Cuts) -> list[bytes]:
    """Return what may be left in a file, each once: the first is what is durable, the last what processes see."""
    durable, everything = bytes(inode.durable), bytes(inode.data)
    found = dict.fromkeys(_with(durable, changes) for changes in _subsets(inode.pending))
    if inode.pending and isinstance(inode.pending[-1], Write):
        for before in (durable, _with(durable, inode.pending[:-1])):
            found |= dict.fromkeys(_torn(inode.pending[-1], before, cuts))
    found.pop(durable)
    found.pop(everything, None)
    return [durable, *found, *([everything] if everything != durable else [])]


def _subsets(changes: Sequence[Write | Resize]) -> Iterator[Sequence[Write | Resize]]:
    if len(changes) <= MAX_CHANGES:
        for kept in product((False, True), repeat=len(changes)):
            yield [change for change, keep in zip(changes, kept, strict=True) if keep]
        return
    for place in range(len(changes)):
        yield changes[:place]
        yield changes[place : place + 1]
        yield [*changes[:place], *changes[place + 1 :]]


def _with(durable: bytes, changes: Iterable[Write | Resize]) -> bytes:
    target = bytearray(durable)
    for change in changes:
        change.apply(target)
    return bytes(target)


def _torn(write: Write, before: bytes, cuts: Cuts) -> Iterator[bytes]:
    data, end = write.data, write.offset + len(write.data)
    longer = before.ljust(end, b"\0")
    yield longer
    for cut in cuts(data):
        yield _with(before, [Write(write.offset, data[:cut])])
    bounds = [0, *range(SECTOR - write.offset % SECTOR, len(data), SECTOR), len(data)]
    for start, stop in pairwise(bounds):
        sector = Write(write.offset + start, data[start:stop])
        hole = Write(write.offset + start, longer[sector.offset : sector.offset + stop - start])
        yield _with(longer, [sector])
        yield _with(longer, [write, hole])
