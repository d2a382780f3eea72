"""A daemon with nothing to do: memory, wake-ups and CPU; and how long it takes from its start until it is ready.

    python -m tests.benchmarks.idle [--seconds 60] [--rounds 10] [--json FILE]

`--rounds` is how many starts there are; agent and peer idle during the same minute.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks import usage
from tests.benchmarks.contenders import Contender, contenders, missing_peers
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import Report, Sample
from tests.benchmarks.sink import Sink, sink

BATCH = 1_000


def run(size: Size) -> Report:
    """Start each contender often, in turn, and then watch all of them do nothing."""
    present = contenders(alone=size.alone)
    facts = size.facts(seconds=size.seconds, **missing_peers(present))
    del facts["events"]
    with sink() as api:
        samples = [_start(contender, size, api) for _ in range(size.rounds) for contender in present]
        samples += _watch(present, size, api)
    return Report("idle", samples, facts)


def _start(contender: Contender, size: Size, api: Sink) -> Sample:
    with size.fresh() as directory:
        begin = time.perf_counter()
        with contender.start(directory, api.url, BATCH):
            seconds = time.perf_counter() - begin
    return Sample("cold start", contender.name, {"to ready, ms": 1e3 * seconds})


def _watch(present: Sequence[Contender], size: Size, api: Sink) -> list[Sample]:
    with ExitStack() as stack:
        pids: dict[str, int] = {}
        for contender in present:
            directory: Path = stack.enter_context(size.fresh())
            pids[contender.name] = stack.enter_context(contender.start(directory, api.url, BATCH)).pid
        before = {name: (usage.cpu_seconds(pid), usage.wakeups(pid)) for name, pid in pids.items()}
        time.sleep(size.seconds)
        return [_idled(name, pid, size.seconds, *before[name]) for name, pid in pids.items()]


def _idled(name: str, pid: int, seconds: float, cpu: float, wakeups: int) -> Sample:
    memory = usage.memory(pid)
    figures = {
        "RSS MiB": memory.rss,
        "PSS MiB": memory.pss,
        "wake-ups/s": (usage.wakeups(pid) - wakeups) / seconds,
        "CPU ms/s": 1e3 * (usage.cpu_seconds(pid) - cpu) / seconds,
    }
    return Sample("idle", name, figures)


BENCHMARK = Benchmark("idle", run, events=1, rounds=10)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
