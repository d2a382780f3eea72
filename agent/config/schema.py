"""What can be configured: the keys, their defaults, units and bounds. What they mean is said in config.example.toml.

The types of values are names, which pydantic looks up when it checks a configuration: `agent.config.validation` has them. So
whoever has no configuration to check does not import pydantic. (A dataclass without a docstring takes twice as long to make: it
gets its signature for one.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

from agent.rules import DEFAULT, Rule, Rules

if TYPE_CHECKING:
    from pydantic import Field

    from agent.config.validation import (
        AbsolutePath,
        Count,
        Days,
        DestinationName,
        Duration,
        EngineUrls,
        Flag,
        FleetName,
        GroupId,
        LoopbackAddress,
        Mode,
        OneOf,
        OrOff,
        Size,
        SocketPath,
        Url,
        UserId,
        Word,
    )
    from agent.rules import SocketKind

KIB: Final = 1024  # bytes
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
MINUTE: Final = 60.0  # seconds
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
SMALLEST_QUEUE: Final = 256 * KIB
DEFAULT_URL: Final = "https://api.vercel.com"


class KeysError(ValueError):
    """What is wrong with `keys`, as `section.key`, that are fine alone; the report shows the first of them that somebody set."""

    def __init__(self, reason: str, *keys: str) -> None:
        super().__init__(reason)
        self.keys = keys


class ConflictError(KeysError):
    """Two keys do not go together."""

    def __init__(self, key: str, other: str, reason: str) -> None:
        super().__init__(f"{key} and {other} {reason}", key, other)


@dataclass(frozen=True, kw_only=True)
class _Section:
    """What the sections have in common."""

    at_least: ClassVar[Sequence[tuple[str, int, str]]] = ()  # (key, factor, smaller): key >= factor * smaller

    def __post_init__(self) -> None:
        """Raise ConflictError if keys do not fit."""
        for key, factor, smaller in self.at_least:
            if getattr(self, key) < (least := factor * getattr(self, smaller)):
                times = f"{factor} times " if factor > 1 else ""
                raise self._conflict(key, smaller, f"do not fit: {key} must be at least {times}{smaller}, here {least}")

    def _conflict(self, key: str, other: str, reason: str) -> ConflictError:
        section = type(self).__name__.removesuffix("Config").lower()
        return ConflictError(f"{section}.{key}", f"{section}.{other}", reason)


@dataclass(frozen=True, kw_only=True)
class ApiConfig(_Section):
    """The API that events are delivered to."""

    url: "Url" = DEFAULT_URL
    token_file: "OrOff[AbsolutePath]" = None
    team_id: "OrOff[Word]" = None
    slug: "OrOff[Word]" = None
    timeout: "Annotated[Duration, Field(gt=0)]" = 10.0
    max_requests_per_minute: "OrOff[Annotated[Count, Field(ge=1)]]" = None


@dataclass(frozen=True, kw_only=True)
class ListenConfig(_Section):
    """The sockets of clients and of operators."""

    stream: "OrOff[SocketPath]"
    datagram: "OrOff[SocketPath]"
    control: "SocketPath"
    mode: "Mode" = 0o660
    group: "OrOff[Word]" = None
    max_connections: "Annotated[Count, Field(ge=1)]" = 1024
    default: Literal["allow", "deny"] = "allow"

    def __post_init__(self) -> None:
        for one, other in (("stream", "datagram"), ("stream", "control"), ("datagram", "control")):
            if getattr(self, one) is not None and getattr(self, one) == getattr(self, other):
                raise self._conflict(one, other, "are the same path: each socket needs its own")


@dataclass(frozen=True, kw_only=True)
class HttpConfig(_Section):
    """The API's own endpoint for events, on this machine."""

    socket: "OrOff[SocketPath]" = None
    listen: "OrOff[LoopbackAddress]" = None
    token_file: "OrOff[AbsolutePath]" = None
    tokens: "dict[str, AbsolutePath]" = field(default_factory=dict)
    max_connections: "Annotated[Count, Field(ge=1)]" = 512


@dataclass(frozen=True, kw_only=True)
class FrontConfig(_Section):
    """Whether other requests are passed on to the API."""

    enabled: bool = False


@dataclass(frozen=True, kw_only=True)
class MetricsConfig(_Section):
    """Where Prometheus asks."""

    socket: "OrOff[SocketPath]" = None
    listen: "OrOff[LoopbackAddress]" = None


@dataclass(frozen=True, kw_only=True)
class QueueConfig(_Section):
    """The queue on disk."""

    directory: "AbsolutePath"
    adopt: "OrOff[AbsolutePath]" = None
    segment_bytes: "Annotated[Size, Field(ge=64 * KIB)]" = 8 * MIB
    max_bytes: "Annotated[Size, Field(ge=SMALLEST_QUEUE)]" = GIB
    total_bytes: "OrOff[Annotated[Size, Field(ge=SMALLEST_QUEUE)]]" = None
    max_age: "Annotated[Duration, Field(gt=0)]" = 7 * DAY
    overflow: Literal["drop-oldest", "drop-newest"] = "drop-oldest"
    min_free_bytes: "Annotated[Size, Field(ge=0)]" = 64 * MIB
    sync: Literal["commit", "interval", "off"] = "commit"


