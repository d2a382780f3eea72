"""Processes that live one after the other on one queue, and the moments at which the next of them may die.

A process that dies in a call leaves what is on the disk just before or just after it: dying changes nothing else. So a life is
lived once and undisturbed, and `watched` takes a copy of the disk and of the witness at each of these moments; another life then
begins on each copy, as it was left by a SIGKILL, or as a power cut would leave it.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import anyio

from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.events import Context, Event
from agent.queue.store import Limits
from tests.support import virtual_time
from tests.support.crash_outcomes import Cuts, Remains, every_remains
from tests.support.fake_transport import ACCEPTED, Answer, FakeTransport
from tests.support.fault_filesystem import MUTATING, Call, FaultFilesystem, When
from tests.support.pipelines import DIRECTORY, EPOCH, PLAIN, Host, host, numbered, submit
from tests.support.witness import Bounds, Witness

T = TypeVar("T")

REJECTED = Verdict(Kind.REJECTED, "400 Bad Request", 400)


class WatchedFilesystem(FaultFilesystem):
    """A disk that tells of each call before and after it is made; `changes` counts those that change what a crash leaves."""

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity=capacity)
        self.changes = 0
        self.tell: Callable[[Call, When], None] | None = None

    def perform(
        self, operation: str, path: Path, action: Callable[[], T], spoil: Callable[[], None] = lambda: None
    ) -> T:
        call = Call(self.calls, operation, path)
        self._told(call, "before")
        try:
            return super().perform(operation, path, action, spoil)
        finally:
            self.changes += operation in MUTATING
            self._told(call, "after")

    def remains(self, cuts: Cuts, *, bound: int, seed: int) -> "list[Remains]":
        """Return what a power cut now may leave; see `every_remains`."""
        return list(every_remains(self._names, cuts, bound=bound, seed=seed))

    def twin(self) -> Self:
        """Return an equal disk, with nobody to tell and without the log of calls."""
        tell, self.tell = self.tell, None
        try:
            return super().twin()
        finally:
            self.tell = tell

    def _told(self, call: Call, when: When) -> None:
        if self.tell is not None:
            self.tell(call, when)


def disk_of(remains: Remains, capacity: int | None = None) -> WatchedFilesystem:
    """Return a disk that holds this."""
    disk = WatchedFilesystem(capacity)
    for directory in remains.directories:
        disk.make_directory(directory)
    for path, data in remains.files:
        disk.write_bytes(path, data)
    return disk


@dataclass(frozen=True)
class Setup:
    """What is configured."""

    limits: Limits = field(default_factory=lambda: Limits(segment_bytes=600))
    settings: DeliverySettings = field(default_factory=lambda: DeliverySettings(max_events=4, concurrency=3))
    options: BatchOptions = field(default_factory=BatchOptions)
    bounds: Bounds = field(default_factory=Bounds)
    poison: frozenset[str] = frozenset()
    directory: Path = DIRECTORY


@dataclass(frozen=True)
class Moment:
    """The world at one moment: `calls` names the calls it is just before or after of. There is a witness for each life."""

    disk: WatchedFilesystem
    witnesses: tuple[Witness, ...]
    clock: float
    calls: tuple[tuple[Call, When], ...]

    @property
    def witness(self) -> Witness:
        """That of the only life."""
        (witness,) = self.witnesses
        return witness

    def of(self, number: int) -> "Moment":
        """Return the moment as one of the lives saw it."""
        return replace(self, witnesses=(self.witnesses[number],))


class Watch:
    """Takes down the moments of lives on one disk, or with `only` the first one after so many changes on the disk.

    Calls between which nothing has changed share a moment.
    """

    def __init__(
        self, disk: WatchedFilesystem, witnesses: Sequence[Witness], clock: Callable[[], float], only: int | None = None
    ) -> None:
        self.moments: list[Moment] = []
        self._disk, self._witnesses, self._clock = disk, witnesses, clock
        self._only = None if only is None else disk.changes + only
        self._known: tuple[object, ...] | None = None
        disk.tell = self._take

    def _take(self, call: Call, when: When) -> None:
        known = (self._disk.changes, *(each.version for each in self._witnesses), self._clock())
        if known == self._known:
            last = self.moments[-1]
            self.moments[-1] = replace(last, calls=(*last.calls, (call, when)))
            return
        if self._only is not None and (self.moments or self._disk.changes < self._only):
            return
        self._known = known
        witnesses = tuple(each.copy() for each in self._witnesses)
        self.moments.append(Moment(self._disk.twin(), witnesses, self._clock(), ((call, when),)))


class WitnessedTransport(FakeTransport):
    """A FakeTransport whose API refuses what is poisonous, and tells the witness what it gets."""

    def __init__(self, witness: Witness) -> None:
        super().__init__(self._judge)
        self._witness = witness

    async def send(self, batch: Batch) -> Verdict:
        """See `Transport`."""
        verdict = await super().send(batch)
        self._witness.receives(self.answered[-1])
        return verdict

    def _judge(self, _context: Context, events: Sequence[Event]) -> Verdict | Answer:
        bad = next((event.hash for event in events if event.hash in self._witness.poison), None)
        return ACCEPTED if bad is None else REJECTED


class Life:
    """One process after another on one disk, as a script sees them: what it does and learns goes to the witness."""

    def __init__(self, h: Host, witness: Witness) -> None:
        self.host, self.witness = h, witness
        self.disk = h.fs

    @property
    def pipeline(self) -> Pipeline:
        """The one that runs."""
        return self.host.pipeline

    def start(self) -> Pipeline:
        """Start a process, with a connection to the API of its own."""
        self.connect()
        return self.host.start()

    def connect(self) -> None:
        """Deliver through a fresh transport from the next start, or reload, on."""
        self.transport = WitnessedTransport(self.witness)
        self.host.transport = self.transport

    def reload(self) -> None:
        """Put a new configuration in place."""
        self.transport.release()
        self.connect()
        self.pipeline.reconfigure(self.host.delivery)

    async def submit(self, count: int, context: Context = PLAIN) -> list[str]:
        """Submit a record of so many new events, wait for the answer, and return their names."""
        names = self._names(count, context)
        await self._submit(names, context)
        return names

    def send(self, count: int, context: Context = PLAIN) -> None:
        """Submit a record without waiting."""
        self.host.tasks.start_soon(self._submit, self._names(count, context), context)

    def _names(self, count: int, context: Context) -> list[str]:
        names = numbered(count, f"e{len(self.witness.submitted)}-")
        self.witness.submits(names, context, self.host.wall_clock())
        return names

    async def _submit(self, names: list[str], context: Context) -> None:
        self.witness.submits(names, context, self.host.wall_clock())  # again: another task may have run before this one
        committed = await submit(self.pipeline, names, context).wait()
        self.witness.answered(names, committed.refused)

    async def pause(self) -> None:
        """Pause as an operator, and wait until that is on the disk."""
        self.witness.pauses(durably=None)
        self.pipeline.pause()
        assert (await self.pipeline.commit_once()).checkpoint_error is None
        self.witness.pauses(durably=True)

    async def resume(self) -> None:
        """Resume as an operator, and wait until that is on the disk."""
        self.witness.pauses(durably=None)
        self.pipeline.resume()
        assert (await self.pipeline.commit_once()).checkpoint_error is None
        self.witness.pauses(durably=False)


Script = Callable[[Life], Coroutine[None, None, None]]


def live(
    script: Script,
    setup: Setup,
    *,
    disk: WatchedFilesystem | None = None,
    witness: Witness | None = None,
    clock: float = EPOCH,
    watched: bool | int = False,
) -> list[Moment]:
    """Live a life from `clock` on (seconds since the epoch), on a new disk unless one is given.

    Return its moments if it is `watched`: all, or the one after so many changes on the disk.
    """
    disk = disk or WatchedFilesystem()
    witness = witness or Witness(setup.bounds, setup.poison)
    return virtual_time.run("asyncio", partial(_live, [(script, setup, witness)], disk, clock, watched))


def live_together(*lives: tuple[Script, Setup]) -> list[Moment]:
    """Live several lives at a time, in one process on one new disk, each in a directory of its own; return all moments."""
    witnessed = [(script, setup, Witness(setup.bounds, setup.poison)) for script, setup in lives]
    return virtual_time.run("asyncio", partial(_live, witnessed, WatchedFilesystem(), EPOCH, watched=True))


async def _live(
    lives: Sequence[tuple[Script, Setup, Witness]], disk: WatchedFilesystem, clock: float, watched: bool | int
) -> list[Moment]:
    async with host() as h:
        hosts = [
            replace(
                h,
                fs=disk,
                limits=setup.limits,
                settings=setup.settings,
                options=setup.options,
                skew=clock - EPOCH,
                directory=setup.directory,
            )
            for _, setup, _ in lives
        ]
        witnesses = [witness for _, _, witness in lives]
        only = None if isinstance(watched, bool) else watched
        watch = None if watched is False else Watch(disk, witnesses, hosts[0].wall_clock, only)
        try:
            async with anyio.create_task_group() as living:
                for (script, _, witness), each in zip(lives, hosts, strict=True):
                    living.start_soon(script, Life(each, witness))
        finally:
            for witness, each in zip(witnesses, hosts, strict=True):
                witness.latest = max(witness.latest, each.wall_clock())
            disk.tell = None
    return watch.moments if watch else []
