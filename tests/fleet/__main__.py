"""`python -m tests.fleet --seconds 300 --runners 900 --agents 20`: a fleet under faults; exit code 0 if its accounts hold.

Three real nats-servers, relays, real agents, and runners that forward by the agent's own code, in a few processes. While they
work, servers, relays and agents are killed at random, and the API fails in its own ways. At the end every event that was
forwarded has to be delivered, the accounts of every queue exact, and what was delivered twice no more than is in doubt.
"""

import argparse
import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.config.schema import RelayConfig
from agent.fleet import names
from agent.fleet.accounting import FleetLedger, QueueKey
from agent.fleet.engine import EngineError
from agent.fleet.overview import Overview, look, read_ledger
from tests.support.api_server import Answer, ApiServer, error
from tests.support.daemon import Daemon
from tests.support.nats import NatsCluster

POOL_OF_RUNNERS = "simulated"
POOL_OF_AGENTS = "agents"
PROCESSES = 4
DRAIN_SECONDS = 300.0
TROUBLE = (
    Answer(),
    Answer(),
    error(503, "unavailable", "later"),
    error(429, "too_many", "later", {"Retry-After": "1"}),
    Answer(mode="reset"),
    Answer(mode="reset_mid_answer"),
    Answer(delay=0.5),
)


