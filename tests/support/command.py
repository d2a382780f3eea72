"""The `artifacts-agent` command as a process: its exit code and its output, into pipes or onto a terminal.

It knows processes and terminals. It must never import the agent.
"""

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.waiting import HUNG_AFTER

COMMAND = (sys.executable, "-m", "agent.cli")
LINES, COLUMNS = 24, 100
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "COV", "PYTHON")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without what a CI system, a user's shell or a test runner would bring in."""
    return {name: value for name, value in os.environ.items() if name.startswith(_KEPT)} | dict(extra or {})


def run_command(
    *args: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = HUNG_AFTER
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, into pipes."""
    done = subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, env=environment(env), timeout=timeout, check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def problems(stderr: str) -> list[str]:
    """Return what was complained about; every line must be the command's own."""
    found = [line.partition("artifacts-agent: ") for line in stderr.splitlines()]
    assert all(before == "" and separator for before, separator, _ in found), stderr
    return [text for _, _, text in found]


class Terminal:
    """The command on a terminal of 24 lines and 100 columns. For `with`, which kills what still runs."""

    def __init__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        keyboard: bool = False,
        group: int | None = None,
    ) -> None:
        """With `keyboard`, standard input is the terminal too; `group` is the command's process group, 0 for one of its own."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.output = ""
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=environment({"TERM": "xterm-256color", **(env or {})}),
            stdin=slave if keyboard else subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            process_group=group,
        )
        os.close(slave)

    @property
    def text(self) -> str:
        """What was shown, without colours and cursor movements."""
        return _CONTROL_SEQUENCE.sub("", self.output)

    def wait_for(self, text: str, timeout: float = HUNG_AFTER) -> None:
        """Read until `text` has been shown."""
        deadline = time.monotonic() + timeout
        while text not in self.text:
            assert self._read(deadline), f"no {text!r} in {self.text[-2000:]!r}"

    def wait_for_more(self, timeout: float = HUNG_AFTER) -> None:
        """Read until something has been shown."""
        assert self._read(time.monotonic() + timeout), f"nothing after {self.output[-2000:]!r}"

    def read_until(self, deadline: float) -> None:
        """Read what is shown up to a moment by the steady clock."""
        while self._read(deadline):
            pass

    @property
    def settings(self) -> list[Any]:
        """What the terminal does with keys and lines; see `termios.tcgetattr`."""
        return termios.tcgetattr(self._master)

    def resize(self, lines: int, columns: int) -> None:
        """Give the terminal another size, and say so, as the kernel does to what runs in its foreground."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._master, text.encode())

    def finish(self, timeout: float = HUNG_AFTER) -> int:
        """Read up to the end; return the exit code."""
        deadline = time.monotonic() + timeout
        self.read_until(deadline)
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Read what comes next; False at the end, or at the deadline."""
        if not select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            chunk = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.output += self._decode(chunk)
        return bool(chunk)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
