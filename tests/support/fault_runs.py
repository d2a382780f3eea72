"""A pipeline that works on a disk which fails at a chosen call, and the account of every event that it was given.

What it holds the pipeline to, whichever calls the agent makes:

- no error leaves `run`, and nothing stays open after `close`;
- an event that was acked is on the disk at that moment: it is there after a power loss that takes all that was not synced;
- an event that was acked is taken by the API, a dead letter, or dropped for a reason that the work allows;
- an event that was not acked is counted under the reason that was given, and never delivered;
- the ledger is exact, to the event and by reason.
"""

import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from agent.delivery.batching import BatchOptions
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.errors import StorageError
from agent.events import Context, decode_events
from agent.queue.cursor import Outcome
from agent.queue.record import Frame, decode_record
from agent.queue.store import Limits
from tests.support.crash_model import Chooser, LoseAll
from tests.support.fake_transport import FakeTransport
from tests.support.fault_filesystem import FaultFilesystem, no_errors
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import DIRECTORY, PLAIN, Host, balanced, dead_letters, submit

CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)
UNFAILING = frozenset({"close", "release", "has_name"})
"""What cannot report an error: the protocol of File and Lock says so, or the kernel knows the answer without the disk."""

ATTEMPTS = 3
PATIENCE = 20.0
"""How long, in seconds, work waits for a delivery that a fault may hold up."""


@dataclass
class Fault:
    """The rule under which the n-th call from now on fails, or with `lasting` every one from there.

    `among` narrows it to some calls; `at` says which it was that failed first, None as long as none did.
    """

    n: int
    code: int
    lasting: bool = False
    among: Callable[[str, Path], bool] = lambda _operation, _path: True
    at: str | None = None

    def __call__(self, operation: str, path: Path) -> OSError | None:
        if operation in UNFAILING or not self.among(operation, path):
            return None
        self.n -= 1
        if self.n >= 0 or (self.at is not None and not self.lasting):
            return None
        self.at = self.at or f"{operation} {path}"
        return OSError(self.code, os.strerror(self.code), str(path))


@dataclass(frozen=True)
class Work:
    """A script, the limits it needs, and the reasons for which it may lose what was acked."""

    script: Callable[["FaultRun"], Awaitable[None]]
    limits: Limits
    settings: DeliverySettings = field(default_factory=lambda: DeliverySettings(max_events=4, concurrency=2))
    options: BatchOptions = field(default_factory=BatchOptions)
    losses: frozenset[Outcome] = frozenset()

    @property
    def name(self) -> str:
        """What the script is called."""
        return getattr(self.script, "__name__", "work")


