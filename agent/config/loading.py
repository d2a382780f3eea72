"""TOML and environment in, one frozen `Config` out; every mistake is found at once and named.

Knows: the keys, their defaults, units and bounds; where each value came from; where the token may be found.
Must never know: what the values are used for. It opens the TOML file and the token file, nothing else, and sees the
environment only as the mapping it is given.

A value is taken from the first of: `ARTIFACTS_AGENT_<SECTION>_<KEY>`, the TOML file, `TURBO_API` / `TURBO_TEAM` /
`TURBO_TEAMID` (when not empty), the default. `""` turns an optional key off. Relative paths are relative to the
directory of the TOML file, or to the current directory when a variable holds them; a leading `~` is `$HOME`.
The token is read by `read_token` and is never part of a `Config`, so that a `Config` can be logged.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar, get_type_hints
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from agent.errors import ConfigError

PREFIX: Final = "ARTIFACTS_AGENT_"
APPLICATION: Final = "artifacts-agent"
TOKEN_VARIABLES: Final = ("ARTIFACTS_AGENT_TOKEN", "TURBO_TOKEN")
FILE_LIMIT: Final = 32 * 1024  # bytes; the example with all its comments has a sixth of it
PROBLEM_LIMIT: Final = 20  # so many are named, the others counted
TOKEN_LIMIT: Final = 8192  # bytes; servers refuse a header line that is longer
SOCKET_PATH_LIMIT: Final = 107  # bytes; sun_path in unix(7) holds 108 with the closing NUL
T = TypeVar("T")
_QUANTITY: Final = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?) ?([A-Za-z]*)")
_SECONDS: Final = {"": "1", "ms": "0.001", "s": "1", "m": "60", "h": "3600", "d": "86400"}
_BYTES: Final = {"": "1", "b": "1"} | {
    f"{letter}{suffix}": str(step**power)
    for power, letter in enumerate("kmgt", start=1)
    for suffix, step in (("b", 1000), ("ib", 1024))
}


def parse_duration(value: object) -> float:
    """Seconds from `"250ms"`, `"1.5s"`, `"5m"`, `"1h"`, `"7d"` or a plain number of seconds; `ValueError` otherwise."""
    amount = _quantity(value, _SECONDS)
    if amount is None or amount > 36500 * 86400:
        raise ValueError('is not a duration: write it like "250ms", "2s", "5m", "1h" or "7d" (at most "36500d")')
    return float(amount)


def parse_size(value: object) -> int:
    """Bytes from `"8MiB"`, `"64KB"` or a plain number; `ValueError` otherwise.

    Not pydantic's `ByteSize`, which reads `"1,5GiB"` as one byte and ignores whatever follows the unit.
    """
    amount = _quantity(value.lower() if isinstance(value, str) else value, _BYTES)
    if amount is None or amount != int(amount) or amount >= 2**63:
        raise ValueError('is not a size: write it like "512KiB", "8MiB", "64KB" or as a whole number of bytes')
    return int(amount)


def _quantity(value: object, units: Mapping[str, str]) -> Decimal | None:
    """The amount in the base unit; None for anything that is not a number, or a number with a unit of the table."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number if (number := Decimal(value if isinstance(value, int) else str(value))).is_finite() else None
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    return Decimal(match[1]) * Decimal(units[match[2]]) if match and match[2] in units else None


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
    url: Url = "https://api.vercel.com"
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


