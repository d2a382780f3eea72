"""A pipeline over a disk and an API in memory, and its life: started, drained, killed, started again."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.opening import DeliveryConfig
from agent.delivery.pipeline import Pipeline, keep_house
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Transport
from agent.events import Block, Context, Event, encode_events
from agent.queue import segment
from agent.queue.committer import Submission
from agent.queue.cursor import Span
from agent.queue.dead_letters import DeadLetter, decode_dead_letter
from agent.queue.store import Limits
from agent.runtime import RunBlocking, Runtime
from tests.support.crash_model import Chooser
from tests.support.fake_transport import FakeTransport
from tests.support.fault_filesystem import FaultFilesystem

T = TypeVar("T")

DIRECTORY = Path("/queue/default")
EPOCH = 1_750_000_000.0
PLAIN = Context()
MAX_SECONDS = 5 * 86400.0


async def inline(call: Callable[[], T]) -> T:
    """Run a blocking call here, after letting other tasks run, as they would while a thread works."""
    await anyio.lowlevel.checkpoint()
    return call()


def event(name: str, session: str = "s") -> Event:
    """Return an event with that hash."""
    return Event(session, "LOCAL", "HIT", name, 7)


def events(*names: str) -> list[Event]:
    """Return events with these hashes."""
    return [event(name) for name in names]


def batch_of(events: list[Event], context: Context = PLAIN) -> Batch:
    """Return events as a transport is given them."""
    return Batch(context, encode_events(events), (Span(1, 1 + len(events)),))


def numbered(count: int, prefix: str = "h") -> list[str]:
    """Return `count` different names."""
    return [f"{prefix}{number}" for number in range(count)]


@dataclass
class Host:
    """Where pipelines of one queue live, one at a time. What is set here holds from the next `start` on.

    The wall clock goes with the steady one, plus `skew`.
    """

    tasks: TaskGroup
    transport: Transport = field(default_factory=FakeTransport)
    fs: FaultFilesystem = field(default_factory=FaultFilesystem)
    limits: Limits = field(default_factory=Limits)
    settings: DeliverySettings = field(default_factory=DeliverySettings)
    options: BatchOptions = field(default_factory=BatchOptions)
    directory: Path = DIRECTORY
    jitter: float = 0.5
    skew: float = 0.0
    run_blocking: RunBlocking = inline

    def wall_clock(self) -> float:
        """Return the time in seconds since the epoch."""
        return EPOCH + anyio.current_time() + self.skew

    @property
    def delivery(self) -> DeliveryConfig:
        """How the next pipeline will deliver."""
        transport = self.transport
        return DeliveryConfig(lambda _: transport, self.settings, self.options)

    @property
    def runtime(self) -> Runtime:
        """What stands for threads, clocks and chance."""
        return Runtime(self.run_blocking, self.wall_clock, lambda: self.jitter)

    def open(self) -> Pipeline:
        """Open the queue, without running it."""
        self.pipeline = Pipeline(self.fs, self.directory, self.limits, self.delivery, self.runtime)
        return self.pipeline

    def start(self) -> Pipeline:
        """Open the queue and run it."""
        pipeline = self.open()
        self._scope, self._ended = anyio.CancelScope(), anyio.Event()
        self.tasks.start_soon(self._run, pipeline, self._scope, self._ended)
        return pipeline

    async def stop(self, seconds: float = 0.0) -> None:
        """Drain, end and close the pipeline, as a daemon does."""
        await self.pipeline.drain(seconds)
        await self._ended.wait()
        await self.pipeline.close()

    async def kill(self, chooser: Chooser | None = None) -> None:
        """End it as SIGKILL does; with a chooser, as a power cut does."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        if chooser is None:
            self.fs.kill()
        else:
            self.fs.crash(chooser)

    async def _run(self, pipeline: Pipeline, scope: anyio.CancelScope, ended: anyio.Event) -> None:
        try:
            with scope:
                async with anyio.create_task_group() as beside:
                    beside.start_soon(keep_house, lambda: [pipeline])
                    await pipeline.run()
                    beside.cancel_scope.cancel()
        finally:
            ended.set()


@asynccontextmanager
async def host() -> AsyncIterator[Host]:
    """Yield a host; what still runs at the end is killed. TimeoutError after MAX_SECONDS: something waits for ever."""
    with anyio.fail_after(MAX_SECONDS):
        async with anyio.create_task_group() as tasks:
            yield Host(tasks)
            tasks.cancel_scope.cancel()


def submit(pipeline: Pipeline, names: Iterable[str], context: Context = PLAIN) -> Submission:
    """Submit events with these names as one record."""
    return submit_events(pipeline, events(*names), context)


def submit_events(pipeline: Pipeline, events: list[Event], context: Context = PLAIN) -> Submission:
    """Submit events as one record."""
    return pipeline.submit(Block(context, len(events), encode_events(events)))


def dead_letters(fs: FaultFilesystem, directory: Path = DIRECTORY) -> list[DeadLetter]:
    """Read the dead letters from their files, oldest first, as a person's tool would."""
    paths = [path for path in fs.paths() if path.parent == directory / "dead-letters"]
    frames = [
        frame for path in paths for frame in segment.scan(fs.read_bytes(path), segment.HEADER_BYTES, whole=True).frames
    ]
    return [decode_dead_letter(frame.payload) for frame in frames]


def balanced(pipeline: Pipeline) -> bool:
    """Tell whether the ledger's identity holds."""
    ledger = pipeline.ledger()
    dropped = sum(ledger.dropped.values())
    return ledger.accepted == ledger.delivered + ledger.forwarded + ledger.dead_lettered + dropped + ledger.queued