class FaultRun:
    """One pipeline at work under one fault."""

    def __init__(self, host: Host, work: Work, fault: Fault | None = None, partial: Chooser | None = None) -> None:
        self.host = host
        self.work = work
        self.fault = fault
        self.transports = [FakeTransport()]
        self.storage_errors: list[StorageError] = []
        self.acked: list[str] = []
        self.refused: dict[str, Outcome] = {}
        self.power_losses = 0
        self._names = 0
        host.transport, host.limits = self.transport, work.limits
        host.settings, host.options = work.settings, work.options
        host.fs.partial = partial or LoseAll()
        self.pipeline: Pipeline

    @property
    def transport(self) -> FakeTransport:
        """The one in use."""
        return self.transports[-1]

    @property
    def taken(self) -> list[str]:
        """The events that the API has, repeats included."""
        return [name for transport in self.transports for name in transport.taken]

    @property
    def struck(self) -> bool:
        """Whether the fault has been met."""
        return self.fault is not None and self.fault.at is not None

    def begin(self) -> None:
        """Start the pipeline on a healthy disk; the fault counts from here."""
        self.pipeline = self.host.start()
        if self.fault is not None:
            self.host.fs.errors = self.fault

    def heal(self) -> None:
        """End the fault, and let there be room."""
        self.host.fs.errors = no_errors
        self.host.fs.capacity = None

    # What scripts do

    async def submit(self, count: int, prefix: str = "h", context: Context = PLAIN) -> None:
        """Submit a record, and take down what it is told; after the fault, cut the power of a copy of the machine."""
        names = [f"{prefix}{self._names + number}" for number in range(count)]
        self._names += count
        if not await self.pipeline.wait_for_capacity():
            self.pipeline.shed(count)
            self.refused |= dict.fromkeys(names, Outcome.STALLED)
            return
        refused = (await submit(self.pipeline, names, context).wait()).refused
        if refused is not None:
            self.refused |= dict.fromkeys(names, refused)
            return
        self.acked += names
        if self.struck:
            self.check_durable(names)

    async def deliver(self) -> None:
        """Let all be delivered, for as long as the disk lets it, but not for ever."""
        with anyio.move_on_after(PATIENCE):
            await self.pipeline.flush()

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await anyio.sleep(seconds)

    async def restart(self) -> None:
        """Stop in good order, as far as the disk lets it, and start again until that works; in the end the disk is well."""
        try:
            await self.host.stop()
        except StorageError as error:
            self.storage_errors.append(error)
        assert self.host.fs.open_files == 0
        self._start_again()

    async def kill_and_spoil(self, tail: bytes) -> None:
        """Be killed, find the last segment with these bytes at its end, and start again until that works."""
        await self.host.kill()
        for last in [path for path in self.host.fs.paths() if path.parent == DIRECTORY / "segments"][-1:]:
            self.host.fs.write_bytes(last, self.host.fs.read_bytes(last) + tail)
        self._start_again()

    def _start_again(self) -> None:
        self.transports.append(FakeTransport(self.transport.rule))
        self.host.transport = self.transport
        for _ in range(ATTEMPTS):
            if self._starts():
                return
        self.heal()
        assert self._starts()

    def _starts(self) -> bool:
        try:
            self.pipeline = self.host.start()
        except StorageError as error:
            self.storage_errors.append(error)
            assert self.host.fs.open_files == 0
            return False
        return True

    # What must be true

    def check_durable(self, names: Iterable[str]) -> None:
        """Assert that these would survive a power loss now, unless they are settled already; a lazy queue does not say so."""
        if self.work.limits.sync != "commit":
            return
        self.power_losses += 1
        settled = {*self.taken, *self._dead()}
        lost = set(names) - settled - set(names_on(self.host.fs, self.work.limits))
        assert not lost, f"acked, and not durable: {sorted(lost)}"

    async def check_failing(self) -> None:
        """Assert that the pipeline says that its disk fails."""
        assert not await self.pipeline.healthy()
        assert (await self.pipeline.status()).storage_error is not None

    async def check_said(self) -> None:
        """Assert that the pipeline says what is wrong if it sheds events, or cannot deliver what it has."""
        await self.deliver()
        status = await self.pipeline.status()
        if self.refused or status.ledger.queued:
            assert status.storage_error is not None, (self.refused, status)

    async def check_end(self, *, more_losses: Iterable[Outcome] = ()) -> None:
        """Heal, and assert that all goes on by itself, to an exact account."""
        self.heal()
        await self.submit(2, "last")
        await self.pipeline.flush()
        await self._check_well()
        if self.storage_errors:
            self._check_account_after_failed_stop({*self.work.losses, *more_losses})
        else:
            self._check_account({*self.work.losses, *more_losses})
        self.check_durable(self._kept())
        await self.host.stop()
        assert self.host.fs.open_files == 0

    async def _check_well(self) -> None:
        assert await self.pipeline.healthy()
        status = await self.pipeline.status()
        assert (status.state, status.storage_error, status.ledger.queued) == ("running", None, 0)
        assert balanced(self.pipeline)

    def _check_account(self, losses: set[Outcome]) -> None:
        taken, dead, ledger = self.taken, self._dead(), self.pipeline.ledger()
        assert len(taken) == len(set(taken))
        assert set(taken) | set(dead) <= set(self.acked)
        lost = set(self.acked) - set(taken) - set(dead)
        dropped = Counter(ledger.dropped)
        dropped.subtract(Counter(self.refused.values()))
        dropped = Counter({reason: count for reason, count in dropped.items() if count})
        assert dropped.keys() <= losses
        # What a limit took while its request was under way counts as dropped, although the API has it.
        under_way = dropped.total() - len(lost)
        assert 0 <= under_way <= dropped[Outcome.OVERFLOW] + dropped[Outcome.EXPIRED]
        assert ledger.accepted == len(self.acked) + len(self.refused)
        assert (ledger.delivered, ledger.dead_lettered) == (len(taken) - under_way, len(set(dead)))

    def _check_account_after_failed_stop(self, losses: set[Outcome]) -> None:
        """The last checkpoint could not be written, and perhaps nothing could be cut off: what is acked is not lost by that."""
        ledger, found = self.pipeline.ledger(), {*self.taken, *self._dead()}
        assert found <= {*self.acked, *self.refused}
        assert len(set(self.acked) - found) <= sum(ledger.dropped.get(reason, 0) for reason in losses)
        assert ledger.accepted >= len(self.acked)

    def _kept(self) -> list[str]:
        return [name for name in self.acked if name.startswith("last")]

    def _dead(self) -> list[str]:
        return [letter.event.hash for letter in dead_letters(self.host.fs)]


def names_on(disk: FaultFilesystem, limits: Limits) -> list[str]:
    """Return the events that a daemon would find in the queue after a power loss that takes all that was not synced."""
    after = disk.twin()
    after.errors = no_errors
    after.capacity = None
    after.crash(LoseAll())
    frames = [item for item in OpenQueue(after, DIRECTORY, limits).items() if isinstance(item, Frame)]
    return [event.hash for frame in frames for event in decode_events(decode_record(frame.payload).lines)]