@dataclass(frozen=True, kw_only=True)
class HistoryConfig(_Section):
    """How long what has been delivered is kept."""

    max_bytes: "Annotated[Size, Field(ge=0)]" = 64 * MIB
    max_age: "Annotated[Duration, Field(ge=0)]" = 30 * DAY
    keep_usage: "Days" = 400 * DAY


@dataclass(frozen=True, kw_only=True)
class BatchConfig(_Section):
    """How large a request is, and how many there are at once."""

    max_events: "Annotated[Count, Field(ge=1, le=100_000)]" = 1000
    max_bytes: "Annotated[Size, Field(ge=1024)]" = 960 * KIB
    max_delay: "Annotated[Duration, Field(ge=0)]" = 2.0
    concurrency: "Annotated[Count, Field(ge=1, le=64)]" = 4
    split_sessions: bool = False


@dataclass(frozen=True, kw_only=True)
class RetryConfig(_Section):
    """How long to wait after a failure."""

    initial_delay: "Annotated[Duration, Field(gt=0)]" = 1.0
    max_delay: "Annotated[Duration, Field(gt=0)]" = 5 * MINUTE

    at_least = (("max_delay", 1, "initial_delay"),)


@dataclass(frozen=True, kw_only=True)
class PauseConfig(_Section):
    """When delivery pauses, and how often it is tried again."""

    probe_interval: "Annotated[Duration, Field(gt=0)]" = 5 * MINUTE
    max_probe_interval: "Annotated[Duration, Field(gt=0)]" = HOUR
    rejections_in_a_row: "Annotated[Count, Field(ge=1)]" = 20

    at_least = (("max_probe_interval", 1, "probe_interval"),)


@dataclass(frozen=True, kw_only=True)
class ShutdownConfig(_Section):
    """How long an end may take."""

    deadline: "Annotated[Duration, Field(ge=0)]" = 10.0


