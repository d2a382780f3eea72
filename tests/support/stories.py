"""Random sequences of what an API, an operator, a clock, a disk and a machine may do to a pipeline, over several processes.

`tests.support.witness` judges how the pipeline keeps its promises. With two destinations there are two pipelines in each process,
on the disk, each with a witness of its own: what happens to the machine happens to both, all else to the one whose turn it is.
"""

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import anyio.lowlevel

from agent.delivery.batching import BatchOptions
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.errors import StorageError
from agent.events import Context
from agent.queue.cursor import Ledger
from agent.queue.store import Limits
from tests.support.crash_model import Chooser, LoseAll, RandomChooser, os_error
from tests.support.fake_transport import ACCEPTED, LOST, Answer
from tests.support.fault_filesystem import Crash, ErrorRule, When, no_errors
from tests.support.lives import Life, Setup, WatchedFilesystem
from tests.support.pipelines import DIRECTORY, EPOCH, dead_letters, host
from tests.support.witness import Bounds, Witness, check_identity

TRANSIENT: Final = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
BLOCKED: Final = Verdict(Kind.BLOCKED, "402 Payment Required", 402)
MISCONFIGURED: Final = Verdict(Kind.MISCONFIGURED, "404 Not Found", 404)
CONTEXTS: Final = [Context(), Context("GITHUB_ACTIONS", 0), Context("GITHUB_ACTIONS", 1)]
VERDICTS: Final[list[Verdict | Answer]] = [
    ACCEPTED,
    TRANSIENT,
    Verdict(Kind.TRANSIENT, "429", 429, 30.0),
    Verdict(Kind.REJECTED, "400", 400),
    Verdict(Kind.TOO_LARGE, "413", 413),
    Verdict(Kind.CUT_OFF, "reset"),
    LOST,
    BLOCKED,
    MISCONFIGURED,
]
STATUSES: Final[list[Verdict | None]] = [None, ACCEPTED, BLOCKED, TRANSIENT]
CODES: Final = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE)

SETTINGS: Final = DeliverySettings(max_events=5, concurrency=3, rejections_in_a_row=4)
SETUPS: Final = [
    Setup(Limits(segment_bytes=1000), SETTINGS),
    Setup(Limits(segment_bytes=600, max_bytes=4000), SETTINGS, bounds=Bounds(kept=4, letters=2)),
    Setup(Limits(segment_bytes=600, max_bytes=4000, overflow="drop-newest"), SETTINGS, bounds=Bounds(letters=2)),
    Setup(Limits(segment_bytes=600, max_age=1000.0), SETTINGS, BatchOptions(max_age=1000.0)),
    Setup(Limits(segment_bytes=600, min_free_bytes=300), SETTINGS),
]

Step = Sequence[Any]
"""A method of Story, and its arguments."""


@dataclass
class Failing:
    """The rule under which the n-th call from now on fails, or with `lasting` each from there; `fired` once one did.

    Closing cannot fail, nor can asking for the size of an open file. What cannot be opened is as good as damaged, and so is a
    cursor, or for long anything, that cannot be read: those are no faults that pass.
    """

    n: int
    code: int
    lasting: bool
    fired: bool = False

    def __call__(self, operation: str, path: Path) -> OSError | None:
        reading = operation == "pread" and (self.lasting or path.name == "cursor")
        opening = operation == "open" and self.code != errno.EMFILE
        if operation in {"close", "release", "size", "has_name"} or reading or opening:
            return None
        self.n -= 1
        if self.n >= 0 or (self.fired and not self.lasting):
            return None
        self.fired = True
        return os_error(self.code, path)


class Side:
    """One destination: its directory, its witness, and its life in the process that runs."""

    life: Life
    found: Ledger
    before: Witness

    def __init__(self, directory: Path, setup: Setup) -> None:
        self.directory = directory
        self.witness = Witness(setup.bounds._replace(age=setup.limits.max_age))


