"""Real relays as processes, which may be killed and started again, between a real engine and an API over sockets."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from agent.delivery.batching import Batch
from agent.events import Context, encode_events
from agent.fleet import message, names
from agent.fleet.accounting import FleetLedger
from agent.fleet.engine import Engine
from agent.fleet.records import decode_record
from agent.queue.cursor import Span
from tests.support.api_server import ApiServer
from tests.support.daemon import clean_environment
from tests.support.nats import NatsCluster, nats_cluster
from tests.support.pipelines import event
from tests.support.waiting import HUNG_AFTER, eventually

SUBJECT = names.events_subject("web", "linux")


class RelayProcess:
    """A relay on a directory of its own, with its configuration and its log."""

    def __init__(
        self,
        directory: Path,
        cluster: NatsCluster,
        api_url: str,
        more: str = "",
        credentials: Path | None = None,
        api_timeout: str = "2s",
        more_of_api: str = "",
    ) -> None:
        directory.mkdir()
        timeout = f'timeout = "{api_timeout}"\n{more_of_api}'
        file = f'credentials = "{credentials}"\n' if credentials is not None else ""
        servers = ", ".join(f'"{url}"' for url in cluster.urls)
        self.log = directory / "log"
        self._config = directory / "config.toml"
        self._config.write_text(
            f'[relay]\nservers = [{servers}]\nteam = "web"\nreplicas = 1\n{file}[api]\nurl = "{api_url}"\n{timeout}'
            f'[retry]\ninitial_delay = "20ms"\nmax_delay = "200ms"\n[batch]\nmax_delay = "50ms"\nmax_events = 50\n'
            f'[log]\nlevel = "debug"\n{more}'
        )
        self.process: subprocess.Popen[bytes] | None = None
        self._begun_at = 0

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "agent.cli", "relay", "--config", str(self._config)]
        with self.log.open("ab") as log:
            self._begun_at = log.tell()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean_environment()
            )

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(HUNG_AFTER)
            self.process = None

    @property
    def has_ended(self) -> bool:
        """Whether it does not run, be it that it ended by itself."""
        return self.process is None or self.process.poll() is not None

    def terminate(self) -> int:
        """SIGTERM, once it has begun; return the exit code."""
        assert self.process is not None
        eventually(lambda: self.log.read_bytes()[self._begun_at :], lambda said: b"started" in said)
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(HUNG_AFTER)
        self.process = None
        return code


class World:
    """An engine with two relays, and the API that they deliver to. What still runs at the end of `with` is killed."""

    def __init__(
        self,
        directory: Path,
        cluster: NatsCluster,
        api: ApiServer,
        more: str = "",
        credentials: Path | None = None,
        api_timeout: str = "2s",
        more_of_api: str = "",
    ) -> None:
        self.cluster = cluster
        self.api = api
        self.relays = [
            RelayProcess(directory / f"r{index}", cluster, api.url, more, credentials, api_timeout, more_of_api)
            for index in range(2)
        ]
        self._numbers = Counter[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        for relay in self.relays:
            relay.kill()

    async def publish(
        self, engine: Engine, queue: str, hashes: Sequence[str], enqueued_at: float | None = None
    ) -> None:
        """Publish events of a runner, which are numbered on."""
        first = self._numbers[queue] + 1
        self._numbers[queue] += len(hashes)
        lines = encode_events([event(name) for name in hashes])
        batch = Batch(Context(), lines, (Span(first, first + len(hashes)),), enqueued_at=enqueued_at)
        await engine.publish(SUBJECT, lines, message.encode(batch, queue))

    async def ledger(self, engine: Engine) -> FleetLedger:
        """Return the accounts of the team."""
        ledger, last = FleetLedger(), await engine.last_seq(names.LEDGER, names.ledger_subject("web"))
        reader = engine.reader(names.LEDGER, names.ledger_subject("web"), 0)
        while ledger.seq < last:
            for each in await reader.read(1000, 1.0):
                ledger.apply(decode_record(each.body), each.seq)
        await reader.aclose()
        return ledger

    async def drained(self, engine: Engine) -> None:
        """Return when the work queue is empty."""
        async with asyncio.timeout(2 * HUNG_AFTER):
            while (await engine.stream_state(names.EVENTS)).messages:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.05)

    def taken(self) -> Counter[str]:
        """Return how often the API took each event."""
        return Counter(str(each["hash"]) for each in self.api.accepted_events())


def readiness(port: int) -> tuple[int, str | None]:
    """Return what a relay with metrics on that port answers to who asks whether it is ready: the status and the problem."""
    answer = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False)
    return answer.status_code, answer.json()["problem"]


@contextmanager
def world(directory: Path, more: str = "") -> Iterator[World]:
    """Yield one with an engine that lets everybody in."""
    with nats_cluster(directory / "nats") as cluster, ApiServer() as api, World(directory, cluster, api, more) as made:
        yield made
