"""Opening sockets: bound here, or handed over by systemd. A stale socket file is replaced, a live one never."""

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.accept_queue import BACKLOG
from agent.errors import ListenError

STREAM = socket.SOCK_STREAM
DATAGRAM = socket.SOCK_DGRAM
MAX_PATH_BYTES = 107
FIRST_PASSED_FD = 3
LOCK_SECONDS = 3.0
LOCK_RETRY_SECONDS = 0.01


@dataclass(frozen=True)
class BoundSocket:
    """An open socket. `path` is None for one that this process has not bound, or that has no file. It `outlives` this process if
    systemd keeps it, for the next one.

    `inode` is that of the file at `path`, which may be another daemon's by now; an open socket's number is not used again.
    """

    socket: socket.socket
    path: Path | None
    inode: int | None = None
    outlives: bool = False

    def release(self) -> None:
        """Close the socket, and remove its file if it is still this one's. What is closed already stays as it is."""
        if self.path is not None and self.socket.fileno() >= 0:
            with (
                contextlib.suppress(OSError),
                _locked(self.path) as directory,
            ):  # a file that stays is stale, not in the way
                if os.stat(self.path.name, dir_fd=directory, follow_symlinks=False).st_ino == self.inode:
                    os.unlink(self.path.name, dir_fd=directory)
        self.socket.close()


def bind(path: Path, kind: socket.SocketKind, *, mode: int, group: str | None = None) -> BoundSocket:
    """Open a socket of `kind` at `path`. Raises ListenError, which says what is in the way."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ListenError(f"{path}: a socket's path may have {MAX_PATH_BYTES} bytes: choose a shorter one")
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        with _locked(path) as directory:
            if problem := _shared(path.parent, os.fstat(directory).st_mode):
                raise ListenError(problem)
            _remove_stale(path, kind, directory)
            return _bind(path, kind, mode, group, directory)
    except OSError as error:
        reason = f"{path}: the socket cannot be opened: {error.strerror or error}"
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            reason += ": make its directory writable for this user, or choose another path"
        raise ListenError(reason) from error


def shared_directory(directory: Path) -> str | None:
    """Say why `bind` refuses a directory in which other users may replace what this one puts there; None if they cannot."""
    try:
        return _shared(directory, directory.stat().st_mode)
    except OSError:
        return None


def bind_tcp(address: str, *, listening: bool = True) -> BoundSocket:
    """Open a TCP socket at `HOST:PORT`, the host an IP address, which for IPv6 is in brackets. Raises ListenError.

    If it is not `listening`, nobody can connect: it only shows that the port is free.
    """
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not to wait for connections of a former daemon
        bound.bind((host.strip("[]"), int(port)))
        if listening:
            bound.listen(BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        reason = f"{address}: the port cannot be opened: {error.strerror or error}: choose another one"
        raise ListenError(reason) from error
    return BoundSocket(bound, None)


def tcp_address(bound: BoundSocket) -> str:
    """Return where a TCP socket listens, as `bind_tcp` takes it."""
    host, port = bound.socket.getsockname()[:2]
    return f"[{host}]:{port}" if bound.socket.family == socket.AF_INET6 else f"{host}:{port}"


def passed_by_systemd(environ: Mapping[str, str], pid: int) -> dict[str, socket.socket]:
    """Return the sockets that systemd passed, by role: "control" by its name, "http_tcp", "stream" and "datagram" by their type.

    The protocol is that of sd_listen_fds(3). Raises ListenError for a descriptor that is none of them.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    text = environ.get("LISTEN_FDS", "0")
    if not text.isdecimal():
        raise ListenError(f"LISTEN_FDS is {text!r}: systemd sets it to the number of sockets")
    count = int(text)
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, socket.socket] = {}
    for index in range(count):
        fd = FIRST_PASSED_FD + index
        role, passed = _adopt(fd, names[index] if index < len(names) else "")
        if role in found:
            raise ListenError(f"systemd passed more than one {role} socket (descriptor {fd}): give one of each")
        found[role] = passed
    return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Keep other daemons away from the socket at `path` meanwhile: a look at it and its removal are one step.

    Yields a descriptor of its directory. What is locked is a file that only this user can open, and that goes at the end: anybody
    who may read a directory can lock it for ever. Raises OSError, also if it is still locked after LOCK_SECONDS.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name = f".{path.name}.lock"
    try:
        lock = _lock(name, directory)
        try:
            yield directory
        finally:
            with contextlib.suppress(OSError):  # one that stays is in nobody's way
                os.unlink(name, dir_fd=directory)
            os.close(lock)
    finally:
        os.close(directory)


