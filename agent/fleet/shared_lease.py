"""Who of the relays of a team probes: a key that one of them has for a while, and gives back."""

from typing import Final

import anyio

from agent.fleet.engine import ConflictError, Engine
from agent.fleet.sighting import Sighting

LEASE_SECONDS: Final = 90.0
LEASE_MARGIN: Final = 30.0
"""So long before its end a lease is not used for a request any more."""


class Lease:
    """A lease is another one's until this relay has seen it unused for longer than it holds."""

    def __init__(self, engine: Engine, key: str, relay: str) -> None:
        self._engine = engine
        self._key = key
        self._relay = relay
        self._revision = Sighting(0)
        self._own = 0

    @property
    def is_ours(self) -> bool:
        """Whether a request may be begun under it."""
        used = anyio.current_time() - self._revision.since
        return self._own != 0 and self._own == self._revision.value and used < LEASE_SECONDS - LEASE_MARGIN

    async def take(self) -> bool:
        """Take it, if nobody has it. Raises EngineError."""
        entry = await self._engine.get(self._key)
        self._revision.note(entry.revision if entry is not None else 0)
        if entry is not None and anyio.current_time() - self._revision.since < LEASE_SECONDS:
            return False
        try:
            self._own = await self._engine.put(self._key, self._relay.encode(), self._revision.value)
        except ConflictError:
            return False
        self._revision.note(self._own)
        return True

    async def give_back(self) -> None:
        """Let others take it. Raises EngineError: then they take it over later."""
        own, self._own = self._own, 0
        if own:
            await self._engine.delete(self._key, own)
