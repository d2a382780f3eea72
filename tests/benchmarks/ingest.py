"""From clients' sockets to the disk: events accepted and durable a second, while delivery is paused, against the floor.

python -m tests.benchmarks.ingest [--events 1000000] [--rounds 3] [--json FILE]
"""

import sys

from tests.benchmarks import floor, load, usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink

FLOOR = "floor"
# What the clients are, and how many processes they run in.
CASES: tuple[tuple[str, load.Kind, int], ...] = (
    ("1 client", "confirmed", 1),
    ("1 client, acks", "durable", 1),
    ("4 clients, acks", "durable", 4),
)


def run(size: Size) -> Report:
    """Measure each kind of client, agent and floor in turn."""
    facts = size.facts()
    samples: list[Sample] = []
    for case, kind, processes in CASES:
        for _ in range(size.rounds):
            samples += [measure(size, case, kind, processes), _floor(size, case)]
    return Report("ingest", samples, facts, baseline=FLOOR)


def measure(size: Size, case: str, kind: load.Kind, processes: int) -> Sample:
    """Send everything to a fresh daemon that may not deliver."""
    with size.fresh() as directory, sink() as api, agent_daemon(directory, api.url) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        cpu = usage.cpu_seconds(daemon.pid)
        sent = load.send(kind, daemon.stream, size.events, processes=processes)
        cpu = usage.cpu_seconds(daemon.pid) - cpu
        ledger = daemon.status()["destinations"]["default"]["ledger"]
        peak = usage.memory(daemon.pid).peak
    assert ledger["accepted"] == ledger["queued"] == size.events, ledger
    figures = {
        "events/s": size.events / (sent.end - sent.begin),
        "CPU µs/event": 1e6 * cpu / size.events,
        "peak MiB": peak,
        "client µs/event": 1e6 * sent.cpu / size.events,
    }
    return Sample(case, AGENT, figures)


def _floor(size: Size, case: str) -> Sample:
    with size.fresh() as directory:
        done = floor.run(size.events, directory / "floor")
    return Sample(case, FLOOR, {"events/s": size.events / done.seconds, "CPU µs/event": 1e6 * done.cpu / size.events})


BENCHMARK = Benchmark("ingest", run)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
