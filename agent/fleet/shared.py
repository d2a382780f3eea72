"""What the relays of a team agree on, in keys that are changed by compare-and-set: the pause, the rate, and who probes.

No relay goes by another one's clock. A key says something else with each use, and what a relay measures is for how long, on
its own steady clock, it has seen the same. So clocks may differ as they like. Of a pause the time of the next probe is the wall
clock's of who wrote it: that is when others ask for the lease, no more.

A relay that is refused where others are accepted stops nobody but itself: in a pause others probe before those that were
refused in it, and who is refused again after another one has ended the pause pauses alone.
"""

from collections.abc import Callable
from typing import Final

import anyio
import structlog

from agent.fleet import names
from agent.fleet.engine import Engine, EngineError
from agent.fleet.shared_lease import Lease
from agent.fleet.shared_pause import SharedPause
from agent.fleet.shared_rate import SharedRate
from agent.queue.cursor import Pause
from agent.runtime import Wakeup
from agent.throttle import Throttle

POLL_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
YIELD_SECONDS: Final = 10.0
"""For so long a relay that was refused lets others hold events and probe: for longer than clocks differ, as a rule."""

LOG_INTERVAL: Final = 60.0
_HINT: Final = "others were accepted: compare api.token_file, api.team_id and api.url of the relays"


