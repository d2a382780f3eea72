"""What several destinations cost: ten against one, one beside nine that are blocked with full queues, and fifty that are idle.

    python -m tests.benchmarks.destinations [--case NAME] [--events 500000] [--rounds 3] [--seconds 60] [--json FILE]

"throughput" sends the same blocks on ten connections, to ten destinations in turn or to one. "latency" is how long one client
waits for the ack of one event at a time, its destination beside nine whose API blocks them, with full queues, and to which nine
clients go on writing; and the same alone. Both daemons run at a time, and are asked in turn. "idle" holds fifty destinations with
nothing to do against one, during the same `--seconds`; what each costs is the difference divided by the others.
"""

import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.control.schema import DestinationStatus
from tests.benchmarks import usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.load import blocks
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink
from tests.support.api_server import Answer, ApiServer
from tests.support.daemon import Conversation, Daemon, Sections
from tests.support.waiting import eventually

TEN, FIFTY = 10, 50
ONE = "one destination"
CHUNK, CHUNKS = 100, 10
FULL_BYTES = 4 * 1024**2
PRESSURE_SECONDS = 0.05
CASES = ("throughput", "latency", "idle")
EVENT = b'{"sessionId":"11111111-1111-4111-8111-111111111111","source":"LOCAL","event":"HIT","hash":"a","duration":7}\n'


def run(size: Size) -> Report:
    """Measure each case in rounds, several destinations and one in turn."""
    samples: list[Sample] = []
    for case in size.chosen(CASES):
        for _ in range(1 if case == "idle" else size.rounds):
            samples += {"throughput": _throughput, "latency": _latency, "idle": _idle}[case](size)
    return Report("destinations", samples, size.facts(seconds=size.seconds))


def names(count: int) -> list[str]:
    """Return the names of so many destinations, DEFAULT among them."""
    return ["default", *(f"d{number}" for number in range(1, count))]


def _daemon(
    directory: Path, default: str, others: str, destinations: Sequence[str], sections: Sections | None = None
) -> Daemon:
    """Return a daemon, not yet started, with the API of default and that of all others."""
    daemon = agent_daemon(directory, default, sections=sections)
    tables = [
        f'[destinations.{name}]\nurl = "{others}"\ntoken_file = "{daemon.token_file}"\n'
        f'[[rules]]\nasks_for = "{name}"\ndestination = "{name}"\n'
        for name in destinations[1:]
    ]
    daemon.config.write_text(daemon.config.read_text() + "".join(tables))
    return daemon


def _context(destination: str) -> bytes:
    return b'{"context":{"destination":"%b"}}\n' % destination.encode()


# Throughput


def _throughput(size: Size) -> list[Sample]:
    return [_sent(size, AGENT, names(TEN)), _sent(size, ONE, names(1))]


def _sent(size: Size, subject: str, destinations: Sequence[str]) -> Sample:
    with ExitStack() as open_:
        directory, api = open_.enter_context(size.fresh()), open_.enter_context(sink())
        daemon = open_.enter_context(_daemon(directory, api.url, api.url, destinations))
        clients = [open_.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(TEN)]
        for index, client in enumerate(clients):
            client.connect(str(daemon.stream))
            client.sendall(_context(destinations[index % len(destinations)]))
        cpu, begin = usage.cpu_seconds(daemon.pid), time.monotonic()
        for index, block in enumerate(blocks(size.events)):
            clients[index % TEN].sendall(block)
        arrived = api.wait(size.events)
        cpu, peak = usage.cpu_seconds(daemon.pid) - cpu, usage.memory(daemon.pid).peak
    assert arrived.events == size.events, f"{arrived.events} of {size.events} events arrived"
    figures = {
        "events/s": size.events / (arrived.at - begin),
        "CPU µs/event": 1e6 * cpu / size.events,
        "peak MiB": peak,
    }
    return Sample("throughput", subject, figures)


# Latency


def _latency(size: Size) -> list[Sample]:
    small: Sections = {"queue": {"max_bytes": FULL_BYTES, "sync": "commit"}}
    with ExitStack() as open_:
        api, blocked = open_.enter_context(sink()), open_.enter_context(ApiServer())
        blocked.default = Answer(402)
        daemons = {
            subject: open_.enter_context(
                _daemon(open_.enter_context(size.fresh()), api.url, blocked.url, names(count), small)
            )
            for subject, count in ((AGENT, TEN), (ONE, 1))
        }
        open_.enter_context(_full(daemons[AGENT]))
        waits: dict[str, list[float]] = {subject: [] for subject in daemons}
        clients = {subject: open_.enter_context(daemon.connect()) for subject, daemon in daemons.items()}
        for _ in range(CHUNKS):
            for subject, client in clients.items():
                waits[subject] += [_wait(client) for _ in range(CHUNK)]
    return [Sample("latency", subject, _spread(seconds)) for subject, seconds in waits.items()]


def _wait(client: Conversation) -> float:
    begin = time.perf_counter()
    client.send(EVENT)
    assert client.answer() is not None
    return time.perf_counter() - begin


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50 ms": 1e3 * cuts[49], "p99 ms": 1e3 * cuts[98], "worst ms": 1e3 * max(seconds)}


@contextmanager
def _full(daemon: Daemon) -> Iterator[None]:
    """Have all destinations but default paused with full queues, and go on writing to them while the block lasts."""
    others, over = names(TEN)[1:], threading.Event()

    def press() -> None:
        while not over.wait(PRESSURE_SECONDS):
            for client in clients:
                client.sendall(EVENT * 100)

    with ExitStack() as open_:
        clients = [open_.enter_context(socket.socket(socket.AF_UNIX)) for _ in others]
        for name, client in zip(others, clients, strict=True):
            client.connect(str(daemon.stream))
            client.sendall(_context(name))
            for block in blocks(2 * FULL_BYTES // len(EVENT)):
                client.sendall(block)
        eventually(daemon.report, lambda found: all(_is_full(found.destinations[name]) for name in others), 60)
        pressing = threading.Thread(target=press)
        pressing.start()
        try:
            yield
        finally:
            over.set()
            pressing.join()


def _is_full(destination: DestinationStatus) -> bool:
    return destination.state == "paused" and bool(destination.ledger.dropped)


# Idle


def _idle(size: Size) -> list[Sample]:
    with ExitStack() as open_:
        api = open_.enter_context(sink())
        pids = {
            subject: open_.enter_context(_daemon(open_.enter_context(size.fresh()), api.url, api.url, names(count))).pid
            for subject, count in ((AGENT, FIFTY), (ONE, 1))
        }
        before = {subject: (usage.wakeups(pid), usage.cpu_seconds(pid)) for subject, pid in pids.items()}
        time.sleep(size.seconds)
        found = {
            subject: {
                "RSS MiB": usage.memory(pid).rss,
                "wake-ups/s": (usage.wakeups(pid) - before[subject][0]) / size.seconds,
                "CPU ms/s": 1e3 * (usage.cpu_seconds(pid) - before[subject][1]) / size.seconds,
            }
            for subject, pid in pids.items()
        }
    each = {key: (found[AGENT][key] - found[ONE][key]) / (FIFTY - 1) for key in found[ONE]}
    return [*(Sample("idle", *one) for one in found.items()), Sample("idle, each", AGENT, each)]


BENCHMARK = Benchmark("destinations", run, events=500_000, rounds=3, cases=CASES)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
