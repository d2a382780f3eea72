"""Opening sockets: who may connect, what is replaced, what is never stolen, and what is left alone."""

import errno
import fcntl
import grp
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from agent.errors import ListenError
from agent.ingest import owners, sockets
from agent.ingest.sockets import DATAGRAM, STREAM, BoundSocket, bind
from agent.peers import Peer, peer_of
from tests.support.tools import require_root
from tests.support.waiting import HUNG_AFTER

KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["stream", "datagram"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sockets" / "s.sock"


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Releases at the end what a test has opened."""
    with ExitStack() as stack:
        yield stack


def hold(opened: ExitStack, bound: BoundSocket) -> BoundSocket:
    opened.callback(bound.release)
    return bound


def left_behind(path: Path, kind: socket.SocketKind) -> None:
    """Leave a socket file as a killed daemon does."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


def reachable(path: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


@KINDS
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_is_what_was_asked_for_whatever_the_umask(path: Path, kind: socket.SocketKind, mode: int) -> None:
    before = os.umask(0o077)
    try:
        bound = bind(path, kind, mode=mode)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    bound.release()
    assert not path.exists()


def test_the_group_is_what_was_asked_for(path: Path, opened: ExitStack) -> None:
    require_root()  # to give files away
    group = next(each for each in grp.getgrall() if each.gr_gid not in {os.getgid(), 0})
    hold(opened, bind(path, STREAM, mode=0o660, group=group.gr_name))
    assert path.stat().st_gid == group.gr_gid


def test_an_unknown_group_is_named_and_leaves_no_file(path: Path) -> None:
    with pytest.raises(ListenError, match=r"no group 'nobody-has-this'.*listen\.group"):
        bind(path, STREAM, mode=0o660, group="nobody-has-this")
    assert not path.exists()


@KINDS
def test_a_stale_socket_is_replaced(path: Path, kind: socket.SocketKind, opened: ExitStack) -> None:
    left_behind(path, kind)
    assert not reachable(path, kind)
    hold(opened, bind(path, kind, mode=0o600))
    assert reachable(path, kind)


@KINDS
@pytest.mark.parametrize("there", [STREAM, DATAGRAM], ids=["live stream", "live datagram"])
def test_a_live_socket_is_never_stolen(
    path: Path, kind: socket.SocketKind, there: socket.SocketKind, opened: ExitStack
) -> None:
    hold(opened, bind(path, there, mode=0o600))
    with pytest.raises(ListenError, match="another process listens there"):
        bind(path, kind, mode=0o600)
    assert reachable(path, there)


def test_a_live_socket_with_a_full_backlog_is_not_stolen(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, ExitStack() as waiting:
        busy.bind(str(path))
        busy.listen(0)
        while True:
            client = waiting.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(str(path)) == errno.EAGAIN:
                break
        with pytest.raises(ListenError, match="another process listens there"):
            bind(path, STREAM, mode=0o600)


@KINDS
def test_of_many_that_race_for_a_stale_socket_one_wins(path: Path, kind: socket.SocketKind, opened: ExitStack) -> None:
    left_behind(path, kind)

    def attempt(_: int) -> BoundSocket | None:
        try:
            return bind(path, kind, mode=0o600)
        except ListenError:
            return None

    with ThreadPoolExecutor(8) as threads:
        won = [bound for bound in threads.map(attempt, range(8)) if bound is not None]
    for bound in won:
        hold(opened, bound)
    assert len(won) == 1
    assert reachable(path, kind)


@KINDS
def test_a_file_that_is_no_socket_is_left_alone(path: Path, kind: socket.SocketKind) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ListenError, match="exists and is not a socket"):
        bind(path, kind, mode=0o600)
    assert path.read_text() == "precious"


def test_a_link_to_a_socket_is_left_alone(path: Path, tmp_path: Path) -> None:
    left_behind(tmp_path / "target", STREAM)
    path.parent.mkdir()
    path.symlink_to(tmp_path / "target")
    with pytest.raises(ListenError, match="exists and is not a socket"):
        bind(path, STREAM, mode=0o600)
    assert path.is_symlink()


@KINDS
def test_a_successors_socket_is_not_removed_by_its_predecessor(
    path: Path, kind: socket.SocketKind, opened: ExitStack
) -> None:
    """Whoever has shut its socket down looks dead, and the next daemon takes the path over before the first one is gone."""
    first = bind(path, kind, mode=0o600)
    if kind is STREAM:
        first.socket.shutdown(socket.SHUT_RD)
    else:
        path.unlink()
    hold(opened, bind(path, kind, mode=0o600))
    first.release()
    assert reachable(path, kind)


def test_releasing_twice_leaves_a_successor_alone(path: Path, opened: ExitStack) -> None:
    first = bind(path, STREAM, mode=0o600)
    first.release()
    hold(opened, bind(path, STREAM, mode=0o600))
    first.release()
    assert reachable(path, STREAM)


def test_releasing_after_the_directory_went_is_no_error(path: Path) -> None:
    bound = bind(path, STREAM, mode=0o600)
    path.unlink()
    path.parent.rmdir()
    bound.release()
    assert bound.socket.fileno() == -1


@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False)])
def test_a_path_may_have_107_bytes(tmp_path: Path, opened: ExitStack, length: int, fits: bool) -> None:
    path = tmp_path / ("s" * (length - len(os.fsencode(tmp_path)) - 1))
    assert len(os.fsencode(path)) == length
    if fits:
        hold(opened, bind(path, STREAM, mode=0o600))
        assert reachable(path, STREAM)
    else:
        with pytest.raises(ListenError, match="107 bytes: choose a shorter one"):
            bind(path, STREAM, mode=0o600)


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "s.sock", tmp_path / "no" / "such" / "s.sock"):
        with pytest.raises(ListenError, match="the socket cannot be opened") as raised:
            bind(path, STREAM, mode=0o600)
        assert "\n" not in str(raised.value)


