"""Many runners in one process, without queues and daemons of their own: real forwarding of made-up events.

`python -m tests.fleet.runners --servers URL … --pool POOL --runners N --rate EVENTS --progress FILE`. Until SIGTERM each makes
batches of its own numbers and forwards them, and forwards some of them again, as one whose answer was lost. At the end it
says how far it came, in a JSON object by queue id.
"""

import argparse
import asyncio
import json
import random
import signal
from pathlib import Path

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind
from agent.events import Context, Event, encode_events
from agent.fleet.names import events_subject
from agent.fleet.nats_connection import Connection
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.transport import NatsTransport, Queue
from agent.queue.cursor import Ledger, Span

RETRY_SECONDS = 0.5
AGAIN_SHARE = 0.02
MOST_EVENTS = 60
CONTEXTS = (Context(), Context(ci="GITHUB_ACTIONS"), Context(ci="BUILDKITE", interactive=0))


class Runner:
    """One queue: what it has made and what the engine has taken of it."""

    def __init__(self, engine: NatsEngine, pool: str, name: str, chance: random.Random) -> None:
        self.name = name
        self.made = 0
        self.forwarded = 0
        self._chance = chance
        self._context = chance.choice(CONTEXTS)
        self._transport = NatsTransport(engine, events_subject("web", pool), self._identify)

    async def _identify(self) -> Queue:
        return Queue(self.name, self._ledger)

    def _ledger(self) -> Ledger:
        return Ledger(self.made, 0, 0, {}, self.made - self.forwarded, forwarded=self.forwarded)

    async def run(self, stop: asyncio.Event, pause: float) -> None:
        """Forward until told to stop, and then what is made."""
        await asyncio.sleep(self._chance.random() * pause)
        while not stop.is_set():
            batch = self._batch(self._chance.randint(1, MOST_EVENTS))
            await self._send(batch)
            self.forwarded = self.made
            if self._chance.random() < AGAIN_SHARE:
                await self._send(batch)
            await asyncio.sleep(self._chance.random() * 2 * pause)
        # One more message brings the last ledger, with what this one is counted in.
        await self._transport.aclose()

    def _batch(self, count: int) -> Batch:
        first, self.made = self.made + 1, self.made + count
        numbers = range(first, first + count)
        events = [Event(self.name, "REMOTE", "HIT", f"{self.name}-{number}", number) for number in numbers]
        return Batch(self._context, encode_events(events), (Span(first, first + count),))

    async def _send(self, batch: Batch) -> None:
        while (await self._transport.send(batch)).kind is not Kind.ACCEPTED:  # noqa: ASYNC110 - a retry
            await asyncio.sleep(RETRY_SECONDS)


class SharedEngine(NatsEngine):
    """A connection of many runners: it stays open when one of them ends."""

    async def aclose(self) -> None:
        """Do nothing."""


async def run(options: argparse.Namespace) -> None:
    """Run all until SIGTERM."""
    stop, chance = asyncio.Event(), random.Random(options.seed)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = SharedEngine(Connection(tuple(options.servers)))
    names = [f"{chance.getrandbits(128):032x}" for _ in range(options.runners)]
    runners = [Runner(engine, options.pool, name, random.Random(f"{options.seed} {name}")) for name in names]
    pause = options.runners * MOST_EVENTS / 2 / options.rate
    async with asyncio.TaskGroup() as tasks:
        for runner in runners:
            tasks.create_task(runner.run(stop, pause))
    await NatsEngine.aclose(engine)
    options.progress.write_text(json.dumps({runner.name: runner.forwarded for runner in runners}))


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.runners", description=__doc__)
    parser.add_argument("--servers", nargs="+", required=True)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--runners", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="events a second, of all together")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--progress", type=Path, required=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