class Relay:
    """One relay, as a process that may be killed."""

    def __init__(self, directory: Path, servers: tuple[str, ...], api: str, token: Path) -> None:
        directory.mkdir(parents=True)
        self.config = directory / "relay.toml"
        self.log = directory / "relay.log"
        self.config.write_text(
            f'[relay]\nservers = {json.dumps(list(servers))}\nteam = "web"\n\n'
            f'[api]\nurl = "{api}"\ntoken_file = "{token}"\ntimeout = "5s"\n\n'
            '[batch]\nmax_delay = "1s"\n\n[retry]\ninitial_delay = "100ms"\nmax_delay = "2s"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "agent.cli", "relay", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


class Agents:
    """Real agents, each with a queue of its own, and what was handed to them."""

    def __init__(self, directory: Path, count: int, cluster: NatsCluster, api: str) -> None:
        forward = {"servers": list(cluster.urls), "team": "web", "pool": POOL_OF_AGENTS}
        self.daemons = [Daemon(directory / f"agent-{each}", api, {"forward": forward}) for each in range(count)]
        self.handed = [0] * count

    def hand(self, index: int, count: int) -> None:
        """Hand events to an agent, durably."""
        first = self.handed[index]
        event = {"sessionId": f"a{index}", "source": "LOCAL", "event": "MISS"}
        hashes = (f"a{index}-{number}" for number in range(first, first + count))
        lines = b"".join(json.dumps({**event, "hash": each}).encode() + b"\n" for each in hashes)
        with self.daemons[index].connect() as conversation:
            conversation.send(lines)
            conversation.wait_settled(count)
        self.handed[index] += count


class Fleet:
    """All of it, for as long as it runs."""

    def __init__(self, options: argparse.Namespace, directory: Path, api: ApiServer) -> None:
        self.options = options
        self.directory = directory
        self.api = api
        self.chance = random.Random(options.seed)
        self.cluster = NatsCluster(directory / "nats", 3)
        self.happened: Counter[str] = Counter()
        token = directory / "token"
        token.write_text("a-token\n")
        self.relays = [
            Relay(directory / f"relay-{each}", self.cluster.urls, api.url, token) for each in range(options.relays)
        ]
        self.agents = Agents(directory, options.agents, self.cluster, api.url)
        self.runners: list[subprocess.Popen[bytes]] = []

    async def _messages(self) -> int:
        engine = self.cluster.engine()
        try:
            return (await engine.stream_state(names.EVENTS)).last_seq
        finally:
            await engine.aclose()

    @property
    def messages(self) -> int:
        """How many messages came to the stream: so many requests the runners would have made themselves."""
        return asyncio.run(self._messages())

    @property
    def progress(self) -> list[Path]:
        """Where the processes of runners say how far they came."""
        return [self.directory / f"runners-{each}.json" for each in range(PROCESSES)]

    def start(self) -> None:
        """Start everything."""
        self.cluster.start()
        asyncio.run(self.cluster.ready(["web"], RelayConfig()))
        for relay in self.relays:
            relay.start()
        for daemon in self.agents.daemons:
            daemon.start()
        for index, progress in enumerate(self.progress):
            arguments = [
                *("--servers", *self.cluster.urls, "--pool", POOL_OF_RUNNERS, "--progress", str(progress)),
                *("--runners", str(self.options.runners // PROCESSES), "--seed", str(self.options.seed + index)),
                *("--rate", str(self.options.rate / PROCESSES)),
            ]
            self.runners.append(subprocess.Popen([sys.executable, "-m", "tests.fleet.runners", *arguments]))

    def stop(self) -> None:
        """End everything without a warning."""
        for process in self.runners:
            process.kill()
            process.wait()
        for relay in self.relays:
            relay.end()
        for daemon in self.agents.daemons:
            daemon.kill()
        self.cluster.kill()

    # Faults

    def one_fault(self) -> None:
        """Let something happen, and pass."""
        fault = self.chance.choice([self.kill_relay, self.kill_server, self.kill_agent, self.trouble, self.drain_relay])
        fault()
        self.happened[fault.__name__] += 1

    def kill_relay(self) -> None:
        """SIGKILL a relay; it is started again."""
        relay = self.chance.choice(self.relays)
        relay.end()
        relay.start()

    def drain_relay(self) -> None:
        """SIGTERM a relay; it is started again."""
        relay = self.chance.choice(self.relays)
        relay.end(signal.SIGTERM)
        relay.start()

    def kill_server(self) -> None:
        """SIGKILL a server, whether it leads or not; it is started again."""
        server = self.chance.choice(self.cluster.servers)
        server.kill()
        time.sleep(self.chance.random() * 3)
        server.start()

    def kill_agent(self) -> None:
        """SIGKILL an agent; it is started again."""
        if self.agents.daemons:
            daemon = self.chance.choice(self.agents.daemons)
            daemon.kill()
            daemon.start()

    def trouble(self) -> None:
        """Let the API answer in another way from now on."""
        self.api.default = self.chance.choice(TROUBLE)

    def work(self) -> None:
        """Let time pass, events come and faults happen."""
        until = time.monotonic() + self.options.seconds
        while time.monotonic() < until:
            for _ in range(5):
                if self.agents.daemons:
                    index = self.chance.randrange(len(self.agents.daemons))
                    self.agents.hand(index, self.chance.randint(1, 200))
            self.one_fault()
            time.sleep(self.chance.random() * 2)

    # The end

    def finish(self) -> Overview:
        """Let all come to an end in peace; return where everything is."""
        self.api.default = Answer()
        self.cluster.start()
        for process in self.runners:
            process.terminate()
        for process in self.runners:
            process.wait()
        self.runners.clear()
        for daemon in self.agents.daemons:
            daemon.wait_destination(lambda found: found.ledger.queued == 0, DRAIN_SECONDS)
            daemon.terminate()
        return asyncio.run(self._until_settled())

    async def _until_settled(self) -> Overview:
        engine, until = self.cluster.engine(), time.monotonic() + DRAIN_SECONDS
        try:
            while True:
                try:
                    found = await look(engine, "web", None)
                except EngineError:
                    await asyncio.sleep(1)
                    continue
                if not found.messages or time.monotonic() > until:
                    return found
                await asyncio.sleep(1)
        finally:
            await engine.aclose()

    def problems(self, found: Overview) -> Iterator[str]:
        """Say what does not hold."""
        counts = found.counts
        forwarded = {queue: count for file in self.progress for queue, count in json.loads(file.read_text()).items()}
        received = Counter(event["hash"] for event in self.api.accepted_events())
        wanted = {f"{queue}-{number}" for queue, count in forwarded.items() for number in range(1, count + 1)}
        wanted |= {f"a{index}-{each}" for index, count in enumerate(self.agents.handed) for each in range(count)}
        if lost := wanted - received.keys():
            yield f"{len(lost)} events never came, such as {sorted(lost)[:3]}"
        if invented := received.keys() - wanted:
            yield f"{len(invented)} events came that nobody forwarded, such as {sorted(invented)[:3]}"
        repeats = sum(received.values()) - len(received)
        if repeats > found.in_doubt:
            yield f"{repeats} events came again, and only {found.in_doubt} are in doubt"
        if (counts.in_stream, counts.lost, found.messages) != (0, 0, 0):
            yield f"{counts.in_stream} events are in the stream, {counts.lost} lost, {found.messages} messages left"
        if counts.forwarded != len(wanted) or counts.delivered != len(wanted):
            yield f"the accounts say {counts.forwarded} forwarded, {counts.delivered} delivered: {len(wanted)} were"
        yield from self._of_each_queue(forwarded)

    def _of_each_queue(self, forwarded: dict[str, int]) -> Iterator[str]:
        ledger = asyncio.run(self._ledger())
        subject = names.events_subject("web", POOL_OF_RUNNERS)
        for queue, count in forwarded.items():
            settled = sum(ledger.counts(QueueKey(subject, queue)).values())
            if settled != count:
                yield f"queue {queue}: {settled} settled of {count}"

    async def _ledger(self) -> FleetLedger:
        engine = self.cluster.engine()
        try:
            return await read_ledger(engine, "web", None)
        finally:
            await engine.aclose()


@contextmanager
def fleet(options: argparse.Namespace, directory: Path) -> Iterator[Fleet]:
    """Run a fleet."""
    with ExitStack() as stack:
        api = stack.enter_context(ApiServer())
        found = Fleet(options, directory, api)
        stack.callback(found.stop)
        found.start()
        yield found


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long there are faults (default: 60)")
    parser.add_argument("--runners", type=int, default=100, help="runners without daemons (default: 100)")
    parser.add_argument("--agents", type=int, default=5, help="real agents (default: 5)")
    parser.add_argument("--relays", type=int, default=3, help="relays (default: 3)")
    parser.add_argument("--rate", type=float, default=2000.0, help="events a second of all runners (default: 2000)")
    parser.add_argument("--seed", type=int, default=7, help="what chance begins with (default: 7)")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="fleet-"))
    with fleet(options, directory) as running:
        running.work()
        found = running.finish()
        problems = list(running.problems(found))
        posts, messages = len(running.api.posts()), running.messages
        received = sum(1 for _ in running.api.accepted_events())
    happened = ", ".join(f"{name} {count}" for name, count in sorted(running.happened.items()))
    counts = ", ".join(f"{name} {count:,}" for name, count in vars(found.counts).items())
    lines = [
        f"faults: {happened}",
        f"accounts of {options.runners} runners and {options.agents} agents: {counts}; in doubt {found.in_doubt:,}",
        f"API: {posts:,} requests for {messages:,} messages, {messages / max(posts, 1):.1f} to one",
        f"     {received:,} events taken, {received - found.counts.delivered:,} of them again",
        *(f"PROBLEM: {each}" for each in problems),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if problems:
        sys.stdout.write(f"Everything is in {directory}\n")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
