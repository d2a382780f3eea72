"""What systemd does for a service, done by a test: a NOTIFY_SOCKET, sockets handed over by descriptor, any launcher in front.

The protocols are those of sd_notify(3) and sd_listen_fds(3).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from tests.support.daemon import Daemon, Sections
from tests.support.waiting import HUNG_AFTER

# Becomes the command with the descriptors at 3 and up, and says so in the variables of sd_listen_fds(3).
_HAND_OVER = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
for index, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]):
    os.dup2(fd, 3 + index)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Notifications:
    """A NOTIFY_SOCKET at `address`, a path or "@name" in the abstract namespace. For `with`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def next(self, timeout: float) -> list[str] | None:
        """Return the assignments of the next message; None if there is none within `timeout` seconds."""
        self._socket.settimeout(timeout)
        try:
            return self._socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return None

    def wait_for(self, assignment: str, timeout: float = HUNG_AFTER) -> list[list[str]]:
        """Return the messages up to the first that has `assignment`."""
        deadline, messages = time.monotonic() + timeout, list[list[str]]()
        while (message := self.next(max(deadline - time.monotonic(), 0.001))) is not None:
            messages.append(message)
            if assignment in message:
                return messages
        raise AssertionError(f"no {assignment} within {timeout} s, only {messages}")

    def skip_waiting(self) -> None:
        """Forget what has been sent up to now, or is about to be."""
        while self.next(0.05) is not None:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class ManagedDaemon(Daemon):
    """The real daemon, started as a service manager would."""

    def __init__(self, directory: Path, api_url: str, sections: Sections | None = None) -> None:
        super().__init__(directory, api_url, sections)
        self.errors = directory / "errors"

    def launch(self, through: Iterable[str | Path] = (), pass_fds: Sequence[int] = ()) -> None:
        """Start the daemon by way of the command `through`, in the environment `env`, and do not wait for it."""
        run = [sys.executable, "-m", "agent.cli", "run", "--config", str(self.config)]
        with self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [*map(str, through), *run],
                env={**_inherited(), **self.env},
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
            )

    def launch_with_sockets(self, sockets: Sequence[socket.socket]) -> None:
        """Start the daemon with `sockets` as systemd passes them."""
        fds = [each.fileno() for each in sockets]
        self.launch([sys.executable, "-c", _HAND_OVER, ",".join(map(str, fds))], fds)

    def through_socket_activate(self, program: Path, *options: str | Path) -> list[str | Path]:
        """Return the command of a systemd-socket-activate that lets the environment through."""
        names = sorted({**_inherited(), **self.env})
        return [program, *(f"--setenv={name}" for name in names), *options]


def _inherited() -> dict[str, str]:
    """What a service needs to find its interpreter, and what coverage needs to follow it."""
    return {name: os.environ[name] for name in os.environ if name in {"PATH", "PYTHONPATH"} or name.startswith("COV")}
