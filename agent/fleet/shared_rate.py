"""The rate that the relays of a team share: a key with the turn that was taken last, and who waits for the next one.

A turn is taken by who has seen on its own clock that nobody took one for the whole interval between two, and it goes to
whoever has waited longest: else the relay that is nearest to the engine would have them all. Who waits and has gone is left
out after a while by the others.
"""

from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from agent.fleet.engine import ConflictError, Engine
from agent.fleet.sighting import Sighting

POLL_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 2.0
"""After so long a turn that is due goes to the next one in the line."""

_LOOKS: Final = 20  # in an interval, for a turn that is due and another one's


class RateKey(msgspec.Struct, frozen=True):
    """The value of the key: the name of the last turn, which no other one has, and the relays that wait, the first first."""

    turn: str
    waiting: tuple[str, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RateKey).decode


class SharedRate:
    """One turn in each `interval`, in seconds, for all relays together; 0 is no limit."""

    def __init__(self, engine: Engine, key: str, relay: str) -> None:
        self._engine = engine
        self._key = key
        self._relay = relay
        self._turn = Sighting("")
        self._first = Sighting("")  # who waits first
        self._count = 0
        self._taking = anyio.Lock()
        self.interval = 0.0

    @property
    def next_at(self) -> float:
        """When the next turn is due (steady clock); `-inf` if it is, as far as is known."""
        return self._turn.since + self.interval

    async def look(self) -> tuple[RateKey, int]:
        """Return what the key says, and its revision. Raises EngineError."""
        entry = await self._engine.get(self._key)
        key, revision = RateKey(""), 0
        if entry is not None:
            revision = entry.revision
            try:
                key = _decode(entry.value)
            except ValueError:  # of another version: a turn was taken, and nobody waits
                key = RateKey(f"?{revision}")
        self._turn.note(key.turn)
        self._first.note(key.waiting[0] if key.waiting else "")
        return key, revision

    async def take(self, is_wanted: Callable[[], bool]) -> bool:
        """Return when it is this relay's turn, which is taken then; False once it is not wanted. Raises EngineError."""
        async with self._taking:  # one of a relay waits in the line
            while is_wanted():
                try:
                    if await self._try():
                        return True
                except ConflictError:
                    continue
        return False

    async def _try(self) -> bool:
        """Take the turn, step into the line, or wait a little; tell whether it was taken. Raises EngineError, ConflictError."""
        key, revision = await self.look()
        now, first = anyio.current_time(), next(iter(key.waiting), self._relay)
        is_due = now >= self.next_at
        if is_due and first == self._relay:
            self._count += 1
            turn = f"{self._relay}:{self._count}"
            await self._put(RateKey(turn, key.waiting[1:]), revision)
            self._turn.note(turn)
            return True
        if is_due and now >= max(self.next_at, self._first.since) + PATIENCE_SECONDS:
            await self._put(RateKey(key.turn, key.waiting[1:]), revision)
        elif self._relay not in key.waiting:
            await self._put(RateKey(key.turn, (*key.waiting, self._relay)), revision)
        else:
            wait = max(self.interval / _LOOKS, 0.01) if is_due else self.next_at - now
            await anyio.sleep(min(wait, POLL_SECONDS))
        return False

    async def _put(self, key: RateKey, revision: int) -> None:
        await self._engine.put(self._key, _encode(key), revision)
