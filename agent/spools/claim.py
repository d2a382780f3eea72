"""Claims: which directories are spools that this agent may adopt, and what it does once one is settled.

Everything here blocks.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from agent.errors import StorageError
from agent.queue.filesystem import Filesystem, Lock
from agent.queue.history import Heir
from agent.queue.lock import LOCK
from agent.spools import identity
from agent.spools.identity import DESTINATION, Account, Adopted, AdoptedList, Settled, SpoolIdentity

IN_USE = "an agent uses it"
_LEFT_WITHOUT_TEAM = (
    "its events are for {}, of no team, and it was written with another token than this agent's: "
    "if that is the same account's, run an agent with this token on it, once"
)


class Claim(NamedTuple):
    """A spool that is locked: whose it is, or its `mark` if it is settled and there is nothing left to deliver."""

    directory: Path
    lock: Lock
    identity: SpoolIdentity | None
    mark: Settled | None

    @property
    def account(self) -> Account | None:
        """Where its events go; None if none are left."""
        return self.identity.account if self.identity is not None else None


class NotOursError(Exception):
    """A directory is left alone; the message says why."""


class NoRoomError(Exception):
    """A spool of this account, or of None, one that is settled, waits until there is room for it."""

    def __init__(self, account: Account | None) -> None:
        super().__init__(account)
        self.account = account


class Adopter:
    """This agent as one that adopts: the `id` of its own spool, and the list of the spools that it has `adopted`."""

    def __init__(self, fs: Filesystem, home: Path, parent: Path) -> None:
        """`home` is this agent's own spool, `parent` where it looks for others. Raises StorageError."""
        self._fs = fs
        self._parent = parent
        self.adopted = AdoptedList(fs, home)
        own = identity.read_identity(fs, home)
        if own is None:
            raise StorageError(f"{home}: this agent could not write its own identity there")
        self.id = own.id

    def claim(self, directory: Path, accounts: Collection[Account], room: Collection[Account | None]) -> Claim | None:
        """Lock a spool whose events are for one of `accounts`; None for what is no directory, or empty.

        An empty one may be what a crash left at the very end of a removal, or an agent may be about to start there. What there is
        `room` for is said by account; None is for what is settled.
        Raises NotOursError, NoRoomError, StorageError or OSError.
        """
        if not self._fs.is_directory(directory) or not (names := self._fs.names(directory)):
            return None
        lock = self._fs.lock(directory / LOCK, create=self._has_lost_its_lock(directory, names))
        if lock is None:
            raise NotOursError(IN_USE)
        try:
            return self._examine(directory, lock, accounts, room)
        except BaseException:
            lock.release()
            raise

    def settle(self, claim: Claim, mark: Settled, heir_of: Callable[[Account | None], Heir], now: float) -> str | None:
        """Count a spool of which nothing is queued, once, keep its history, and remove it; return why it cannot be removed.

        `heir_of` says by its account, if it has one, what gets its history; `now` is in seconds since the epoch. Raises
        StorageError or OSError; then it can be done again.
        """
        self._refuse_links(claim.directory)
        if claim.mark is None:
            identity.settle(self._fs, claim.directory, mark)
        lines = identity.read_adopted(self._fs, claim.directory)
        self.adopted.record({**lines, mark.id: Adopted(mark.id, str(claim.directory), mark.ledger)})
        kept = identity.kept_in(self._fs, claim.directory)
        found = None
        with contextlib.suppress(StorageError):  # it is damaged
            found = identity.read_identity(self._fs, claim.directory)
        heir = heir_of(None if found is None else found.account)
        self._refuse_links(claim.directory)  # whoever made the spool may have put one there just now
        heir.inherit(self._fs, mark.id, claim.directory / DESTINATION, now, removed=kept is None)
        if kept is None:
            identity.remove(self._fs, claim.directory)
        return kept

    def _refuse_links(self, directory: Path) -> None:
        """Raise StorageError rather than write to a spool, or move away what is in it, that leads to elsewhere."""
        link = identity.linked(self._fs, self._parent, directory)
        if link is not None:
            raise StorageError(f"{link} is no directory")

    def _has_lost_its_lock(self, directory: Path, names: Sequence[str]) -> bool:
        """Tell whether the removal of a spool goes on here. Another agent's removal must not find a new lock in its way."""
        if LOCK in names:
            return False
        mark = identity.read_settled(self._fs, directory)
        if mark is None:
            raise NotOursError("no agent has made it: it has no lock file")
        self._check_mark(directory, mark)
        return True

    def _examine(
        self, directory: Path, lock: Lock, accounts: Collection[Account], room: Collection[Account | None]
    ) -> Claim:
        link = identity.linked(self._fs, self._parent, directory)
        if link is not None:
            raise NotOursError(f"{link} is no directory")
        mark = identity.read_settled(self._fs, directory)
        if mark is not None:
            self._check_mark(directory, mark)
            if None not in room:
                raise NoRoomError(None)
            return Claim(directory, lock, None, mark)
        found = identity.read_identity(self._fs, directory)
        if found is None:
            raise NotOursError("it does not say which account its events are for: run an agent on it, once")
        if found.account not in accounts:
            if found.account.named in {account.named for account in accounts}:
                raise NotOursError(_LEFT_WITHOUT_TEAM.format(found.account))
            ours = " or ".join(map(str, accounts))
            raise NotOursError(f"its events are for {found.account}, this agent's for {ours}")
        if found.account not in room:
            raise NoRoomError(found.account)
        return Claim(directory, lock, found, None)

    def _check_mark(self, directory: Path, mark: Settled) -> None:
        if mark.by != self.id and mark.by not in self.adopted:
            raise NotOursError("it is delivered, and the agent that did it has yet to count and remove it")
        if mark.id in self.adopted and (kept := identity.kept_in(self._fs, directory)) is not None:
            raise NotOursError(f"it is delivered and counted, and stays because of {kept}")
