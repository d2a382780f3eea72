"""What the history and the metrics cost the daemon for each event, from one client's socket to the API.

    python -m tests.benchmarks.history [--events 1000000] [--rounds 5] [--json FILE]

The agent keeps its history as by default, and nobody reads its metrics. It is held against itself without a history, and with
metrics that are read at once and then each second, where Prometheus does it four times a minute.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import httpx

from tests.benchmarks.contenders import Contender, Running, agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report
from tests.benchmarks.throughput import Case, measure

CASES = {case.name: case for case in (Case(1_000), Case(10_000))}
SCRAPE_SECONDS = 1.0


def run(size: Size) -> Report:
    """Measure each way in turn."""
    ways = [
        Contender(AGENT, agent_daemon),
        Contender("without history", partial(agent_daemon, sections={"history": {"max_bytes": 0}})),
        Contender("metrics read", _with_metrics_read),
    ]
    samples = [
        measure(way, size, CASES[name]) for name in size.chosen(CASES) for _ in range(size.rounds) for way in ways
    ]
    return Report("history", samples, size.facts())


@contextmanager
def _with_metrics_read(directory: Path, api_url: str, batch: int) -> Iterator[Running]:
    path, ended = directory / "m.sock", Event()
    daemon = agent_daemon(directory, api_url, batch, {"metrics": {"socket": str(path)}})
    with daemon, ThreadPoolExecutor(1) as pool:
        reader = pool.submit(_read_metrics, path, ended)
        try:
            yield daemon
        finally:
            ended.set()
        reader.result()


def _read_metrics(path: Path, ended: Event) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        client.get("http://agent/metrics").raise_for_status()
        while not ended.wait(SCRAPE_SECONDS):
            client.get("http://agent/metrics").raise_for_status()


BENCHMARK = Benchmark("history", run, rounds=5, cases=tuple(CASES))

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
