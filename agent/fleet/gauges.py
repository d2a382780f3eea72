"""How much waits in the engine, asked now and then: who wants to know, such as a scrape, never waits for the engine."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import anyio

from agent.fleet import names
from agent.fleet.engine import ConsumerState, Engine, EngineError, StreamState
from agent.fleet.message import InvalidMessageError, decode

LOOK_SECONDS: Final = 15.0
STREAMS: Final = (names.EVENTS, names.LEDGER, names.DEAD)


class Levels(NamedTuple):
    """What the engine said last: of the team's consumer, and of the streams, which all teams share.

    `oldest_age` is how long ago the events of the team's first message in AA_EVENTS were accepted, in seconds; 0 without one.
    """

    consumer: ConsumerState
    oldest_age: float
    streams: Mapping[str, StreamState]


class FleetGauges:
    """Keeps the `levels` of a team while `run` runs; they are None before the first answer, and after one that failed."""

    def __init__(self, engine: Engine, team: str, wall_clock: Callable[[], float]) -> None:
        self._engine = engine
        self._team = team
        self._wall_clock = wall_clock
        self.levels: Levels | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            try:
                self.levels = await self._ask()
            except EngineError:  # whoever looks sees that there are none, and the relay itself says why
                self.levels = None
            await anyio.sleep(LOOK_SECONDS)

    async def _ask(self) -> Levels:
        consumer = await self._engine.consumer_state(names.EVENTS, names.consumer(self._team))
        streams = {name: await self._engine.stream_state(name) for name in STREAMS}
        return Levels(consumer, await self._oldest_age(), streams)

    async def _oldest_age(self) -> float:
        first = await self._engine.next_stored(names.EVENTS, names.team_events(self._team), 0)
        if first is None:
            return 0.0
        try:
            accepted_at = decode(first.headers, first.body).enqueued_at
        except InvalidMessageError:
            accepted_at = None
        return 0.0 if accepted_at is None else max(self._wall_clock() - accepted_at, 0.0)