class QueueConfig(_Section):
    directory: AbsolutePath
    adopt: OrOff[AbsolutePath] = None
    segment_bytes: Size = Field(default=parse_size("8MiB"), ge=parse_size("64KiB"))
    max_bytes: Size = Field(default=parse_size("1GiB"), ge=parse_size("256KiB"))
    max_age: Duration = Field(default=parse_duration("7d"), gt=0)
    overflow: Literal["drop-oldest", "drop-newest"] = "drop-oldest"
    min_free_bytes: Size = Field(default=parse_size("64MiB"), ge=0)
    sync: Literal["commit", "interval", "off"] = "commit"


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
    queue: QueueConfig
    batch: BatchConfig = BatchConfig()
    retry: RetryConfig = RetryConfig()
    pause: PauseConfig = PauseConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _http_fits(self) -> Self:
        http, listen = self.http, self.listen
        for key in ("stream", "datagram", "control"):
            if http.socket is not None and http.socket == getattr(listen, key):
                reason = "are the same path: each socket needs its own"
                raise _conflict("http.socket", f"listen.{key}", reason)
        if self.front.enabled and http.socket is None and http.listen is None:
            raise _conflict("front.enabled", "http.listen", "belong together: set http.listen, or http.socket")
        if http.listen is not None and http.token_file is None and not self.front.enabled:
            reason = "belong together: any user of this machine can connect to a port, so that clients need a token"
            raise _conflict("http.listen", "http.token_file", reason)
        return self


_SECTIONS: Final[Mapping[str, type[BaseModel]]] = {name: get_type_hints(Config)[name] for name in Config.model_fields}
KEYS: Final = tuple(f"{section}.{key}" for section, model in _SECTIONS.items() for key in model.model_fields)
VARIABLES: Final = {f"{PREFIX}{key.replace('.', '_').upper()}": key for key in KEYS}
TURBO_VARIABLES: Final = {"TURBO_API": "api.url", "TURBO_TEAM": "api.slug", "TURBO_TEAMID": "api.team_id"}
# Sockets are bound once, and the queue is opened once.
RESTART_KEYS: Final = frozenset(key for key in KEYS if key.startswith(("listen.", "http.", "front.", "queue.")))
_SOCKETS: Final = {
    "listen.stream": "events.sock",
    "listen.datagram": "datagram.sock",
    "listen.control": "control.sock",
}
_PATHS: Final = {"api.token_file", "http.socket", "http.token_file", "queue.directory", "queue.adopt", *_SOCKETS}


def differences(old: Config, new: Config) -> list[str]:
    """The keys, as `section.key`, whose values differ."""
    return [key for key in KEYS if attrgetter(key)(old) != attrgetter(key)(new)]


def needs_restart(old: Config, new: Config) -> list[str]:
    """Those of the `differences` that a running daemon cannot take over."""
    return [key for key in differences(old, new) if key in RESTART_KEYS]


def load(path: Path | None, environ: Mapping[str, str], *, euid: int | None = None) -> Config:
    """Read `path` (None: no file), the overrides in `environ` and the defaults; `euid` None means this process's.

    Raises ConfigError whose message has one line for each problem found, up to PROBLEM_LIMIT.
    """
    sources = _Sources(environ)
    sources.take_turbo()
    if path is not None:
        sources.take_file(path)
    sources.take_variables()
    sources.take_derived(os.geteuid() if euid is None else euid)
    return sources.config()


def runtime_directory(environ: Mapping[str, str], euid: int) -> Path | None:
    """Where the sockets are unless told otherwise; None where neither systemd nor XDG gives a place."""
    xdg = _absolute(environ, "XDG_RUNTIME_DIR")
    own = Path("/run", APPLICATION) if euid == 0 else xdg and xdg / APPLICATION
    return _absolute(environ, "RUNTIME_DIRECTORY") or own


def state_directory(environ: Mapping[str, str], euid: int) -> Path | None:
    """Where the queue is unless told otherwise; None for a user without a home."""
    home = _absolute(environ, "HOME")
    base = _absolute(environ, "XDG_STATE_HOME") or (home and home / ".local/state")
    own = Path("/var/lib", APPLICATION) if euid == 0 else base and base / APPLICATION
    return _absolute(environ, "STATE_DIRECTORY") or own


def _absolute(environ: Mapping[str, str], name: str) -> Path | None:
    """Only an absolute path counts (the XDG rule); of the several that systemd may list, the first."""
    value = environ.get(name, "")
    value = value.partition(":")[0] if name.endswith("_DIRECTORY") else value
    return Path(value) if value.startswith("/") else None


