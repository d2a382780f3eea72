"""The clients of tests/clients/README.md, each run as it stands there: what arrives, and that a build notices nothing."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.daemon import Daemon
from tests.support.tools import require_tool
from tests.support.turborepo import TurborepoServer, turborepo_server
from tests.support.waiting import HUNG_AFTER, eventually

CLIENTS = Path(__file__).parents[2] / "clients"
FILES = {"emit.sh": "sh", "emit-curl.sh": "sh", "emit.mjs": "js", "emit.go": "go", "emit.rs": "rust"}
PATIENCE = HUNG_AFTER / 2  # a client that waits for a daemon that does not answer would hang


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="module", params=FILES)
def client(request: pytest.FixtureRequest, directory: Path) -> list[str | Path]:
    """The command of one client, built if it has to be."""
    source, program = CLIENTS / request.param, directory / "emit"
    match request.param:
        case "emit.sh":
            require_tool("socat", "apt-get install socat")
            return [require_tool("sh", "apt-get install dash"), source]
        case "emit-curl.sh":
            require_tool("curl", "apt-get install curl")
            return [require_tool("sh", "apt-get install dash"), source]
        case "emit.mjs":
            return [require_tool("node", "apt-get install nodejs"), source]
        case "emit.go":
            compiler = [require_tool("go", "apt-get install golang-go"), "build", "-o", program, source]
        case _:
            compiler = [require_tool("rustc", "apt-get install rustc"), "-D", "warnings", "-o", program, source]
    subprocess.run(compiler, check=True)
    return [program]


@dataclass(frozen=True)
class Ended:
    """How a client ended, and the event that it was to report, as the API has to get it."""

    event: bytes
    code: int
    output: bytes
    seconds: float

    @property
    def unnoticed(self) -> bool:
        return (self.code, self.output) == (0, b"") and self.seconds < PATIENCE


def run(client: list[str | Path], stream: Path | str, http: Path | str) -> Ended:
    """Let a client report an event of a session of its own. Python gives it SIGPIPE's default: to die of it."""
    session = str(uuid4())
    started = time.monotonic()
    ended = subprocess.run(
        [*client, session, "HIT", "REMOTE", "115c7929ab9c479c", "514"],
        env={
            "PATH": os.environ["PATH"],
            "ARTIFACTS_AGENT_SOCKET": str(stream),
            "ARTIFACTS_AGENT_HTTP_SOCKET": str(http),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=HUNG_AFTER,
    )
    event = f'{{"sessionId":"{session}","source":"REMOTE","event":"HIT","hash":"115c7929ab9c479c","duration":514}}'
    return Ended(event.encode(), ended.returncode, ended.stdout, time.monotonic() - started)


@dataclass(frozen=True)
class World:
    """A daemon that delivers to the real server; `http` is where its HTTP listener is."""

    server: TurborepoServer
    daemon: Daemon
    http: Path

    def arrived(self, event: bytes) -> list[bytes]:
        """Return the bodies of the accepted requests that an event came in."""
        return [request.body for request in self.server.captured.accepted() if event in request.body]


@pytest.fixture(scope="module")
def world(directory: Path) -> Iterator[World]:
    http = directory / "http.sock"
    with (
        turborepo_server(directory / "storage") as server,
        Daemon(directory / "agent", server.url, {"http": {"socket": str(http)}}) as daemon,
    ):
        yield World(server, daemon, http)


SHELL = '. "$CLIENT"; emit one HIT REMOTE h 5'
NODE = (
    "import(process.env.CLIENT).then(({emit}) => emit({sessionId: 'one', source: 'REMOTE', event: 'HIT', hash: 'h'}))"
)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("emit.sh", ["sh", "-c", SHELL, "sh"]),
        ("emit-curl.sh", ["sh", "-c", SHELL, "sh"]),
        ("emit.mjs", ["node", "-e", NODE]),
    ],
)
def test_a_client_that_is_imported_emits_only_what_it_is_told_to(name: str, command: list[str], tmp_path: Path) -> None:
    require_tool({"emit.mjs": "node", "emit.sh": "socat"}.get(name, "curl"), "apt-get install it")
    path = tmp_path / "events"
    env = {"PATH": os.environ["PATH"]}
    env |= {
        "ARTIFACTS_AGENT_SOCKET": str(path),
        "ARTIFACTS_AGENT_HTTP_SOCKET": str(path),
        "CLIENT": str(CLIENTS / name),
    }
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with subprocess.Popen([*command, "a", "b", "c", "d", "7"], env=env) as importing:
            accepted, _ = listening.accept()
            with accepted:
                received = accepted.recv(65536)
        assert importing.returncode == 0
        assert received.count(b"sessionId") == 1
        assert b'"sessionId":"one"' in received
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """Stop the daemon as a debugger does, while the block lasts."""
    daemon.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        daemon.signal(signal.SIGCONT)


def test_a_real_server_gets_what_a_client_reports_byte_for_byte(client: list[str | Path], world: World) -> None:
    ended = run(client, world.daemon.stream, world.http)
    assert ended.unnoticed, ended
    assert eventually(lambda: world.arrived(ended.event), bool) == [b"[" + ended.event + b"]"]


def test_a_daemon_that_is_stopped_is_not_noticed_and_finds_the_event_later(
    client: list[str | Path], world: World
) -> None:
    with stopped(world.daemon):
        ended = run(client, world.daemon.stream, world.http)
        assert ended.unnoticed, ended
    assert eventually(lambda: world.arrived(ended.event), bool) == [b"[" + ended.event + b"]"]


@pytest.mark.parametrize("path", ["", "/nonexistent/events.sock", "/dev/null", "/" + "x" * 200])
def test_a_daemon_that_is_absent_is_not_noticed(client: list[str | Path], path: str) -> None:
    ended = run(client, path, path)
    assert ended.unnoticed, ended


def test_a_socket_whose_backlog_is_full_is_not_noticed(client: list[str | Path], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(tmp_path / "full.sock"))
        listener.listen(0)
        waiting.connect(str(tmp_path / "full.sock"))
        ended = run(client, tmp_path / "full.sock", tmp_path / "full.sock")
    assert ended.unnoticed, ended


def test_a_daemon_that_hangs_up_is_not_noticed(client: list[str | Path], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as pool:
        listener.bind(str(tmp_path / "rude.sock"))
        listener.listen()
        listener.settimeout(HUNG_AFTER)
        accepted = pool.submit(listener.accept)
        accepted.add_done_callback(lambda accepted: accepted.result()[0].close())
        ended = run(client, tmp_path / "rude.sock", tmp_path / "rude.sock")
    assert ended.unnoticed, ended


def test_node_ends_though_a_burst_is_more_than_anybody_takes(tmp_path: Path) -> None:
    node = require_tool("node", "apt-get install nodejs")
    burst = "const event = {hash: 'a'.repeat(1000)}; for (let sent = 0; sent < 5000; sent++) emit(event);"
    script = f"import {{ emit }} from '{CLIENTS / 'emit.mjs'}'; {burst}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "unread.sock"))
        listener.listen()
        ended = run([node, "--input-type=module", "--eval", script], tmp_path / "unread.sock", "")
    assert ended.unnoticed, ended


@pytest.mark.parametrize(("name", "language"), FILES.items())
def test_the_document_shows_each_client_as_it_is(name: str, language: str) -> None:
    shown = (CLIENTS / "README.md").read_text(encoding="utf-8")
    assert f"[{name}]({name})" in shown
    assert f"\n```{language}\n{(CLIENTS / name).read_text(encoding='utf-8')}```\n" in shown
