"""Fire-and-forget usage events for build tools: `emit("HIT", "LOCAL", "115c7929ab9c479c", duration=514)`.

It knows the daemon's stream socket and the lines it reads. It must never know the rest of the package, nor anything
outside the standard library: a build tool may copy this file. What it promises:

- **Nothing is raised.** A bad value, a missing daemon, a full buffer: the event counts as unsent and the call returns
  False. (Only a call that does not match the signature is a TypeError, as everywhere in Python.)
- **Nothing blocks.** Connecting and sending are non-blocking, and no lock is held over anything slower. After a failed
  attempt to connect the next waits for `RETRY_SECONDS`; until then an event costs a microsecond or two.
- **A line is whole or the last of its connection.** When the kernel takes only a part of a line, the connection is
  closed: the daemon refuses that piece alone, as an unterminated last line, and the event counts as unsent. So there is
  no tail to keep, and it is rare: up to about 36 KiB, Linux takes a write to a Unix stream whole or not at all.
- **Threads, forks, event loops.** Use it from any of them. A forked child gets a connection of its own and counts from
  zero, but keeps the session: workers belong to the run that forked them.

True means that the kernel holds the line for the daemon, not that it is on disk: a daemon killed before it reads the
line loses it. So there is nothing to flush at exit; the connection is just closed.

It runs in processes that live for milliseconds and so imports little: not `typing`, `json`, `uuid` or `threading`, and
of `socket` only the C half.
"""

from __future__ import annotations

import _socket  # `socket` adds nothing needed here but 8 ms of imports; the methods used are the documented ones
import atexit
import os
from _thread import RLock
from math import isfinite
from time import monotonic
from weakref import WeakSet

TYPE_CHECKING = False  # type checkers take the name for true; importing it from typing costs 9 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Final, Literal, NotRequired, Self, TypedDict, TypeGuard, TypeVar

    Kind = TypeVar("Kind")

    EventName = Literal["HIT", "MISS"]
    SourceName = Literal["LOCAL", "REMOTE"]
    Reason = Literal["invalid", "too_large", "disabled", "closed", "absent", "denied", "full", "failed", "reentrant"]

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
    "emit",
    "find_socket",
]

MAX_LINE_BYTES: Final = 64 * 1024
RETRY_SECONDS: Final = 0.1

# A write of this size is still taken whole or not at all, and more would save nothing.
_BLOCK_BYTES: Final = 32 * 1024
# A burst has to fit while the daemon is not scheduled, and an event sent alone takes some 768 bytes of the buffer: of the
# usual default it fills 278 such. The kernel grants what `net.core.wmem_max` allows, and for 1 MiB then takes 2731.
_SEND_BUFFER_BYTES: Final = 1024 * 1024
_FLAGS: Final = _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT

# Turbo's names for CI systems, in its order (crates/turborepo-ci/src/vendors.rs), and the variables that tell: A|B is
# any of them, A+B all of them, A==text a value. Empty counts as unset.
CI_VENDORS: Final = (
    ("APPCIRCLE", "AC_APPCIRCLE"),
    ("APPVEYOR", "APPVEYOR"),
    ("CODEBUILD", "CODEBUILD_BUILD_ARN"),
    ("AZURE_PIPELINES", "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI"),
    ("BAMBOO", "bamboo_planKey"),
    ("BITBUCKET", "BITBUCKET_COMMIT"),
    ("BITRISE", "BITRISE_IO"),
    ("BUDDY", "BUDDY_WORKSPACE_ID"),
    ("BUILDKITE", "BUILDKITE"),
    ("CIRCLE", "CIRCLECI"),
    ("CIRRUS", "CIRRUS_CI"),
    ("CODEFRESH", "CF_BUILD_ID"),
    ("CODEMAGIC", "CM_BUILD_ID"),
    ("CODESHIP", "CI_NAME==codeship"),
    ("DRONE", "DRONE"),
    ("DSARI", "DSARI"),
    ("EAS", "EAS_BUILD"),
    ("GITHUB_ACTIONS", "GITHUB_ACTIONS"),
    ("GITLAB", "GITLAB_CI"),
    ("GOCD", "GO_PIPELINE_LABEL"),
    ("GOOGLE_CLOUD_BUILD", "BUILDER_OUTPUT"),
    ("LAYERCI", "LAYERCI"),
    ("GERRIT", "GERRIT_PROJECT"),
    ("HUDSON", "HUDSON"),
    ("JENKINS", "JENKINS_URL+BUILD_ID"),
    ("MAGNUM", "MAGNUM"),
    ("NETLIFY", "NETLIFY"),
    ("NEVERCODE", "NEVERCODE"),
    ("RELEASEHUB", "RELEASE_BUILD_ID"),
    ("RENDER", "RENDER"),
    ("SAIL", "SAILCI"),
    ("SCREWDRIVER", "SCREWDRIVER"),
    ("SEMAPHORE", "SEMAPHORE"),
    ("SHIPPABLE", "SHIPPABLE"),
    ("SOLANO", "TDDIUM"),
    ("SOURCEHUT", "CI_NAME==sourcehut"),
    ("STRIDER", "STRIDER"),
    ("TASKCLUSTER", "TASK_ID|RUN_ID"),
    ("TEAMCITY", "TEAMCITY_VERSION"),
    ("TRAVIS", "TRAVIS"),
    ("VERCEL", "NOW_BUILDER|VERCEL"),
    ("APPCENTER", "APPCENTER"),
    ("WOODPECKER", "CI==woodpecker"),
    ("XCODE_CLOUD", "CI_XCODE_PROJECT"),
    ("XCODE_SERVER", "XCS"),
)

