"""How the daemon's CPU per event changes with the number of clients and of events: it should not.

    python -m tests.benchmarks.scale [--events 10000000] [--rounds 3] [--plots DIRECTORY] [--json FILE]

`--events` is the most events; the clients share a tenth of that, however many clients there are. Each client
writes blocks of about 32 KiB.
"""

import sys
from pathlib import Path

from tests.benchmarks import load, usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink

CLIENTS = (1, 10, 100, 1_000)
FEWEST, STEPS = 1_000, 4
COST = "CPU µs/event"


def run(size: Size) -> Report:
    """Measure every number of clients, then every number of events; a round goes through all of them."""
    facts = size.facts()
    shared = max(size.events // 10, FEWEST)
    cases = [(f"clients {clients:,}", shared, clients) for clients in CLIENTS]
    cases += [(f"events {events:,}", events, 1) for events in event_counts(size.events)]
    samples = [_measure(size, *case) for _ in range(size.rounds) for case in cases]
    report = Report("scale", samples, facts)
    if size.plots is not None:
        _plot(report, size.plots)
    return report


def event_counts(most: int) -> list[int]:
    """Return what to measure with: `most` and the powers of ten below it, up to four of them."""
    return sorted({max(most // 10**step, FEWEST) for step in range(STEPS)})


def _measure(size: Size, case: str, events: int, clients: int) -> Sample:
    with size.fresh() as directory, sink() as api, agent_daemon(directory, api.url) as daemon:
        cpu = usage.cpu_seconds(daemon.pid)
        sent = load.send("stream", daemon.stream, events, clients=clients)
        arrived = api.wait(events)
        cpu, peak = usage.cpu_seconds(daemon.pid) - cpu, usage.memory(daemon.pid).peak
    assert arrived.events == events, f"{arrived.events} of {events} events arrived"
    figures = {COST: 1e6 * cpu / events, "events/s": events / (arrived.at - sent.begin), "peak MiB": peak}
    return Sample(case, AGENT, figures)


def _plot(report: Report, directory: Path) -> None:
    """Write a plot of each kind of case, as PNG and SVG."""
    from tests.benchmarks.plot import Series, write

    for kind in ("clients", "events"):
        found = [sample for sample in report.medians() if sample.case.startswith(kind)]
        numbers = [int(sample.case.split()[1].replace(",", "")) for sample in found]
        series = Series(kind, numbers, [sample.figures[COST] for sample in found])
        write(series, f"daemon: {COST}", directory / f"cost-by-{kind}")


BENCHMARK = Benchmark("scale", run, events=10_000_000, rounds=3)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
