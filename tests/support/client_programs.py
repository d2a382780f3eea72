"""Both ends of a client's connection: a socket that nobody reads before a test does, and programs that emit to it."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.events import Decoded, Session, decode_lines
from tests.support.waiting import HUNG_AFTER

ROOT = Path(__file__).parents[2]
# Whatever CI system these tests run on, its variables stay out of the programs that they start.
ENVIRONMENT = {"PATH": os.environ["PATH"]}


@contextmanager
def listening(path: Path, backlog: int = 16) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        listener.settimeout(HUNG_AFTER)
        try:
            yield listener
        finally:
            path.unlink()


def read_connection(listener: socket.socket) -> bytes:
    """Accept one connection and read it to its end."""
    connection, _ = listener.accept()
    connection.settimeout(HUNG_AFTER)
    with connection, connection.makefile("rb") as stream:
        return stream.read()


def decoded(data: bytes) -> Decoded:
    """Take lines as the daemon takes them."""
    return decode_lines(data, Session())


def events_in(data: bytes) -> list[dict[str, Any]]:
    """Return the events of one connection, all of whose lines have to be whole and valid."""
    assert data.endswith(b"\n")
    assert decoded(data).rejects == []
    context, *events = (json.loads(line) for line in data.splitlines())
    assert list(context) == ["context"]
    return events


def run(script: str, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that has the socket's path in its environment, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        env={**ENVIRONMENT, "ARTIFACTS_AGENT_SOCKET": str(path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HUNG_AFTER,
    )


def output_of(script: str, path: Path, *arguments: str) -> list[str]:
    """Return the lines that a program wrote; it has to end well and to complain of nothing."""
    ended = run(script, path, *arguments)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout.splitlines()
