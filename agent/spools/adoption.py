"""Adoption: the spools of agents that are gone are claimed, delivered, counted once, and removed.

Each is delivered as one of this agent's destinations is, the one whose account it is for, and a few of each at a time: one
destination that is paused or slow holds up no spools of another one.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import structlog

from agent.delivery.opening import DeliveryConfig
from agent.delivery.pipeline import Pipeline
from agent.errors import StorageError
from agent.queue.cursor import Ledger
from agent.queue.filesystem import Filesystem
from agent.queue.history import Heir
from agent.queue.store import Limits
from agent.runtime import Runtime, Wakeup
from agent.spools.claim import IN_USE, Adopter, Claim, NoRoomError, NotOursError
from agent.spools.delivery import SpoolDelivery
from agent.spools.identity import DESTINATION, EMPTY_LEDGER, Account, Settled, SpoolIdentity, add, spools_in

SCAN_SECONDS = 30.0
MAX_OPEN = 4


class AdoptionPolicy(NamedTuple):
    """How the spools of an account are delivered: as a `destination` is, `max_open` at a time.

    Their histories go to the directory `queue`, by default this agent's own.
    """

    destination: str
    delivery: Callable[[], DeliveryConfig]
    max_open: int = MAX_OPEN
    queue: Path | None = None


Policies = Mapping[Account, AdoptionPolicy]
"""Which spools are adopted: everything that can be changed while the agent runs."""


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


class Adoption:
    """Looks for spools in `parent` and adopts them, a few of an account at a time, until `stop`; `home` is this agent's own."""

    def __init__(
        self,
        fs: Filesystem,
        parent: Path,
        home: Path,
        limits: Limits,
        policies: Policies,
        runtime: Runtime,
        owners: Mapping[str, Pipeline],
    ) -> None:
        """Nothing is opened while delivery of its owner, this agent's own pipeline of the destination, is paused."""
        self._fs = fs
        self._parent = parent
        self._home = home
        self._limits = limits
        self._policies = policies
        self._runtime = runtime
        self._owners = owners
        self._adopter: Adopter | None = None  # as soon as this agent's own spool could be read
        self._claimed: dict[Path, Account | None] = {}
        self._waiting: dict[Path, Account | None] = {}  # for room, when they were looked at last
        self._look_again_at = 0.0
        self._open: dict[Path, SpoolDelivery] = {}
        self._settling: dict[Path, Settled] = {}
        self._left: dict[Path, str] = {}
        self._stopping = False
        self._settle_lock = anyio.Lock()
        self._wakeup = Wakeup()
        self._log = structlog.get_logger("agent.adoption")
        self.ended = anyio.Event()

    def report(self) -> AdoptionReport:
        """Return what became of spools so far; every event of theirs is in one of the ledgers, and in no two."""
        counted = self._adopter.adopted.lines if self._adopter is not None else {}
        under_way = []
        for directory, each in self._open.items():
            state, reason = each.pipeline.delivery_state()
            under_way.append(OpenSpool(directory, state, reason, each.pipeline.ledger()))
        for directory, mark in self._settling.items():
            is_counted = mark.id in counted and counted[mark.id].ledger.accepted >= mark.ledger.accepted
            under_way.append(OpenSpool(directory, "settled", None, EMPTY_LEDGER if is_counted else mark.ledger))
        left = tuple((path, reason) for path, reason in sorted(self._left.items()) if reason != IN_USE)
        total = add(line.ledger for line in counted.values())
        finished = sum(line.spools for line in counted.values())
        return AdoptionReport(tuple(sorted(under_way)), finished, total, left)

    # Commands

    def pause(self, destinations: Collection[str]) -> None:
        """Stop delivering what is for these destinations until `resume`."""
        for each in self._open_for(destinations):
            each.pipeline.pause()

    def resume(self, destinations: Collection[str]) -> None:
        """Deliver it again, whatever the reason for a pause was."""
        for each in self._open_for(destinations):
            each.pipeline.resume()
        self._wakeup.set()

    def _open_for(self, destinations: Collection[str]) -> list[SpoolDelivery]:
        found = []
        for directory, each in self._open.items():
            policy = self._policy_of(directory)
            if policy is not None and policy.destination in destinations:
                found.append(each)
        return found

    def _policy_of(self, directory: Path) -> AdoptionPolicy | None:
        """Return how a claimed spool is delivered; None if nothing of it is, any more."""
        account = self._claimed[directory]
        return self._policies.get(account) if account is not None else None

    def reconfigure(self, policies: Policies) -> None:
        """Deliver with new settings from now on; spools for accounts that are no longer among them are left."""
        self._policies = policies
        for directory, each in self._open.items():
            policy = self._policy_of(directory)
            if policy is None:
                each.end()
            else:
                each.pipeline.reconfigure(policy.delivery())
        self._waiting.clear()
        self._wakeup.set()

    def stop(self, seconds: float) -> None:
        """Let `run` return when the requests under way are answered, or after `seconds`: the rest stays for the next agent."""
        self._stopping = True
        for each in self._open.values():
            each.end(seconds)
        self._wakeup.set()

    def abort(self) -> None:
        """After `stop`: do not wait for the requests under way either."""
        for each in self._open.values():
            each.abort()

    # Claiming

    async def run(self) -> None:
        """Look for spools again and again, until `stop`."""
        try:
            async with anyio.create_task_group() as tasks:
                while not self._stopping:
                    if self._room() - {None}:
                        await self._look(tasks)
                    await self._wakeup.wait(SCAN_SECONDS)
        finally:
            self.ended.set()

    def _room(self) -> set[Account | None]:
        """Return the accounts of which one more spool may be opened now; None for what is settled."""
        claimed = Counter(self._claimed.values())
        room: set[Account | None] = {None} if claimed[None] < MAX_OPEN else set()
        for account, policy in self._policies.items():
            owner = self._owners.get(policy.destination)
            if claimed[account] < policy.max_open and owner is not None and owner.delivery_state()[0] != "paused":
                room.add(account)
        return room

    async def _look(self, tasks: anyio.abc.TaskGroup) -> None:
        """Claim what can be adopted now, as much of it as may be open together, and begin to adopt it."""
        try:
            if self._adopter is None:
                self._adopter = await self._runtime.run_blocking(partial(Adopter, self._fs, self._home, self._parent))
            found = await self._runtime.run_blocking(partial(spools_in, self._fs, self._parent))
        except (OSError, StorageError) as error:
            self._leave(self._parent, f"cannot be searched for spools: {error}")
            return
        there = set(found)
        self._left = {path: reason for path, reason in self._left.items() if path in there}
        if (now := anyio.current_time()) >= self._look_again_at:
            self._look_again_at = now + SCAN_SECONDS
            self._waiting.clear()
        room = self._room()
        for directory in found:
            if not room - {None}:
                break
            waits = directory in self._waiting and self._waiting[directory] not in room
            in_use = (
                self._left.get(directory.parent.parent) == IN_USE
            )  # by the agent that it is a further destination of
            if directory in self._claimed or waits or in_use:
                continue
            if (claim := await self._claim(directory, self._adopter, room)) is not None:
                self._claimed[directory] = claim.account
                self._left.pop(directory, None)
                tasks.start_soon(self._adopt, claim, self._adopter)
            room = self._room()

    async def _claim(self, directory: Path, adopter: Adopter, room: Collection[Account | None]) -> Claim | None:
        """Lock a spool; None if it cannot be adopted now, with the reason in the log unless it only waits for its turn."""
        try:
            return await self._runtime.run_blocking(partial(adopter.claim, directory, self._policies.keys(), room))
        except FileNotFoundError:  # somebody has removed it meanwhile
            return None
        except NoRoomError as found:
            self._waiting[directory] = found.account
            self._left.pop(directory, None)
        except NotOursError as reason:
            self._leave(directory, str(reason))
        except (OSError, StorageError) as error:
            self._leave(directory, f"cannot be read: {error}")
        return None

    def _leave(self, directory: Path, reason: str) -> None:
        """Say why a directory is left alone, once."""
        if self._left.get(directory) != reason:
            self._left[directory] = reason
            log = self._log.info if reason == IN_USE else self._log.warning
            log("spool_left", directory=str(directory), reason=reason)

    # Adopting

    async def _adopt(self, claim: Claim, adopter: Adopter) -> None:
        """Deliver a spool and settle it, or leave it to the next look."""
        try:
            mark = claim.mark
            if claim.identity is not None:
                mark = await self._deliver(claim.directory, claim.identity, adopter)
            if mark is not None:
                await self._settle(claim, mark, adopter)
            self._wakeup.set()  # there is room for another one; after an error only the next look tries again
        except (OSError, StorageError) as error:
            self._leave(claim.directory, f"cannot be adopted now: {error}")
        finally:
            claim.lock.release()
            del self._claimed[claim.directory]

    async def _deliver(self, directory: Path, identity: SpoolIdentity, adopter: Adopter) -> Settled | None:
        """Deliver what a spool holds; return its mark when nothing is queued any more, None if it was ended before."""
        policy = self._policies.get(identity.account)
        if self._stopping or policy is None:  # since it was claimed
            return None
        each = SpoolDelivery(self._fs, directory, self._limits, policy.delivery(), self._runtime)
        self._log.info("spool_opened", directory=str(directory), queued=each.pipeline.ledger().queued)
        self._open[directory] = each
        try:
            await each.run()
        finally:
            del self._open[directory]
        ledger = each.pipeline.ledger()
        return None if ledger.queued else Settled(identity.id, adopter.id, ledger)

    def _heir_of(self, account: Account | None) -> Heir:
        """Return what gets the history of a spool for an account."""
        policy = self._policies.get(account) if account is not None else None
        queue = policy.queue if policy is not None and policy.queue is not None else self._home / DESTINATION
        return Heir(queue, self._limits.history_bytes, self._limits.history_age)

    async def _settle(self, claim: Claim, mark: Settled, adopter: Adopter) -> None:
        """Count and remove a spool of which nothing is queued; one at a time, since all go to one list."""
        self._settling[claim.directory] = mark
        try:
            async with self._settle_lock:
                now = self._runtime.wall_clock()
                kept = await self._runtime.run_blocking(partial(adopter.settle, claim, mark, self._heir_of, now))
        finally:
            del self._settling[claim.directory]
        ledger = msgspec.to_builtins(mark.ledger)
        self._log.info("spool_adopted", directory=str(claim.directory), kept=kept, ledger=ledger)
