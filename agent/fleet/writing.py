"""What a relay writes into the engine: records and dead letters; and what it says while the engine does not take them."""

from collections.abc import Awaitable, Callable, Mapping

import anyio
import structlog

from agent.fleet import names
from agent.fleet.engine import Engine, EngineError
from agent.fleet.records import Record, encode_record
from agent.throttle import Throttle

RETRY_SECONDS = 1.0
LOG_INTERVAL = 60.0


class FleetWriter:
    """The streams of a team, for one relay, whose name no other one has."""

    def __init__(self, engine: Engine, team: str, relay: str) -> None:
        self.engine = engine
        self.team = team
        self.relay = relay
        self._log = structlog.get_logger("agent.fleet")
        self._throttle = Throttle(LOG_INTERVAL)
        self._errors: dict[str, str] = {}
        self._count = 0

    @property
    def error(self) -> str | None:
        """What the engine does not do now."""
        return next(iter(self._errors.values()), None)

    def new_id(self) -> str:
        """Return a name that no other request, and no other record, has."""
        self._count += 1
        return f"{self.relay}-{self._count}"

    async def write(self, record: Record, name: str) -> None:
        """Write a record down, once for this kind and name. Raises EngineError: it may be there all the same."""
        kind = type(record).__name__.lower()
        headers = {"Nats-Msg-Id": f"{kind}:{name}", "Nats-Expected-Stream": names.LEDGER}
        await self.engine.publish(names.ledger_subject(self.team), encode_record(record), headers)

    async def keep_dead(self, body: bytes, headers: Mapping[str, str]) -> None:
        """Keep a dead letter; return when the engine has it."""
        subject = names.dead_subject(self.team)
        await self.insist("a dead letter", lambda: self.engine.publish(subject, body, headers))

    async def try_to_keep_dead(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """Keep a dead letter, if the engine takes it now."""
        try:
            await self.engine.publish(names.dead_subject(self.team), body, headers)
        except EngineError as error:
            self.note_error("a dead letter", str(error))
            return False
        self.note_success("a dead letter")
        return True

    async def insist(self, what: str, call: Callable[[], Awaitable[object]]) -> None:
        """Call until it raises no EngineError, and say meanwhile what the engine does not take."""
        while True:
            try:
                await call()
            except EngineError as error:
                self.note_error(what, str(error))
                await anyio.sleep(RETRY_SECONDS)
            else:
                self.note_success(what)
                return

    def note_error(self, what: str, error: str) -> None:
        """Say that something does not work now."""
        self._errors[what] = error
        held_back = self._throttle.allow("engine_refuses", anyio.current_time(), what=what)
        if held_back is not None:
            self._log.warning("engine_refuses", what=what, error=error, suppressed=held_back)

    def note_success(self, what: str) -> None:
        """Say that it works again."""
        self._errors.pop(what, None)
