"""What a fleet needs of the engine: made where it is missing, compared where it is there. For `artifacts-agent fleet init`.

Sizes, replicas, and what goes when a stream is full can be changed later; what else differs is left to an administrator.
"""

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from nats.js import JetStreamContext, api

from agent.fleet import names
from agent.fleet.engine import EngineError, NotPermittedError
from agent.fleet.fetching import ACK_WAIT
from agent.fleet.nats_engine import NatsEngine

MINUTE: Final = 60.0
DAY: Final = 86400.0

OLDEST_SERVER: Final = (2, 10, 27)
"""The first nats-server whose work queues and key buckets keep what they have acknowledged in all cases that we know of."""

MAX_ACK_PENDING: Final = 1000


UPDATED: Final = ("discard", "max_bytes", "max_msgs_per_subject", "num_replicas")
"""The keys of streams that are changed to what is wanted, if that is asked for: `discard` is what goes when a stream is full."""


_SIZE_KEYS: Final = {
    names.EVENTS: "relay.events_max_bytes",
    names.LEDGER: "relay.ledger_max_bytes",
    names.DEAD: "relay.dead_letters_max_bytes",
}
_NO_ROOM: Final = "insufficient storage"
_SOON: Final = "just after a change of streams or servers this passes: try again in a minute"
_ADVICE: Final = {
    "replicas > 1 not supported": "set relay.replicas = 1, or make the servers a cluster",
    "insufficient resources": _SOON,
    "no suitable peers": f"relay.replicas may be more than there are servers; {_SOON}",
}
"""What to do, by what the server says."""


class Sizes(Protocol):
    """How much the streams may hold, in bytes and messages, and how many servers keep each of them: see `RelayConfig`."""

    @property
    def replicas(self) -> int:
        """How many servers."""

    @property
    def events_max_bytes(self) -> int:
        """Of AA_EVENTS."""

    @property
    def pool_max_messages(self) -> int:
        """Of AA_EVENTS, for each pool."""

    @property
    def ledger_max_bytes(self) -> int:
        """Of AA_LEDGER."""

    @property
    def dead_letters_max_bytes(self) -> int:
        """Of AA_DEAD."""


Make = Callable[[JetStreamContext], Coroutine[Any, Any, object]]


class Difference(NamedTuple):
    """A key that is not as wanted. `set_up` can change it if it is `updatable`; `reason` says why that was refused."""

    key: str
    found: object
    wanted: object
    updatable: bool = False
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.key} is {self.found}, not {self.wanted}" + (f": {self.reason}" if self.reason else "")


class Found(NamedTuple):
    """What was found of one thing: its `state` is "there", "missing", "created" or "updated".

    `differences` are there still, `updated` are those that are no more.
    """

    name: str
    state: str
    differences: Sequence[Difference] = ()
    updated: Sequence[Difference] = ()

    def to_json(self) -> dict[str, object]:
        """Return it as `fleet init --json` prints it."""
        return {
            "name": self.name,
            "state": self.state,
            "differences": [each._asdict() for each in self.differences],
            "updated": [each._asdict() for each in self.updated],
        }


