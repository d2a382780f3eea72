"""The dead-letter log: events that the API refused one by one, with its reason, in the queue's own file format.

It knows what is kept of a refused event. It must never know why an event was refused, or the queue it came from.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.events import Context, Event, decode_event
from agent.queue import segment
from agent.queue.filesystem import Filesystem
from agent.queue.log import Entry, Log
from agent.queue.quarantine import Quarantine


class DeadLetter(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A refused event: its number in the queue, when it was refused (seconds since the epoch), what the API said, and its line.

    A number can come twice: a crash between this log and the cursor has the event refused again. The last one counts.
    """

    seq: int
    rejected_at: float
    status: int | None
    message: str
    context: Context
    line: bytes

    @property
    def event(self) -> Event:
        """The event. Raises msgspec.DecodeError or UnicodeDecodeError if something else wrote the line."""
        return decode_event(self.line)


encode_dead_letter = msgspec.msgpack.Encoder().encode
decode_dead_letter = msgspec.msgpack.Decoder(DeadLetter).decode


@dataclass
class DeadLetters:
    """The log in `directory`, opened at the first letter; beyond `max_bytes` the oldest letters are `discarded`."""

    fs: Filesystem
    directory: Path
    segment_bytes: int
    max_bytes: int
    discarded: int = 0
    _log: Log | None = None

    def append(self, letter: DeadLetter, now: float) -> None:
        """Keep `letter`; it is durable on return. Raises StorageError: the event must then stay in the queue."""
        log = self._open()
        excess = log.view.size - self.max_bytes
        if excess > 0:
            before = log.view.segments[0].first_seq
            log.delete_before(segment.overflow_before(log.view.segments, excess))
            self.discarded += log.view.segments[0].first_seq - before
        log.append([Entry(1, encode_dead_letter(letter))], now)

    def close(self) -> None:
        """Close the files."""
        if self._log is not None:
            self._log.seal()

    def _open(self) -> Log:
        if self._log is None:
            quarantine = Quarantine(self.fs, self.directory / "quarantine")
            self._log = Log.recover(self.fs, self.directory, quarantine, segment_bytes=self.segment_bytes)
        return self._log