# What turbo takes for some CI system, whichever.
_ANY_CI: Final = "|".join(
    (
        *("BUILD_ID", "BUILD_NUMBER", "CI", "CI_APP_ID", "CI_BUILD_ID", "CI_BUILD_NUMBER"),
        *("CI_NAME", "CONTINUOUS_INTEGRATION", "RUN_ID", "TEAMCITY_VERSION"),
    )
)


class _Detect:
    """The type of `DETECT`: find the value out from the environment."""

    def __repr__(self) -> str:
        return "DETECT"


DETECT: Final = _Detect()


def detect_ci(environ: Mapping[str, str]) -> str | None:
    """Return turbo's name of the CI system that an environment shows, or None."""
    return next((name for name, rule in CI_VENDORS if _matches(rule, environ)), None)


def detect_interactive(environ: Mapping[str, str], ci: str | None) -> Literal[0, 1]:
    """Return 1 if standard output is a terminal and neither `ci` nor the environment speaks of a CI system, else 0."""
    return 1 if ci is None and not _matches(_ANY_CI, environ) and os.isatty(1) else 0


def find_socket(environ: Mapping[str, str]) -> str:
    """Return the path of the daemon's stream socket; if `ARTIFACTS_AGENT_SOCKET` is empty, so is this.

    It is `ARTIFACTS_AGENT_SOCKET`, else the user's daemon's below `XDG_RUNTIME_DIR` if that exists, else the system's.
    Empty means that sending is disabled.
    """
    explicit = environ.get("ARTIFACTS_AGENT_SOCKET")
    if explicit is not None:
        return explicit
    runtime = environ.get("XDG_RUNTIME_DIR")
    own = f"{runtime}/artifacts-agent/events.sock"
    return own if runtime and os.access(own, os.F_OK) else "/run/artifacts-agent/events.sock"


def _matches(rule: str, environ: Mapping[str, str]) -> bool:
    return any(all(_holds(term, environ) for term in terms.split("+")) for terms in rule.split("|"))


def _holds(term: str, environ: Mapping[str, str]) -> bool:
    name, _, wanted = term.partition("==")
    value = environ.get(name)
    return value == wanted if wanted else bool(value)


