"""From one client's socket to the API: events a second, CPU and memory, at several batch sizes, against its peers and the floor.

    python -m tests.benchmarks.throughput [--case NAME] [--events 1000000] [--rounds 3] [--json FILE]

Each 1,000 events are of 20 sessions unless the case says something else.
"""

import sys
from typing import NamedTuple

from tests.benchmarks import floor, load, usage
from tests.benchmarks.contenders import Contender, contenders, missing_peers
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import Report, Sample
from tests.benchmarks.sink import sink

_SESSIONS = {1: ", one session", load.SESSIONS: "", load.EACH: ", a session each"}


class Case(NamedTuple):
    """How many events a batch has, and how many sessions 1,000 events."""

    batch: int
    sessions: int = load.SESSIONS

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.batch:,} a batch{_SESSIONS[self.sessions]}"


CASES = {case.name: case for case in (Case(100), Case(1_000), Case(1_000, 1), Case(1_000, load.EACH), Case(10_000))}


def run(size: Size) -> Report:
    """Measure each case, the contenders and the floor in turn."""
    present = contenders(alone=size.alone)
    facts = size.facts(**missing_peers(present))
    samples: list[Sample] = []
    for name in size.chosen(CASES):
        for _ in range(size.rounds):
            samples += [measure(contender, size, CASES[name]) for contender in present]
            samples.append(_floor(size, CASES[name]))
    return Report("throughput", samples, facts)


def measure(contender: Contender, size: Size, case: Case) -> Sample:
    """Send everything to a fresh process, and wait until the API has it."""
    with size.fresh() as directory, sink() as api, contender.start(directory, api.url, case.batch) as running:
        cpu, before = usage.cpu_seconds(running.pid), api.wait(0)
        sent = load.send("stream", running.stream, size.events, sessions=case.sessions)
        after = api.wait(size.events)
        cpu, peak = usage.cpu_seconds(running.pid) - cpu, usage.memory(running.pid).peak
    assert after.events == size.events, f"{contender.name} lost {size.events - after.events} of {size.events} events"
    figures = {
        "events/s": size.events / (after.at - sent.begin),
        "CPU µs/event": 1e6 * cpu / size.events,
        "CPU µs/request": 1e6 * cpu / after.requests,
        "peak MiB": peak,
        "events/request": size.events / after.requests,
        "client µs/event": 1e6 * sent.cpu / size.events,
        "sink µs/event": 1e6 * (after.cpu - before.cpu) / size.events,
    }
    return Sample(case.name, contender.name, figures)


def _floor(size: Size, case: Case) -> Sample:
    with size.fresh() as directory:
        done = floor.run(size.events, directory / "floor", case.batch, case.sessions)
    figures = {
        "events/s": size.events / done.seconds,
        "CPU µs/event": 1e6 * done.cpu / size.events,
        "CPU µs/request": 1e6 * done.cpu / done.bodies,
        "events/request": size.events / done.bodies,
    }
    return Sample(case.name, floor.SUBJECT, figures)


BENCHMARK = Benchmark("throughput", run, cases=tuple(CASES))

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
