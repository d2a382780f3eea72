"""From clients' sockets to the disk: events accepted and durable a second, while delivery is paused, against the floor.

python -m tests.benchmarks.ingest [--case NAME] [--events 1000000] [--rounds 3] [--json FILE]
"""

import sys

from tests.benchmarks import floor, load, usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink

# What the clients are, and how many processes they run in.
CASES: dict[str, tuple[load.Kind, int]] = {
    "1 client": ("confirmed", 1),
    "1 client, acks": ("durable", 1),
    "4 clients, acks": ("durable", 4),
}


def run(size: Size) -> Report:
    """Measure each kind of client, agent and floor in turn."""
    facts = size.facts()
    samples: list[Sample] = []
    for case in size.chosen(CASES):
        for _ in range(size.rounds):
            samples += [measure(size, case), _floor(size, case)]
    return Report("ingest", samples, facts)


def measure(size: Size, case: str) -> Sample:
    """Send everything to a fresh daemon that may not deliver."""
    kind, processes = CASES[case]
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
    return Sample(
        case, floor.SUBJECT, {"events/s": size.events / done.seconds, "CPU µs/event": 1e6 * done.cpu / size.events}
    )


BENCHMARK = Benchmark("ingest", run, cases=tuple(CASES))

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
