"""A fleet that works while servers, relays and agents die, the API fails, and all servers may be gone for a while."""

import argparse
import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from agent.config.schema import RelayConfig
from agent.fleet import names
from agent.fleet.accounting import FleetLedger, QueueKey
from agent.fleet.engine import EngineError
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.overview import Overview, look, read_ledger
from tests.fleet.counting import CountingApi
from tests.fleet.members import (
    POOL_OF_AGENTS,
    POOL_OF_RUNNERS,
    Agents,
    Relay,
    Runners,
    cpu_seconds,
    ended_by_themselves,
)
from tests.support.api_server import Answer, error
from tests.support.nats import NatsCluster

T = TypeVar("T")

DRAIN_SECONDS = 300.0
KILLED_SHARE = 0.5
SPINNING = 0.25
"""A relay that takes so much of a processor while it can do nothing does not wait."""

HEALTHY = Answer()
TROUBLE = (
    HEALTHY,
    HEALTHY,
    error(503, "unavailable", "later"),
    error(429, "too_many", "later", {"Retry-After": "1"}),
    Answer(mode="reset"),
    Answer(mode="reset_mid_answer"),
    Answer(delay=0.5),
)


@dataclass
class Outage:
    """The time without any server: for how long, what agents accepted meanwhile, and the processor time of each relay."""

    seconds: float
    accepted: int
    relays: list[float]


@dataclass
class Traffic:
    """Messages that came to the stream, and requests that came to the API."""

    messages: int = 0
    requests: int = 0

    @property
    def ratio(self) -> float:
        """How many messages came for one request: each would have been a request of its runner's."""
        return self.messages / max(self.requests, 1)


@dataclass
class Seen:
    """What a run has shown besides its accounts."""

    faults: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    healthy: Traffic = field(default_factory=Traffic)
    outage: Outage | None = None


