"""Power cuts under the servers: what was written and not synced is gone, and nothing that was acknowledged is.

Each server has a file system of its own, whose journal is aborted under it: that is what a power cut leaves.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from agent.config.schema import RelayConfig
from agent.fleet import names
from agent.fleet.engine import EngineError
from agent.fleet.nats_engine import NatsEngine
from tests.soak.disk import LoopDisk
from tests.support.nats import NatsCluster, NatsServer
from tests.support.tools import require_root, require_tool, unavailable
from tests.support.waiting import HUNG_AFTER, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LINUX = names.events_subject("web", "linux")
SIZES = RelayConfig(events_max_bytes=4_000_000, ledger_max_bytes=4_000_000, dead_letters_max_bytes=4_000_000)
DISK_BYTES = 256 * 1024 * 1024
MESSAGES = 60


@pytest.fixture
def anyio_backend() -> str:
    """The client of the engine is asyncio's."""
    return "asyncio"


class Power:
    """Servers, and the disks below them."""

    def __init__(self, cluster: NatsCluster, disks: dict[str, LoopDisk]) -> None:
        self.cluster = cluster
        self._disks = disks

    def cut(self, *servers: NatsServer) -> None:
        """Let these servers lose their power, all at the same moment, and come back."""
        for server in servers:
            server.signal(signal.SIGSTOP)
        for server in servers:
            eventually(server.states, lambda states: states == {"T"})  # no sync is under way
        for server in servers:
            self._disks[server.name].fail()
        for server in servers:
            server.kill()
            self._disks[server.name].mend()
        for server in servers:
            server.start()


@asynccontextmanager
async def powered(directory: Path, options: str = "") -> AsyncIterator[tuple[Power, NatsEngine]]:
    """Run three servers, each on a disk of its own."""
    require_root()
    require_tool("mkfs.ext4", "apt-get install e2fsprogs")
    cluster = NatsCluster(directory, 3, options)
    with ExitStack() as opened:
        disks = {server.name: LoopDisk(server.directory / "store", size=DISK_BYTES) for server in cluster.servers}
        for disk in disks.values():
            try:
                disk.mount()
            except OSError as error:
                unavailable(f"a loop device cannot be mounted here: {error}")
            opened.callback(disk.unmount)
        opened.callback(cluster.kill)
        cluster.start()
        await cluster.ready(["web"], SIZES)
        engine = cluster.engine(timeout=1.0)
        try:
            yield Power(cluster, disks), engine
        finally:
            await engine.aclose()


async def publish(engine: NatsEngine, body: bytes) -> None:
    """Publish a message until it is acknowledged."""
    async with asyncio.timeout(HUNG_AFTER):
        while True:
            try:
                await engine.publish(LINUX, body, {"Nats-Msg-Id": body.decode().strip()})
            except EngineError:
                await asyncio.sleep(0.05)
            else:
                return


async def found(engine: NatsEngine, wanted: int) -> set[bytes]:
    """Return what the stream holds, once it holds so many messages."""
    bodies: set[bytes] = set()
    async with asyncio.timeout(HUNG_AFTER):
        while len(bodies) < wanted:
            try:
                messages = await engine.fetch(names.EVENTS, names.consumer("web"), most=100, seconds=1)
            except EngineError:
                await asyncio.sleep(0.05)
            else:
                bodies.update(each.body for each in messages)
    return bodies


async def test_a_power_cut_of_one_server_while_others_publish_takes_nothing(tmp_path: Path) -> None:
    async with powered(tmp_path) as (power, engine):
        wanted = {f"{number}\n".encode() for number in range(MESSAGES)}
        for number, body in enumerate(sorted(wanted)):
            if number % 20 == 10:
                await asyncio.to_thread(power.cut, power.cluster.servers[number // 20])
            await publish(engine, body)
        assert await found(engine, MESSAGES) == wanted


async def test_a_power_cut_of_all_servers_at_once_takes_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    async with powered(tmp_path) as (power, engine):
        wanted = {f"{number}\n".encode() for number in range(MESSAGES)}
        for body in sorted(wanted):
            await publish(engine, body)
        await asyncio.to_thread(power.cut, *power.cluster.servers)
        await power.cluster.ready(["web"], SIZES)
        assert await found(engine, MESSAGES) == wanted
