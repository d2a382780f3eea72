"""The pause that the relays of a team share: a key that is changed by compare-and-set, so that nobody undoes what others did."""

from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from agent.fleet.engine import ConflictError, Engine, Entry
from agent.queue.cursor import Pause

_NEVER: Final = float("inf")


class PauseKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of the key of a pause: see `Pause`; `probe_at` None is never, `relay` wrote it."""

    reason: str
    message: str
    since: float
    probe_at: float | None
    probes: int
    relay: str = ""

    @property
    def pause(self) -> Pause:
        """The pause."""
        until = self.probe_at if self.probe_at is not None else _NEVER
        return Pause(self.reason, self.message, self.since, until, self.probes)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(PauseKey).decode


def encode_pause(pause: Pause, relay: str) -> bytes:
    """Return the value of the key of a pause."""
    probe_at = pause.probe_at if pause.probe_at != _NEVER else None
    return _encode(PauseKey(pause.reason, pause.message, pause.since, probe_at, pause.probes, relay))


def decode_pause(value: bytes) -> Pause:
    """Return the pause that a key holds; one that cannot be read is a pause all the same."""
    try:
        return _decode(value).pause
    except ValueError:  # msgspec's errors are ValueErrors
        return Pause("blocked", "the key of the pause cannot be read", 0.0, 0.0, 1)


class SharedPause:
    """The pause as far as it is `known`; it is `unwritten` while the key does not say yet what this relay has found out.

    `on_change` is called with the pause that another relay has written, or None when another one has ended it.
    """

    def __init__(self, engine: Engine, key: str, relay: str) -> None:
        self._engine = engine
        self._key = key
        self._relay = relay
        self._revision = 0  # of the key, when it said what is known
        self._writing = anyio.Lock()
        self.known: Pause | None = None
        self.unwritten = False
        self.on_change: Callable[[Pause | None], None] = lambda _: None

    def remember(self, pause: Pause | None) -> None:
        """Know from now on that there is a pause, or none, and have `write` write it down."""
        self.known, self.unwritten = pause, True

    async def look(self) -> bool:
        """Follow what others have written, unless there is something to write; tell whether that is new. Raises EngineError."""
        before = self._revision
        entry = await self._engine.get(self._key)
        if not self.unwritten:
            self._follow(entry)
        return self._revision != before

    async def write(self) -> None:
        """Write down what is to be remembered; if others were faster, theirs counts. Raises EngineError."""
        async with self._writing:
            while self.unwritten:
                wanted = self.known
                value = encode_pause(wanted, self._relay) if wanted is not None else None
                try:
                    revision = await self._set(value)
                except ConflictError:
                    entry = await self._engine.get(self._key)
                    if self.known is wanted:
                        self._resolve(value, entry)
                else:
                    self._revision = revision
                    self.unwritten = self.known is not wanted

    async def _set(self, value: bytes | None) -> int:
        if value is not None:
            return await self._engine.put(self._key, value, self._revision)
        if self._revision:
            await self._engine.delete(self._key, self._revision)
        return 0

    def _resolve(self, value: bytes | None, entry: Entry | None) -> None:
        """Go on from what the key says instead of what was to be replaced by `value`."""
        if entry is None and value is not None:  # somebody has ended the pause before: this is a new one
            self._revision = 0
        elif entry is not None and entry.value == value:  # it was written, and the answer was lost
            self._revision, self.unwritten = entry.revision, False
        else:
            self.unwritten = False
            self._follow(entry)

    def _follow(self, entry: Entry | None) -> None:
        """Take over what the key says, if somebody has changed it."""
        revision = entry.revision if entry is not None else 0
        if revision != self._revision:
            self._revision = revision
            self.known = decode_pause(entry.value) if entry is not None else None
            self.on_change(self.known)