def token_source(config: Config, environ: Mapping[str, str]) -> Path | str | None:
    """Where `read_token` takes the token from: the file to watch, the name of a variable, or None."""
    if config.api.token_file:
        return config.api.token_file
    credentials = _absolute(environ, "CREDENTIALS_DIRECTORY")
    if credentials and os.path.lexists(credentials / "token"):
        return credentials / "token"
    return next((name for name in TOKEN_VARIABLES if environ.get(name, "").strip()), None)


def read_token(config: Config, environ: Mapping[str, str]) -> SecretStr | None:
    """The API token without the space around it, or None where there is no token anywhere.

    Raises ConfigError, which never shows the content, when the source exists and does not hold one usable token.
    """
    source = token_source(config, environ)
    if source is None:
        return None
    secret = SecretStr(environ[source].strip()) if isinstance(source, str) else _token_in(source)
    return _usable(secret, source)


def _usable(secret: SecretStr, source: Path | str) -> SecretStr:
    if complaint := _complaint(secret):
        raise ConfigError(f"{source}: {complaint}; it should hold the token alone, on one line")
    return secret


def read_http_token(config: Config, environ: Mapping[str, str]) -> SecretStr | None:
    """What clients have to send over TCP: the token in http.token_file, or else the API's; None where nobody listens.

    Raises ConfigError as `read_token` does, and where there is none.
    """
    if config.http.listen is None:
        return None
    if config.http.token_file is None:
        if (token := read_token(config, environ)) is None:
            raise ConfigError("http.listen: clients need a token there: set http.token_file, or one for the API")
        return token
    return _usable(_token_in(config.http.token_file), config.http.token_file)


def _token_in(path: Path) -> SecretStr:
    try:
        with path.open("rb") as file:
            return SecretStr(file.read(TOKEN_LIMIT + 1).decode("ascii", "replace").strip())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}: cannot read the token file: {reason}; let the daemon's user read it") from error


def _complaint(secret: SecretStr) -> str | None:
    # The content lives in this frame only, which never raises: tracebacks may show local variables.
    text = secret.get_secret_value()
    complaints = {
        "the token is empty": not text,
        f"the token is longer than {TOKEN_LIMIT} bytes": len(text) > TOKEN_LIMIT,
        "the token has several lines": len(text.splitlines()) > 1,
        "the token has characters that are not ASCII": not text.isascii(),
        "the token has spaces or control characters": not text.isprintable() or " " in text,
    }
    return next((complaint for complaint, applies in complaints.items() if applies), None)


class _Setting(NamedTuple):
    value: object
    origin: str  # for reports: the file and the key, or the variable
    base: Path = Path()  # what a relative path is relative to


