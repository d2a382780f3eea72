"""Reads the ledger stream of a team into its accounts, from a snapshot on, and keeps snapshots for those who start later."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import structlog

from agent.fleet import names
from agent.fleet.accounting import FleetLedger
from agent.fleet.engine import Engine, EngineError, Message, Reader, StreamState
from agent.fleet.records import decode_record
from agent.runtime import Broadcast
from agent.throttle import Throttle

READ_RECORDS = 500
READ_SECONDS = 5.0
RETRY_SECONDS = 1.0
SNAPSHOT_RECORDS = 20_000
SNAPSHOT_SECONDS = 86400.0
"""Of the stream's time: well before the stream forgets its records, however few there are."""

LOG_INTERVAL = 60.0


def snapshot_name(team: str) -> str:
    """Return the name of the snapshot of a team's accounts."""
    return f"ledger-{team}"


class LedgerFollower:
    """The accounts of a team, kept up with the stream while `run` runs. `error` says why they cannot be, just now.

    All waits end when the engine answers again: nothing here raises for what it does.
    """

    def __init__(self, engine: Engine, team: str) -> None:
        self._engine = engine
        self._team = team
        self._subject = names.ledger_subject(team)
        self._log = structlog.get_logger("agent.fleet")
        self._throttle = Throttle(LOG_INTERVAL)
        self._begun = 0  # how often the stream was found to be another one
        self._saved_at = 0  # records
        self._unsaved_since: float | None = None  # when the stream took the first record that no snapshot has
        self.ledger = FleetLedger()
        self.changed = Broadcast()
        self.error: str | None = None

    async def load(self) -> None:
        """Begin with the snapshot, or at the beginning of the stream if there is none that can be used."""
        while True:
            try:
                data = await self._engine.load(snapshot_name(self._team))
                found = FleetLedger.decode(data) if data is not None else None
                if data is not None and found is None:
                    self._log.warning("ledger_snapshot_unusable", hint="the ledger is read from its beginning")
                stream = await self._engine.stream_state(names.LEDGER)
            except EngineError as error:
                await self._wait_after(error)
            else:
                self.error = None
                if found is not None:
                    self.ledger, self._saved_at = found, found.records
                self._begin(stream)
                if self.ledger.seq + 1 < stream.first_seq:  # they were too old, and no snapshot has them
                    facts = {"first": self.ledger.seq + 1, "last": stream.first_seq - 1}
                    self._log.warning("ledger_records_gone", **facts, hint="sums are those of what came since")
                return

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            reader, begun = self._engine.reader(names.LEDGER, self._subject, self.ledger.seq), self._begun
            while begun == self._begun:
                await self._fold(await self._read(reader), begun)
            await reader.aclose()
            await self._save()  # for those who start later, and cannot read what was read here

    async def _read(self, reader: Reader) -> Sequence[Message]:
        try:
            found = await reader.read(READ_RECORDS, READ_SECONDS)
            if not found:
                await self._check_stream()
        except EngineError as error:
            await self._wait_after(error)
            return []
        self.error = None
        return found

    async def _fold(self, found: Sequence[Message], begun: int) -> None:
        for message in found:
            if begun != self._begun:  # it is of a stream that is gone
                return
            self.ledger.apply(decode_record(message.body), message.seq, message.kept_at)
            await anyio.lowlevel.checkpoint()  # a record may have a thousand gaps: others have a turn
        if found:
            if self._unsaved_since is None:
                self._unsaved_since = found[0].kept_at
            self.changed.notify_all()
            await self._save_if_due(found[-1].kept_at)

    async def _check_stream(self) -> None:
        """Find out whether the stream was made anew, so that a reader of the old one waits in vain. Raises EngineError."""
        self._begin(await self._engine.stream_state(names.LEDGER))

    def _begin(self, stream: StreamState) -> None:
        if self.ledger.begin(stream):
            self._begun += 1
            self._log.warning("ledger_made_anew", records=self.ledger.records, hint="what was settled before stays so")
            self.changed.notify_all()

    async def catch_up(self) -> None:
        """Return when all that the stream had at the time of the call has been read."""
        while True:
            last, begun = await self._last_seq(), self._begun
            while begun == self._begun:
                if self.ledger.seq >= last:
                    return
                await self.changed.wait()

    async def _last_seq(self) -> int:
        """Return the number of the stream's last record of the team."""
        while True:
            try:
                last = await self._engine.last_seq(names.LEDGER, self._subject)
                if last < self.ledger.seq:  # they are gone for their age, or with the stream
                    await self._check_stream()
            except EngineError as error:
                await self._wait_after(error)
            else:
                return last

    async def save(self) -> None:
        """Keep a snapshot. Raises EngineError."""
        await self._engine.save(snapshot_name(self._team), self.ledger.encode())
        self._saved_at, self._unsaved_since = self.ledger.records, None

    async def _save_if_due(self, now: float) -> None:
        waited = now - self._unsaved_since if self._unsaved_since is not None else 0.0
        if self.ledger.records - self._saved_at >= SNAPSHOT_RECORDS or waited >= SNAPSHOT_SECONDS:
            await self._save()

    async def _save(self) -> None:
        try:
            await self.save()
        except EngineError as error:
            self._saved_at, self._unsaved_since = self.ledger.records, None  # not before so many more
            self._complain("ledger_snapshot_not_kept", error)

    async def _wait_after(self, error: EngineError) -> None:
        self.error = str(error)
        self._complain("ledger_unreadable", error)
        await anyio.sleep(RETRY_SECONDS)

    def _complain(self, event: str, error: EngineError) -> None:
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.warning(event, error=str(error), suppressed=held_back)
