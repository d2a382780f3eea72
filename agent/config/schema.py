"""What can be configured: the keys, their defaults, units and bounds. What they mean is said in config.example.toml."""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self, TypeVar, get_type_hints
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from agent.units import parse_duration, parse_size

DEFAULT_URL: Final = "https://api.vercel.com"
SOCKET_PATH_LIMIT: Final = 107  # bytes; sun_path in unix(7) holds 108 with the closing NUL
T = TypeVar("T")


def _count(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read true as 1
        raise ValueError("should be a number")  # noqa: TRY004 - pydantic reports nothing but a ValueError
    return value


def _mode(value: object) -> int:
    # An integer is refused: 660 and 0o660 look alike in a file and mean different permissions.
    if not isinstance(value, str) or not re.fullmatch(r"(0o)?[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ValueError('should be permissions in octal, quoted, at most "0777", such as "0660"')
    return int(value, 8)


def _off(value: object) -> object:
    return None if value == "" else value


def _is_word(value: str) -> bool:
    return value.isprintable() and value.split() == [value]


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _names_a_host(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0


def _hides_the_token(url: str) -> bool:
    return urlsplit(url).scheme == "https" or _is_loopback(urlsplit(url).hostname)


def _socket(path: Path) -> Path:
    if (length := len(os.fsencode(path))) > SOCKET_PATH_LIMIT:
        raise ValueError(f"is {length} bytes long; a socket's path may have {SOCKET_PATH_LIMIT}: use a shorter one")
    return path


def _loopback(text: str) -> str:
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        fits = address.is_loopback and host.startswith("[") == (address.version == 6)
    except ValueError:
        fits = False
    if not fits or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError('should be an address of this machine alone and a port, such as "127.0.0.1:0" or "[::1]:9900"')
    return text


def _must(holds: Callable[[T], bool], reason: str) -> AfterValidator:
    def check(value: T) -> T:
        if not holds(value):
            raise ValueError(reason)
        return value

    return AfterValidator(check)


OrOff = Annotated[T | None, BeforeValidator(_off)]
Word = Annotated[str, _must(_is_word, "should be one word without spaces or control characters")]
Count = Annotated[int, BeforeValidator(_count)]
Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Mode = Annotated[int, BeforeValidator(_mode)]
AbsolutePath = Annotated[
    Path,  # an empty string arrives here as ".", any other as an absolute path
    _must(lambda path: path.is_absolute() and "\0" not in str(path), "should be a path, not empty and without NUL"),
]
SocketPath = Annotated[AbsolutePath, AfterValidator(_socket)]
LoopbackAddress = Annotated[str, AfterValidator(_loopback)]
Url = Annotated[
    Word,
    _must(lambda url: "\\" not in url, "should be a URL, without backslashes"),
    _must(lambda url: not {"?", "#"} & set(url), "should have no query or fragment: see api.team_id and api.slug"),
    _must(lambda url: "@" not in urlsplit(url).netloc, "should have no user or password: see api.token_file"),
    _must(_names_a_host, 'should have a scheme and a host, such as "https://api.vercel.com"'),
    _must(_hides_the_token, "should be https: plain http shows the token to the network, only loopback may use it"),
    AfterValidator(lambda url: url.rstrip("/")),
]


class _Section(BaseModel):
    """What the keys mean is said once, in config.example.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: ClassVar[Sequence[tuple[str, int, str]]] = ()  # (key, factor, smaller): key >= factor * smaller

    @model_validator(mode="after")
    def _large_enough(self) -> Self:
        for key, factor, smaller in self.at_least:
            if getattr(self, key) < (least := factor * getattr(self, smaller)):
                times = f"{factor} times " if factor > 1 else ""
                raise self._conflict(key, smaller, f"do not fit: {key} must be at least {times}{smaller}, here {least}")
        return self

    def _conflict(self, key: str, other: str, reason: str) -> PydanticCustomError:
        section = type(self).__name__.removesuffix("Config").lower()
        return _conflict(f"{section}.{key}", f"{section}.{other}", reason)


def _conflict(key: str, other: str, reason: str) -> PydanticCustomError:
    """For two keys that are fine alone; the report shows the first of them that somebody set."""
    return PydanticCustomError("conflict", "{reason}", {"keys": [key, other], "reason": f"{key} and {other} {reason}"})


class ApiConfig(_Section):
    url: Url = DEFAULT_URL
    token_file: OrOff[AbsolutePath] = None
    team_id: OrOff[Word] = None
    slug: OrOff[Word] = None
    timeout: Duration = Field(default=10.0, gt=0)
    max_requests_per_minute: OrOff[Annotated[Count, Field(ge=1)]] = None


class ListenConfig(_Section):
    stream: OrOff[SocketPath]
    datagram: OrOff[SocketPath]
    control: SocketPath
    mode: Mode = 0o660
    group: OrOff[Word] = None
    max_connections: Count = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _sockets_differ(self) -> Self:
        for one, other in (("stream", "datagram"), ("stream", "control"), ("datagram", "control")):
            if getattr(self, one) is not None and getattr(self, one) == getattr(self, other):
                raise self._conflict(one, other, "are the same path: each socket needs its own")
        return self


class HttpConfig(_Section):
    socket: OrOff[SocketPath] = None
    listen: OrOff[LoopbackAddress] = None
    token_file: OrOff[AbsolutePath] = None
    max_connections: Count = Field(default=512, ge=1)


class FrontConfig(_Section):
    enabled: bool = False


class MetricsConfig(_Section):
    socket: OrOff[SocketPath] = None
    listen: OrOff[LoopbackAddress] = None


class QueueConfig(_Section):
    directory: AbsolutePath
    adopt: OrOff[AbsolutePath] = None
    segment_bytes: Size = Field(default=parse_size("8MiB"), ge=parse_size("64KiB"))
    max_bytes: Size = Field(default=parse_size("1GiB"), ge=parse_size("256KiB"))
    max_age: Duration = Field(default=parse_duration("7d"), gt=0)
    overflow: Literal["drop-oldest", "drop-newest"] = "drop-oldest"
    min_free_bytes: Size = Field(default=parse_size("64MiB"), ge=0)
    sync: Literal["commit", "interval", "off"] = "commit"


class HistoryConfig(_Section):
    max_bytes: Size = Field(default=parse_size("64MiB"), ge=0)
    max_age: Duration = Field(default=parse_duration("30d"), ge=0)


class BatchConfig(_Section):
    max_events: Count = Field(default=1000, ge=1, le=100_000)
    max_bytes: Size = Field(default=parse_size("960KiB"), ge=1024)
    max_delay: Duration = Field(default=2.0, ge=0)
    concurrency: Count = Field(default=4, ge=1, le=64)
    split_sessions: bool = False


class RetryConfig(_Section):
    initial_delay: Duration = Field(default=1.0, gt=0)
    max_delay: Duration = Field(default=parse_duration("5m"), gt=0)

    at_least = (("max_delay", 1, "initial_delay"),)


class PauseConfig(_Section):
    probe_interval: Duration = Field(default=parse_duration("5m"), gt=0)
    max_probe_interval: Duration = Field(default=parse_duration("1h"), gt=0)
    rejections_in_a_row: Count = Field(default=20, ge=1)

    at_least = (("max_probe_interval", 1, "probe_interval"),)


class ShutdownConfig(_Section):
    deadline: Duration = Field(default=10.0, ge=0)


class LogConfig(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Config(_Section):
    """Everything the agent can be told, checked. Sizes are bytes, durations seconds, paths absolute; no secrets."""

    api: ApiConfig = ApiConfig()
    listen: ListenConfig
    http: HttpConfig = HttpConfig()
    front: FrontConfig = FrontConfig()
    metrics: MetricsConfig = MetricsConfig()
    queue: QueueConfig
    history: HistoryConfig = HistoryConfig()
    batch: BatchConfig = BatchConfig()
    retry: RetryConfig = RetryConfig()
    pause: PauseConfig = PauseConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _http_fits(self) -> Self:
        http, listen = self.http, self.listen
        paths = {"http.socket": http.socket, "metrics.socket": self.metrics.socket}
        others = {f"listen.{key}": getattr(listen, key) for key in ("stream", "datagram", "control")}
        for one, other in [*product(paths, others), ("metrics.socket", "http.socket")]:
            if paths[one] is not None and paths[one] == (others | paths)[other]:
                raise _conflict(one, other, "are the same path: each socket needs its own")
        if self.front.enabled and http.socket is None and http.listen is None:
            raise _conflict("front.enabled", "http.listen", "belong together: set http.listen, or http.socket")
        if http.listen is not None and http.token_file is None and not self.front.enabled:
            reason = "belong together, as any user of this machine can connect to a port: set http.token_file, or front.enabled"
            raise _conflict("http.listen", "http.token_file", reason)
        return self


SECTIONS: Final[Mapping[str, type[BaseModel]]] = {name: get_type_hints(Config)[name] for name in Config.model_fields}
KEYS: Final = tuple(f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields)
# Sockets are bound once, and the queue is opened once.
RESTART_KEYS: Final = frozenset(
    key for key in KEYS if key.startswith(("listen.", "http.", "front.", "metrics.", "queue.", "history."))
)


def differences(old: Config, new: Config) -> list[str]:
    """The keys, as `section.key`, whose values differ."""
    return [key for key in KEYS if attrgetter(key)(old) != attrgetter(key)(new)]


def needs_restart(old: Config, new: Config) -> list[str]:
    """Those of the `differences` that a running daemon cannot take over."""
    return [key for key in differences(old, new) if key in RESTART_KEYS]
