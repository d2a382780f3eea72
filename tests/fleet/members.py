"""The processes of a fleet under faults: relays, real agents, and those that play many runners each."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.nats import NatsCluster

POOL_OF_RUNNERS = "simulated"
POOL_OF_AGENTS = "agents"
PROCESSES = 4
STARTING = 4  # agents at a time
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS


class Relay:
    """One relay, as a process that may be killed."""

    def __init__(self, directory: Path, servers: tuple[str, ...], api: str, token: Path) -> None:
        directory.mkdir(parents=True)
        self.name = directory.name
        self.log = directory / "relay.log"
        self._config = directory / "relay.toml"
        self._config.write_text(
            f'[relay]\nservers = {json.dumps(list(servers))}\nteam = "web"\n\n'
            f'[api]\nurl = "{api}"\ntoken_file = "{token}"\ntimeout = "5s"\n\n'
            '[retry]\ninitial_delay = "100ms"\nmax_delay = "2s"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "agent.cli", "relay", "--config", str(self._config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


class Agents:
    """Real agents, each with a queue of its own, and what was handed to them: events numbered from 1."""

    def __init__(self, directory: Path, count: int, cluster: NatsCluster, api: str) -> None:
        forward = {"servers": list(cluster.urls), "team": "web", "pool": POOL_OF_AGENTS}
        self.daemons = [Daemon(directory / f"agent-{each}", api, {"forward": forward}) for each in range(count)]
        self.handed = [0] * count

    @property
    def made(self) -> dict[str, int]:
        """How many events each made, by the name in their hashes."""
        return {f"a{index}": count for index, count in enumerate(self.handed)}

    def start(self) -> None:
        """Start all of them, a few at a time."""
        with ThreadPoolExecutor(STARTING) as threads:
            list(threads.map(Daemon.start, self.daemons))

    def hand(self, index: int, count: int) -> None:
        """Hand events to an agent, durably."""
        first = self.handed[index] + 1
        event = {"sessionId": f"a{index}", "source": "LOCAL", "event": "MISS"}
        hashes = (f"a{index}-{number}" for number in range(first, first + count))
        lines = b"".join(json.dumps({**event, "hash": each}).encode() + b"\n" for each in hashes)
        with self.daemons[index].connect() as conversation:
            conversation.send(lines)
            conversation.wait_settled(count)
        self.handed[index] += count

    def finish(self, seconds: float) -> None:
        """End all of them, each once it has forwarded everything, within so many seconds."""

        def finish(daemon: Daemon) -> None:
            daemon.wait_destination(lambda found: found.ledger.queued == 0, seconds)
            daemon.terminate()

        with ThreadPoolExecutor(STARTING) as threads:
            list(threads.map(finish, self.daemons))

    def kill(self) -> None:
        """End all of them without a warning."""
        for daemon in self.daemons:
            daemon.kill()


class Runners:
    """Runners that forward by the agent's own code, without daemons, many in a process."""

    def __init__(self, directory: Path, options: argparse.Namespace, servers: tuple[str, ...]) -> None:
        self._progress = [directory / f"runners-{each}.json" for each in range(PROCESSES)]
        self._servers = servers
        self._options = options
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all of them."""
        for index, progress in enumerate(self._progress):
            arguments = [
                *("--servers", *self._servers, "--pool", POOL_OF_RUNNERS, "--progress", str(progress)),
                *("--runners", str(self._options.runners // PROCESSES), "--seed", str(self._options.seed + index)),
                *("--rate", str(self._options.rate / PROCESSES)),
            ]
            self.processes.append(subprocess.Popen([sys.executable, "-m", "tests.fleet.runners", *arguments]))

    def finish(self) -> None:
        """End all of them, each once it has forwarded what it made."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def kill(self) -> None:
        """End all of them without a warning."""
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def forwarded(self) -> dict[str, int]:
        """How many events each forwarded, by queue id, which is the name in their hashes; known when they have finished."""
        return {queue: count for file in self._progress for queue, count in json.loads(file.read_text()).items()}


def ended_by_themselves(relays: list[Relay], agents: Agents, runners: Runners) -> Iterator[str]:
    """Name the processes that should run and do not."""
    for relay in relays:
        if relay.process is not None and (code := relay.process.poll()) is not None:
            yield f"{relay.name} ended by itself with {code}: see {relay.log}"
    for daemon in agents.daemons:
        if daemon.ended_within(0):
            yield f"{daemon.directory.name} ended by itself"
    for index, process in enumerate(runners.processes):
        if (code := process.poll()) is not None:
            yield f"process {index} of runners ended by itself with {code}"
