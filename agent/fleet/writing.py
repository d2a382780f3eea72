"""What a relay writes into the engine: records and dead letters; and what it says while the engine does not take them."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import anyio
import structlog

from agent.fleet import names
from agent.fleet.engine import Engine, EngineError, Message, StreamFullError
from agent.fleet.records import Record, encode_record
from agent.throttle import Throttle

T = TypeVar("T")

RETRY_SECONDS = 1.0
LOG_INTERVAL = 60.0


_MAKE_ROOM = (
    "export and purge dead letters with `artifacts-agent fleet dead-letters`: until then new ones are only counted"
)


class FleetWriter:
    """The streams of a team, for one relay, whose name no other one has.

    `dead_not_kept` counts the dead letters for which AA_DEAD had no room.
    """

    def __init__(self, engine: Engine, team: str, relay: str) -> None:
        self.engine = engine
        self.team = team
        self.relay = relay
        self._log = structlog.get_logger("agent.fleet")
        self._throttle = Throttle(LOG_INTERVAL)
        self._errors: dict[str, str] = {}
        self._count = 0
        self.dead_not_kept = 0

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

    async def keep_dead(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """Return when the engine has a dead letter; False if AA_DEAD is full, for which nobody waits. Raises EngineError."""
        try:
            await self.engine.publish(names.dead_subject(self.team), body, headers)
        except StreamFullError as error:
            self.dead_not_kept += 1
            held_back = self._throttle.allow("dead_letters_full", anyio.current_time())
            if held_back is not None:
                self._log.error("dead_letters_full", error=str(error), hint=_MAKE_ROOM, suppressed=held_back)
            return False
        return True

    async def insist(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Call until it raises no EngineError, and say meanwhile what the engine does not take."""
        while True:
            try:
                result = await call()
            except EngineError as error:
                self.note_error(what, str(error))
                await anyio.sleep(RETRY_SECONDS)
            else:
                self.note_success(what)
                return result

    async def ack(self, message: Message) -> None:
        """Let the work queue forget a message; if that fails it comes again, and the ledger says that it is settled."""
        with suppress(EngineError):
            await self.engine.ack(message)

    def log_throttled(self, event: str, **facts: object) -> None:
        """Say something in the log, as often as is good for people."""
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.warning(event, **facts, suppressed=held_back)

    def note_error(self, what: str, error: str) -> None:
        """Say that something does not work now."""
        self._errors[what] = error
        held_back = self._throttle.allow("engine_refuses", anyio.current_time(), what=what)
        if held_back is not None:
            self._log.warning("engine_refuses", what=what, error=error, suppressed=held_back)

    def note_success(self, what: str) -> None:
        """Say that it works again."""
        self._errors.pop(what, None)