def streams(sizes: Sizes) -> list[api.StreamConfig]:
    """Return the streams. None of them drops anything by itself but what is older than anybody asks for.

    Of the ledger's records those are which a snapshot of each team has: see `agent.fleet.following`.
    """
    common: dict[str, Any] = {"storage": api.StorageType.FILE, "num_replicas": sizes.replicas, "allow_direct": True}
    return [
        api.StreamConfig(
            name=names.EVENTS,
            subjects=[names.ALL_EVENTS],
            retention=api.RetentionPolicy.WORK_QUEUE,
            discard=api.DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_bytes=sizes.events_max_bytes,
            max_msgs_per_subject=sizes.pool_max_messages,
            max_age=0,
            duplicate_window=10 * MINUTE,
            **common,
        ),
        api.StreamConfig(
            name=names.LEDGER,
            subjects=[names.ALL_RECORDS],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_bytes=sizes.ledger_max_bytes,
            max_age=8 * DAY,
            **common,
        ),
        api.StreamConfig(
            name=names.DEAD,
            subjects=[names.ALL_DEAD],
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            max_bytes=sizes.dead_letters_max_bytes,
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


async def set_up(
    engine: NatsEngine, teams: Sequence[str], sizes: Sizes, *, create: bool = True, update: bool = False
) -> list[Found]:
    """Create what is missing, if `create`, and say what differs; if `update`, change the keys UPDATED. Raises EngineError."""
    version = await engine.version()
    if _numbers(version) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise EngineError(f"the server is nats-server {version}: a fleet needs {oldest} or later")
    found: list[Found] = []
    for config in streams(sizes):
        make: Make = partial(_add_stream, config)
        found.append(await _stream(engine, config.name or "", config, make, create=create, update=update))
    made_of_streams: list[tuple[str, Make]] = [
        (f"KV_{names.STATE}", lambda stream: stream.create_key_value(_bucket(sizes))),
        (f"OBJ_{names.SNAPSHOTS}", lambda stream: stream.create_object_store(names.SNAPSHOTS, _store(sizes))),
    ]
    replicated = api.StreamConfig(num_replicas=sizes.replicas, discard=None)
    for name, make in made_of_streams:
        found.append(await _stream(engine, name, replicated, make, create=create, update=update))
    return [*found, *[await _consumer(engine, consumer(team), create=create) for team in teams]]


def _add_stream(config: api.StreamConfig, stream: JetStreamContext) -> Coroutine[Any, Any, object]:
    return stream.add_stream(config)


def _bucket(sizes: Sizes) -> api.KeyValueConfig:
    # Not direct: what is read is what the leader has, and no older one.
    return api.KeyValueConfig(bucket=names.STATE, history=1, replicas=sizes.replicas, direct=False)


def _store(sizes: Sizes) -> api.ObjectStoreConfig:
    return api.ObjectStoreConfig(bucket=names.SNAPSHOTS, replicas=sizes.replicas, storage=api.StorageType.FILE)


async def _stream(
    engine: NatsEngine, name: str, wanted: api.StreamConfig, make: Make, *, create: bool, update: bool
) -> Found:
    there = await engine.ask(lambda stream: stream.stream_info(name))
    if there is not None:
        found = tuple(_differences(wanted, there.config))
        return await _update(engine, name, found) if update else Found(name, "there", found)
    if not create:
        return Found(name, "missing")
    try:
        await engine.ask(make)
    except NotPermittedError:
        raise
    except EngineError as error:
        raise EngineError(f"{name}{_size(wanted)} cannot be created: {_with_advice(error, name)}") from None
    return Found(name, "created")


def _size(wanted: api.StreamConfig) -> str:
    return f" of {wanted.max_bytes} bytes" if wanted.max_bytes else ""


def _with_advice(error: EngineError, name: str) -> str:
    """Return why the server refused to create or change a stream, and what to do about it."""
    text = str(error)
    advice = [each for said, each in _ADVICE.items() if said in text]
    if _NO_ROOM in text and name in _SIZE_KEYS:
        advice.append(
            f"give JetStream more room, with max_file_store on each server, or make {_SIZE_KEYS[name]} smaller"
        )
    return "; ".join([text, *advice])


async def _update(engine: NatsEngine, name: str, found: Sequence[Difference]) -> Found:
    """Change what can be, one key at a time, so that each has its own reason if it is refused."""
    left, updated = list[Difference](), list[Difference]()
    for each in found:
        reason = await _refusal(engine, name, each) if each.updatable else each.reason
        if each.updatable and reason is None:
            updated.append(each)
        else:
            left.append(each._replace(reason=reason))
    return Found(name, "updated" if updated else "there", left, updated)


async def _refusal(engine: NatsEngine, name: str, change: Difference) -> str | None:
    """Change a key of a stream; return why not, or None."""
    there = await engine.ask(lambda stream: stream.stream_info(name, subjects_filter=">"))
    if there is None:
        return "it has just been removed"
    if change.key == "max_msgs_per_subject" and isinstance(change.wanted, int):
        # The server removes what is above it, and more may come while it is asked.
        most = max((there.state.subjects or {}).values(), default=0)
        if most > change.wanted // 2:
            return f"a pool has {most} messages there, and none may be removed: it can be lowered to twice as many"
    # The ledger's oldest records go at once, and snapshots may lack the newest ones.
    least = there.state.bytes // 2 if name == names.LEDGER and change.key == "max_bytes" else 0
    if isinstance(change.wanted, int) and change.wanted < least:
        return f"it holds {there.state.bytes} bytes: it can be lowered to half of that at once"
    config = there.config.evolve(**{change.key: change.wanted})
    try:
        await engine.ask(lambda stream: stream.update_stream(config))
    except NotPermittedError:
        raise
    except EngineError as error:
        return _with_advice(error, name)
    return None


async def _consumer(engine: NatsEngine, wanted: api.ConsumerConfig, *, create: bool) -> Found:
    name = wanted.durable_name or ""
    there = await engine.ask(lambda stream: stream.consumer_info(names.EVENTS, name))
    if there is not None:
        return Found(f"consumer {name}", "there", tuple(_differences(wanted, there.config)))
    if not create:
        return Found(f"consumer {name}", "missing")
    await engine.ask(lambda stream: stream.add_consumer(names.EVENTS, wanted))
    return Found(f"consumer {name}", "created")


def _differences(wanted: Any, found: Any) -> Iterator[Difference]:  # noqa: ANN401 - dataclasses of nats-py, of the same type
    for each in fields(wanted):
        value, other = getattr(wanted, each.name), getattr(found, each.name)
        # The default of `discard` is one that is wanted; others say nothing.
        is_said = value is not None and (value != each.default or each.name == "discard")
        if is_said and value != other and (value or other):
            updatable = isinstance(wanted, api.StreamConfig) and each.name in UPDATED
            yield Difference(each.name, _plain(other), _plain(value), updatable)


def _plain(value: object) -> object:
    return getattr(value, "value", value)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
