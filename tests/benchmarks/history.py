"""What the history and the metrics cost the daemon for each event, from one client's socket to the API; and what a report costs.

    python -m tests.benchmarks.history [--case NAME] [--events 1000000] [--rounds 5] [--json FILE]

The agent keeps its history as by default, and nobody reads its metrics. It is held against itself without a history, and with
metrics that are read at once and then each second, where Prometheus does it four times a minute.

"report" is the first one over a history of so many events, of which it has to fold all. It is held against the next one, which
finds it folded.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import httpx

from tests.benchmarks import load
from tests.benchmarks.contenders import QUEUE_BYTES, Contender, Running, agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink
from tests.benchmarks.startup import measured
from tests.benchmarks.throughput import Case, measure
from tests.support.command import COMMAND
from tests.support.daemon import Sections

CASES = {case.name: case for case in (Case(1_000), Case(10_000))}
REPORT = "report"
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
    for _ in range(size.rounds * len(size.chosen([REPORT]))):
        samples += _report(size)
    return Report("history", samples, size.facts())


def _report(size: Size) -> list[Sample]:
    """Let a daemon deliver everything and end; then report twice."""
    keep_all: Sections = {"history": {"max_bytes": QUEUE_BYTES}}
    with size.fresh() as directory, sink() as api, agent_daemon(directory, api.url, sections=keep_all) as daemon:
        load.send("stream", daemon.stream, size.events)
        arrived = api.wait(size.events)
        daemon.terminate()
        command = [*COMMAND, "report", "--format", "json", "--config", str(daemon.config)]
        used = [measured(command, {}) for _ in range(2)]
    assert arrived.events == size.events, f"{arrived.events} of {size.events} events arrived"
    return [
        Sample(REPORT, subject, {**each, "CPU µs/event": 1e3 * each["CPU ms"] / size.events})
        for subject, each in zip((AGENT, "folded before"), used, strict=True)
    ]


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


BENCHMARK = Benchmark("history", run, rounds=5, cases=(*CASES, REPORT))

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
