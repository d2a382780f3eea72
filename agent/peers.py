"""Who is at the other end of a socket, and turns at the event loop, which are fair by user and then by process.

A process is a peer, as the kernel names it, and a user owns all of its processes. Over TCP the kernel does not say: there all who
have shown a destination's token are one peer, and all who have shown none are another.
"""

import socket
import struct
from collections.abc import Callable, Hashable, Iterable
from operator import itemgetter
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel

STRANGERS = "tcp"
"""The group of those who are connected over TCP and have not shown a token."""

_NO_UID = 0xFFFF_FFFF
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)
_GROUP = struct.Struct("I")
_SO_PEERGROUPS = 59  # socket(7); Python has no name for it
_MOST_GROUPS = 256  # Python reads 1 KiB of an option at the most
CREDENTIALS_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)

# So many processes of one user have a turn in a pass of the event loop.
OWNER_TURNS = 8

T = TypeVar("T")


class Peer(NamedTuple):
    """A process, or a client's address over TCP."""

    pid: int
    uid: int
    address: str | None = None

    @property
    def facts(self) -> dict[str, object]:
        """Return what the log says of it."""
        return {"uid": self.uid, "pid": self.pid} if self.address is None else {"peer": self.address}


UNKNOWN = Peer(0, _NO_UID)


def peer_of(connection: socket.socket) -> Peer:
    """Return who has connected."""
    pid, uid = read_credentials(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != _NO_UID or connection.family == socket.AF_UNIX:  # over TCP the kernel names nobody
        return Peer(pid, uid)
    try:
        host, port = connection.getpeername()[:2]
    except OSError:  # it has gone already
        return Peer(0, _NO_UID, "unknown")
    return Peer(0, _NO_UID, f"[{host}]:{port}" if connection.family == socket.AF_INET6 else f"{host}:{port}")


def groups_of(connection: socket.socket) -> frozenset[int]:
    """Return the groups that the process at the other end was in when it connected; none if the system does not say.

    Of one that is in more than _MOST_GROUPS only the first is known.
    """
    if connection.family != socket.AF_UNIX:
        return frozenset()
    gid = group_in(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        more = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * _GROUP.size)
    except OSError:  # there are more, or the kernel is older than 4.13
        more = b""
    return frozenset([gid, *(each for (each,) in _GROUP.iter_unpack(more))])


def group_of(peer: Peer) -> Hashable:
    """Return what shares turns with the peer: itself, or over TCP all who have not shown the token."""
    return peer if peer.address is None else STRANGERS


def token_holders(destination: str) -> Hashable:
    """Return the group of those who are connected over TCP and have shown the token of a destination."""
    return f"tcp with the token of {destination}"


def owner_of(group: Hashable) -> Hashable:
    """Return whose group it is: a process's user. Those over TCP have no owner but themselves."""
    return group.uid if isinstance(group, Peer) else group


def take_turns(items: Iterable[T], peer: Callable[[T], Peer]) -> list[T]:
    """Order what came together: users in turn, and of each user its processes; what is of one process keeps its order."""
    return _interleave(_interleave(items, peer), lambda item: owner_of(group_of(peer(item))))


def _interleave(items: Iterable[T], key: Callable[[T], Hashable]) -> list[T]:
    """Put the first item of each key before all second ones, and so on."""
    seen: dict[Hashable, int] = {}
    ranked: list[tuple[int, T]] = []
    for item in items:
        each = key(item)
        rank = seen.get(each, 0)
        seen[each] = rank + 1
        ranked.append((rank, item))
    if len(seen) > 1:
        ranked.sort(key=itemgetter(0))
    return [item for _, item in ranked]


def group_in(data: bytes) -> int:
    """Return the gid out of a `struct ucred`."""
    return int(_CREDENTIALS.unpack_from(data)[2])


def read_credentials(data: bytes) -> tuple[int, int]:
    """Return (pid, uid) out of a `struct ucred`."""
    pid, uid, _ = _CREDENTIALS.unpack_from(data)
    return pid, uid


class Turn:
    """The turns of one group. However many tasks work for it, each pass of the event loop lets one of them through.

    Of the groups that have an owner in common, each pass lets OWNER_TURNS through.
    """

    __slots__ = ("__weakref__", "_lock", "_owner")

    def __init__(self, owner: "_Owner") -> None:
        self._lock = anyio.Lock(fast_acquire=True)
        self._owner = owner

    async def wait(self) -> None:
        """Return when it is the caller's turn. What it does before it waits again should take no longer than some ms."""
        async with self._lock, self._owner.turns:
            await anyio.lowlevel.checkpoint()


class _Owner:
    __slots__ = ("__weakref__", "turns")

    def __init__(self) -> None:
        self.turns = anyio.Semaphore(OWNER_TURNS, fast_acquire=True)


class Turns:
    """The turns of all groups, of which those are remembered that somebody holds."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[Hashable, Turn] = WeakValueDictionary()
        self._owners: WeakValueDictionary[Hashable, _Owner] = WeakValueDictionary()

    def of(self, group: Hashable) -> Turn:
        """Return the turns of a group."""
        found = self._turns.get(group)
        if found is None:
            owner = self._owners.setdefault(owner_of(group), _Owner())
            found = self._turns[group] = Turn(owner)
        return found
