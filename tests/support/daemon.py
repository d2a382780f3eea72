"""The real daemon as a process: started from a configuration file, ready when it says so, spoken to from outside.

Of the agent it imports the control socket's client and its schema alone; all else goes the way that any other program's does.
"""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from agent.control.client import ControlClient
from agent.control.schema import DestinationStatus, StatusReport
from tests.support.waiting import HUNG_AFTER, eventually

Sections = Mapping[str, Mapping[str, object]]
TOKEN = "a-token-of-the-tests"
_OURS = ("ARTIFACTS_AGENT_", "TURBO_", "NOTIFY_", "LISTEN_", "CREDENTIALS_")


class Daemon:
    """One daemon on one directory. It may be started again after it ended: the queue and the configuration stay.

    `sections` are merged over the defaults, section by section; a value None removes a key. `module` is what Python runs
    as the command. Leaving the `with` block kills what still runs.
    """

    def __init__(self, directory: Path, api_url: str, sections: Sections | None = None, token: str = TOKEN) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config = directory / "config.toml"
        self.token_file = directory / "token"
        self.stream, self.datagram, self.control = (directory / name for name in ("s.sock", "d.sock", "c.sock"))
        self.queue = directory / "queue"
        self.env: dict[str, str] = {}
        self.module = "agent.cli"
        self._stderr = directory / "stderr"
        self._process: subprocess.Popen[bytes] | None = None
        self._set_token(token)
        self.configure(api_url, sections or {})

    def configure(self, api_url: str, sections: Sections, more: str = "") -> None:
        """Write the configuration file, with `more` at its end, at once; a running daemon does not notice."""
        paths = {"stream": self.stream, "datagram": self.datagram, "control": self.control}
        defaults: Sections = {
            "api": {"url": api_url, "token_file": str(self.token_file), "timeout": "2s"},
            "listen": {name: str(path) for name, path in paths.items()},
            "queue": {"directory": str(self.queue)},
            "batch": {"max_delay": "50ms"},
            "retry": {"initial_delay": "20ms", "max_delay": "200ms"},
        }
        names = [*defaults, *(name for name in sections if name not in defaults)]
        merged = {name: {**defaults.get(name, {}), **sections.get(name, {})} for name in names}
        new = self.config.with_suffix(".new")
        new.write_text("".join(_toml(name, section) for name, section in merged.items()) + more)
        new.replace(self.config)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running().pid

    def start(self, timeout: float = HUNG_AFTER) -> Self:
        """Start it and return when it is ready (systemd's READY=1); AssertionError with its stderr if it is not."""
        with _notifications(self.directory / "n.sock") as notify:
            self.launch()
            if not _ready(notify, self.pid, timeout):
                self.kill()
                raise AssertionError(f"the daemon was not ready within {timeout} s:\n{self.stderr_text()}")
        return self

    def launch(self) -> None:
        """Start the process, without a word about when it is ready."""
        command = [sys.executable, "-m", self.module, "run", "--config", str(self.config)]
        env = clean_environment() | self.env | {"NOTIFY_SOCKET": str(self.directory / "n.sock")}
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)

    def ended_within(self, seconds: float) -> bool:
        """Tell whether it ends by itself within that time; returns as soon as it does."""
        ended = os.pidfd_open(self.pid)
        try:
            return bool(select.select([ended], [], [], seconds)[0])
        finally:
            os.close(ended)

    def kill(self) -> None:
        """SIGKILL, and wait for the end; nothing happens if it ended already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self, timeout: float = HUNG_AFTER) -> int:
        """SIGTERM; return the exit code, or AssertionError with its stderr after `timeout` seconds."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = HUNG_AFTER) -> int:
        """Wait for it to end by itself; return the exit code."""
        try:
            code = self._running().wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {timeout} s:\n{self.stderr_text()}") from error
        self._process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._running().send_signal(number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.kill()

    def request(self, method: str, path: str, timeout: float = HUNG_AFTER, content: bytes = b"") -> httpx.Response:
        """Ask the control socket, perhaps with a body."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.control)), timeout=timeout) as client:
            return client.request(method, f"http://agent{path}", content=content)

    def report(self) -> StatusReport:
        """Return how it is doing."""
        return ControlClient(self.control).status()

    def destination(self) -> DestinationStatus:
        """Return how its only destination is doing."""
        (found,) = self.report().destinations.values()
        return found

    def wait_destination(
        self, predicate: Callable[[DestinationStatus], bool], timeout: float = HUNG_AFTER
    ) -> DestinationStatus:
        """Return the first status of its destination that the predicate takes."""
        return eventually(self.destination, predicate, timeout)

    def status(self) -> dict[str, Any]:
        """Return the JSON of GET /status, as any other program sees it."""
        status: dict[str, Any] = self.request("GET", "/status").raise_for_status().json()
        return status

    def wait_status(self, predicate: Callable[[dict[str, Any]], bool], timeout: float = HUNG_AFTER) -> dict[str, Any]:
        """Return the first status that the predicate takes."""
        return eventually(self.status, predicate, timeout)

    def stderr_text(self) -> str:
        """Return everything that it has written to stdout and stderr, over all starts."""
        return self._stderr.read_text(errors="replace")

    def send_lines(self, lines: bytes) -> None:
        """Send bytes over the stream socket and hang up, as a client that wants no ack does."""
        with _unix(socket.SOCK_STREAM) as client:
            client.connect(str(self.stream))
            client.sendall(lines)

    def send_datagram(self, lines: bytes) -> None:
        """Send one datagram."""
        with _unix(socket.SOCK_DGRAM) as client:
            client.sendto(lines, str(self.datagram))

    def connect(self, context: Mapping[str, object] | None = None) -> "Conversation":
        """Open a stream connection that asks for durable acks; `context` adds to its first line."""
        return Conversation(self.stream, {"ack": "durable", **(context or {})})

    def _set_token(self, token: str) -> None:
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the daemon is not running"
        return self._process


class Conversation:
    """A stream connection with durable acks, `{"durable": N, "rejected": M}`, cumulative. For `with`."""

    def __init__(self, path: Path, context: Mapping[str, object], timeout: float = HUNG_AFTER) -> None:
        self._socket = _unix(socket.SOCK_STREAM, timeout)
        try:
            connect(self._socket, path, timeout)
            self._answers = self._socket.makefile("rb")
        except OSError:
            self._socket.close()
            raise
        self.send(json.dumps({"context": context}).encode() + b"\n")

    def send(self, lines: bytes) -> None:
        """Send bytes as they are."""
        self._socket.sendall(lines)

    def answer(self) -> dict[str, Any] | None:
        """Wait for the next answer; None at the end of the connection."""
        line = self._answers.readline()
        answer: dict[str, Any] | None = json.loads(line) if line else None
        return answer

    def wait_settled(self, count: int) -> dict[str, Any]:
        """Read answers until `count` events are durable or rejected; return that answer."""
        while answer := self.answer():
            if answer["durable"] + answer["rejected"] >= count:
                return answer
        raise AssertionError(f"the connection ended before {count} events were settled")

    def finish(self) -> list[dict[str, Any]]:
        """Say that nothing more comes, and return the answers up to the end of the connection."""
        self._socket.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in self._answers]

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        self.close()


def _toml(name: str, section: Mapping[str, object]) -> str:
    # A JSON string, number, boolean or array of them is the same in TOML.
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in section.items() if value is not None]
    return f"[{name}]\n{''.join(lines)}\n"


def clean_environment() -> dict[str, str]:
    """Return the environment without what would configure an agent."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


def connect(client: socket.socket, path: Path, timeout: float) -> None:
    """Connect as most programs do, which wait for a place in a full backlog; one with Python's timeouts gives up at once."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6)))
    client.setblocking(True)
    client.connect(str(path))
    client.settimeout(timeout)


def _unix(kind: socket.SocketKind, timeout: float = HUNG_AFTER) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, kind)
    client.settimeout(timeout)
    return client


@contextmanager
def _notifications(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        yield notify


def _ready(notify: socket.socket, pid: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    ended = os.pidfd_open(pid)
    try:
        while readable := select.select([notify.fileno(), ended], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if notify.fileno() not in readable:
                return False
            if b"READY=1" in notify.recv(4096).splitlines():
                return True
        return False
    finally:
        os.close(ended)
