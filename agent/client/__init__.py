"""Fire-and-forget usage events for build tools: `emit("HIT", "LOCAL", "115c7929ab9c479c", duration=514)`.

It needs nothing but the standard library, and nothing else of `agent`: a build tool may copy this directory. Its promises:

- **Nothing is raised.** A bad value, a missing daemon, a full buffer: the event counts as unsent and the call returns
  False. (Only a call that does not match the signature is a TypeError, as everywhere in Python.)
- **Nothing blocks.** Connecting and sending are non-blocking, and no lock is held over anything slower. After a failed
  attempt to connect the next waits for `RETRY_SECONDS`; until then an event costs a microsecond or two.
- **A line is whole or the last of its connection.** When the kernel takes only a part of a line, the connection is
  closed: the daemon refuses that piece alone, as an unterminated last line, and the event counts as unsent. So there is
  no tail to keep, and it is rare: up to about 36 KiB, Linux takes a write to a Unix stream whole or not at all.
- **Where a crowd waits** to be accepted, so that nobody can connect at once, events go to the datagram socket beside the
  stream socket, if they have their usual names: `events.sock` and `datagram.sock`.
- **Threads, forks, event loops.** Use it from any of them, also while the interpreter ends. A forked child gets a connection
  of its own and counts from zero, but keeps the session: workers belong to the run that forked them.
- **Other descriptors are never touched**, even if a program closes all descriptors and their numbers are used again.

True means that the kernel holds the line for the daemon, not that it is on disk: if the daemon is killed before it reads the
line, the event is lost. So there is nothing to flush at exit; the connection is just closed.

It runs in processes that live for milliseconds and so imports little: not `typing`, `json`, `uuid`, `weakref` or
`threading`, and of `socket` only the C half.
"""

from __future__ import annotations

import os

from .channel import Channel
from .ci import CI_VENDORS, detect_ci, detect_interactive, detect_job
from .connection import find_socket
from .lines import MAX_LINE_BYTES, encode_context, encode_event, is_destination

TYPE_CHECKING = False  # type checkers take the name for true; importing it from typing costs 9 ms
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Final, Literal, NotRequired, Self, TypedDict

    from .channel import Reason

    EventName = Literal["HIT", "MISS"]
    SourceName = Literal["LOCAL", "REMOTE"]

    class EventFields(TypedDict):
        """The arguments of `emit`, as `emit_many` takes them; like all these names, for type checkers only."""

        event: EventName
        source: SourceName
        hash: str
        session_id: NotRequired[str | None]
        duration: NotRequired[float | None]


__all__ = [
    "CI_VENDORS",
    "DETECT",
    "MAX_LINE_BYTES",
    "EventClient",
    "detect_ci",
    "detect_interactive",
    "detect_job",
    "emit",
    "find_socket",
]

# A write of this size is still taken whole or not at all, and more would save nothing.
_BLOCK_BYTES: Final = 32 * 1024


class _Detect:
    """The type of `DETECT`: find the value out from the environment."""

    def __repr__(self) -> str:
        return "DETECT"


DETECT: Final = _Detect()


