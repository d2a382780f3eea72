"""Whose a socket is that somebody else has opened. Quick to import: `exec` looks before its command starts."""

import contextlib
import ipaddress
import os
import sys
from pathlib import Path

_LISTENING = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN_STATE = "0A"


def impostor(path: Path) -> str | None:
    """Say why the socket at `path` may be an impostor's: another user's, in a directory in which others can make one.

    None if it is not, or nothing can be seen there. A sticky bit keeps others from replacing a socket, and not from being first.
    """
    try:
        made, directory = path.lstat(), path.parent.stat()
    except OSError:
        return None
    if made.st_uid in {0, os.geteuid(), directory.st_uid} or not directory.st_mode & 0o022:
        return None
    advice = "choose a directory of the daemon's own"
    return f"{path}: belongs to another user, {made.st_uid}, in a directory in which anybody can make it: {advice}"


def listening_uids(address: str) -> set[int]:
    """Return the users whose sockets accept connections to `HOST:PORT` on this machine; empty if the system does not say.

    A socket that listens at all addresses counts: it accepts them where no other one does.
    """
    host, _, port = address.rpartition(":")
    ip = ipaddress.ip_address(host.strip("[]"))
    mapped = ipaddress.ip_address(f"::ffff:{ip}") if ip.version == 4 else ip
    any_v4, any_v6 = ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::")  # noqa: S104 - to be found, not to be bound
    wanted = {
        f"{_as_in_proc(each)}:{int(port):04X}" for each in (ip, mapped, any_v6, *([any_v4] if ip.version == 4 else []))
    }
    found: set[int] = set()
    for table in _LISTENING:
        with contextlib.suppress(OSError):
            rows = [line.split() for line in table.read_text().splitlines()[1:]]
            found |= {int(row[7]) for row in rows if row[3] == _LISTEN_STATE and row[1] in wanted}
    return found


def _as_in_proc(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Write an address as the kernel does: words of 32 bits, each in the machine's order."""
    words = [ip.packed[start : start + 4] for start in range(0, len(ip.packed), 4)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