def _lock(name: str, directory: int) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    while (fd := _try_lock(name, directory)) is None:
        if time.monotonic() >= deadline:
            raise OSError(errno.EAGAIN, "another daemon of this user keeps it locked")
        time.sleep(LOCK_RETRY_SECONDS)
    return fd


def _try_lock(name: str, directory: int) -> int | None:
    with contextlib.ExitStack() as on_failure:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        on_failure.callback(os.close, fd)
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077 or not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EEXIST, f"others can open its lock, {name}")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not os.fstat(fd).st_nlink:  # its last owner has removed it between our opening and locking it
            return None
        on_failure.pop_all()
        return fd


def _shared(directory: Path, mode: int) -> str | None:
    if mode & 0o022 and not mode & stat.S_ISVTX:
        advice = f"chmod go-w {directory}, or choose another one"
        return f"{directory}: others can write there, and could take a socket's place: {advice}"
    return None


def _remove_stale(path: Path, kind: socket.SocketKind, directory: int) -> None:
    try:
        mode = os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path}: exists and is not a socket: move it away, or choose another path")
    if _is_live(path, kind):
        raise ListenError(f"{path}: another process listens there: stop it, or choose another path")
    os.unlink(path.name, dir_fd=directory)


def _is_live(path: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            # Anything but a refusal (a full backlog, another type of socket) shows that somebody is there.
            return error.errno != errno.ECONNREFUSED
    return True


def _bind(path: Path, kind: socket.SocketKind, mode: int, group: str | None, directory: int) -> BoundSocket:
    bound = socket.socket(socket.AF_UNIX, kind)
    umask = os.umask(0o177)  # nobody else may connect before the mode and group are right
    try:
        bound.bind(os.fspath(path))
        try:
            inode = _set_access(path, mode, group, directory)
            if kind is socket.SOCK_STREAM:
                bound.listen(BACKLOG)
            bound.setblocking(False)
        except (OSError, ListenError):
            os.unlink(path.name, dir_fd=directory)
            raise
    except (OSError, ListenError):
        bound.close()
        raise
    finally:
        os.umask(umask)
    return BoundSocket(bound, path, inode)


def _set_access(path: Path, mode: int, group: str | None, directory: int) -> int:
    """Set who may use the socket that was just made in `directory`; return its inode.

    All is done to one descriptor: the name may by now be a link to any file of this user's.
    """
    fd = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise ListenError(f"{path}: somebody else has put something in its place: choose another directory")
        made = f"/proc/self/fd/{fd}"  # fchmod(2) refuses a descriptor that is a path alone
        if group is not None:
            _give_to_group(path, made, group)
        Path(made).chmod(mode)
        return found.st_ino
    finally:
        os.close(fd)


def _give_to_group(path: Path, made: str, group: str) -> None:
    try:
        os.chown(made, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise ListenError(f"{path}: there is no group {group!r}: create it, or correct listen.group") from None
    except PermissionError:
        reason = f"{path}: this user may not give the socket to the group {group!r}: join it, or correct listen.group"
        raise ListenError(reason) from None


def _adopt(fd: int, name: str) -> tuple[str, socket.socket]:
    try:
        passed = socket.socket(fileno=fd)
    except OSError as error:
        raise ListenError(f"descriptor {fd} from systemd is no socket: {error.strerror}") from error
    os.set_inheritable(fd, False)
    passed.setblocking(False)
    is_tcp = passed.family in {socket.AF_INET, socket.AF_INET6}
    if passed.family != socket.AF_UNIX and not is_tcp:
        raise ListenError(f"descriptor {fd} from systemd is neither a Unix nor a TCP socket")
    if passed.type == socket.SOCK_DGRAM and not is_tcp:
        return "datagram", passed
    if passed.type != socket.SOCK_STREAM or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ListenError(f"descriptor {fd} from systemd is no listening socket: use ListenStream= without Accept=")
    if is_tcp:
        return "http_tcp", passed
    return ("control" if name == "control" else "stream"), passed
