"""A long queue: does it slow the start, does memory stay, is the drain as fast at its end as at its beginning?

    python -m tests.benchmarks.backlog [--events 10000000] [--rounds 5] [--json FILE]

A daemon that may not deliver writes the queue, as it would while the API is away. `--rounds` is how many starts there are,
with the queue and without in turn; the queue is drained once.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from tests.benchmarks import load, usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import Sink, sink
from tests.support.daemon import Daemon

EMPTY = "empty queue"
STARTS, DRAIN = "start", "drain"
START_SECONDS = 30
FEWEST = 100_000  # so that each tenth is ten batches, which do not arrive at one moment
PARTS = 10  # the drain is timed in tenths: the first and the last hold what starting and ending costs


def run(size: Size) -> Report:
    """Fill a queue, start on it and on an empty one, and drain it."""
    events = max(size.events, FEWEST)
    facts = size.facts(events=f"{events:,}")
    with size.fresh() as long, size.fresh() as short, sink() as api:
        full, empty = agent_daemon(long, api.url), agent_daemon(short, api.url)
        _fill(full, events)
        _fill(empty, 0)
        facts["queue MiB"] = round(_size(full.queue) / 2**20)
        samples = [_start(*each) for _ in range(size.rounds) for each in ((AGENT, full), (EMPTY, empty))]
        samples.append(_drain(full, api, events))
    return Report("backlog", samples, facts)


def _fill(daemon: Daemon, events: int) -> None:
    """Let a daemon queue so many events, and leave it paused."""
    with daemon:
        daemon.request("POST", "/pause").raise_for_status()
        if events:
            load.send("confirmed", daemon.stream, events)
        daemon.terminate()


def _start(subject: str, daemon: Daemon) -> Sample:
    begin = time.perf_counter()
    with daemon:
        seconds, rss = time.perf_counter() - begin, usage.memory(daemon.pid).rss
        daemon.terminate()
    return Sample(STARTS, subject, {"to ready, ms": 1e3 * seconds, "RSS MiB": rss})


def _drain(daemon: Daemon, api: Sink, events: int) -> Sample:
    """Deliver everything; the rates are those of the second and the last but one tenth."""
    marks = [events * part // PARTS for part in range(1, PARTS + 1)]
    with daemon, ThreadPoolExecutor(PARTS) as pool:
        waiting = [pool.submit(api.wait, mark, START_SECONDS) for mark in marks]
        cpu, begin = usage.cpu_seconds(daemon.pid), time.monotonic()
        daemon.request("POST", "/resume").raise_for_status()
        arrived = [each.result() for each in waiting]
        cpu, peak = usage.cpu_seconds(daemon.pid) - cpu, usage.memory(daemon.pid).peak
        daemon.terminate()
    assert arrived[-1].events >= events, f"{arrived[-1].events} of {events} events arrived"
    tenths = [(after.events - before.events) / (after.at - before.at) for before, after in pairwise(arrived)]
    figures = {
        "peak MiB": peak,
        "events/s": events / (arrived[-1].at - begin),
        "at the beginning": tenths[0],
        "at the end": tenths[-2],
        "end / beginning": tenths[-2] / tenths[0],
        "CPU µs/event": 1e6 * cpu / events,
    }
    return Sample(DRAIN, AGENT, figures)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


BENCHMARK = Benchmark("backlog", run, events=10_000_000, rounds=5)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
