"""One connection at a time, made when it is needed, and the counts of what was sent and what was not."""

from __future__ import annotations

import atexit
import os
from _thread import RLock
from _weakref import ref  # what `weakref` has under the same name; that module costs a millisecond
from time import monotonic

from .connection import DaemonConnection, datagram_socket_beside, find_socket, send_datagram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Literal

    Reason = Literal["invalid", "too_large", "disabled", "closed", "absent", "denied", "full", "failed", "reentrant"]

RETRY_SECONDS: Final = 0.1

# Every reason has its count from the start, so that to add to one is a step that no signal handler can come between: with
# a call in it, such as of `get`, what the handler counts would be lost.
_NONE_UNSENT: Final[dict[Reason, int]] = {
    "invalid": 0,
    "too_large": 0,
    "disabled": 0,
    "closed": 0,
    "absent": 0,
    "denied": 0,
    "full": 0,
    "failed": 0,
    "reentrant": 0,
}


class Channel:
    """`greeting` makes what each connection begins with: a line that is short enough to be taken whole."""

    __slots__ = (
        *("_beside", "_busy", "_connection", "_greeting", "_lock", "_path", "_reason", "_retry_at"),
        *("sent", "unsent", "__weakref__"),
    )

    def __init__(self, path: str | os.PathLike[str] | None, greeting: Callable[[], bytes]) -> None:
        self._path, self._greeting = path, greeting
        self._connection: DaemonConnection | None = None
        self._beside: str | None = None
        self._retry_at = 0.0
        self._reason: Reason = "absent"
        self.begin()
        _channels.add(ref(self, _channels.discard))

    def begin(self) -> None:
        """Start from zero; in a forked child too: its socket is the parent's, its lock may be a lost thread's."""
        self._lock = RLock()
        self._busy = False
        self.sent = 0
        self.unsent = _NONE_UNSENT.copy()
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
            self.unsent[reason] += lines
        return 0

    def close(self) -> None:
        with self._lock:
            self.disconnect()
            self._beside = None
            self._back_off("closed", for_seconds=float("inf"))

    def disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    __del__ = disconnect

    def _put(self, block: bytes | bytearray, lines: int) -> int:
        for _ in range(2):  # the daemon closes idle connections, and it is the next write that tells
            connection = self._connection or self._connect()
            if connection is None:
                return lines if self._send_beside(block) else 0
            try:
                size = connection.send(block)
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

    def _send_beside(self, block: bytes | bytearray) -> bool:
        """Send as a datagram what found the backlog of the stream socket full: whoever fills that leaves this one alone."""
        if self._beside is None:
            return False
        try:
            send_datagram(self._beside, self._greeting() + block)
        except OSError:  # full as well, or not there, or too large
            self._beside = None
            return False
        return True

    def _cut(self, block: bytes | bytearray, size: int) -> int:
        """Return how many lines are within the first `size` bytes; a line that lacks only its newline is."""
        self._reason = "full"
        if block[size - 1] != ord("\n"):
            self.disconnect()
            self._back_off("full")
        return block.count(b"\n", 0, size + 1)

    def _connect(self) -> DaemonConnection | None:
        if monotonic() < self._retry_at:
            return None
        self._beside = None
        path: str | None = None
        try:
            path = find_socket(os.environ) if self._path is None else os.fspath(self._path)
            if path:
                self._connection = DaemonConnection(path)
                self._connection.send(self._greeting())
            else:
                self._back_off("disabled")
        except (OSError, TypeError, ValueError) as error:  # the latter two: something that is no path
            self.disconnect()
            self._back_off(_reason_of(error))
            if path and self._reason == "full":
                self._beside = datagram_socket_beside(path)
        return self._connection

    def _back_off(self, reason: Reason, for_seconds: float = RETRY_SECONDS) -> None:
        self._reason = reason
        self._retry_at = monotonic() + for_seconds


_REASONS: Final[tuple[tuple[tuple[type[Exception], ...], Reason], ...]] = (
    ((FileNotFoundError, NotADirectoryError, ConnectionError), "absent"),
    ((BlockingIOError,), "full"),
    ((PermissionError,), "denied"),
)


def _reason_of(error: Exception) -> Reason:
    return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), "failed")


_channels: Final[set[ref[Channel]]] = set()


def _open_channels() -> list[Channel]:
    return [channel for each in tuple(_channels) if (channel := each()) is not None]


def _begin_in_child() -> None:
    """Part from the parent's connection at once, before a daemonizing program closes all descriptors."""
    for channel in _open_channels():
        channel.begin()


def _disconnect_at_exit() -> None:
    """Close quietly; later exit handlers may still emit."""
    for channel in _open_channels():
        channel.disconnect()


os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(_disconnect_at_exit)
