"""How events are forwarded to a fleet: imported where a destination is, as the engine's client takes time and memory."""

import secrets
from collections.abc import Callable
from functools import partial

from agent.config import ForwardConfig
from agent.delivery.opening import Source
from agent.delivery.transport import Transport
from agent.fleet.installed import require_client
from agent.fleet.names import events_subject
from agent.fleet.permissions import inbox_of_pool
from agent.fleet.transport import NatsTransport, Queue
from agent.queue.filesystem import OsFilesystem
from agent.spools.numbering import ledger_since, numbering_of, place

require_client("forward.servers")

from agent.fleet.nats_connection import Connection  # noqa: E402 - only where its client is installed
from agent.fleet.nats_engine import NatsEngine  # noqa: E402 - only where its client is installed


def engine_of(forward: ForwardConfig) -> NatsEngine:
    """Return an engine that is not connected yet."""
    inbox = inbox_of_pool(forward.team or "", forward.pool or "")
    return NatsEngine(Connection(forward.servers or (), forward.credentials, inbox))


def forwarding(forward: ForwardConfig) -> Callable[[Source], Transport]:
    """Return what makes the transport of a queue to a fleet."""
    subject = events_subject(forward.team or "", forward.pool or "")

    def connect(source: Source) -> Transport:
        async def identify() -> Queue:
            new_id, ledger = secrets.token_hex(16), source.ledger()
            spool, is_new = source.directory.parent, source.is_new
            number = partial(numbering_of, OsFilesystem(), spool, place(), ledger, new_id, is_new=is_new)
            found = await source.run_blocking(number)
            source.is_new = False
            return Queue(found.id, lambda: ledger_since(source.ledger(), found.before))

        return NatsTransport(engine_of(forward), subject, identify)

    return connect