class SharedTurns:
    """See `agent.delivery.turns.Turns`; keeps up with the others while `run` runs.

    `on_pause` is called with the pause that another relay has written, or None when another one has ended it. `has_events` says
    whether there is an event at hand: a relay without one finds nothing out for the others, and does not probe.
    """

    def __init__(self, engine: Engine, team: str, relay: str, requests_per_minute: int | None) -> None:
        self._pause = SharedPause(engine, names.pause_key(team), relay)
        self._pause.on_change = self._note_change
        self._rate = SharedRate(engine, names.rate_key(team), relay)
        self._lease = Lease(engine, names.probe_key(team), relay)
        self._log = structlog.get_logger("agent.fleet")
        self._throttle = Throttle(LOG_INTERVAL)
        self._wakeup = Wakeup()
        self._closed = False
        self._was_refused = False  # in the pause that is known
        self._was_overruled = False  # refused, and then others ended the pause; nothing was accepted here since
        self._refused_at = float("-inf")
        self._due_since: float | None = None  # since when this relay has wanted to probe
        self.alone: Pause | None = None
        """The pause of this relay alone, which others are not told of."""
        self.refused_alone: str | None = None
        """What the API says to this relay where it accepts others; until it accepts this one, too."""
        self.error: str | None = None
        self.on_pause: Callable[[Pause | None], None] = lambda _: None
        self.has_events: Callable[[], bool] = lambda: True
        self.reconfigure(requests_per_minute)

    # The pause

    @property
    def pause(self) -> Pause | None:
        """The pause, as far as is known: that of all, or else of this relay alone."""
        return self._pause.known or self.alone

    def remember(self, pause: Pause | None) -> None:
        """Write a pause down, or that it is over, soon; if others were faster, theirs counts."""
        self._due_since = None
        if pause is not None:
            self._refused_at = anyio.current_time()
        if pause is None and self.alone is not None:
            self.alone = None
            return
        if pause is not None and self._was_overruled and self._pause.known is None:
            if self.refused_alone is None:
                self._log.warning("relay_refused_alone", reason=pause.reason, message=pause.message, hint=_HINT)
            self.alone, self.refused_alone = pause, pause.message
            return
        self._was_refused = pause is not None
        self._pause.remember(pause)
        self._wakeup.set()

    @property
    def may_hold(self) -> bool:
        """Whether events are as well held here as by others: not while this relay alone is refused, nor after a refusal.

        Others have them then, and can find out by them whether they are refused, too.
        """
        return self.alone is None and anyio.current_time() >= self._refused_at + YIELD_SECONDS

    def note_accepted(self) -> None:
        """Say that the API has taken events of this relay."""
        self._was_overruled, self.refused_alone = False, None

    def _note_change(self, pause: Pause | None) -> None:
        self._due_since = None
        if pause is None:
            self._was_overruled = self._was_overruled or self._was_refused
            self._was_refused = False
        else:
            self.alone = None
        self.on_pause(pause)

    async def load(self) -> None:
        """Return when it is known whether there is a pause."""
        while True:
            try:
                await self._pause.look()
            except EngineError as error:
                await self._wait_after(error)
            else:
                return

    async def run(self) -> None:
        """Keep up with the others until cancelled."""
        while True:
            try:
                await self._pause.write()
                await self._pause.look()
                if self._rate.interval:
                    await self._rate.look()
                self.error = None
            except EngineError as error:
                await self._wait_after(error)
            await self._wakeup.wait(POLL_SECONDS)

    async def write(self) -> None:
        """Write down what is to be remembered. Raises EngineError."""
        await self._pause.write()

    # Turns

    @property
    def next_at(self) -> float:
        """See `Turns`."""
        return self._rate.next_at

    def reconfigure(self, requests_per_minute: int | None) -> None:
        """See `Turns`."""
        self._rate.interval = 60 / requests_per_minute if requests_per_minute is not None else 0.0

    def note_begun(self) -> None:
        """See `Turns`: what counts is the turn that is taken."""

    def close(self) -> None:
        """Let nobody wait for a turn any more."""
        self._closed = True

    async def take(self, *, probing: bool) -> bool:
        """See `Turns`. While the engine does not answer nobody has a turn."""
        while not self._closed:
            try:
                if self._rate.interval and not await self._rate.take(self._is_open):
                    return False
                return await self._may_begin(probing=probing)
            except EngineError as error:
                await self._wait_after(error)
        return False

    def _is_open(self) -> bool:
        """Whether a request may come to be at all."""
        return not self._closed and not (self._pause.known is not None and self._pause.unwritten)

    async def _may_begin(self, *, probing: bool) -> bool:
        """Whether there is no pause but that which is probed. Raises EngineError."""
        pause = self._pause
        if pause.unwritten:
            return pause.known is None and not probing
        was_changed = await pause.look()
        if pause.unwritten:
            return False
        if pause.known is None:
            return probing is (self.alone is not None)
        return probing and not was_changed and self._lease.is_ours

    # Probes

    async def may_probe(self) -> float:
        """See `Turns`."""
        if self.alone is not None:
            return 0.0
        if self._pause.unwritten or not self.has_events() or self._gives_way():
            return POLL_SECONDS
        try:
            if not await self._lease.take():
                return POLL_SECONDS
            # Only now: who had the lease before has written down first what came of it.
            was_changed = await self._pause.look()
            if was_changed or self._pause.unwritten:
                await self.end_probe()
                return POLL_SECONDS
        except EngineError as error:
            self._note_error(error)
            return RETRY_SECONDS
        return 0.0

    def _gives_way(self) -> bool:
        """Whether others are to probe first, who were not refused."""
        now = anyio.current_time()
        if self._due_since is None:
            self._due_since = now
        return (self._was_refused or self._was_overruled) and now < self._due_since + YIELD_SECONDS

    async def end_probe(self) -> None:
        """See `Turns`. What cannot be given back is taken over by others later."""
        try:
            await self._pause.write()
            await self._lease.give_back()
        except EngineError as error:
            self._note_error(error)

    async def _wait_after(self, error: EngineError) -> None:
        self._note_error(error)
        await anyio.sleep(RETRY_SECONDS)

    def _note_error(self, error: EngineError) -> None:
        self.error = str(error)
        held_back = self._throttle.allow("relays_not_reached", anyio.current_time())
        if held_back is not None:
            self._log.warning("relays_not_reached", error=self.error, suppressed=held_back)
