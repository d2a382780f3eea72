"""A connection to the daemon's stream socket that never blocks, and the way beside it, which does not either."""

from __future__ import annotations

import _socket  # `socket` adds nothing needed here but 8 ms of imports; the methods used are the documented ones
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

# A burst has to fit while the daemon is not scheduled, and an event sent alone takes some 768 bytes of the buffer: of the
# usual default it fills 278 such. The kernel grants what `net.core.wmem_max` allows, and for 1 MiB then takes 2731.
_SEND_BUFFER_BYTES: Final = 1024 * 1024
_FLAGS: Final = _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT


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


def datagram_socket_beside(path: str | bytes) -> str | None:
    """Return the path of the datagram socket of the same daemon; None if the stream socket's name is not the usual one."""
    if isinstance(path, bytes) or os.path.basename(path) != "events.sock":  # noqa: PTH119 - pathlib takes milliseconds
        return None
    return f"{path[: -len('events.sock')]}datagram.sock"


def send_datagram(path: str, block: bytes) -> None:
    """Send it at once, as a whole, or not at all. Raises OSError."""
    sender = _socket_above_standard_error(_socket.SOCK_DGRAM)
    try:
        sender.sendto(block, _FLAGS, path)
    finally:
        sender.close()


class DaemonConnection:
    """A connected socket, until a program that closes all descriptors uses its number again."""

    __slots__ = ("_identity", "_number", "_socket")

    def __init__(self, path: str) -> None:
        """Connect at once or not at all. Raises OSError, or TypeError or ValueError for what is no path."""
        self._socket = _socket_above_standard_error()
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            self._socket.connect(path)
        except (OSError, TypeError, ValueError):
            self._socket.close()
            raise
        self._number = self._socket.fileno()
        self._identity = os.fstat(self._number)[1:3]

    def send(self, block: bytes | bytearray) -> int:
        """Return how many bytes the kernel has taken. Raises OSError: BlockingIOError if it is none for now."""
        if os.fstat(self._number)[1:3] != self._identity:
            raise ConnectionError("the descriptor is somebody else's")
        return self._socket.send(block, _FLAGS)

    def close(self) -> None:
        """Close it, unless it is not ours any more."""
        try:
            ours = os.fstat(self._number)[1:3] == self._identity
        except OSError:
            ours = False
        if ours:
            self._socket.close()
        else:
            self._socket.detach()


def _socket_above_standard_error(kind: int = _socket.SOCK_STREAM) -> _socket.socket:
    """Return a socket whose number a program, or one that it starts, does not take for a standard stream that was closed."""
    created = _socket.socket(_socket.AF_UNIX, kind)
    if created.fileno() > 2:
        return created
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    try:
        return _socket.socket(fileno=fcntl(created.fileno(), F_DUPFD_CLOEXEC, 3))
    finally:
        created.close()
