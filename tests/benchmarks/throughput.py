"""From one client's socket to the API: events a second, CPU and memory, at several batch sizes, against syslog-ng.

python -m tests.benchmarks.throughput [--events 1000000] [--rounds 3] [--json FILE]
"""

import sys
from typing import NamedTuple

from tests.benchmarks import load, usage
from tests.benchmarks.contenders import SYSLOG_NG, Contender, contenders, missing_peer
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import Report, Sample
from tests.benchmarks.sink import sink


class Case(NamedTuple):
    """How many events a batch has, and whether they are of many sessions instead of one."""

    batch: int
    mixed: bool = False

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.batch:,} a batch{', mixed' if self.mixed else ''}"


CASES = (Case(100), Case(1_000), Case(1_000, mixed=True), Case(10_000))


def run(size: Size) -> Report:
    """Measure each batch size, the contenders in turn."""
    present = contenders()
    facts = size.facts(**missing_peer(present))
    samples = [measure(contender, size, case) for case in CASES for _ in range(size.rounds) for contender in present]
    return Report("throughput", samples, facts, baseline=SYSLOG_NG)


def measure(contender: Contender, size: Size, case: Case) -> Sample:
    """Send everything to a fresh process, and wait until the API has it."""
    with size.fresh() as directory, sink() as api, contender.start(directory, api.url, case.batch) as running:
        cpu, before = usage.cpu_seconds(running.pid), api.wait(0)
        sent = load.send("stream", running.stream, size.events, mixed=case.mixed)
        after = api.wait(size.events)
        cpu, peak = usage.cpu_seconds(running.pid) - cpu, usage.memory(running.pid).peak
    assert after.events == size.events, f"{contender.name} lost {size.events - after.events} of {size.events} events"
    figures = {
        "events/s": size.events / (after.at - sent.begin),
        "CPU µs/event": 1e6 * cpu / size.events,
        "peak MiB": peak,
        "events/request": size.events / after.requests,
        "client µs/event": 1e6 * sent.cpu / size.events,
        "sink µs/event": 1e6 * (after.cpu - before.cpu) / size.events,
    }
    return Sample(case.name, contender.name, figures)


BENCHMARK = Benchmark("throughput", run)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
