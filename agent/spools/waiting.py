"""What waits in spools, seen from outside: nothing is changed or locked."""

from pathlib import Path
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue.cursor import Cursor
from agent.queue.cursor_file import newest_in, read_slots
from agent.queue.filesystem import Filesystem
from agent.queue.lock import LOCK
from agent.spools.identity import DESTINATION, spools_in

MOST_SPOOLS = 1000
"""How many are looked into: a few reads each."""
_LOCKS = Path("/proc/locks")


class Waiting(NamedTuple):
    """How many events wait, by their spools' checkpoints, and in how many spools."""

    events: int
    spools: int


def waiting_in(fs: Filesystem, parent: Path) -> Waiting:
    """Return what waits in a directory of spools, but for those that a process has locked; nothing where it cannot be read."""
    try:
        found = spools_in(fs, parent)[:MOST_SPOOLS]
    except OSError:  # there is none, as a rule
        return Waiting(0, 0)
    locked = _locked_inodes()
    queued = [_queued(fs, each) for each in found if not _is_locked(each, locked)]
    return Waiting(sum(queued), sum(map(bool, queued)))


def _queued(fs: Filesystem, directory: Path) -> int:
    try:
        newest = newest_in(read_slots(fs, directory / DESTINATION / "cursor"))
    except (OSError, StorageError):  # it is no spool, or another user's
        return 0
    return 0 if newest is None else Cursor.from_state(newest.state).ledger().queued


def _is_locked(directory: Path, locked: set[int]) -> bool:
    try:
        return (directory / LOCK).stat().st_ino in locked
    except OSError:
        return False


def _locked_inodes() -> set[int]:
    """Return the inodes of all files that are locked: to try a lock would be to take it."""
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return set()
    return {int(inode) for line in lines for inode in [line.split()[-3].rpartition(":")[2]] if inode.isdecimal()}