@dataclass
class Story:
    """One sequence of steps, told from the first start to the last stop."""

    setup: Setup
    directories: Sequence[Path] = (DIRECTORY,)
    disk: WatchedFilesystem = field(default_factory=WatchedFilesystem)
    skew: float = 0.0
    death: Chooser | None = None

    def __post_init__(self) -> None:
        self.sides = [Side(directory, self.setup) for directory in self.directories]
        self.side = self.sides[0]

    async def tell(self, steps: Iterable[Step]) -> None:
        """Play all the steps, as many processes as that takes, and end well."""
        left, ended = deque(steps), False
        while not ended:
            try:
                async with host() as h:
                    h.fs, h.limits, h.settings, h.options = self.disk, self.setup.limits, SETTINGS, self.setup.options
                    h.skew = self.skew
                    for side in self.sides:
                        side.life = Life(replace(h, directory=side.directory), side.witness)
                    await self._begin()
                    while left:
                        await self._play(left.popleft())
                    await self._end_well()
                    ended = True
            except* Crash:
                self._die(self.death)

    async def _play(self, step: Step) -> None:
        name, *arguments = step
        await getattr(self, name)(*arguments)
        await anyio.lowlevel.checkpoint()
        for side in self.sides:
            self._check(side)

    @property
    def life(self) -> Life:
        """That of the destination whose turn it is."""
        return self.side.life

    @property
    def witness(self) -> Witness:
        """That of the destination whose turn it is."""
        return self.side.witness

    @property
    def pipeline(self) -> Pipeline:
        """The one of the destination whose turn it is."""
        return self.life.pipeline

    async def turn(self, index: int) -> None:
        """Let what follows happen to another destination."""
        self.side = self.sides[index]

    # Clients

    async def submit(self, count: int, context: int) -> None:
        """Submit a record, and wait for the answer."""
        await self.life.submit(count, CONTEXTS[context])

    async def send(self, count: int, context: int) -> None:
        """Submit a record."""
        self.life.send(count, CONTEXTS[context])

    # The API

    async def script(self, indexes: list[int]) -> None:
        """Give the next batches these answers of VERDICTS."""
        self.life.transport.script(VERDICTS[index] for index in indexes)

    async def status(self, index: int) -> None:
        """Let the API say this to a probe."""
        self.life.transport.status = STATUSES[index]

    async def hold(self) -> None:
        """Keep requests open."""
        self.life.transport.hold()

    async def release(self) -> None:
        """Answer what is kept open."""
        self.life.transport.release()

    # Time

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await anyio.sleep(seconds)

    async def jump(self, seconds: float) -> None:
        """Set the wall clock, back or forth; what was submitted is on the disk, with the time of its segment, by then."""
        for side in self.sides:
            await side.life.pipeline.commit_once()
        self._look_at_the_clock()
        self.skew += seconds
        for side in self.sides:
            side.life.host.skew = self.skew
        self._look_at_the_clock()

    # Operators

    async def pause(self) -> None:
        """Be an operator who pauses."""
        self.witness.pauses(durably=None)
        self.pipeline.pause()
        if (await self.pipeline.commit_once()).checkpoint_error is None:
            self.witness.pauses(durably=True)

    async def resume(self) -> None:
        """Be an operator who resumes."""
        self.witness.pauses(durably=None)
        self.pipeline.resume()

    async def reconfigure(self) -> None:
        """Deliver through another transport."""
        self.life.reload()

    async def restart(self) -> None:
        """Stop in good order, and start again; a disk that fails may refuse both."""
        for side in self.sides:
            try:
                await side.life.host.stop(1.0)
            except StorageError:
                assert side.witness.faults or self.disk.capacity is not None
        self._die(None)
        await self._begin()

    # The machine

    async def kill(self) -> None:
        """End without a word, and start again."""
        await self._kill()
        self._die(None)
        await self._begin()

    async def cut_power(self, seed: int) -> None:
        """Lose some of what is not durable, and start again."""
        await self._kill()
        self._die(RandomChooser(seed))
        await self._begin()

    async def _kill(self) -> None:
        for side in self.sides:
            await side.life.host.kill()

    async def crash(self, calls: int, when: When, seed: int, power: bool, midway: bool) -> None:
        """Die in the call that comes after so many, perhaps in the middle of it."""
        index, self.death = self.disk.calls + calls, RandomChooser(seed) if power else None
        self.disk.crash_at(index, "after" if midway else when)
        if midway:
            self.disk.partial = RandomChooser(seed)
            self.disk.errors = self._cut_short(index)

    def _cut_short(self, index: int) -> ErrorRule:
        """Return the rule by which a write in that call ends somewhere; nobody lives to see the error."""

        def rule(operation: str, path: Path) -> OSError | None:
            return os_error(errno.EIO, path) if operation == "pwrite" and self.disk.calls == index + 1 else None

        return rule

    async def fail(self, calls: int, code: int, seed: int, lasting: bool) -> None:
        """Let the disk fail, once or until it is healed."""
        self.disk.partial = RandomChooser(seed)
        self.disk.errors = Failing(calls, code, lasting)
        for side in self.sides:
            side.witness.faults += 1

    async def heal(self) -> None:
        """Repair the disk."""
        self.disk.errors = no_errors

    async def fill(self, room: int) -> None:
        """Leave so much room on the disk."""
        self.disk.capacity = self.disk.used + room

    async def make_room(self) -> None:
        """Leave all the room that anybody may want."""
        self.disk.capacity = None

    # What comes between

    async def _begin(self) -> None:
        """Start a process; where the disk refuses that, repair it first, and start anew."""
        try:
            self._start()
        except StorageError:
            assert self.witness.faults or self.disk.capacity is not None
            self.disk.errors, self.disk.capacity = no_errors, None
            for side in self._started:
                await side.life.host.kill()
            self.disk.kill()
            self._start()
        for side in self.sides:
            side.found, side.before = side.life.pipeline.ledger(), side.witness.copy()
            side.witness.check_recovered(side.found, in_flight=SETTINGS.max_events * SETTINGS.concurrency)
            if side.witness.paused:
                assert (await side.life.pipeline.status()).state == "paused"
        self._look_at_the_clock()

    def _start(self) -> None:
        self._started: list[Side] = []
        for side in self.sides:
            side.life.start()
            self._started.append(side)

    def _die(self, chooser: Chooser | None) -> None:
        self._look_at_the_clock()
        for side in self.sides:
            side.witness.deaths += 1
        self.disk.partial = LoseAll()
        if not isinstance(self.disk.errors, Failing):
            self.disk.errors = no_errors
        if chooser is None:
            self.disk.kill()
            return
        self.disk.crash(chooser)
        for side in self.sides:
            side.witness.power_cuts += 1

    def _look_at_the_clock(self) -> None:
        for side in self.sides:
            side.witness.latest = max(side.witness.latest, EPOCH + anyio.current_time() + self.skew)

    async def _end_well(self) -> None:
        """Let everybody be kind until the queues are empty, stop, and find the same ledgers again."""
        await self.heal()
        await self.make_room()
        for index, side in enumerate(self.sides):
            await self.turn(index)
            await self.resume()
            self.life.reload()
            await self.life.submit(2)
            await self.pipeline.flush()
            self._look_at_the_clock()
            ledger = self.pipeline.ledger()
            self._check(side)
            assert ledger.accepted - side.found.accepted == side.witness.answers - side.before.answers
            side.witness.check_end(ledger, dead_letters(self.disk, side.directory))
            await self.life.host.stop(1.0)
            again = self.life.host.open()
            assert again.ledger() == ledger
            await again.close()

    def _check(self, side: Side) -> None:
        """Hold the ledger to its identity, and to what happened since the start."""
        ledger, witness = side.life.pipeline.ledger(), side.witness
        check_identity(ledger)
        answered = witness.answers - side.before.answers
        submitted = len(witness.submitted) - len(side.before.submitted)
        assert answered <= ledger.accepted - side.found.accepted <= submitted
        delivered = witness.taken.total() - side.before.taken.total()
        assert ledger.delivered - side.found.delivered <= delivered
        assert ledger.dead_lettered - side.found.dead_lettered <= len(witness.refused) - len(side.before.refused)
        assert all(len(sent.events) <= SETTINGS.max_events for sent in side.life.transport.answered)
