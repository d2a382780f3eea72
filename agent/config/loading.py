"""TOML and environment in, one frozen `Config` out; every mistake is found at once and named.

A value is taken from the first of: `ARTIFACTS_AGENT_<SECTION>_<KEY>`, the TOML file, `TURBO_API` / `TURBO_TEAM` /
`TURBO_TEAMID` (when not empty), the default. `""` turns an optional key off. Relative paths are relative to the
directory of the TOML file, or to the current directory when a variable holds them; a leading `~` is `$HOME`.

`[destinations.NAME]` has the keys of `[api]`, and tables with those of `[batch]`, `[retry]`, `[pause]` and `[forward]`. What it
leaves out is as there, but for what is one account's alone: its token, its team, and where it is forwarded to. Destinations and
rules stand in the file only.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agent.config.directories import CONTROL_SOCKET, Directories, absolute_path, usable_path, usable_socket
from agent.config.schema import KEYS, SECTIONS, Config, DestinationConfig, KeysError, RuleConfig
from agent.config.shown import NOT_SHOWN, TOKEN_FILES, is_token_file, secrets_in, shown, shown_name
from agent.config.tokens import token_variable
from agent.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX: Final = "ARTIFACTS_AGENT_"
_TABLES: Final = {"http.tokens"}  # keys that hold a table, for which there is no variable
VARIABLES: Final = {f"{PREFIX}{key.replace('.', '_').upper()}": key for key in KEYS if key not in _TABLES}
TURBO_VARIABLES: Final = {"TURBO_API": "api.url", "TURBO_TEAM": "api.slug", "TURBO_TEAMID": "api.team_id"}
FILE_LIMIT: Final = 128 * 1024  # bytes; the example with all its comments has a tenth of it
PROBLEM_LIMIT: Final = 20  # so many are named, the others counted
_SOCKETS: Final = {
    "listen.stream": "events.sock",
    "listen.datagram": "datagram.sock",
    "listen.control": CONTROL_SOCKET,
}


def _names(section: str) -> list[str]:
    return [key.partition(".")[2] for key in KEYS if key.startswith(f"{section}.")]


_TABLES_OF_DESTINATION: Final = {
    each.name: _names(each.name) for each in fields(DestinationConfig) if each.name != "api"
}
_KEYS_OF_DESTINATION: Final = {
    *_names("api"),
    *(f"{table}.{name}" for table, names in _TABLES_OF_DESTINATION.items() for name in names),
}
_KEYS_OF_RULE: Final = [each.name for each in fields(RuleConfig)]
_TEAM: Final = {"team_id", "slug"}
_OF_ONE_ACCOUNT: Final = {"token_file", *_TEAM}  # not taken over from [api]
_PATHS: Final = {
    "forward.credentials",
    "relay.credentials",
    "http.socket",
    "metrics.socket",
    "queue.directory",
    "queue.adopt",
    *TOKEN_FILES,
    *_SOCKETS,
}
# No path begins so, while one may be as long as other tokens.
_TOKEN_OF_VERCEL: Final = re.compile(r"vc[a-z]_.*", re.DOTALL)


def load(
    path: Path | None, environ: Mapping[str, str], *, euid: int | None = None, directories: Directories | None = None
) -> Config:
    """Read `path` (None: no file), the overrides in `environ` and the defaults; `euid` None means this process's.

    `directories` None are those of a daemon that this user starts. Raises ConfigError whose message has one line for each problem
    found, up to PROBLEM_LIMIT.
    """
    own = Directories.own(environ, os.geteuid() if euid is None else euid)
    return _collect(path, environ, directories or own).config()


def control_socket(path: Path | None, environ: Mapping[str, str], directories: Directories) -> Path:
    """Return the daemon's control socket alone: to ask it, the rest of the configuration need not be valid.

    Raises ConfigError if the file cannot be read, or gives no usable path.
    """
    return Places(path, environ, directories).control


class Places:
    """The places of a daemon, by the configuration at `path`, to ask it or to start one: the rest need not be valid.

    Raises ConfigError if the file cannot be read. Each place raises it if it cannot be used.
    """

    def __init__(self, path: Path | None, environ: Mapping[str, str], directories: Directories) -> None:
        self._sources = _collect(path, environ, directories)

    @property
    def control(self) -> Path:
        """The control socket."""
        return self._sources.path("listen.control", usable_socket)

    @property
    def stream(self) -> Path | None:
        """The stream socket; None if it is off."""
        return self._sources.path_or_off("listen.stream", usable_socket)

    @property
    def adopt(self) -> Path | None:
        """Where spools are adopted."""
        return self._sources.path_or_off("queue.adopt", usable_path)

    @property
    def queue(self) -> Path | None:
        """The directory of the queue."""
        return self._sources.path_or_off("queue.directory", usable_path)

    @property
    def token_file(self) -> Path | None:
        """The file with the API's token."""
        return self._sources.path_or_off("api.token_file", usable_path)

    @property
    def names_url(self) -> bool:
        """Whether api.url is set at all."""
        return "api.url" in self._sources.found


