"""What an engine may hold: an account's quota, in the server's configuration."""

import asyncio

from nats.js import JetStreamContext

from agent.fleet.engine import EngineError
from agent.fleet.nats_engine import NatsEngine
from tests.support.nats import NatsCluster
from tests.support.waiting import HUNG_AFTER


def quota(most_bytes: int) -> str:
    """Return the lines of a server's configuration that let an account, which everybody is let into, store so much."""
    jetstream = f"jetstream {{ max_memory: 64MB, max_store: {most_bytes} }}"
    users = 'users: [{ user: "anybody", password: "anybody" }]'
    return f'accounts {{ fleet {{ {jetstream}, {users} }} }}\nno_auth_user: "anybody"\n'


async def set_quota(cluster: NatsCluster, engine: NatsEngine, most_bytes: int) -> None:
    """Have the only server read another quota, and return when it holds."""
    (server,) = cluster.servers
    server.configure(quota(most_bytes))
    server.reload()
    async with asyncio.timeout(HUNG_AFTER):
        while await _quota(engine) != most_bytes:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)


async def _quota(engine: NatsEngine) -> int:
    """Return what the server says; 0 while it reads its configuration, and answers nothing."""
    try:
        found = await engine.ask(JetStreamContext.account_info)
    except EngineError:
        return 0
    return found.limits.max_storage if found is not None else 0
