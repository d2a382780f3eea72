"""Adoption: the spools of agents that are gone are delivered, counted once, and removed.

It knows where to look for spools, and the order in which one is opened, drained, counted and removed. It must never know
sockets or configuration files.

A spool is opened where it is, under its own lock, as a pipeline without an intake. A crash leaves it there for the next agent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import structlog

from agent.delivery.pipeline import DeliveryConfig, Pipeline
from agent.errors import StorageError
from agent.queue.cursor import Ledger
from agent.queue.filesystem import Filesystem, Lock
from agent.queue.lock import LOCK
from agent.queue.store import Limits
from agent.runtime import Runtime, Wakeup
from agent.spools import identity as spool
from agent.spools.identity import DESTINATION, EMPTY_LEDGER, Account, Adopted, AdoptedList, Settled, SpoolIdentity, add

SCAN_SECONDS = 30.0
MAX_OPEN = 4
MOVING_SECONDS = 10.0  # what a request under way may take when its spool is given up
IN_USE = "an agent uses it"


class AdoptionPolicy(NamedTuple):
    """What a spool has to be for, and how its events are delivered: everything that can be changed while the agent runs."""

    account: Account
    delivery: Callable[[], DeliveryConfig]
    max_open: int = MAX_OPEN


class Claim(NamedTuple):
    """A spool that is locked: whose it is, or its `mark` if it is settled and there is nothing left to deliver."""

    directory: Path
    lock: Lock
    identity: SpoolIdentity | None
    mark: Settled | None


class OpenSpool(NamedTuple):
    """A spool that is being delivered."""

    directory: Path
    state: str
    reason: str | None
    ledger: Ledger


class AdoptionReport(NamedTuple):
    """What became of spools: those under way, and how many are finished, with the sum of their ledgers.

    `left` has those that stay where they are, and why.
    """

    under_way: tuple[OpenSpool, ...] = ()
    finished: int = 0
    ledger: Ledger = EMPTY_LEDGER
    left: tuple[tuple[Path, str], ...] = ()


class _NotOursError(Exception):
    """A directory is left alone; the message says why."""


@dataclass
class _Open:
    """A spool under way. `ending` is cancelled to end it before it is drained, `aborting` to end it at once."""

    pipeline: Pipeline
    ending: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    aborting: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Adoption:
    """Looks for spools in `parent` and delivers them, a few at a time, until `stop`; `home` is this agent's own spool."""

    def __init__(
        self,
        fs: Filesystem,
        parent: Path,
        home: Path,
        limits: Limits,
        terms: AdoptionPolicy,
        runtime: Runtime,
        owner: Pipeline,
    ) -> None:
        """Nothing is opened while delivery of `owner`, this agent's own pipeline, is paused."""
        self._fs = fs
        self._parent = parent
        self._home = home
        self._limits = limits
        self._terms = terms
        self._runtime = runtime
        self._owner = owner
        self._open: dict[Path, _Open] = {}
        self._claimed: set[Path] = set()
        self._settling: dict[Path, Settled] = {}
        self._left: dict[Path, str] = {}
        self._list: AdoptedList | None = None
        self._own_id: str | None = None
        self._patience: float | None = None
        self._finishing = anyio.Lock()
        self._wakeup = Wakeup()
        self._log = structlog.get_logger("agent.adoption")
        self.ended = anyio.Event()

    def report(self) -> AdoptionReport:
        """Return what became of spools so far; every event of theirs is in one of the ledgers, and in no two."""
        counted = self._list.lines if self._list is not None else {}
        under_way = [_under_way(directory, each.pipeline) for directory, each in self._open.items()]
        for directory, mark in self._settling.items():
            is_counted = mark.id in counted and counted[mark.id].ledger.accepted >= mark.ledger.accepted
            under_way.append(OpenSpool(directory, "settled", None, EMPTY_LEDGER if is_counted else mark.ledger))
        left = tuple((path, reason) for path, reason in sorted(self._left.items()) if reason != IN_USE)
        total = add(line.ledger for line in counted.values())
        return AdoptionReport(tuple(sorted(under_way)), len(counted), total, left)

    # What others ask of it

    def pause(self) -> None:
        """Stop delivering until `resume`."""
        for each in self._open.values():
            each.pipeline.pause()

    def resume(self) -> None:
        """Deliver again, whatever the reason for a pause was."""
        for each in self._open.values():
            each.pipeline.resume()
        self._wakeup.set()

    def reconfigure(self, terms: AdoptionPolicy) -> None:
        """Deliver with new settings from now on; spools for another account than the new one are left."""
        moved, self._terms = terms.account != self._terms.account, terms
        for each in self._open.values():
            if moved:
                each.ending.cancel()
            else:
                each.pipeline.reconfigure(terms.delivery())
        self._wakeup.set()

    def stop(self, seconds: float) -> None:
        """Let `run` return when the requests under way are answered, or after `seconds`: the rest stays for the next agent."""
        self._patience = seconds
        for each in self._open.values():
            each.ending.cancel()
        self._wakeup.set()

    def abort(self) -> None:
        """After `stop`: do not wait for that either."""
        self._patience = 0.0
        for each in self._open.values():
            each.aborting.cancel()

    # Looking

    async def run(self) -> None:
        """Look for spools again and again, until `stop`."""
        try:
            async with anyio.create_task_group() as tasks:
                while self._patience is None:
                    if self._owner.store.cursor.pause is None:
                        for claim in await self._look():
                            tasks.start_soon(self._adopt, claim)
                    await self._wakeup.wait(SCAN_SECONDS)
        finally:
            self.ended.set()

    async def _look(self) -> list[Claim]:
        """Lock what can be adopted now, as much of it as may be open together."""
        try:
            names = await self._runtime.run_blocking(self._search)
        except (OSError, StorageError) as error:
            self._leave(self._parent, f"cannot be searched for spools: {error}")
            return []
        found = {self._parent / name for name in names}
        self._left = {path: reason for path, reason in self._left.items() if path in found}
        claims: list[Claim] = []
        for directory in sorted(found - self._claimed):
            if len(self._claimed) >= self._terms.max_open:
                break
            claim = await self._try(directory)
            if claim is not None:
                self._claimed.add(directory)
                self._left.pop(directory, None)
                claims.append(claim)
        return claims

    def _search(self) -> list[str]:
        if self._list is None:
            self._list = AdoptedList(self._fs, self._home)
        if self._own_id is None:
            identity = spool.read_identity(self._fs, self._home)
            if identity is None:
                raise StorageError(f"{self._home}: this agent could not write its own identity there")
            self._own_id = identity.id
        return self._fs.names(self._parent)

    async def _try(self, directory: Path) -> Claim | None:
        try:
            return await self._runtime.run_blocking(partial(self._claim, directory))
        except FileNotFoundError:  # somebody has removed it meanwhile
            return None
        except _NotOursError as reason:
            self._leave(directory, str(reason))
        except (OSError, StorageError) as error:
            self._leave(directory, f"cannot be read: {error}")
        return None

    def _claim(self, directory: Path) -> Claim | None:
        """Lock a spool; None for what is no directory, or empty. Raises _NotOursError, StorageError or OSError.

        An empty one may be what a crash left at the very end of a removal, or an agent may be about to start there.
        """
        if not self._fs.is_directory(directory) or not (names := self._fs.names(directory)):
            return None
        lock = self._fs.lock(directory / LOCK, create=self._has_lost_its_lock(directory, names))
        if lock is None:
            raise _NotOursError(IN_USE)
        try:
            return self._examine(directory, lock)
        except BaseException:
            lock.release()
            raise

    def _has_lost_its_lock(self, directory: Path, names: Sequence[str]) -> bool:
        """Tell whether the removal of a spool goes on here. Another agent's removal must not find a new lock in its way."""
        if LOCK in names:
            return False
        mark = spool.read_settled(self._fs, directory)
        if mark is None:
            raise _NotOursError("no agent has made it: it has no lock file")
        self._check_mark(directory, mark)
        return True

    def _examine(self, directory: Path, lock: Lock) -> Claim:
        mark = spool.read_settled(self._fs, directory)
        if mark is not None:
            self._check_mark(directory, mark)
            return Claim(directory, lock, None, mark)
        identity = spool.read_identity(self._fs, directory)
        if identity is None:
            raise _NotOursError("it does not say which account its events are for: run an agent on it, once")
        if identity.account != self._terms.account:
            raise _NotOursError(f"its events are for {identity.account}, this agent's for {self._terms.account}")
        link = spool.linked(self._fs, directory)
        if link is not None:
            raise _NotOursError(f"{link} is no directory")
        return Claim(directory, lock, identity, None)

    def _check_mark(self, directory: Path, mark: Settled) -> None:
        done = self._done
        if mark.by != self._own_id and mark.by not in done:
            raise _NotOursError("it is delivered, and the agent that did it has yet to count and remove it")
        if mark.id in done and (kept := spool.kept_in(self._fs, directory)) is not None:
            raise _NotOursError(f"it is delivered and counted, and stays because of {kept}")

    # Adopting

    async def _adopt(self, claim: Claim) -> None:
        try:
            mark = claim.mark
            if claim.identity is not None and claim.identity.account == self._terms.account:
                mark = await self._deliver(claim.directory, claim.identity)
            if mark is not None:
                self._settling[claim.directory] = mark
                async with self._finishing:
                    kept = await self._runtime.run_blocking(partial(self._finish, claim, mark))
                self._log.info("spool_adopted", directory=str(claim.directory), kept=kept, ledger=_plain(mark.ledger))
            self._wakeup.set()  # there is room for another one; after an error only the next look tries again
        except (OSError, StorageError) as error:
            self._leave(claim.directory, f"cannot be adopted now: {error}")
        finally:
            claim.lock.release()
            self._settling.pop(claim.directory, None)
            self._claimed.discard(claim.directory)

    async def _deliver(self, directory: Path, identity: SpoolIdentity) -> Settled | None:
        """Deliver what a spool holds; return its mark when nothing is queued any more, None if it was ended before."""
        pipeline = Pipeline(self._fs, directory / DESTINATION, self._limits, self._terms.delivery(), self._runtime)
        self._open[directory] = each = _Open(pipeline)
        self._log.info("spool_opened", directory=str(directory), queued=pipeline.ledger().queued)
        try:
            await self._drain(each)
        finally:
            with anyio.CancelScope(shield=True):
                await pipeline.close()
            del self._open[directory]
        ledger = pipeline.ledger()
        return None if ledger.queued or self._own_id is None else Settled(identity.id, self._own_id, ledger)

    async def _drain(self, each: _Open) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(each.pipeline.run)
            each.pipeline.resume()  # whatever paused it was another agent's trouble
            if self._patience is None:
                with each.ending:
                    await each.pipeline.flush()
            with each.aborting:
                await each.pipeline.stop_after_inflight(self._patience or MOVING_SECONDS)

    def _finish(self, claim: Claim, mark: Settled) -> str | None:
        """Count a settled spool, once, and remove it; return what keeps it from being removed."""
        directory = claim.directory
        if claim.mark is None:
            spool.settle(self._fs, directory, mark)
        lines = spool.read_adopted(self._fs, directory)
        self._done.record({**lines, mark.id: Adopted(mark.id, str(directory), mark.ledger)})
        kept = spool.kept_in(self._fs, directory)
        if kept is None:
            spool.remove(self._fs, directory)
        return kept

    @property
    def _done(self) -> AdoptedList:
        if self._list is None:
            raise StorageError(f"{self._home}: the list of adopted spools has not been read")
        return self._list

    def _leave(self, directory: Path, reason: str) -> None:
        """Say why a directory is left alone, once."""
        if self._left.get(directory) != reason:
            self._left[directory] = reason
            log = self._log.info if reason == IN_USE else self._log.warning
            log("spool_left", directory=str(directory), reason=reason)


def _under_way(directory: Path, pipeline: Pipeline) -> OpenSpool:
    state, reason = pipeline.delivery_state()
    return OpenSpool(directory, state, reason, pipeline.ledger())


def _plain(ledger: Ledger) -> object:
    return msgspec.to_builtins(ledger)
