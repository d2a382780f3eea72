"""What a crash leaves of files and names, and who decides it: the state behind tests.support.fault_filesystem."""

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol, Self

SECTOR: Final = 512


class Chooser(Protocol):
    """Decides what a crash leaves."""

    def choose(self, n: int) -> int:
        """Return one of 0 … n-1, where 0 always keeps the least and n-1 the most."""


class LoseAll:
    """Nothing survives that was not synced."""

    def choose(self, n: int) -> int:
        return 0


class KeepAll:
    """Everything happened to reach the disk."""

    def choose(self, n: int) -> int:
        return n - 1


class RandomChooser:
    """A reproducible choice."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, n: int) -> int:
        return self._random.randrange(n)


class ScriptedChooser:
    """Follows a script, then keeps the least; `taken` lists each choice made with its n."""

    def __init__(self, script: list[int]) -> None:
        self._script = script
        self.taken: list[tuple[int, int]] = []

    def choose(self, n: int) -> int:
        position = len(self.taken)
        choice = self._script[position] if position < len(self._script) else 0
        self.taken.append((choice, n))
        return choice


def every_outcome() -> Iterator[ScriptedChooser]:
    """Yield choosers that together make every combination of choices: crash an equal filesystem with each of them."""
    script: list[int] | None = []
    while script is not None:
        chooser = ScriptedChooser(script)
        yield chooser
        script = _next_script(chooser.taken)


def _next_script(taken: list[tuple[int, int]]) -> list[int] | None:
    while taken and taken[-1][0] == taken[-1][1] - 1:
        taken = taken[:-1]
    return [*(choice for choice, _ in taken[:-1]), taken[-1][0] + 1] if taken else None


def os_error(code: int, path: Path) -> OSError:
    """Return the error the operating system would raise, of the fitting subclass."""
    return OSError(code, os.strerror(code), str(path))


def _resize(target: bytearray, size: int) -> None:
    del target[size:]
    target.extend(bytes(size - len(target)))


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes on their way to the disk; never none."""

    offset: int
    data: bytes

    def __deepcopy__(self, _: object) -> Self:
        """Return itself: nothing of it can change, and disks are copied often."""
        return self

    def apply(self, target: bytearray) -> None:
        self._put(target, 0, len(self.data))

    def survive(self, target: bytearray, chooser: Chooser) -> None:
        """Do what a crash leaves of this write."""
        outcomes = (self._nothing, self._length, self._prefix, self._sectors, self._all)
        outcomes[chooser.choose(len(outcomes))](target, chooser)

    def _nothing(self, target: bytearray, chooser: Chooser) -> None:
        """Leave the target as it is."""

    def _length(self, target: bytearray, _: Chooser) -> None:
        _resize(target, max(len(target), self.offset + len(self.data)))

    def _prefix(self, target: bytearray, chooser: Chooser) -> None:
        self._put(target, 0, chooser.choose(len(self.data)))

    def _sectors(self, target: bytearray, chooser: Chooser) -> None:
        self._length(target, chooser)
        bounds = [0, *range(SECTOR - self.offset % SECTOR, len(self.data), SECTOR), len(self.data)]
        for start, stop in pairwise(bounds):
            if chooser.choose(2):
                self._put(target, start, stop)

    def _all(self, target: bytearray, _: Chooser) -> None:
        self.apply(target)

    def _put(self, target: bytearray, start: int, stop: int) -> None:
        begin, end = self.offset + start, self.offset + stop
        if start < stop:
            target.extend(bytes(max(0, begin - len(target))))  # the hole, if there is one
            target[begin:end] = self.data[start:stop]


@dataclass(frozen=True, slots=True)
class Resize:
    """A new length on its way to the disk."""

    size: int

    def __deepcopy__(self, _: object) -> Self:
        """Return itself: nothing of it can change, and disks are copied often."""
        return self

    def apply(self, target: bytearray) -> None:
        _resize(target, self.size)

    def survive(self, target: bytearray, chooser: Chooser) -> None:
        """Do what a crash leaves of it: all or nothing."""
        if chooser.choose(2):
            self.apply(target)