class EventClient:
    """A connection to the daemon, made when the first event needs it and made anew when it breaks.

    `socket_path` is what `find_socket` says at each attempt to connect, unless given. `ci` (at most 50 printable ASCII
    characters) and `interactive` (0 or 1) say where the events come from: detected unless given, left out if None or
    not valid. `session_id` is the session of events that name none: a new UUIDv4 unless given.

        with EventClient(session_id=run_id) as client:
            client.emit("HIT", "REMOTE", artifact_hash, duration=514)
    """

    __slots__ = ("_channel", "_session_id")

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        ci: str | _Detect | None = DETECT,
        interactive: Literal[0, 1] | _Detect | None = DETECT,
        session_id: str | None = None,
    ) -> None:
        self._channel = _Channel(socket_path, ci, interactive)
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
        `duration`: integer milliseconds that building the artifact took, sent with a HIT; left out if None.
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
        """How many events of this process went nowhere, for whatever reason."""
        return sum(self.unsent_by_reason.values())

    @property
    def unsent_by_reason(self) -> dict[Reason, int]:
        """How many events went nowhere, for each reason that there was.

        "invalid": a value that the API does not allow. "too_large": a line above `MAX_LINE_BYTES`. "disabled": the path
        of the socket is empty. "closed": after `close`. "absent": no socket, or nobody listening. "denied": permission.
        "full": the daemon does not keep up, or is stopped. "failed": any other error of the operating system.
        "reentrant": by a signal handler or finalizer that interrupted this very client in sending.
        """
        return self._channel.unsent.copy()

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
        try:
            line = _encode(self._session_id if session_id is None else session_id, source, event, hash, duration)
        except (KeyError, TypeError, ValueError):
            self._channel.refuse("invalid")
            return None
        if len(line) - 1 > MAX_LINE_BYTES:
            self._channel.refuse("too_large")
            return None
        return line


class _Channel:
    """One connection at a time, and the counts of what it took and what it did not."""

    __slots__ = (
        *("_busy", "_ci", "_interactive", "_lock", "_path", "_reason", "_retry_at", "_socket"),
        *("sent", "unsent", "__weakref__"),
    )

    def __init__(
        self, path: str | os.PathLike[str] | None, ci: str | _Detect | None, interactive: int | _Detect | None
    ) -> None:
        self._path, self._ci, self._interactive = path, ci, interactive
        self._socket: _socket.socket | None = None
        self._retry_at = 0.0
        self._reason: Reason = "absent"
        self.begin()
        _channels.add(self)

    def begin(self) -> None:
        """Start from zero; in a forked child too: its socket is the parent's, its lock may be a lost thread's."""
        self._lock = RLock()
        self._busy = False
        self.sent = 0
        self.unsent: dict[Reason, int] = {}
        self.disconnect()

    def put(self, block: bytes | bytearray, lines: int) -> int:
        """Hand over whole lines; return how many of them the kernel has taken, and count the others by reason."""
        with self._lock:
            if self._busy:
                return self.refuse("reentrant", lines)
            try:
                self._busy = True
                taken = self._put(block, lines)
            finally:
                self._busy = False
            self.sent += taken
            if taken < lines:
                self.refuse(self._reason, lines - taken)
            return taken

    def refuse(self, reason: Reason, lines: int = 1) -> Literal[0]:
        with self._lock:
            self.unsent[reason] = self.unsent.get(reason, 0) + lines
        return 0

    def close(self) -> None:
        with self._lock:
            self.disconnect()
            self._back_off("closed", for_seconds=float("inf"))

    def disconnect(self) -> None:
        with self._lock:
            connection, self._socket = self._socket, None
            if connection is None:
                return
            try:
                connection.close()
            except OSError:
                return  # all descriptors were closed behind our back

    __del__ = disconnect

    def _put(self, block: bytes | bytearray, lines: int) -> int:
        for _ in range(2):  # the daemon closes idle connections, and it is the next write that tells
            connection = self._socket or self._connect()
            if connection is None:
                return 0
            try:
                size = connection.send(block, _FLAGS)
            except BlockingIOError:
                self._reason = "full"
                return 0
            except OSError as error:
                self.disconnect()
                self._reason = _reason_of(error)
            else:
                return lines if size == len(block) else self._cut(block, size)
        self._back_off(self._reason)
        return 0

    def _cut(self, block: bytes | bytearray, size: int) -> int:
        """Return how many lines are within the first `size` bytes; a line that lacks only its newline is."""
        self._reason = "full"
        if block[size - 1] != ord("\n"):
            self.disconnect()
            self._back_off("full")
        return block.count(b"\n", 0, size + 1)

    def _connect(self) -> _socket.socket | None:
        if monotonic() < self._retry_at:
            return None
        try:
            path = find_socket(os.environ) if self._path is None else os.fspath(self._path)
            if path:
                self._socket = _open(path, _context_line(self._ci, self._interactive))
            else:
                self._back_off("disabled")
        except (OSError, TypeError, ValueError) as error:  # the latter two: something that is no path
            self._back_off(_reason_of(error))
        return self._socket

    def _back_off(self, reason: Reason, for_seconds: float = RETRY_SECONDS) -> None:
        self._reason = reason
        self._retry_at = monotonic() + for_seconds


