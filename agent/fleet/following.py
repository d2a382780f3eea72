"""Reads the ledger stream of a team into its accounts, from a snapshot on, and keeps snapshots for those who start later.

The stream, which all teams share, drops its oldest records when they are old, or it is full: a team's are in a snapshot by then.
"""

import math
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
LOOK_SECONDS = 5.0

SNAPSHOT_RECORDS = 20_000
"""So many records of the team, and there is another snapshot: who starts does not read long."""

SNAPSHOT_SHARE = 1 / 8
"""Of what the stream holds of all teams, or may hold: no snapshot is as far behind, so that what is dropped is in one."""

SNAPSHOT_SECONDS = 300.0
"""A team that does nothing has a snapshot after so long. While the stream is not half full the share, too, waits for it."""

SAVE_AGAIN_SECONDS = 30.0

RECORD_BYTES = 128
"""About what the stream keeps of a record beside its body."""

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
        self._stream = StreamState(0, 0, 0, 0, "")  # as it was at the last look
        self._look_at = 0.0
        # The last snapshot: how far it goes, its records, and when it was saved; the bytes that were read since.
        self._saved_seq = self._saved_records = self._unsaved_bytes = 0
        self._saved_at = self._save_again_at = 0.0
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
                has_records = await self._last_seq_now() > 0
            except EngineError as error:
                await self._wait_after(error)
            else:
                self.error = None
                if found is not None:
                    self.ledger = found
                self._begin(stream)
                self._note_saved(self.ledger.passed, self.ledger.records)
                if found is None:
                    self._saved_at = -math.inf  # there is to be one soon
                # Without a snapshot and records it is a new team, which has missed nothing.
                if self.ledger.passed + 1 < stream.first_seq and (found is not None or has_records):
                    facts = {"first": self.ledger.passed + 1, "last": stream.first_seq - 1}
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
            if anyio.current_time() >= self._look_at:
                await self._look()
            found = await reader.read(READ_RECORDS, READ_SECONDS)
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
            self._unsaved_bytes += len(message.body) + RECORD_BYTES
        if found:
            self.changed.notify_all()
        if self._is_save_due(idle=not found):
            await self._save()

    async def _look(self) -> None:
        """Find out what the stream holds, and whether it was made anew, so that a reader waits in vain. Raises EngineError."""
        stream = await self._engine.stream_state(names.LEDGER)
        self._begin(stream)
        # Behind that: if all of the team is read, what else there is up to then is of other teams.
        last = await self._last_seq_now() if self.ledger.seq < stream.last_seq else 0
        if last <= self.ledger.seq and self._stream is stream:
            self.ledger.passed = max(self.ledger.passed, stream.last_seq)
        self._look_at = anyio.current_time() + LOOK_SECONDS

    async def _last_seq_now(self) -> int:
        return await self._engine.last_seq(names.LEDGER, self._subject)

    def _begin(self, stream: StreamState) -> None:
        self._stream = stream
        if self.ledger.begin(stream):
            self._begun += 1
            self._saved_seq = 0
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
                last = await self._last_seq_now()
                if last < self.ledger.seq:  # they are gone, maybe with the stream
                    await self._look()
            except EngineError as error:
                await self._wait_after(error)
            else:
                return last

    async def save(self) -> None:
        """Keep a snapshot. Raises EngineError."""
        passed, records = self.ledger.passed, self.ledger.records
        await self._engine.save(snapshot_name(self._team), self.ledger.encode())
        self._note_saved(passed, records)

    def _note_saved(self, passed: int, records: int) -> None:
        self._saved_seq, self._saved_records, self._unsaved_bytes = passed, records, 0
        self._saved_at = anyio.current_time()

    def _is_save_due(self, *, idle: bool) -> bool:
        now, stream, records = anyio.current_time(), self._stream, self.ledger.records - self._saved_records
        if now < self._save_again_at:
            return False
        if records >= SNAPSHOT_RECORDS or self._unsaved_bytes > SNAPSHOT_SHARE * (stream.max_bytes or math.inf):
            return True
        is_behind = self.ledger.passed - self._saved_seq > SNAPSHOT_SHARE * (stream.last_seq - stream.first_seq + 1)
        if is_behind and 0 < stream.max_bytes < 2 * stream.bytes:
            return True
        return (is_behind or (idle and records > 0)) and now - self._saved_at >= SNAPSHOT_SECONDS

    async def _save(self) -> None:
        try:
            await self.save()
        except EngineError as error:
            self._save_again_at = anyio.current_time() + SAVE_AGAIN_SECONDS
            self._complain("ledger_snapshot_not_kept", error)

    async def _wait_after(self, error: EngineError) -> None:
        self.error = str(error)
        self._complain("ledger_unreadable", error)
        await anyio.sleep(RETRY_SECONDS)

    def _complain(self, event: str, error: EngineError) -> None:
        held_back = self._throttle.allow(event, anyio.current_time())
        if held_back is not None:
            self._log.warning(event, error=str(error), suppressed=held_back)