@dataclass(frozen=True, kw_only=True)
class LogConfig(_Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


@dataclass(frozen=True, kw_only=True)
class ForwardConfig(_Section):
    """The fleet that events are forwarded to, in the place of the API, if there are `servers`."""

    servers: "OrOff[EngineUrls]" = None
    credentials: "OrOff[AbsolutePath]" = None
    team: "OrOff[FleetName]" = None
    pool: "OrOff[FleetName]" = None

    def __post_init__(self) -> None:
        for key in ("team", "pool", "credentials"):
            if self.servers and key != "credentials" and getattr(self, key) is None:
                raise self._conflict("servers", key, f"belong together: set forward.{key}")
            if not self.servers and getattr(self, key) is not None:
                raise self._conflict(key, "servers", "belong together: set forward.servers, or remove this")


@dataclass(frozen=True, kw_only=True)
class RelayConfig(_Section):
    """The fleet that a relay delivers for; a daemon has no use for it. From `replicas` on it is what `fleet init` goes by."""

    servers: "OrOff[EngineUrls]" = None
    credentials: "OrOff[AbsolutePath]" = None
    team: "OrOff[FleetName]" = None
    replicas: "Annotated[Count, Field(ge=1, le=5)]" = 3
    events_max_bytes: "Annotated[Size, Field(ge=MIB)]" = 10 * GIB
    pool_max_messages: "Annotated[Count, Field(ge=1)]" = 1_000_000
    ledger_max_bytes: "Annotated[Size, Field(ge=MIB)]" = 2 * GIB
    dead_letters_max_bytes: "Annotated[Size, Field(ge=MIB)]" = 256 * MIB

    def __post_init__(self) -> None:
        if bool(self.servers) != (self.team is not None):
            raise self._conflict("servers", "team", "belong together: set both, or none")


@dataclass(frozen=True, kw_only=True)
class DestinationConfig(_Section):
    """One destination: an account, and how its events are delivered."""

    api: ApiConfig
    batch: BatchConfig
    retry: RetryConfig
    pause: PauseConfig
    forward: ForwardConfig


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """One of the rules; what its keys mean is said by `agent.rules.Rule`."""

    uid: "OneOf[UserId] | None" = None
    gid: "OneOf[GroupId] | None" = None
    socket: "OneOf[SocketKind] | None" = None
    team_id: "OneOf[Word] | None" = None
    slug: "OneOf[Word] | None" = None
    asks_for: "OneOf[str] | None" = None
    destination: str | None = None
    deny: "Flag" = False
    max_events_per_second: "Annotated[Count, Field(ge=1)] | None" = None
    max_bytes_per_second: "Annotated[Size, Field(ge=1024)] | None" = None
    weight: "Annotated[Count, Field(ge=1, le=1000)]" = 1

    def __post_init__(self) -> None:
        if self.deny == (self.destination is not None):
            raise ValueError("should have either destination or deny = true")
        limits = {"max_events_per_second": None, "max_bytes_per_second": None, "weight": 1}
        if self.deny and (vain := [key for key, value in limits.items() if getattr(self, key) != value]):
            raise ValueError(f"has deny = true, which lets nothing in: remove {' and '.join(vain)}, or deny")

    @property
    def rule(self) -> Rule:
        """What it says."""
        who = (self.uid, self.gid, self.socket, self.team_id, self.slug, self.asks_for)
        return Rule(self.destination, *who, self.max_events_per_second, self.max_bytes_per_second, self.weight)


@dataclass(frozen=True, kw_only=True)
class Config(_Section):
    """Everything the agent can be told, checked. Sizes are bytes, durations seconds, paths absolute; no secrets."""

    api: ApiConfig
    listen: ListenConfig
    http: HttpConfig
    front: FrontConfig
    metrics: MetricsConfig
    queue: QueueConfig
    history: HistoryConfig
    batch: BatchConfig
    retry: RetryConfig
    pause: PauseConfig
    forward: ForwardConfig
    relay: RelayConfig
    shutdown: ShutdownConfig
    log: LogConfig
    destinations: "dict[DestinationName, DestinationConfig]"
    rules: tuple[RuleConfig, ...]

    @property
    def accounts(self) -> dict[str, DestinationConfig]:
        """Return every destination by name, DEFAULT first."""
        own = {each.name: getattr(self, each.name) for each in fields(DestinationConfig)}
        default = DestinationConfig(**own)
        return {DEFAULT: default, **self.destinations}

    @property
    def routing(self) -> Rules:
        """Return who may send, and where to."""
        return Rules(tuple(each.rule for each in self.rules), self.listen.default == "deny")

    @property
    def tokens_choose(self) -> bool:
        """Whether what a client sends as its token may lead to another destination than rules do."""
        by_front = self.front.enabled and self.http.listen is not None
        return bool(self.http.tokens or (by_front and self.destinations))

    def __post_init__(self) -> None:
        self._check_sockets()
        self._check_parts()
        named = [
            (f"rules.{index}.{key}", name)
            for index, rule in enumerate(self.rules)
            for key, names in (("destination", [rule.destination]), ("asks_for", sorted(rule.asks_for or ())))
            for name in names
            if name is not None
        ]
        for key, name in [*named, *((f"http.tokens.{name}", name) for name in self.http.tokens)]:
            if name not in self.accounts:
                known = ", ".join(self.accounts)
                advice = f"write [destinations.{name}], or correct the name"
                raise KeysError(f"there is no destination {name!r}, only {known}: {advice}", key)

    def _check_parts(self) -> None:
        total, count = self.queue.total_bytes, len(self.accounts)
        if total is not None and total < (least := count * SMALLEST_QUEUE):
            reason = f"is too small to share: {count} destinations need at least {least}, 256 KiB each"
            raise KeysError(reason, "queue.total_bytes")

    def _check_sockets(self) -> None:
        http, listen = self.http, self.listen
        paths = {"http.socket": http.socket, "metrics.socket": self.metrics.socket}
        others = {f"listen.{key}": getattr(listen, key) for key in ("stream", "datagram", "control")}
        for one, other in [*product(paths, others), ("metrics.socket", "http.socket")]:
            if paths[one] is not None and paths[one] == (others | paths)[other]:
                raise ConflictError(one, other, "are the same path: each socket needs its own")
        if self.front.enabled and http.socket is None and http.listen is None:
            raise ConflictError("front.enabled", "http.listen", "belong together: set http.listen, or http.socket")
        if http.listen is not None and http.token_file is None and not http.tokens and not self.front.enabled:
            reason = "belong together, as any user of this machine can connect to a port: set http.token_file, or front.enabled"
            raise ConflictError("http.listen", "http.token_file", reason)


SECTIONS: Final[dict[str, Any]] = {
    each.name: each.type for each in fields(Config) if each.name not in {"destinations", "rules"}
}
KEYS: Final = tuple(f"{section}.{each.name}" for section, kind in SECTIONS.items() for each in fields(kind))
# Sockets are bound once, and the queue is opened once.
RESTART_KEYS: Final = frozenset(
    key
    for key in KEYS
    if key.startswith(("listen.", "http.", "front.", "metrics.", "queue.", "history."))
    and key not in {"listen.default", "http.tokens"}  # they go with rules and destinations
    and key != "history.keep_usage"  # reports go by it, no daemon
)


def differences(old: Config, new: Config) -> list[str]:
    """The keys, as `section.key`, whose values differ, `destinations.NAME` of those that do, and `rules`."""
    keys = [key for key in KEYS if attrgetter(key)(old) != attrgetter(key)(new)]
    before, after = old.destinations, new.destinations
    names = [f"destinations.{name}" for name in {**before, **after} if before.get(name) != after.get(name)]
    return [*keys, *names, *(["rules"] if old.rules != new.rules else [])]


def needs_restart(old: Config, new: Config) -> list[str]:
    """Those of the `differences` that a running daemon cannot take over."""
    return [key for key in differences(old, new) if key in RESTART_KEYS]
