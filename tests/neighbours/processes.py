"""The attackers and the API of `tests.neighbours`, as processes of their own."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.neighbours.victims import Addresses
from tests.support.process import Child, running


@contextmanager
def server() -> Iterator[str]:
    with _module("tests.neighbours.server") as started:
        yield started.wait_for_line(r"listening on (\S+)", 60.0)[1]


@contextmanager
def attack(name: str, where: Addresses, uid: int) -> Iterator[None]:
    """Let an attack go on while the block lasts, as that user. AssertionError if it has ended by itself."""
    paths = map(str, (where.stream, where.datagram, where.control, where.http))
    with _module("tests.neighbours.attacks", str(uid), name, *paths, str(where.port)) as attacker:
        yield
        assert attacker.process.poll() is None, "".join(attacker.lines)


@contextmanager
def _module(name: str, *arguments: str) -> Iterator[Child]:
    with running([sys.executable, "-m", name, *arguments], {"PYTHONPATH": str(Path.cwd())}) as child:
        yield child
