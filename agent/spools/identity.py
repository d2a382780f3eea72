"""What makes a queue directory a spool that another agent can adopt: whose account it is for, and who has counted it.

The files beside the queue are `identity.json`, `settled.json` and `adopted.ndjson`. A ledger is counted once, whatever crash
comes between, because each step is durable before the next one:

1. the adopter marks the spool as settled, with its own identity and the spool's ledger;
2. it writes that ledger to its own list, under the spool's identity, which a second time changes nothing;
3. it removes the spool, the mark last.

From the mark on nobody else counts the spool, except an agent that has adopted the adopter, and with it its list.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Self, TypeVar

import msgspec
from msgspec.structs import replace

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.atomic import replace_file
from agent.queue.cursor import Cursor, Ledger
from agent.queue.cursor_file import newest_in, read_slots
from agent.queue.filesystem import UNFINISHED, Filesystem
from agent.queue.history import is_kept_name
from agent.queue.lock import LOCK
from agent.queue.snapshot import LogSnapshot
from agent.secret import Secret

T = TypeVar("T")

DESTINATION = "default"
DESTINATIONS = "destinations"  # of an agent that has several: each of the others is a spool of its own, inside of it
LOG = "agent.log"  # of an agent that `exec` started
_IDENTITY = "identity.json"
_SETTLED = "settled.json"
_ADOPTED = "adopted.ndjson"
_BELOW = ("segments", "history", "quarantine", "dead-letters", "dead-letters/quarantine")
# Each after the one that it is in.
_PARTS = (Path(), Path(DESTINATION), *(Path(DESTINATION, name) for name in _BELOW), Path(DESTINATIONS))
_USAGE = ("usage.sqlite3", "usage.sqlite3-journal")  # what `report` has counted: see agent/usage
_FILES = frozenset(
    map(Path, [LOCK, LOG, _IDENTITY, _SETTLED, _ADOPTED, *_USAGE, "default/cursor", "default/undelivered.ndjson"])
)
_MAX_JSON_BYTES = 64 * 1024
_MAX_LIST_BYTES = 64 * 1024 * 1024
MAX_LINES = 4000  # from here on the older half of an agent's list is folded into one line
EMPTY_LEDGER = Ledger(0, 0, 0, {}, 0)
_CHANGING = threading.Lock()


class Account(msgspec.Struct, frozen=True):
    """Where events go: what a destination is known by.

    That is its team, whose token may be replaced at any time. An account without a team is that of its token, and `token` tells
    it from others at the same URL: a keyed hash.
    """

    url: str
    team_id: str | None = None
    slug: str | None = None
    token: str | msgspec.UnsetType = msgspec.UNSET

    def with_token(self, token: Secret | None) -> Self:
        """Return the account that a server takes requests with this token for."""
        if self.team_id or self.slug or token is None:
            return self
        key = hashlib.sha256(self.url.encode()).digest()
        return replace(self, token=hashlib.blake2b(token.reveal().encode(), key=key, digest_size=16).hexdigest())

    @property
    def named(self) -> Self:
        """The account as far as it can be said: without its token."""
        return replace(self, token=msgspec.UNSET)

    def __str__(self) -> str:
        teams = (self.team_id and f"team {self.team_id}", self.slug and f"team {self.slug}")
        return ", ".join([self.url, *(team for team in teams if team)])


class Numbering(msgspec.Struct, frozen=True):
    """The id by which a fleet knows a spool's numbers, where that is so, and the ledger of when it began."""

    id: str
    place: str
    before: Ledger


class SpoolIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    """A spool's `identity.json`: an id that no other spool has, and the account that its events are for."""

    id: str
    account: Account
    numbering: Numbering | None = None


class Settled(msgspec.Struct, frozen=True):
    """A spool's `settled.json`: nothing is queued any more; the agent whose id is `by` counts it, as `ledger`."""

    id: str
    by: str
    ledger: Ledger


