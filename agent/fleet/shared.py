"""What the relays of a team agree on, in keys that are changed by compare-and-set: the pause, the rate, and who probes.

No relay goes by another one's clock. A key changes its revision with each use, and what a relay measures is for how long, on
its own steady clock, it has seen the same one: who takes the next turn has seen the last one's revision for the whole interval
between two, and who takes a lease over has seen it unused for longer than it holds. So clocks may differ as they like. Of a
pause the time of the next probe is the wall clock's of who wrote it: that is when others ask for the lease, no more.
"""

from collections.abc import Callable
from typing import Final

import anyio
import msgspec
import structlog

from agent.fleet import names
from agent.fleet.engine import ConflictError, Engine, EngineError, Entry
from agent.queue.cursor import Pause
from agent.runtime import Wakeup
from agent.throttle import Throttle

POLL_SECONDS = 1.0
RETRY_SECONDS = 1.0
LEASE_SECONDS = 90.0
LEASE_MARGIN = 30.0
"""So long before its end a lease is not used for a request any more."""

LOG_INTERVAL = 60.0
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


class _Seen:
    """The revision of a key, 0 for one that is not there, and since when it has been seen (steady clock)."""

    def __init__(self) -> None:
        self.revision = 0
        self.since = float("-inf")

    def note(self, entry: Entry | None) -> None:
        self.set(entry.revision if entry is not None else 0)

    def set(self, revision: int) -> None:
        if revision != self.revision:
            self.revision, self.since = revision, anyio.current_time()


