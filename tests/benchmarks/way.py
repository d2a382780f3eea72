"""The way of an event, in calls: `python -m tests.benchmarks.way [TREE ...]` (default: this one).

Runs the daemon of each tree and counts in its process, from the first byte at the stream socket to the checkpoint after the
delivery: distinct Python functions and modules of `agent/`, calls (a coroutine that goes on counts again) and trips to another
thread, for one event with a durable ack and for a batch of 1,000. It needs no name of the tree: tests.benchmarks.counting does
the counting, and the daemon is spoken to over its sockets.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.api_server import ApiServer
from tests.support.daemon import Daemon
from tests.support.waiting import HUNG_AFTER

ROOT = Path(__file__).parents[2]
COUNTING = Path(__file__).with_name("counting")
QUIET_SECONDS = 1.5  # after the delivery: until then there is a checkpoint, after which nothing is counted
SIZES = (1, 1000)
Figures = dict[str, int]


def lines(count: int) -> bytes:
    """Return so many events."""
    event = {"sessionId": "s", "source": "REMOTE", "event": "HIT", "hash": "115c7929ab9c479c", "duration": 514}
    return count * (json.dumps(event).encode() + b"\n")


@contextmanager
def counting(path: Path) -> Iterator[Figures]:
    """Count while the block lasts; what is yielded is filled at its end."""
    figures: Figures = {}
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
        client.settimeout(HUNG_AFTER)
        client.connect(str(path))
        answers.readline()
        yield figures
        client.shutdown(socket.SHUT_WR)
        figures.update(json.loads(answers.readline()))


def measure(tree: Path) -> dict[int, Figures]:
    """Return the figures for each size."""
    found = {}
    os.chdir(tree)  # that is where `python -m agent.cli` finds it
    with tempfile.TemporaryDirectory(prefix="way-") as name, ApiServer() as server:
        sections = {"batch": {"max_events": max(SIZES), "max_delay": "50ms"}}
        daemon = Daemon(Path(name) / "d", server.url, sections)
        counter = Path(name) / "count.sock"
        daemon.env = {"PYTHONPATH": str(COUNTING), "COUNT_BELOW": str(tree / "agent"), "COUNT_SOCKET": str(counter)}
        with daemon, daemon.connect() as client:
            delivered = settled = 0
            for size in (1, *SIZES):  # the first only warms up
                with counting(counter) as found[size]:
                    client.send(lines(size))
                    settled += size
                    client.wait_settled(settled)
                    delivered += size
                    server.wait_for_accepted(delivered)
                    time.sleep(QUIET_SECONDS)
    return found


def main() -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.way", description=main.__doc__)
    parser.add_argument("trees", nargs="*", type=Path, default=[ROOT], help="where agent/ is")
    table = Table("", "events", "functions", "modules", "calls", "trips to a thread", box=None)
    for tree in [each.resolve() for each in parser.parse_args().trees]:  # before `measure` changes the directory
        for size, figures in measure(tree).items():
            table.add_row(str(tree), f"{size:,}", *(f"{each:,}" for each in figures.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