def _open(path: str, context_line: bytes) -> _socket.socket:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        connection.connect(path)  # a Unix socket connects at once or not at all
        connection.send(context_line, _FLAGS)  # whole: it is short, and the first thing in an empty buffer
    except (OSError, TypeError, ValueError):
        connection.close()
        raise
    return connection


_REASONS: Final[tuple[tuple[tuple[type[Exception], ...], Reason], ...]] = (
    ((FileNotFoundError, NotADirectoryError, ConnectionError), "absent"),
    ((BlockingIOError,), "full"),
    ((PermissionError,), "denied"),
)


def _reason_of(error: Exception) -> Reason:
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), "failed")


def _context_line(ci: str | _Detect | None, interactive: int | _Detect | None) -> bytes:
    if isinstance(ci, _Detect):
        ci = detect_ci(os.environ)
    if isinstance(interactive, _Detect):
        interactive = detect_interactive(os.environ, ci)
    known = []
    if _is_a(ci, str) and _is_header_value(ci):
        known.append(f'"ci":{_quote(ci)}')
    if _is_a(interactive, int) and interactive in {0, 1}:
        known.append(f'"interactive":{interactive:d}')
    return f'{{"context":{{{",".join(known)}}}}}\n'.encode()


def _is_header_value(ci: str) -> bool:
    return 0 < len(ci) <= 50 and ci.isascii() and ci.isprintable() and ci == ci.strip()


# All that stands between the session and the hash.
_MIDDLES: Final = {
    (source, event): f',"source":"{source}","event":"{event}","hash":'
    for source in ("LOCAL", "REMOTE")
    for event in ("HIT", "MISS")
}
# All that JSON wants escaped.
_ESCAPES: Final = {**{code: f"\\u{code:04x}" for code in range(0x20)}, ord('"'): '\\"', ord("\\"): "\\\\"}


def _encode(session_id: str, source: str, event: str, artifact: str, duration: float | None) -> bytes:
    """Return the event's line; raises KeyError, TypeError or ValueError for a value that the API does not allow."""
    middle = _MIDDLES[_text(source), _text(event)]
    end = "}\n" if duration is None else f',"duration":{_number(duration)}}}\n'
    return f'{{"sessionId":{_quote(session_id)}{middle}{_quote(artifact)}{end}'.encode()


# Unlike str(): a TypeError unless it is a string, and of a subclass, such as an enumeration's, what it holds.
_text: Final = str.__str__


def _quote(value: str) -> str:
    text = _text(value)
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{text.translate(_ESCAPES)}"'


def _number(value: object) -> str:
    if type(value) is not bool and _is_a(value, int) and -(2**63) <= int.__int__(value) < 2**63:
        return int.__repr__(value)
    if _is_a(value, float) and isfinite(float.__float__(value)):
        return float.__repr__(value)
    raise ValueError("not a number that JSON and the daemon know")


def _is_a(value: object, kind: type[Kind]) -> TypeGuard[Kind]:
    """Do as isinstance does but ask the type alone: `__class__` may be a property that raises, as a proxy's may."""
    return issubclass(type(value), kind)


def _new_session_id() -> str:
    """Return a UUIDv4; importing `uuid` would cost 8 ms."""
    digits = f"{int.from_bytes(os.urandom(16), 'big') & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_channels: Final[WeakSet[_Channel]] = WeakSet()


def _begin_in_child() -> None:
    """Part from the parent's connection at once, before a daemonizing program closes all descriptors."""
    for channel in tuple(_channels):
        channel.begin()


def _disconnect_at_exit() -> None:
    """Close quietly; later exit handlers may still emit."""
    for channel in tuple(_channels):
        channel.disconnect()


os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(_disconnect_at_exit)

emit = EventClient().emit