class SharedTurns:
    """See `agent.delivery.turns.Turns`; keeps up with the others while `run` runs.

    `on_pause` is called with the pause that another relay has written, or None when another one has ended it; `unwritten` says
    that what was remembered last is not written down yet.
    """

    def __init__(self, engine: Engine, team: str, relay: str, requests_per_minute: int | None) -> None:
        self._engine = engine
        self._pause_key = names.pause_key(team)
        self._rate_key = names.rate_key(team)
        self._probe_key = names.probe_key(team)
        self._log = structlog.get_logger("agent.fleet")
        self._throttle = Throttle(LOG_INTERVAL)
        self._interval = 0.0
        self._known: Pause | None = None
        self._revision = 0  # of the key of the pause that is known
        self.unwritten = False
        self._writing = anyio.Lock()
        self._wakeup = Wakeup()
        self._rate = _Seen()
        self._taking = anyio.Lock()
        self._lease = _Seen()
        self._own_lease = 0
        self._closed = False
        self.relay = relay
        self.error: str | None = None
        self.on_pause: Callable[[Pause | None], None] = lambda _: None
        self.reconfigure(requests_per_minute)

    # The pause

    @property
    def pause(self) -> Pause | None:
        """The pause, as far as is known."""
        return self._known

    def remember(self, pause: Pause | None) -> None:
        """Write a pause down, or that it is over, soon; if others were faster, theirs counts."""
        self._known, self.unwritten = pause, True
        self._wakeup.set()

    async def load(self) -> None:
        """Return when it is known whether there is a pause."""
        while True:
            try:
                await self._look()
            except EngineError as error:
                await self._wait_after(error)
            else:
                return

    async def run(self) -> None:
        """Keep up with the others until cancelled."""
        while True:
            try:
                await self.write()
                await self._look()
                if self._interval:
                    self._rate.note(await self._engine.get(self._rate_key))
                self.error = None
            except EngineError as error:
                await self._wait_after(error)
            await self._wakeup.wait(POLL_SECONDS)

    async def _look(self) -> None:
        entry = await self._engine.get(self._pause_key)
        if not self.unwritten:
            self._follow(entry)

    def _follow(self, entry: Entry | None) -> None:
        """Take over what the key says, if somebody has changed it."""
        revision = entry.revision if entry is not None else 0
        if revision != self._revision:
            self._revision = revision
            self._known = decode_pause(entry.value) if entry is not None else None
            self.on_pause(self._known)

    async def write(self) -> None:
        """Write down what is to be remembered. Raises EngineError."""
        async with self._writing:
            while self.unwritten:
                wanted = self._known
                value = encode_pause(wanted, self.relay) if wanted is not None else None
                try:
                    revision = await self._set(value)
                except ConflictError:
                    entry = await self._engine.get(self._pause_key)
                    if self._known is not wanted:
                        continue
                    if entry is None and value is not None:  # somebody has ended the pause before
                        self._revision = 0
                    elif entry is not None and entry.value == value:  # it was written, and the answer was lost
                        self._revision, self.unwritten = entry.revision, False
                    else:
                        self.unwritten = False
                        self._follow(entry)
                else:
                    self._revision = revision
                    self.unwritten = self._known is not wanted

    async def _set(self, value: bytes | None) -> int:
        if value is not None:
            return await self._engine.put(self._pause_key, value, self._revision)
        if self._revision:
            await self._engine.delete(self._pause_key, self._revision)
        return 0

    # Turns

    @property
    def next_at(self) -> float:
        """See `Turns`."""
        return self._rate.since + self._interval if self._interval and self._rate.revision else float("-inf")

    def reconfigure(self, requests_per_minute: int | None) -> None:
        """See `Turns`."""
        self._interval = 60 / requests_per_minute if requests_per_minute is not None else 0.0

    def note_begun(self) -> None:
        """See `Turns`: what counts is the turn that is taken."""

    def close(self) -> None:
        """Let nobody wait for a turn any more."""
        self._closed = True

    async def take(self, *, probing: bool) -> bool:
        """See `Turns`. While the engine does not answer nobody has a turn."""
        while not self._closed:
            try:
                if self._interval and not await self._take_turn():
                    return False
                return await self._may_begin(probing=probing)
            except ConflictError:
                continue
            except EngineError as error:
                await self._wait_after(error)
        return False

    async def _take_turn(self) -> bool:
        """Return when the next request may begin; False if there will be none. Raises EngineError."""
        async with self._taking:
            while not self._closed:
                if self._known is not None and self.unwritten:
                    return False
                self._rate.note(await self._engine.get(self._rate_key))
                wait = self.next_at - anyio.current_time()
                if wait <= 0:
                    value, revision = self.relay.encode(), self._rate.revision
                    self._rate.set(await self._engine.put(self._rate_key, value, revision))
                    return True
                await anyio.sleep(min(wait, POLL_SECONDS))
        return False

    async def _may_begin(self, *, probing: bool) -> bool:
        """Whether there is no pause but that which is probed. Raises EngineError."""
        if self.unwritten:
            return self._known is None and not probing
        entry = await self._engine.get(self._pause_key)
        if self.unwritten:
            return False
        revision = self._revision
        self._follow(entry)
        if not probing:
            return entry is None
        return entry is not None and entry.revision == revision and self._has_lease

    # Probes

    @property
    def _has_lease(self) -> bool:
        used = anyio.current_time() - self._lease.since
        return self._own_lease != 0 and self._own_lease == self._lease.revision and used < LEASE_SECONDS - LEASE_MARGIN

    async def may_probe(self) -> float:
        """See `Turns`."""
        try:
            if self.unwritten:
                return POLL_SECONDS
            entry = await self._engine.get(self._probe_key)
            self._lease.note(entry)
            if entry is not None and anyio.current_time() - self._lease.since < LEASE_SECONDS:
                return POLL_SECONDS
            self._own_lease = await self._engine.put(self._probe_key, self.relay.encode(), self._lease.revision)
            self._lease.set(self._own_lease)
            # Only now: who had the lease before has written down first what came of it.
            before = self._revision
            await self._look()
            if self._revision != before or self.unwritten:
                await self.end_probe()
                return POLL_SECONDS
        except EngineError as error:
            self._note_error(error)
            return RETRY_SECONDS
        return 0.0

    async def end_probe(self) -> None:
        """See `Turns`. What cannot be given back is taken over by others later."""
        try:
            await self.write()
            if self._own_lease:
                await self._engine.delete(self._probe_key, self._own_lease)
        except EngineError as error:
            self._note_error(error)
        self._own_lease = 0

    async def _wait_after(self, error: EngineError) -> None:
        self._note_error(error)
        await anyio.sleep(RETRY_SECONDS)

    def _note_error(self, error: EngineError) -> None:
        self.error = str(error)
        held_back = self._throttle.allow("relays_not_reached", anyio.current_time())
        if held_back is not None:
            self._log.warning("relays_not_reached", error=self.error, suppressed=held_back)