class Adopted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of `adopted.ndjson`: a spool that was adopted, and its final ledger; or the sum of several `spools`."""

    id: str
    directory: str
    ledger: Ledger
    spools: int = 1


def add(ledgers: Iterable[Ledger]) -> Ledger:
    """Return the sum of several ledgers."""
    total = EMPTY_LEDGER
    for one in ledgers:
        names = total.dropped | one.dropped
        total = Ledger(
            total.accepted + one.accepted,
            total.delivered + one.delivered,
            total.dead_lettered + one.dead_lettered,
            {name: total.dropped.get(name, 0) + one.dropped.get(name, 0) for name in names},
            total.queued + one.queued,
            total.retried + one.retried,
            total.forwarded + one.forwarded,
        )
    return total


# SpoolIdentity


def read_identity(fs: Filesystem, directory: Path) -> SpoolIdentity | None:
    """Return whose spool it is; None if it does not say. Raises StorageError if that cannot be read."""
    return _read_json(fs, directory / _IDENTITY, SpoolIdentity)


def identify(fs: Filesystem, directory: Path, account: Account, new_id: str) -> SpoolIdentity:
    """Have the spool say durably that its events are for `account`; it keeps the id that it has. Raises StorageError.

    A damaged identity is replaced.
    """

    def identified(found: SpoolIdentity | None) -> SpoolIdentity:
        return replace(found, account=account) if found is not None else SpoolIdentity(new_id, account)

    return change_identity(fs, directory, identified)


def change_identity(
    fs: Filesystem, directory: Path, change: Callable[[SpoolIdentity | None], SpoolIdentity]
) -> SpoolIdentity:
    """Have the spool say durably what `change` makes of what it says, if that can be read. Raises StorageError."""
    with _CHANGING:
        found = None
        with contextlib.suppress(StorageError):
            found = read_identity(fs, directory)
        identity = change(found)
        if identity != found:
            _write_json(fs, directory / _IDENTITY, identity)
    return identity


# The mark


def settle(fs: Filesystem, directory: Path, settled: Settled) -> None:
    """Mark a spool as settled, durably. Raises StorageError."""
    _write_json(fs, directory / _SETTLED, settled)


def read_settled(fs: Filesystem, directory: Path) -> Settled | None:
    """Return a spool's mark; None if there is none, or the spool has taken events since. Raises StorageError."""
    settled = _read_json(fs, directory / _SETTLED, Settled)
    if settled is None:
        return None
    newest = newest_in(read_slots(fs, directory / DESTINATION / "cursor"))
    if newest is not None and Cursor.from_state(newest.state).ledger() != settled.ledger:
        return None
    return settled


# The list