class Fleet:
    """All of it, for as long as it runs."""

    def __init__(self, options: argparse.Namespace, directory: Path, api: CountingApi) -> None:
        self.options = options
        self.api = api
        self.seen = Seen()
        self.cluster = NatsCluster(directory / "nats", 3)
        token = directory / "token"
        token.write_text("a-token\n")
        self.relays = [
            Relay(directory / f"relay-{each}", self.cluster.urls, api.url, token) for each in range(options.relays)
        ]
        self.agents = Agents(directory, options.agents, self.cluster, api.url)
        self.runners = Runners(directory, options, self.cluster.urls)
        self._chance = random.Random(options.seed)
        self._since = Traffic()  # when the API's answer changed last

    def start(self) -> None:
        """Start everything."""
        self.cluster.start()
        asyncio.run(self.cluster.ready(["web"], RelayConfig()))
        for relay in self.relays:
            relay.start()
        self.agents.start()
        self.runners.start()

    def stop(self) -> None:
        """End everything without a warning."""
        self.runners.kill()
        for relay in self.relays:
            relay.end()
        self.agents.kill()
        self.cluster.kill()

    # What is measured

    def traffic(self) -> Traffic:
        """Return what came so far."""
        state = asyncio.run(self._ask(lambda engine: engine.stream_state(names.EVENTS)))
        return Traffic(state.last_seq, len(self.api.posts()))

    async def _ask(self, call: Callable[[NatsEngine], Awaitable[T]]) -> T:
        """Return what the engine says, once it answers."""
        engine = self.cluster.engine()
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while True:
                    try:
                        return await call(engine)
                    except EngineError:
                        await asyncio.sleep(1)
        finally:
            await engine.aclose()

    def _let_answer(self, answer: Answer) -> None:
        """Let the API answer in another way from now on; what came while it was well is counted."""
        now, since = self.traffic(), self._since
        if self.api.default == HEALTHY:
            self.seen.healthy.messages += now.messages - since.messages
            self.seen.healthy.requests += now.requests - since.requests
        self.api.default, self._since = answer, now

    def _note_ended(self) -> None:
        self.seen.ended += [
            each for each in ended_by_themselves(self.relays, self.agents, self.runners) if each not in self.seen.ended
        ]

    # Faults

    def one_fault(self) -> None:
        """Let something happen, and pass."""
        self._note_ended()
        fault = self._chance.choice(
            [self.kill_relay, self.kill_server, self.kill_agent, self.trouble, self.drain_relay]
        )
        fault()
        self.seen.faults[fault.__name__] += 1

    def kill_relay(self) -> None:
        """SIGKILL a relay; it is started again."""
        relay = self._chance.choice(self.relays)
        relay.end()
        relay.start()

    def drain_relay(self) -> None:
        """SIGTERM a relay; it is started again."""
        relay = self._chance.choice(self.relays)
        relay.end(signal.SIGTERM)
        relay.start()

    def kill_server(self) -> None:
        """SIGKILL a server, whether it leads or not; it is started again."""
        server = self._chance.choice(self.cluster.servers)
        server.kill()
        time.sleep(self._chance.random() * 3)
        server.start()

    def kill_agent(self) -> None:
        """SIGKILL an agent; it is started again."""
        if self.agents.daemons:
            daemon = self._chance.choice(self.agents.daemons)
            daemon.kill()
            daemon.start()

    def trouble(self) -> None:
        """Let the API answer in another way from now on."""
        self._let_answer(self._chance.choice(TROUBLE))

    def outage(self, seconds: float) -> None:
        """SIGKILL all servers at once, and start them again after so long. Agents take events meanwhile, and die now and then."""
        self._let_answer(HEALTHY)
        self._note_ended()
        self.cluster.kill()
        began, handed = time.monotonic(), sum(self.agents.handed)
        before = [_cpu_seconds_of(relay) for relay in self.relays]
        while time.monotonic() < began + seconds:
            self.hand_events()
            if self._chance.random() < KILLED_SHARE:
                self.kill_agent()
            time.sleep(self._chance.random() * 2)
        used = [_cpu_seconds_of(relay) - each for relay, each in zip(self.relays, before, strict=True)]
        self._note_ended()
        self.seen.outage = Outage(time.monotonic() - began, sum(self.agents.handed) - handed, used)
        self.cluster.start()

    # What it does

    def hand_events(self) -> None:
        """Hand events to a few agents."""
        for _ in range(5 if self.agents.daemons else 0):
            index = self._chance.randrange(len(self.agents.daemons))
            self.agents.hand(index, self._chance.randint(1, 200))

    def work(self) -> None:
        """Let time pass, events come and faults happen, with the time without servers in the middle."""
        seconds, outage = self.options.seconds, self.options.outage
        if outage:
            self._work((seconds - outage) / 2)
            self.outage(outage)
            self._work((seconds - outage) / 2)
        else:
            self._work(seconds)

    def _work(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.hand_events()
            self.one_fault()
            time.sleep(self._chance.random() * 2)

    def finish(self) -> Overview:
        """Let all come to an end in peace; return where everything is."""
        self._note_ended()
        self.cluster.start()
        self._let_answer(HEALTHY)
        self.runners.finish()
        self.agents.finish(DRAIN_SECONDS)
        return asyncio.run(self._until_settled())

    async def _until_settled(self) -> Overview:
        until = time.monotonic() + DRAIN_SECONDS
        while (await self._ask(lambda engine: engine.stream_state(names.EVENTS))).messages:
            if time.monotonic() > until:
                break
            await asyncio.sleep(1)
        return await self._ask(lambda engine: look(engine, "web", None))

    # What does not hold

    def problems(self, found: Overview) -> Iterator[str]:
        """Say what does not hold."""
        counts, arrivals = found.counts, self.api.arrivals
        forwarded = self.runners.forwarded
        made = forwarded | self.agents.made
        total = sum(made.values())
        if lost := list(arrivals.lost(made)):
            yield f"{len(lost)} events never came, such as {lost[:3]}"
        if invented := list(arrivals.invented(made)):
            yield f"{len(invented)} events came that nobody forwarded, such as {invented[:3]}"
        if arrivals.repeats > found.in_doubt:
            yield f"{arrivals.repeats} events came again, and only {found.in_doubt} are in doubt"
        if (counts.in_stream, counts.lost, found.messages) != (0, 0, 0):
            yield f"{counts.in_stream} events are in the stream, {counts.lost} lost, {found.messages} messages left"
        if counts.forwarded != total or counts.delivered != total:
            yield f"the accounts say {counts.forwarded} forwarded, {counts.delivered} delivered: {total} were"
        yield from self._of_each_queue(forwarded)
        yield from self.seen.ended
        if (outage := self.seen.outage) is not None and max(outage.relays) > SPINNING * outage.seconds:
            yield f"a relay took {max(outage.relays):.1f} s of a processor in {outage.seconds:.0f} s without servers"

    def _of_each_queue(self, forwarded: dict[str, int]) -> Iterator[str]:
        ledger = asyncio.run(self._ask(lambda engine: read_ledger(engine, "web", None)))
        simulated, agents = (names.events_subject("web", pool) for pool in (POOL_OF_RUNNERS, POOL_OF_AGENTS))
        for queue, count in forwarded.items():
            settled = _settled(ledger, QueueKey(simulated, queue))
            if settled != count:
                yield f"queue {queue}: {settled} settled of {count}"
        of_agents = sorted(_settled(ledger, key) for key in ledger.queues if key.subject == agents)
        if of_agents != sorted(filter(None, self.agents.handed)):
            yield f"queues of agents: {of_agents} settled of {sorted(self.agents.handed)}"


def _settled(ledger: FleetLedger, key: QueueKey) -> int:
    return sum(ledger.counts(key).values())


def _cpu_seconds_of(relay: Relay) -> float:
    """Return the processor time of a relay; 0 if it has ended."""
    process = relay.process
    return cpu_seconds(process.pid) if process is not None and process.poll() is None else 0.0