def _collect(path: Path | None, environ: Mapping[str, str], directories: Directories) -> "_Sources":
    sources = _Sources(environ)
    sources.take_turbo()
    if path is not None:
        sources.take_file(path)
    sources.take_variables()
    sources.take_derived(directories)
    return sources


class _Setting(NamedTuple):
    value: object
    origin: str  # for reports: the file and the key, or the variable
    base: Path = Path()  # what a relative path is relative to


class _Sources:
    """What was found so far, the later source over the earlier, and everything that is wrong with it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.found: dict[str, _Setting] = {}
        self.destinations: dict[str, str] = {}  # and where each was found
        self.problems: list[str] = []

    def take_turbo(self) -> None:
        for variable, key in TURBO_VARIABLES.items():
            if value := self.environ.get(variable):
                self.found[key] = _Setting(value, f"{variable} ({key})")

    def take_file(self, path: Path) -> None:
        for section, table in _read_toml(path).items():
            if section == "destinations":
                self._take_destinations(path, table)
            elif section == "rules":
                self._take_rules(path, table)
            elif section not in SECTIONS:
                self._unknown(f"{path}: {shown_name(section)}", section, {*SECTIONS, *KEYS, "destinations", "rules"})
            elif isinstance(table, dict):
                self._take_table(path, section, table)
            else:
                self.problems.append(f"{path}: {section}: should be a table: write [{section}] above its keys")

    def _take_table(self, path: Path, section: str, table: Mapping[str, object]) -> None:
        for name, value in table.items():
            key = f"{section}.{name}"
            if key in _TABLES and isinstance(value, dict):
                for inner, each in value.items():
                    self.found[f"{key}.{inner}"] = _Setting(
                        each, f"{path}: {key}.{NOT_SHOWN if secrets_in(inner) else shown_name(inner)}", path.parent
                    )
            elif key in KEYS:
                self.found[key] = _Setting(value, f"{path}: {key}", path.parent)
            else:
                self._unknown(f"{path}: {shown_name(key)}", key, KEYS)

    def _take_destinations(self, path: Path, tables: object) -> None:
        if not isinstance(tables, dict):
            self.problems.append(
                f"{path}: destinations: should be tables: write [destinations.NAME] above the keys of each"
            )
            return
        for name, table in tables.items():
            self.destinations[name] = f"{path}: destinations.{shown_name(name)}"
            if "." in name:  # it is refused as a name, and its keys could be another one's
                continue
            if not isinstance(table, dict):
                self.problems.append(
                    f"{self.destinations[name]}: should be a table: write [destinations.{shown_name(name)}] above its keys"
                )
                continue
            for key, value in table.items():
                if key in _TABLES_OF_DESTINATION and isinstance(value, dict):
                    for inner, found in value.items():
                        self._take_of_destination(path, name, f"{key}.{inner}", found)
                else:
                    self._take_of_destination(path, name, key, value)

    def _take_of_destination(self, path: Path, name: str, key: str, value: object) -> None:
        where = f"destinations.{name}.{key}"
        origin = f"{self.destinations[name]}.{shown_name(key)}"
        if key in _KEYS_OF_DESTINATION:
            self.found[where] = _Setting(value, origin, path.parent)
        elif key in _TABLES_OF_DESTINATION:
            self.problems.append(
                f"{origin}: should be a table: write [destinations.{shown_name(name)}.{key}] above its keys"
            )
        else:
            self._unknown(origin, key, _KEYS_OF_DESTINATION)

    def _take_rules(self, path: Path, rules: object) -> None:
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            self.problems.append(f"{path}: rules: should be an array of tables: write [[rules]] above the keys of each")
            return
        for index, rule in enumerate(rules):
            self.found[f"rules.{index}"] = _Setting(rule, f"{path}: rule {index + 1}")
            for key, value in rule.items():
                if key in _KEYS_OF_RULE:
                    self.found[f"rules.{index}.{key}"] = _Setting(value, f"{path}: rule {index + 1}: {key}")
                else:
                    self._unknown(f"{path}: rule {index + 1}: {shown_name(key)}", key, _KEYS_OF_RULE)

    def take_variables(self) -> None:
        tokens = {token_variable(name): name for name in self.destinations}
        for variable in sorted(self.environ):
            if variable.startswith(f"{PREFIX}DESTINATIONS_") and variable not in tokens:
                hint = f"there are {', '.join(tokens)}" if tokens else "no destination is configured"
                self.problems.append(f"{shown_name(variable)}: is the token of no destination: {hint}")
        sections = tuple(f"{PREFIX}{section.upper()}_" for section in SECTIONS)
        for variable in sorted(self.environ):
            if key := VARIABLES.get(variable):
                self.found[key] = _Setting(self.environ[variable], f"{variable} ({key})")
            elif variable.startswith(sections):
                self._unknown(shown_name(variable), variable, VARIABLES)

    def take_derived(self, directories: Directories) -> None:
        self._derive(directories.runtime, _SOCKETS, "XDG_RUNTIME_DIR")
        self._derive(directories.state, {"queue.directory": ""}, "HOME")

    def _derive(self, directory: Path | None, names: Mapping[str, str], variable: str) -> None:
        missing = [key for key in names if key not in self.found]
        if directory is not None:
            self.found |= {key: _Setting(str(directory / names[key]), f"{key} (default)") for key in missing}
        elif missing:
            self.problems.append(f"{', '.join(missing)}: no default without {variable}: set it, or the keys themselves")

    def path_or_off(self, key: str, usable: Callable[[Path], Path]) -> Path | None:
        """Check this one value, which may be missing; None if it is off. Raises ConfigError."""
        return None if key not in self.found or self.found[key].value == "" else self.path(key, usable)

    def path(self, key: str, usable: Callable[[Path], Path]) -> Path:
        """Check this one value, which has to be there. Raises ConfigError."""
        setting = self.found[key]
        try:
            located = self._located(key, setting)
            if isinstance(located, str | Path):
                return usable(Path(located))
            reason = "is not a valid path"
        except ValueError as error:
            reason = str(error)
        raise ConfigError(f"{setting.origin} = {shown(key, setting.value)}: {reason}")

    def config(self) -> Config:
        """Check everything found. Derived keys that are missing were reported before."""
        from pydantic import ValidationError

        from agent.config.validation import validate

        try:
            config = validate(self._values())
        except ValidationError as error:
            details = [detail for detail in error.errors(include_url=False) if detail["type"] != "missing"]
            self.problems += dict.fromkeys(filter(None, map(self._explain, details)))
            raise self._error() from None
        if self.problems:
            raise self._error()
        return config

    def _error(self) -> ConfigError:
        named, more = self.problems[:PROBLEM_LIMIT], len(self.problems) - PROBLEM_LIMIT
        return ConfigError("\n".join([*named, f"and {more} more problems"] if more > 0 else named))

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {section: {} for section in SECTIONS}
        rules: dict[str, dict[str, object]] = {}
        own: dict[str, dict[str, object]] = {name: {} for name in self.destinations}
        for key, setting in self.found.items():
            section, _, name = key.partition(".")
            try:
                value = self._located(key, setting) if key in _PATHS or _is_own_path(key) else setting.value
            except ValueError as error:
                self.problems.append(f"{setting.origin} = {shown(key, setting.value)}: {error}")
                continue
            if section == "rules":
                index, _, name = name.partition(".")
                rule = rules.setdefault(index, {})
                if name:
                    rule[name] = value
            elif section == "destinations":
                destination, _, name = name.partition(".")
                own[destination][name] = value
            elif key not in KEYS:  # of a table
                table, _, name = name.partition(".")
                values[section].setdefault(table, {})[name] = value
            else:
                values[section][name] = value
        destinations = {name: _inheriting(values, found) for name, found in own.items()}
        return {**values, "rules": list(rules.values()), "destinations": destinations}

    def _located(self, key: str, setting: _Setting) -> object:
        text = setting.value
        if not isinstance(text, str) or not text:
            return text
        if not is_token_file(key) and _TOKEN_OF_VERCEL.match(text):
            raise ValueError("looks like a token, which belongs into the file that api.token_file names")
        if not text.startswith("~"):
            return (setting.base / text).absolute()
        home = absolute_path(self.environ, "HOME")
        if home is None or text[1:2] not in {"", "/"}:
            raise ValueError("~ stands for HOME, which must be set; write the home of another user out")
        return home / text[2:].lstrip("/")

    def _explain(self, detail: "ErrorDetails") -> str | None:
        """Say what is wrong with a value; None if it is inherited, and said where it stands."""
        reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        reason = reason.removesuffix(" for <class 'pathlib.Path'>")
        if detail["loc"][:1] == ("destinations",) and detail["loc"][2:] == ("[key]",):
            return f"{self.destinations[str(detail['loc'][1])]}: {reason}"
        key = next((key for key in _keys_of(detail) if key in self.found), None)
        if key is None:
            return None
        for secret in secrets_in([self.found[key].value, key.removeprefix("http.tokens."), *self.destinations]):
            reason = reason.replace(repr(secret), NOT_SHOWN).replace(secret, NOT_SHOWN)
        if key.removeprefix("rules.").isdigit():  # all of a rule
            return f"{self.found[key].origin}: {reason}"
        return f"{self.found[key].origin} = {shown(key, self.found[key].value)}: {reason}"

    def _unknown(self, where: str, word: str, valid: Collection[str]) -> None:
        # Never the value: it may be a token under a name that does not exist.
        if len(self.problems) >= PROBLEM_LIMIT:  # what is not shown need not be searched for
            self.problems.append(where)
            return
        import difflib  # for a mistake only: a daemon has no other use for it

        near = difflib.get_close_matches(word[:80], sorted(valid), n=1, cutoff=0.0)[0]
        kind = "variable" if valid is VARIABLES else "key"
        hint = ", the path of a file with the token alone" if VARIABLES.get(near, near) in TOKEN_FILES else ""
        self.problems.append(f"{where}: unknown {kind}; the nearest is {near}{hint}")


def _keys_of(detail: "ErrorDetails") -> list[str]:
    """Return the keys that a complaint may be about, as they are known here."""
    place, error = list(map(str, detail["loc"])), detail.get("ctx", {}).get("error")
    named = list(error.keys) if isinstance(error, KeysError) else None
    if place[:1] == ["destinations"]:
        within = named or [".".join(place[2:4])]
        return [f"destinations.{place[1]}.{key.removeprefix('api.')}" for key in within]
    if place[:1] == ["rules"]:
        return [".".join(place[:3]), ".".join(place[:2])]
    if ".".join(place[:2]) in _TABLES:
        return [".".join(place[:3]), ".".join(place[:2])]
    return named or [".".join(place[:2])]


def _inheriting(values: dict[str, Any], own: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return the sections of a destination: what it says itself, and the rest as the default has it."""
    alone = _OF_ONE_ACCOUNT if _TEAM & own.keys() else _OF_ONE_ACCOUNT - _TEAM
    found = {"api": {key: value for key, value in values["api"].items() if key not in alone}}
    found |= {table: {} if table == "forward" else dict(values[table]) for table in _TABLES_OF_DESTINATION}
    for key, value in own.items():
        table, dot, name = key.partition(".")
        found[table if dot else "api"][name or table] = value
    return found


def _is_own_path(key: str) -> bool:
    """Tell whether a key that may be a destination's holds a path."""
    return is_token_file(key) or (key.startswith("destinations.") and key.endswith(".forward.credentials"))


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
    import tomllib  # many have no file

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of thousands of digits
        end = "at line {}, column {}".format(text.count("\n") + 1, len(text) - text.rfind("\n"))
        raise ConfigError(f"{path}: not TOML: {str(error).replace('at end of document', end)}") from None