class _Sources:
    """What was found so far, the later source over the earlier, and everything that is wrong with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.found: dict[str, _Setting] = {}
        self.problems: list[str] = []

    def take_turbo(self) -> None:
        for variable, key in TURBO_VARIABLES.items():
            if value := self.environ.get(variable):
                self.found[key] = _Setting(value, f"{variable} ({key})")

    def take_file(self, path: Path) -> None:
        for section, table in _read_toml(path).items():
            if section not in _SECTIONS:
                self._unknown(f"{path}: {_name(section)}", section, {*_SECTIONS, *KEYS})
            elif isinstance(table, dict):
                self._take_table(path, section, table)
            else:
                self.problems.append(f"{path}: {section}: should be a table: write [{section}] above its keys")

    def _take_table(self, path: Path, section: str, table: Mapping[str, object]) -> None:
        for name, value in table.items():
            key = f"{section}.{name}"
            if key in KEYS:
                self.found[key] = _Setting(value, f"{path}: {key}", path.parent)
            else:
                self._unknown(f"{path}: {_name(key)}", key, KEYS)

    def take_variables(self) -> None:
        sections = tuple(f"{PREFIX}{section.upper()}_" for section in _SECTIONS)
        for variable in sorted(self.environ):
            if key := VARIABLES.get(variable):
                self.found[key] = _Setting(self.environ[variable], f"{variable} ({key})")
            elif variable.startswith(sections):
                self._unknown(_name(variable), variable, VARIABLES)

    def take_derived(self, euid: int) -> None:
        self._derive(runtime_directory(self.environ, euid), _SOCKETS, "XDG_RUNTIME_DIR")
        self._derive(state_directory(self.environ, euid), {"queue.directory": ""}, "HOME")

    def _derive(self, directory: Path | None, names: Mapping[str, str], variable: str) -> None:
        missing = [key for key in names if key not in self.found]
        if directory is not None:
            self.found |= {key: _Setting(str(directory / names[key]), f"{key} (default)") for key in missing}
        elif missing:
            self.problems.append(f"{', '.join(missing)}: no default without {variable}: set it, or the keys themselves")

    def config(self) -> Config:
        """Check everything found. Derived keys that are missing were reported before."""
        try:
            config = Config.model_validate(self._values())
        except ValidationError as error:
            details = [detail for detail in error.errors(include_url=False) if detail["type"] != "missing"]
            self.problems += map(self._explain, details)
            raise self._error() from None
        if self.problems:
            raise self._error()
        return config

    def _error(self) -> ConfigError:
        named, more = self.problems[:PROBLEM_LIMIT], len(self.problems) - PROBLEM_LIMIT
        return ConfigError("\n".join([*named, f"and {more} more problems"] if more > 0 else named))

    def _values(self) -> dict[str, dict[str, object]]:
        values: dict[str, dict[str, object]] = {section: {} for section in _SECTIONS}
        for key, setting in self.found.items():
            section, _, name = key.partition(".")
            try:
                values[section][name] = self._located(setting) if key in _PATHS else setting.value
            except ValueError as error:
                self.problems.append(f"{setting.origin} = {_shown(key, setting.value)}: {error}")
        return values

    def _located(self, setting: _Setting) -> object:
        text = setting.value
        if not isinstance(text, str) or not text:
            return text
        if not text.startswith("~"):
            return (setting.base / text).absolute()
        home = _absolute(self.environ, "HOME")
        if home is None or text[1:2] not in {"", "/"}:
            raise ValueError("~ stands for HOME, which must be set; write the home of another user out")
        return home / text[2:].lstrip("/")

    def _explain(self, detail: ErrorDetails) -> str:
        keys = detail.get("ctx", {}).get("keys", [".".join(map(str, detail["loc"][:2]))])
        key = next(key for key in keys if key in self.found)
        reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        return f"{self.found[key].origin} = {_shown(key, self.found[key].value)}: {reason}"

    def _unknown(self, where: str, word: str, valid: Collection[str]) -> None:
        # Never the value: it may be a token under a name that does not exist.
        if len(self.problems) >= PROBLEM_LIMIT:  # what is not shown need not be searched for
            self.problems.append(where)
            return
        import difflib  # for a mistake only: a daemon has no other use for it

        near = difflib.get_close_matches(word[:80], sorted(valid), n=1, cutoff=0.0)[0]
        self.problems.append(f"{where}: unknown {'variable' if valid is VARIABLES else 'key'}; the nearest is {near}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{path}: longer than {FILE_LIMIT} bytes, so no configuration of this agent")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of thousands of digits
        end = "at line {}, column {}".format(text.count("\n") + 1, len(text) - text.rfind("\n"))
        raise ConfigError(f"{path}: not TOML: {str(error).replace('at end of document', end)}") from None


def _name(text: str) -> str:
    return _short(text if text.isprintable() else repr(text))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shown(key: str, value: object) -> str:
    """The value on one line and not too long; a URL that may hold a password is not shown at all."""
    if key == "api.url" and isinstance(value, str) and {"@", "?", "#"} & set(value):
        return "(not shown, it may hold a secret)"
    try:
        return _short(repr(value))
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "(a number of thousands of digits)"
