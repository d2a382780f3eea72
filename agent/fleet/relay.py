"""A relay: the worker of an agent, which delivers what a team's runners have published. It keeps nothing on a disk."""

from contextlib import suppress

import anyio
import anyio.abc

from agent.delivery.batching import BatchOptions
from agent.delivery.measures import Measures
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Transport
from agent.delivery.worker import Worker
from agent.fleet.backlog import StreamBacklog
from agent.fleet.engine import Engine, EngineError
from agent.fleet.fetching import MAX_HELD_EVENTS
from agent.fleet.following import LedgerFollower
from agent.fleet.gauges import FleetGauges
from agent.fleet.relay_transport import RelayTransport
from agent.fleet.shared import SharedTurns
from agent.fleet.writing import FleetWriter
from agent.runtime import Runtime

STOP_SECONDS = 2.0


class Relay:
    """Delivers for a team by `transport` while `run` runs. No other relay, of now or before, has its `name`.

    An engine that does not answer holds it up and ends nothing.
    """

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        team: str,
        name: str,
        settings: DeliverySettings,
        options: BatchOptions,
        runtime: Runtime,
    ) -> None:
        self.team = team
        self.turns = SharedTurns(engine, team, name, settings.requests_per_minute)
        self.follower = LedgerFollower(engine, team)
        most = max(MAX_HELD_EVENTS, 2 * settings.max_events * settings.concurrency)
        writer = FleetWriter(engine, team, name)
        self.backlog = StreamBacklog(writer, self.follower, self.turns, options, runtime, most)
        self.turns.has_events = lambda: self.backlog.held_events > 0
        self.gauges = FleetGauges(engine, team, runtime.wall_clock)
        self.worker: Worker | None = None
        self._transport = RelayTransport(transport, self.backlog)
        self._settings = settings
        self._runtime = runtime
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    @property
    def max_requests_per_minute(self) -> int | None:
        """How many requests all relays of the team may begin in a minute; None is any number."""
        return self._settings.requests_per_minute

    @property
    def measures(self) -> Measures:
        """What was measured of requests and deliveries since the start."""
        return self.worker.measures if self.worker is not None else Measures()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Deliver until `drain`; it is started when it knows what was settled before, and whether there is a pause."""
        with self._scope:
            await self.follower.load()
            await self.turns.load()
            self.worker = Worker(self.backlog, self._transport, self._settings, self._runtime, self.turns)
            self.turns.on_pause = self.worker.follow
            async with anyio.create_task_group() as tasks:
                for task in (self.follower.run, self.turns.run, self.backlog.run):
                    tasks.start_soon(task)
                task_status.started()
                await self.worker.run()
                await self.backlog.release()
                with suppress(EngineError):
                    await self.turns.write()
                tasks.cancel_scope.cancel()
        self._ended.set()

    async def drain(self, seconds: float) -> None:
        """Begin no more requests, settle those under way within `seconds`, let others have the rest, and end `run`."""
        self.turns.close()
        try:
            with anyio.move_on_after(seconds):
                if self.worker is not None:
                    await self.worker.stop_after_inflight()
                    await self._ended.wait()
        finally:
            self._scope.cancel()

    def replace_transport(self, transport: Transport) -> None:
        """Make requests by another transport from now on; a pause ends, for all relays of the team."""
        self._transport = RelayTransport(transport, self.backlog)
        if self.worker is not None:  # else nothing was sent by the one before, and it has nothing open
            self.worker.reconfigure(self._transport, self._settings)

    async def aclose(self) -> None:
        """Close the transports, once `run` has returned."""
        await (self.worker or self._transport).aclose()