def test_whoever_locks_the_directory_keeps_no_daemon_from_starting_or_stopping(path: Path) -> None:
    path.parent.mkdir()
    fd = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        bound = bind(path, STREAM, mode=0o600)
        assert reachable(path, STREAM)
        bound.release()
        assert list(path.parent.iterdir()) == []
    finally:
        os.close(fd)


def test_a_lock_that_others_can_open_is_refused(path: Path) -> None:
    path.parent.mkdir()
    lock = path.parent / f".{path.name}.lock"
    lock.touch()
    lock.chmod(0o644)
    with pytest.raises(ListenError, match=r"others can open its lock, \.s\.sock\.lock"):
        bind(path, STREAM, mode=0o600)


def test_a_daemon_that_hangs_with_the_lock_cannot_hang_the_next_one(path: Path) -> None:
    path.parent.mkdir()
    fd = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        with pytest.raises(ListenError, match="another daemon of this user keeps it locked"):
            bind(path, STREAM, mode=0o600)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("mode", "safe"), [(0o777, False), (0o775, False), (0o1777, True), (0o755, True)])
def test_a_directory_in_which_others_can_replace_the_socket_is_refused(
    path: Path, opened: ExitStack, mode: int, safe: bool
) -> None:
    path.parent.mkdir()
    path.parent.chmod(mode)
    if safe:
        hold(opened, bind(path, STREAM, mode=0o600))
        assert reachable(path, STREAM)
        return
    with pytest.raises(ListenError, match=r"others can write there.*chmod go-w"):
        bind(path, STREAM, mode=0o600)
    assert list(path.parent.iterdir()) == []


REPLACE = """
import itertools, os, sys
path, target = sys.argv[1:]
print("ready", flush=True)
for number in itertools.count():
    link = f"{path}.{number % 2}"
    os.symlink(target, link)
    while not os.path.exists(path):
        pass
    os.rename(link, path)
    while os.path.lexists(path):
        pass
"""


