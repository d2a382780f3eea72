"""Relays over an engine and an API in memory: started, drained, killed, started again; and what runners publish."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.policy import DeliverySettings
from agent.events import Context, encode_events
from agent.fleet import message, names
from agent.fleet.accounting import FleetLedger
from agent.fleet.records import Record, decode_record
from agent.fleet.relay import Relay
from agent.queue.cursor import Ledger, Span
from agent.runtime import Runtime
from tests.support.fake_transport import FakeTransport
from tests.support.memory_engine import MemoryBroker, MemoryEngine
from tests.support.pipelines import EPOCH, MAX_SECONDS, PLAIN, event, inline

TEAM = "web"
SUBJECT = names.events_subject(TEAM, "linux")


@dataclass
class Life:
    """A relay that runs."""

    relay: Relay
    scope: anyio.CancelScope
    ended: anyio.Event

    async def kill(self) -> None:
        """End it as SIGKILL does."""
        self.scope.cancel()
        with anyio.CancelScope(shield=True):
            await self.ended.wait()


@dataclass
class Fleet:
    """Relays of one team. What is set here holds for the next that starts; the wall clock of each is off by its `skew`."""

    tasks: TaskGroup
    transport: FakeTransport = field(default_factory=FakeTransport)
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    settings: DeliverySettings = field(default_factory=lambda: DeliverySettings(max_events=10, initial_delay=0.1))
    options: BatchOptions = field(default_factory=lambda: BatchOptions(max_delay=0.5))
    lives: list[Life] = field(default_factory=list)
    published: int = 0
    started: int = 0

    async def start(self, skew: float = 0.0, *, ready: bool = True, transport: FakeTransport | None = None) -> Life:
        """Start a relay, maybe with a transport of its own; with `ready`, return when it delivers."""
        self.started += 1
        runtime = Runtime(inline, lambda: EPOCH + anyio.current_time() + skew, lambda: 0.5)
        engine = MemoryEngine(self.broker)
        name = f"r{self.started}"
        relay = Relay(engine, transport or self.transport, TEAM, name, self.settings, self.options, runtime)
        life = Life(relay, anyio.CancelScope(), anyio.Event())
        self.lives.append(life)
        self.tasks.start_soon(self._run, life)
        while ready and relay.worker is None:  # noqa: ASYNC110 - of virtual time
            await anyio.sleep(0.01)
        return life

    async def _run(self, life: Life) -> None:
        with life.scope:
            await life.relay.run()
        life.ended.set()

    async def publish(
        self,
        *events: str,
        queue: str = "q1",
        first: int | None = None,
        subject: str = SUBJECT,
        context: Context = PLAIN,
        enqueued_at: float | None = None,
        ledger: Ledger | None = None,
        session: str = "s",
    ) -> None:
        """Publish events as a runner does; their numbers follow on, or begin at `first`."""
        start = first or self.published + 1
        self.published = max(self.published, start + len(events) - 1)
        lines = encode_events([event(name, session) for name in events])
        batch = Batch(context, lines, (Span(start, start + len(events)),), enqueued_at=enqueued_at)
        await MemoryEngine(self.broker).publish(subject, lines, message.encode(batch, queue, ledger))

    @property
    def waiting(self) -> int:
        """How many messages the work queue holds."""
        return len(self.broker.streams[names.EVENTS].messages)

    async def settled(self) -> None:
        """Return when the work queue is empty."""
        while self.waiting:
            await self.broker.changed.wait()

    @property
    def records(self) -> Sequence[Record]:
        """What the relays have written down."""
        found = (decode_record(each) for each in self.broker.bodies(names.LEDGER))
        return [each for each in found if each is not None]

    @property
    def ledger(self) -> FleetLedger:
        """The accounts, folded by somebody else."""
        ledger = FleetLedger()
        for each in self.broker.streams[names.LEDGER].messages.values():
            ledger.apply(decode_record(each.body), each.seq)
        return ledger


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    """Yield a fleet; what still runs at the end is killed. TimeoutError after MAX_SECONDS: something waits for ever."""
    with anyio.fail_after(MAX_SECONDS):
        async with anyio.create_task_group() as tasks:
            yield Fleet(tasks)
            tasks.cancel_scope.cancel()
