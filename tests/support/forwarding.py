"""Runners that forward: what a daemon is configured with for it, and the events that it is sent."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.control.schema import DestinationStatus
from tests.support.daemon import Daemon
from tests.support.nats import NatsCluster

NOWHERE = "http://127.0.0.1:1"


def forwarding(
    cluster: NatsCluster, credentials: Path | None = None, pool: str = "ci"
) -> dict[str, Mapping[str, object]]:
    """Return the sections of a runner without a token."""
    file = None if credentials is None else str(credentials)
    to = {"servers": list(cluster.urls), "team": "web", "pool": pool, "credentials": file}
    return {"forward": to, "api": {"token_file": None}}


def lines(first: int, count: int) -> list[bytes]:
    """Return that many events, numbered in their hashes."""
    event = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "duration": 7}
    return [json.dumps({**event, "hash": f"{number:016x}"}).encode() + b"\n" for number in range(first, first + count)]


def send(daemon: Daemon, events: list[bytes]) -> None:
    """Send events and return when they are durable."""
    with daemon.connect() as conversation:
        conversation.send(b"".join(events))
        assert conversation.wait_settled(len(events))["durable"] == len(events)


def hashes(bodies: list[bytes]) -> Counter[str]:
    """Return how often each event is in the bodies of messages."""
    return Counter(json.loads(line)["hash"] for body in bodies for line in body.splitlines())


def forwarded(count: int) -> Callable[[DestinationStatus], bool]:
    """Return what tells whether so many events were forwarded."""
    return lambda found: found.ledger.forwarded == count