class EventClient:
    """A connection to the daemon, made when the first event needs it and made anew when it breaks.

    `socket_path` is what `find_socket` says at each attempt to connect, unless given. `ci` (at most 50 printable ASCII
    characters) and `interactive` (0 or 1) say where the events come from, and `job` (at most 200) is a label for reports,
    which the API does not get: detected unless given, left out if None or not valid. `session_id` is the session of
    events that name none: a new UUIDv4 unless given. `destination` is which of the daemon's destinations the events are for,
    if not the one that its rules give; with a value that can be no destination's name, all events are "invalid".

        with EventClient(session_id=run_id) as client:
            client.emit("HIT", "REMOTE", artifact_hash, duration=514)
    """

    __slots__ = ("_channel", "_has_way", "_session_id")

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        ci: str | _Detect | None = DETECT,
        interactive: Literal[0, 1] | _Detect | None = DETECT,
        job: str | _Detect | None = DETECT,
        session_id: str | None = None,
        destination: str | None = None,
    ) -> None:
        self._channel = Channel(socket_path, lambda: _context_line(ci, interactive, job, destination))
        # To leave a bad name out would send the events to another account.
        self._has_way = destination is None or is_destination(destination)
        self._session_id = _new_session_id() if session_id is None else session_id

    def emit(
        self,
        event: EventName,
        source: SourceName,
        hash: str,  # noqa: A002 -- the API's name for it
        session_id: str | None = None,
        duration: float | None = None,
    ) -> bool:
        """Send one usage event; return whether the kernel has taken it. Never blocks, and raises nothing for any value.

        `event`: "HIT" if the artifact was in the cache, else "MISS". `source`: "LOCAL", the file system's cache, or
        "REMOTE". `hash`: the artifact's hash. `session_id`: a UUID for the run of the build, by default the client's.
        `duration`: the milliseconds that a hit saved, which is how long building the artifact took; 0 on a miss. An integer;
        left out if None.
        """
        line = self._line(event, source, hash, session_id, duration)
        return line is not None and self._channel.put(line, 1) == 1

    def emit_many(self, events: Iterable[EventFields]) -> int:
        """Send events given as dicts of `emit`'s arguments; return how many the kernel has taken.

        Many lines go out in one write, so this costs less than as many calls of `emit`. An exception that the iterable
        raises is the caller's and passes through; what it gave before is sent.
        """
        block, lines, sent = bytearray(), 0, 0
        try:
            for fields in self._iterate(events):
                line = self._line_of(fields)
                if line is None:
                    continue
                if lines and len(block) + len(line) > _BLOCK_BYTES:
                    sent += self._channel.put(block, lines)
                    block, lines = bytearray(), 0
                block += line
                lines += 1
        finally:
            if lines:
                sent += self._channel.put(block, lines)
        return sent

    def close(self) -> None:
        """Close the connection for good: later events count as unsent. There is nothing to flush."""
        self._channel.close()

    @property
    def session_id(self) -> str:
        """The session of events that name none."""
        return self._session_id

    @property
    def sent(self) -> int:
        """How many events the kernel has taken from this process."""
        return self._channel.sent

    @property
    def unsent(self) -> int:
        """How many events of this process were not sent, for whatever reason."""
        return sum(self._channel.unsent.values())

    @property
    def unsent_by_reason(self) -> dict[Reason, int]:
        """How many events were not sent, for each reason that occurred.

        "invalid": a value that the API does not allow. "too_large": a line above `MAX_LINE_BYTES`. "disabled": the path
        of the socket is empty. "closed": after `close`. "absent": no socket, or nobody listening. "denied": permission.
        "full": the daemon does not keep up, or is stopped. "failed": any other error of the operating system.
        "reentrant": by a signal handler or finalizer that interrupted this very client in sending.
        """
        return {reason: count for reason, count in self._channel.unsent.copy().items() if count}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _iterate(self, events: Iterable[EventFields]) -> Iterable[EventFields]:
        try:
            return iter(events)
        except TypeError:
            self._channel.refuse("invalid")
            return ()

    def _line_of(self, fields: EventFields) -> bytes | None:
        try:
            return self._line(**fields)
        except TypeError:  # not a dict, or not emit's arguments: what is wrong with the values, _line has dealt with
            self._channel.refuse("invalid")
            return None

    def _line(
        self,
        event: str,
        source: str,
        hash: str,  # noqa: A002 -- the API's name for it
        session_id: str | None = None,
        duration: float | None = None,
    ) -> bytes | None:
        if not self._has_way:
            self._channel.refuse("invalid")
            return None
        try:
            line = encode_event(self._session_id if session_id is None else session_id, source, event, hash, duration)
        except (KeyError, TypeError, ValueError):
            self._channel.refuse("invalid")
            return None
        if len(line) - 1 > MAX_LINE_BYTES:
            self._channel.refuse("too_large")
            return None
        return line


def _context_line(
    ci: str | _Detect | None, interactive: int | _Detect | None, job: str | _Detect | None, destination: str | None
) -> bytes:
    if isinstance(ci, _Detect):
        ci = detect_ci(os.environ)
    if isinstance(interactive, _Detect):
        interactive = detect_interactive(os.environ, ci)
    if isinstance(job, _Detect):
        job = detect_job(os.environ)
    return encode_context(ci, interactive, job, destination)


def _new_session_id() -> str:
    """Return a UUIDv4; importing `uuid` would cost 8 ms."""
    digits = f"{int.from_bytes(os.urandom(16), 'big') & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


emit = EventClient().emit
