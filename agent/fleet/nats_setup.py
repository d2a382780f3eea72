"""What a fleet needs of the engine: made where it is missing, compared where it is there. For `artifacts-agent fleet init`."""

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, NamedTuple

from nats.js import JetStreamContext, api

from agent.fleet import names
from agent.fleet.engine import EngineError
from agent.fleet.nats_engine import NatsEngine

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
MINUTE: Final = 60.0
DAY: Final = 86400.0

OLDEST_SERVER: Final = (2, 10, 27)
"""The first nats-server whose work queues and key buckets keep what they have acknowledged in all cases that we know of."""

ACK_WAIT: Final = 30.0
MAX_ACK_PENDING: Final = 1000


@dataclass(frozen=True)
class Sizes:
    """How much the streams may hold, in bytes and messages, and how many servers keep each of them."""

    replicas: int = 3
    events_bytes: int = 10 * GIB
    messages_of_a_pool: int = 1_000_000
    ledger_bytes: int = 2 * GIB
    dead_bytes: int = 256 * MIB


Make = Callable[[JetStreamContext], Coroutine[Any, Any, object]]


class Found(NamedTuple):
    """What was found of one thing: it is there as wanted, was created, or differs in keys that are named with both values."""

    name: str
    state: str
    differences: Sequence[str] = ()


def streams(sizes: Sizes) -> list[api.StreamConfig]:
    """Return the streams. None of them drops anything by itself but what is older than anybody asks for."""
    common: dict[str, Any] = {"storage": api.StorageType.FILE, "num_replicas": sizes.replicas, "allow_direct": True}
    return [
        api.StreamConfig(
            name=names.EVENTS,
            subjects=[names.ALL_EVENTS],
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_bytes=sizes.events_bytes,
            max_msgs_per_subject=sizes.messages_of_a_pool,
            max_age=0,
            duplicate_window=10 * MINUTE,
            **common,
        ),
        api.StreamConfig(
            name=names.LEDGER,
            subjects=[names.ALL_RECORDS],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            max_bytes=sizes.ledger_bytes,
            max_age=8 * DAY,
            **common,
        ),
        api.StreamConfig(
            name=names.DEAD,
            subjects=[names.ALL_DEAD],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            max_bytes=sizes.dead_bytes,
            max_age=30 * DAY,
            duplicate_window=60 * MINUTE,
            **common,
        ),
    ]


def consumer(team: str) -> api.ConsumerConfig:
    """Return the consumer that the relays of a team share: it forgets nothing, and gives nothing up."""
    return api.ConsumerConfig(
        durable_name=names.consumer(team),
        filter_subject=names.team_events(team),
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT,
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING,
    )


async def set_up(engine: NatsEngine, teams: Sequence[str], sizes: Sizes, *, create: bool = True) -> list[Found]:
    """Create what is missing, and say what differs; with `create` False only say what there is. Raises EngineError."""
    version = await engine.version()
    if _numbers(version) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise EngineError(f"the server is nats-server {version}: a fleet needs {oldest} or later")
    found: list[Found] = []
    for config in streams(sizes):
        make: Make = partial(_add_stream, config)
        found.append(await _stream(engine, config.name or "", config, make, create=create))
    made_of_streams: list[tuple[str, Make]] = [
        (f"KV_{names.STATE}", lambda stream: stream.create_key_value(_bucket(sizes))),
        (f"OBJ_{names.SNAPSHOTS}", lambda stream: stream.create_object_store(names.SNAPSHOTS, _store(sizes))),
    ]
    replicated = api.StreamConfig(num_replicas=sizes.replicas)
    for name, make in made_of_streams:
        found.append(await _stream(engine, name, replicated, make, create=create))
    return [*found, *[await _consumer(engine, consumer(team), create=create) for team in teams]]


def _add_stream(config: api.StreamConfig, stream: JetStreamContext) -> Coroutine[Any, Any, object]:
    return stream.add_stream(config)


def _bucket(sizes: Sizes) -> api.KeyValueConfig:
    # Not direct: what is read is what the leader has, and no older one.
    return api.KeyValueConfig(bucket=names.STATE, history=1, replicas=sizes.replicas, direct=False)


def _store(sizes: Sizes) -> api.ObjectStoreConfig:
    return api.ObjectStoreConfig(bucket=names.SNAPSHOTS, replicas=sizes.replicas, storage=api.StorageType.FILE)


async def _stream(engine: NatsEngine, name: str, wanted: api.StreamConfig, make: Make, *, create: bool) -> Found:
    there = await engine.ask(lambda stream: stream.stream_info(name))
    if there is not None:
        return Found(name, "there", tuple(_differences(wanted, there.config)))
    if not create:
        return Found(name, "missing")
    await engine.ask(make)
    return Found(name, "created")


async def _consumer(engine: NatsEngine, wanted: api.ConsumerConfig, *, create: bool) -> Found:
    name = wanted.durable_name or ""
    there = await engine.ask(lambda stream: stream.consumer_info(names.EVENTS, name))
    if there is not None:
        return Found(f"consumer {name}", "there", tuple(_differences(wanted, there.config)))
    if not create:
        return Found(f"consumer {name}", "missing")
    await engine.ask(lambda stream: stream.add_consumer(names.EVENTS, wanted))
    return Found(f"consumer {name}", "created")


def _differences(wanted: Any, found: Any) -> Iterator[str]:  # noqa: ANN401 - dataclasses of nats-py, of the same type
    for each in fields(wanted):
        value, other = getattr(wanted, each.name), getattr(found, each.name)
        if value is not None and value != each.default and value != other and (value or other):
            yield f"{each.name} is {_shown(other)}, not {_shown(value)}"


def _shown(value: object) -> str:
    return str(getattr(value, "value", value))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