def test_a_link_in_the_sockets_place_changes_the_permissions_of_nothing_else(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    victim = tmp_path / "only-mine"
    victim.touch(mode=0o600)
    with subprocess.Popen([sys.executable, "-c", REPLACE, str(path), str(victim)], stdout=subprocess.PIPE) as replacing:
        assert replacing.stdout is not None
        replacing.stdout.readline()
        try:
            for _ in range(1000):
                with suppress(ListenError):
                    bind(path, STREAM, mode=0o666).socket.close()
                path.unlink(missing_ok=True)
                assert stat.S_IMODE(victim.stat().st_mode) == 0o600
        finally:
            replacing.kill()


def test_the_peer_is_who_the_kernel_says(path: Path, opened: ExitStack) -> None:
    listener = hold(opened, bind(path, STREAM, mode=0o600)).socket
    program = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    with subprocess.Popen([sys.executable, "-c", program, str(path)]) as process:
        listener.settimeout(HUNG_AFTER)
        connection, _ = listener.accept()
        with connection:
            assert peer_of(connection) == Peer(process.pid, os.getuid())


# Passed sockets: the real systemd is in test_systemd.py; here is what it would not do, in a process of its own.

ADOPT = """
import os, socket, sys
from agent.errors import ListenError
from agent.ingest import owners, sockets
exec(sys.argv[1])
for fd, each in enumerate(made, 3):
    os.dup2(each.fileno(), 100 + fd)
for fd in range(3, 3 + len(made)):
    os.dup2(100 + fd, fd)
environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(made)), "LISTEN_FDNAMES": sys.argv[2]}
try:
    print(sorted(sockets.passed_by_systemd(environ, os.getpid())))
except ListenError as error:
    print(error)
os._exit(0)
"""
MAKE = """
def make(kind, *, listen=False, family=socket.AF_UNIX):
    each = socket.socket(family, kind)
    each.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
    if listen:
        each.listen()
    return each
U, S, D = socket.AF_UNIX, socket.SOCK_STREAM, socket.SOCK_DGRAM
"""


@pytest.mark.parametrize(
    ("made", "names", "said"),
    [
        ("[make(S, listen=True), make(D), make(S, listen=True)]", "a:b:control", "['control', 'datagram', 'stream']"),
        ("[make(S)]", "", "descriptor 3 from systemd is no listening socket: use ListenStream= without Accept="),
        (
            "[make(socket.SOCK_SEQPACKET, listen=True)]",
            "",
            "descriptor 3 from systemd is no listening socket: use ListenStream= without Accept=",
        ),
        ("[make(D), make(D)]", "a:b", "systemd passed more than one datagram socket (descriptor 4): give one of each"),
        ("[make(S, listen=True, family=socket.AF_INET), make(D)]", "http:b", "['datagram', 'http_tcp']"),
        (
            "[make(D, family=socket.AF_INET)]",
            "",
            "descriptor 3 from systemd is no listening socket: use ListenStream= without Accept=",
        ),
        (
            "[socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)]",
            "",
            "descriptor 3 from systemd is neither a Unix nor a TCP socket",
        ),
        ("[open('/dev/null')]", "", "descriptor 3 from systemd is no socket: Socket operation on non-socket"),
    ],
)
def test_passed_descriptors_are_told_apart_and_odd_ones_refused_by_name(made: str, names: str, said: str) -> None:
    program = [sys.executable, "-c", ADOPT, f"{MAKE}\nmade = {made}", names]
    done = subprocess.run(program, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.stdout.strip(), done.stderr) == (said, "")


@pytest.mark.parametrize(
    ("family", "at", "asked"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.8.9.10", "127.8.9.10"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET6, "::1", "[::1]"),
        (socket.AF_INET6, "::", "[::1]"),
        (socket.AF_INET6, "::", "127.0.0.1"),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_whose_socket_accepts_connections_to_an_address(family: socket.AddressFamily, at: str, asked: str) -> None:
    with socket.socket(family) as listening:
        listening.bind((at, 0))
        address = f"{asked}:{listening.getsockname()[1]}"
        assert owners.listening_uids(address) == set()
        listening.listen()
        assert owners.listening_uids(address) == {os.getuid()}
        assert owners.listening_uids(f"127.1.1.1:{listening.getsockname()[1]}") in ({os.getuid()}, set())


def test_a_count_of_passed_sockets_that_is_no_number_is_refused() -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS is 'many'"):
        sockets.passed_by_systemd({"LISTEN_PID": "1", "LISTEN_FDS": "many"}, 1)


def test_the_sockets_of_another_process_are_not_taken() -> None:
    assert sockets.passed_by_systemd({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, 2) == {}


def test_a_passed_socket_is_closed_and_its_file_stays(path: Path, opened: ExitStack) -> None:
    owner = hold(opened, bind(path, STREAM, mode=0o600))
    with closing(owner.socket.dup()) as passed:
        BoundSocket(passed, None).release()
        assert passed.fileno() == -1
    assert reachable(path, STREAM)