@dataclass(slots=True, eq=False)
class Inode:
    """A file without its name. `data` is what a process reads; a crash leaves `durable` and some of `pending`."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Resize] = field(default_factory=list)
    references: int = 0  # its name, its open handles, its lock

    def change(self, change: Write | Resize) -> None:
        change.apply(self.data)
        self.pending.append(change)

    def sync(self) -> None:
        for change in self.pending:
            change.apply(self.durable)
        self.pending.clear()

    def fail_sync(self, chooser: Chooser) -> None:
        """Forget the dirty pages, but for what the chooser spares; of what was pending only the length still is."""
        cut = min((change.size for change in self.pending if isinstance(change, Resize)), default=len(self.data))
        self._settle(chooser)
        self.pending = [Resize(min(cut, len(self.durable))), Resize(len(self.data))]

    def crash(self, chooser: Chooser) -> None:
        self._settle(chooser)
        self.data = bytearray(self.durable)

    def _settle(self, chooser: Chooser) -> None:
        for change in self.pending:
            change.survive(self.durable, chooser)
        self.pending.clear()


NameChange = dict[Path, Inode | None]
"""What one atomic operation makes of each name it touches; None removes it."""


class Names:
    """Which name means which inode: as processes see it, as the disk has it, and the changes in between."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._directories: dict[Path, dict[str, Inode | None]] = {Path("/"): {}, Path(): {}}  # None: a directory
        self._durable: dict[Path, Inode] = {}
        self._pending: list[NameChange] = []

    def entries(self, directory: Path) -> dict[str, Inode | None]:
        """Return a directory's names; None stands for a directory. ENOENT or ENOTDIR if it is none itself."""
        if directory in self._directories:
            return self._directories[directory]
        is_file = directory.name in self._directories.get(directory.parent, {})
        raise os_error(errno.ENOTDIR if is_file else errno.ENOENT, directory)

    def inode(self, path: Path) -> Inode:
        """Return the file of that name; ENOENT, ENOTDIR or EISDIR if there is none."""
        if path in self._directories:
            raise os_error(errno.EISDIR, path)
        inode = self.entries(path.parent).get(path.name)
        if inode is None:
            raise os_error(errno.ENOENT, path)
        return inode

    def files(self) -> dict[Path, Inode]:
        """Return every file by its path."""
        every = ((directory, *entry) for directory, entries in self._directories.items() for entry in entries.items())
        return {directory / name: inode for directory, name, inode in every if inode is not None}

    def has_name(self, inode: Inode) -> bool:
        """Tell whether a name means this file."""
        return any(inode in entries.values() for entries in self._directories.values())

    def make_directory(self, path: Path) -> None:
        """Make a directory with its parents, durably."""
        if path in self._directories:
            return
        self.make_directory(path.parent)
        entries = self.entries(path.parent)
        if path.name in entries:
            raise os_error(errno.EEXIST, path)
        entries[path.name] = None
        self._directories[path] = {}
        self.sync(path.parent)

    def is_directory(self, path: Path) -> bool:
        """Tell whether it is one."""
        return path in self._directories

    def remove_directory(self, path: Path) -> None:
        """Remove an empty one, durably, if it is there."""
        if path not in self._directories:
            if self.entries(path.parent).get(path.name) is not None:
                raise os_error(errno.ENOTDIR, path)
            return
        if self.entries(path):
            raise os_error(errno.ENOTEMPTY, path)
        self.sync(path)
        del self._directories[path]
        del self._directories[path.parent][path.name]

    def change(self, change: NameChange) -> list[Inode]:
        """Make the change visible and pending; return the inodes that lost a name. Additions come before removals."""
        replaced = [self._set(path, inode) for path, inode in change.items()]
        self._pending.append(change)
        return [inode for inode in replaced if inode is not None]

    def _set(self, path: Path, inode: Inode | None) -> Inode | None:
        entries = self.entries(path.parent)
        replaced = entries.pop(path.name, None)
        if inode is not None:
            entries[path.name] = inode
            inode.references += 1
        return replaced

    def sync(self, directory: Path) -> None:
        """Make a directory's changes durable, and the earlier ones elsewhere that they build on."""
        self.entries(directory)
        wanted: set[Path] = set()
        synced: list[NameChange] = []
        others: list[NameChange] = []
        for change in reversed(self._pending):
            if any(path.parent == directory for path in change) or not wanted.isdisjoint(self._order(change)):
                wanted |= self._order(change)
                synced.append(change)
            else:
                others.append(change)
        self._pending = others[::-1]
        for change in reversed(synced):
            self._persist(change)

    def crash(self, chooser: Chooser) -> None:
        """Keep the durable names and files, and of what is pending as much as the chooser spares."""
        self._settle(chooser)
        for directory, entries in self._directories.items():
            self._directories[directory] = {name: None for name, inode in entries.items() if inode is None}
        for path, inode in self._durable.items():
            inode.crash(chooser)
            self._directories[path.parent][path.name] = inode

    def _settle(self, chooser: Chooser) -> None:
        lost: set[Path] = set()
        for change in self._pending:
            if lost.isdisjoint(self._order(change)) and chooser.choose(2):
                self._persist(change)
            else:
                lost |= self._order(change)
        self._pending.clear()

    def outcomes(self) -> list[dict[Path, Inode]]:
        """Return all that a crash may leave of the names, each once: first what is durable, last what processes see."""
        reached: list[tuple[dict[Path, Inode], frozenset[Path]]] = [(self._durable, frozenset())]
        for change in self._pending:
            order = frozenset(self._order(change))
            kept = [(_applied(names, change), lost) for names, lost in reached if lost.isdisjoint(order)]
            reached = [(names, lost | order) for names, lost in reached] + kept
        return list(
            {frozenset((path, id(inode)) for path, inode in names.items()): names for names, _ in reached}.values()
        )

    def directories(self) -> list[Path]:
        """Return every directory, parents first."""
        return sorted(self._directories)

    def _order(self, change: NameChange) -> set[Path]:
        """Return what keeps a change in order: changes that share an element survive in order."""
        return {path.parent for path in change} if self._ordered else set(change)

    def _persist(self, change: NameChange) -> None:
        self._durable = _applied(self._durable, change)


def _applied(names: dict[Path, Inode], change: NameChange) -> dict[Path, Inode]:
    changed = {**names, **change}
    return {path: inode for path, inode in changed.items() if inode is not None}
