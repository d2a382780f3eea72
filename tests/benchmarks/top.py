"""What it costs to watch: the CPU of `top` and of the daemon that it watches, at rest and while events come.

    python -m tests.benchmarks.top [--seconds 60] [--events 2000] [--json FILE]

`--events` is how many come in a second, in ten blocks. The daemon alone is measured too, to compare with.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from tests.benchmarks import usage
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.load import lines_of
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink
from tests.support.command import Terminal
from tests.support.daemon import Daemon

BLOCKS_A_SECOND = 10
TOP = "top"


def run(size: Size) -> Report:
    """Let a daemon rest, and have it work, each without and with somebody who watches."""
    with sink() as api, size.fresh() as directory, Daemon(directory, api.url) as daemon:
        samples = [
            sample
            for _ in range(size.rounds)
            for events in (0, size.events)
            for watched in (False, True)
            for sample in _measure(daemon, events, size.seconds / 4, watched=watched)
        ]
    return Report("top", samples, size.facts(seconds=size.seconds))


def _measure(daemon: Daemon, events: int, seconds: float, *, watched: bool) -> Iterator[Sample]:
    case = f"{events:,} events/s{', watched' if watched else ''}"
    with Terminal("top", "--config", Path(daemon.config), keyboard=True) if watched else nullcontext() as terminal:
        if terminal is not None:
            terminal.wait_for("builds of the last")
        pids = {AGENT: daemon.pid} | ({TOP: terminal.process.pid} if terminal is not None else {})
        before = {name: usage.cpu_seconds(pid) for name, pid in pids.items()}
        _pass(daemon, terminal, events, seconds)
        for name, pid in pids.items():
            share = (usage.cpu_seconds(pid) - before[name]) / seconds
            yield Sample(case, name, {"% of a core": 100 * share, "RSS MiB": usage.memory(pid).rss})


def _pass(daemon: Daemon, terminal: Terminal | None, events: int, seconds: float) -> None:
    """Send so many events a second for a while, and take what is drawn meanwhile."""
    lines = lines_of(sys.maxsize)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        if events:
            daemon.send_lines(b"".join(itertools.islice(lines, events // BLOCKS_A_SECOND)))
        if terminal is not None:
            terminal.read_until(now + 1 / BLOCKS_A_SECOND)
        else:
            time.sleep(max(now + 1 / BLOCKS_A_SECOND - time.monotonic(), 0.0))


BENCHMARK = Benchmark("top", run, events=2_000, rounds=1)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