class AdoptedList:
    """The spools that the agent in `directory` has adopted, each counted once."""

    def __init__(self, fs: Filesystem, directory: Path) -> None:
        """Read the list. Raises StorageError; a line that cannot be understood is left out, and kept out."""
        self._fs = fs
        self._path = directory / _ADOPTED
        self.lines: Mapping[str, Adopted] = read_adopted(fs, directory)  # replaced, never changed

    def __contains__(self, spool_id: str) -> bool:
        return spool_id in self.lines

    def record(self, lines: Mapping[str, Adopted]) -> None:
        """Write these lines to the list, durably; of the same spool the later one counts. Raises StorageError or OSError."""
        new = {**self.lines}
        for spool_id, line in lines.items():
            if spool_id not in new or new[spool_id].ledger.accepted < line.ledger.accepted:
                new[spool_id] = line
        if new == self.lines:
            return
        if len(new) > MAX_LINES:
            new = self._fold(new)
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in new.values())
        if len(text) > _MAX_LIST_BYTES:  # it could not be read again
            raise StorageError(
                f"{self._path}: would be longer than {_MAX_LIST_BYTES:,} bytes: remove spools that are done"
            )
        _write(self._fs, self._path, text)
        self.lines = new

    def _fold(self, lines: Mapping[str, Adopted]) -> dict[str, Adopted]:
        """Return the list with the older half as one line, but for what a spool that is still there may be compared with.

        An agent whose own spool has been counted by another one folds nothing: that one has its lines one by one.
        """
        home = self._path.parent
        identity = read_identity(self._fs, home)
        if identity is None or _SETTLED in self._fs.names(home):
            return {**lines}
        name = f"folded-{identity.id}"
        needed = _named_beside(self._fs, lines, identity.id)
        old = [line for line in [*lines.values()][: len(lines) // 2] if line.id not in needed or line.id == name]
        total = Adopted(name, "", add(line.ledger for line in old), sum(line.spools for line in old))
        gone = {line.id for line in old}
        return {name: total} | {each: line for each, line in lines.items() if each not in gone}


def read_adopted(fs: Filesystem, directory: Path) -> dict[str, Adopted]:
    """Return what a spool's agent has adopted itself, by id. Raises StorageError."""
    lines = {}
    for text in (_read(fs, directory / _ADOPTED, _MAX_LIST_BYTES) or b"").splitlines():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            line = msgspec.json.decode(text, type=Adopted)
            lines[line.id] = line
    return lines


def _named_beside(fs: Filesystem, lines: Mapping[str, Adopted], own: str) -> set[str]:
    """Return the ids that spools name which are where those of the lines were: their own, who counts them, what they adopted."""
    found: set[str] = set()
    for parent in {_outermost(Path(line.directory)).parent for line in lines.values() if line.directory}:
        with contextlib.suppress(FileNotFoundError):
            for directory in spools_in(fs, parent):
                with contextlib.suppress(OSError, StorageError):  # nobody can adopt it
                    found |= _names_of(fs, directory, own)
    return found


def _names_of(fs: Filesystem, directory: Path, own: str) -> set[str]:
    identity, mark = read_identity(fs, directory), _read_json(fs, directory / _SETTLED, Settled)
    if identity is not None and identity.id == own:
        return set()
    ids = {identity.id} if identity is not None else set()
    return ids | ({mark.id, mark.by} if mark is not None else set()) | read_adopted(fs, directory).keys()


# Where spools are


def spools_in(fs: Filesystem, parent: Path) -> list[Path]:
    """Return what may be spools in a directory: all that is there, each followed by its further destinations.

    Raises OSError; but what cannot be looked into has none of them.
    """
    found = []
    for name in fs.names(parent):
        found.append(parent / name)
        with contextlib.suppress(OSError):  # whoever wants the spool itself hears of it
            found += inner_spools(fs, parent / name)
    return found


def inner_spools(fs: Filesystem, directory: Path) -> list[Path]:
    """Return the further destinations of a spool. Raises OSError."""
    place = directory / DESTINATIONS
    return [place / name for name in fs.names(place)] if fs.is_directory(directory) and fs.is_directory(place) else []


def queues_in(fs: Filesystem, directory: Path) -> list[Path]:
    """Return the queues of an agent's destinations, by its queue directory. Raises OSError."""
    return [each / DESTINATION for each in (directory, *inner_spools(fs, directory))]


def _outermost(directory: Path) -> Path:
    """Return the spool that has this one inside, or is this one."""
    return directory.parent.parent if directory.parent.name == DESTINATIONS else directory


# The end


def linked(fs: Filesystem, parent: Path, directory: Path) -> Path | None:
    """Return what stands in the place of a directory and is none, such as a link to elsewhere: of a spool or on the way to it.

    `parent` is where spools are, which may be anything. Raises OSError.
    """
    above = [each for each in reversed(directory.parents) if parent in each.parents]
    for path in (*above, *(directory / part for part in _PARTS)):
        within = path.parent == parent or fs.is_directory(path.parent)
        if within and not fs.is_directory(path) and path.name in fs.names(path.parent):
            return path
    return None


def waiting_for(fs: Filesystem, directory: Path) -> Path | None:
    """Return a spool beside this one that this one's agent has settled: only its identity and its list let others remove that.

    Raises StorageError or OSError.
    """
    identity = read_identity(fs, directory)
    for other in spools_in(fs, directory.parent) if identity is not None else ():
        with contextlib.suppress(StorageError):
            mark = read_settled(fs, other)
            if mark is not None and identity is not None and mark.by == identity.id:
                return other
    return None


def kept_in(fs: Filesystem, directory: Path) -> str | None:
    """Say what in a settled spool somebody may want; None if it can be removed. Raises StorageError or OSError."""
    letters = LogSnapshot.read(fs, directory / DESTINATION / "dead-letters").view
    count = letters.next_seq - letters.segments[0].first_seq if letters.segments else 0
    if count:
        return "1 dead letter" if count == 1 else f"{count} dead letters"
    found = (
        part / name
        for part in _PARTS
        if fs.is_directory(directory / part)
        for name in fs.names(directory / part)
        if not _goes(fs, directory, part / name)
    )
    return next((str(path) for path in found), None)


def _goes(fs: Filesystem, directory: Path, path: Path) -> bool:
    """Tell whether what stands there is of no use once the spool is settled; damaged bytes and others' files are."""
    if fs.is_directory(directory / path):
        return path in _PARTS
    is_segment = path.parent.name in {"segments", "dead-letters"} and segment.parse_name(path.name) is not None
    is_kept = path.parent.name == "history" and is_kept_name(path.name)
    return is_segment or is_kept or path in _FILES or path.suffix == UNFINISHED


def remove(fs: Filesystem, directory: Path) -> None:
    """Remove a spool of which nothing must be kept, the mark last. Raises OSError; then it can be done again."""
    for part in reversed(_PARTS[1:]):
        if fs.is_directory(directory / part):
            _empty(fs, directory / part, but=())
            fs.remove_directory(directory / part)
    _empty(fs, directory, but=(_SETTLED,))
    fs.unlink(directory / _SETTLED)
    fs.remove_directory(directory)
    fs.sync_directory(directory.parent)


def _empty(fs: Filesystem, directory: Path, but: Collection[str]) -> None:
    for name in fs.names(directory):
        if name not in but:
            fs.unlink(directory / name)
    fs.sync_directory(directory)


# Files


def _read_json(fs: Filesystem, path: Path, kind: type[T]) -> T | None:
    data = _read(fs, path, _MAX_JSON_BYTES)
    try:
        return None if data is None else msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: is not what an agent writes: {error}") from error


def _write_json(fs: Filesystem, path: Path, value: object) -> None:
    _write(fs, path, msgspec.json.encode(value) + b"\n")


def _read(fs: Filesystem, path: Path, limit: int) -> bytes | None:
    try:
        file = fs.open(path)
        try:
            if file.size() > limit:
                raise StorageError(f"{path}: is longer than {limit:,} bytes: no agent has written it")
            return file.pread(limit, 0)
        finally:
            file.close()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _write(fs: Filesystem, path: Path, data: bytes) -> None:
    """Put a file there, whole and durable, or leave what was there."""
    try:
        replace_file(fs, path, data).close()
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
