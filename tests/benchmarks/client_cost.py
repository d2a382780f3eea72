"""What a build pays: one `emit` with the daemon idle, busy, stopped, hung and absent, against a bare `send` of the same bytes.

    python -m tests.benchmarks.client_cost [--case NAME] [--events 20000] [--rounds 5] [--json FILE]

A stopped daemon still has room for connections, and what is sent fills their buffers; one that hangs has none: others have
filled its backlog before.

The bare send goes into a connected Unix socket that this process empties in between, in turn with the emits. The last case
is the command `artifacts-agent emit` as a process, against Python doing nothing. On a busy machine the worst is what the
scheduler did: `blocked` tells how often a call itself waited for something, which it never should.
"""

import errno
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from agent.client import EventClient
from tests.benchmarks import load
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Report, Sample
from tests.benchmarks.sink import sink
from tests.support.command import COMMAND, environment
from tests.support.daemon import Daemon

BASELINE = "bare"
BURST = 200  # fits a socket's buffer while nobody reads
PROCESSES = 20
HASH, DURATION = "115c7929ab9c479c", 514
SESSION = "ca8de1f1-76c7-4bdd-85a1-dba48d353cd8"
EVENT = f'"sessionId":"{SESSION}","source":"REMOTE","event":"HIT","hash":"{HASH}","duration":{DURATION}'
LINE = f"{{{EVENT}}}\n".encode()


def run(size: Size) -> Report:
    """Measure each state of the daemon, agent and bare send in turn."""
    facts = size.facts()
    samples: list[Sample] = []
    with size.fresh() as directory, sink() as api:
        daemon = agent_daemon(directory, api.url)
        stream = _with_usual_names(daemon)
        for case in size.chosen(STATES):
            with STATES[case](daemon):
                for _ in range(size.rounds):
                    samples += _measure(case, stream, size.events, _settled(STATES[case], daemon))
        if size.chosen([COMMAND_CASE]):
            with daemon:
                samples += _commands(daemon, min(PROCESSES, max(size.events // 1000, 1)), size.rounds)
    return Report("client cost", samples, facts)


def _with_usual_names(daemon: Daemon) -> Path:
    """Give the sockets their usual names, by which a client finds the other one, and return the stream's."""
    usual = {"events.sock": daemon.stream, "datagram.sock": daemon.datagram}
    for name, path in usual.items():
        (daemon.directory / name).symlink_to(path)
    return daemon.directory / "events.sock"


# The states


@contextmanager
def _idle(daemon: Daemon) -> Iterator[None]:
    with daemon:
        yield


@contextmanager
def _busy(daemon: Daemon) -> Iterator[None]:
    with daemon, load.endless(daemon.stream) as others:
        others.go()
        yield


@contextmanager
def _stopped(daemon: Daemon) -> Iterator[None]:
    with daemon:
        daemon.signal(signal.SIGSTOP)
        yield


@contextmanager
def _hung(daemon: Daemon) -> Iterator[None]:
    with _stopped(daemon), ExitStack() as crowd:
        load.raise_file_limit()
        code = 0
        while code == 0:
            waiting = crowd.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            code = waiting.connect_ex(str(daemon.stream))
        assert code == errno.EAGAIN, os.strerror(code)
        yield


@contextmanager
def _absent(_: Daemon) -> Iterator[None]:
    yield


State = Callable[[Daemon], AbstractContextManager[None]]
STATES: dict[str, State] = {
    "emit, daemon idle": _idle,
    "emit, daemon busy": _busy,
    "emit, daemon stopped": _stopped,
    "emit, daemon hung": _hung,
    "emit, daemon absent": _absent,
}
COMMAND_CASE = "artifacts-agent emit"


def _settled(state: State, daemon: Daemon) -> Callable[[], object]:
    """Return what to do between bursts: an idle daemon is to have taken what came before."""
    return (lambda: daemon.request("GET", "/healthz").raise_for_status()) if state is _idle else lambda: None


# One emit


def _measure(case: str, path: Path, events: int, settle: Callable[[], object]) -> list[Sample]:
    """Time emits and bare sends, a burst of each in turn."""
    emits, sends = _Burst(), _Burst()
    with EventClient(path, ci=None, interactive=0, session_id=SESSION) as client, _drained_pair() as (near, drain):
        for _ in range(max(events // BURST, 1)):
            emits.add(lambda: client.emit("HIT", "REMOTE", HASH, duration=DURATION))
            sends.add(lambda: near.sendall(LINE))
            drain()
            settle()
        unsent = 100 * client.unsent / len(emits.times)
    return [Sample(case, AGENT, emits.figures() | {"unsent %": unsent}), Sample(case, BASELINE, sends.figures())]


class _Burst:
    """What calls took, in nanoseconds, and how often this thread went to sleep in them: that it was blocked."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.blocked = 0

    def add(self, call: Callable[[], object]) -> None:
        """Time a burst of calls."""
        clock, times, before = time.perf_counter_ns, self.times, _sleeps()
        for _ in range(BURST):
            begin = clock()
            call()
            times.append(clock() - begin)
        self.blocked += _sleeps() - before

    def figures(self) -> dict[str, float]:
        cuts = statistics.quantiles(self.times, n=100)
        return {
            "p50 µs": cuts[49] / 1e3,
            "p99 µs": cuts[98] / 1e3,
            "worst µs": max(self.times) / 1e3,
            "over 1 ms": sum(each > 1e6 for each in self.times),
            "blocked": self.blocked,
        }


def _sleeps() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


@contextmanager
def _drained_pair() -> Iterator[tuple[socket.socket, Callable[[], object]]]:
    """Lend a connected socket, and a call that empties it."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        yield near, lambda: far.recv(2 * BURST * len(LINE))


# The command


def _commands(daemon: Daemon, processes: int, rounds: int) -> list[Sample]:
    emit = [*COMMAND, "emit", "--socket", str(daemon.stream), "--event", "HIT", "--source", "REMOTE", "--hash", HASH]
    samples: list[Sample] = []
    for _ in range(rounds):
        times = [(_seconds(emit), _seconds([sys.executable, "-c", "pass"])) for _ in range(processes)]
        for subject, each in zip((AGENT, BASELINE), zip(*times, strict=True), strict=True):
            samples.append(Sample(COMMAND_CASE, subject, {"process ms": 1e3 * statistics.median(each)}))
    return samples


def _seconds(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, env=environment(), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


BENCHMARK = Benchmark("client_cost", run, events=20_000, rounds=5, cases=(*STATES, COMMAND_CASE))

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
