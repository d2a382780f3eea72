"""Clients that send one event and are gone: connections a second and the daemon's CPU for each, and the same as datagrams.

    python -m tests.benchmarks.short_lived [--case NAME] [--events 20000] [--rounds 3] [--json FILE]

A client's `connect` waits when the daemon's backlog is full, and its datagram when the socket is, so nothing is lost. The
clients run in two processes, or one could be what limits the daemon; what they cost is stated, since they share the machine.

How many datagrams wait in a socket decides how often client and daemon wake each other, which costs more than all the rest:
`net.unix.max_dgram_qlen` is 10 by default, and 512 under systemd, which sets it at boot.
"""

import sys
from pathlib import Path

from tests.benchmarks import load, usage
from tests.benchmarks.contenders import Contender, contenders, missing_peers
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink

_QUEUE_LENGTH = Path("/proc/sys/net/unix/max_dgram_qlen")
BATCH = 1_000
PROCESSES = 2
CASES: dict[str, load.Kind] = {"connection each": "short", "datagram each": "datagram"}


def run(size: Size) -> Report:
    """Measure both ways, the contenders in turn."""
    present = contenders(alone=size.alone)
    facts = size.facts(max_dgram_qlen=int(_QUEUE_LENGTH.read_text()), **missing_peers(present))
    samples = [
        measure(contender, size, case)
        for case in size.chosen(CASES)
        for _ in range(size.rounds)
        for contender in present
    ]
    return Report("short-lived clients", samples, facts)


def measure(contender: Contender, size: Size, case: str) -> Sample:
    """Send every event on its own to a fresh process, until the API has them all.

    The rate is that at which the clients get rid of them: the last ones wait in the process for their batch.
    """
    kind = CASES[case]
    with size.fresh() as directory, sink() as api, contender.start(directory, api.url, BATCH) as running:
        cpu = usage.cpu_seconds(running.pid)
        path = running.stream if kind == "short" else running.datagram
        sent = load.send(kind, path, size.events, processes=PROCESSES)
        arrived = api.wait(size.events)
        cpu, peak = usage.cpu_seconds(running.pid) - cpu, usage.memory(running.pid).peak
    figures = {
        "events/s": size.events / (sent.end - sent.begin),
        "to the API, events/s": size.events / (arrived.at - sent.begin),
        "CPU µs/event": 1e6 * cpu / size.events,
        "peak MiB": peak,
        "client µs/event": 1e6 * sent.cpu / size.events,
        "lost": size.events - arrived.events,
    }
    assert contender.name != AGENT or not figures["lost"], f"the agent lost {figures['lost']} events"
    return Sample(case, contender.name, figures)


BENCHMARK = Benchmark("short_lived", run, events=20_000, cases=tuple(CASES))

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
