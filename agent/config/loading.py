"""TOML and environment in, one frozen `Config` out; every mistake is found at once and named.

A value is taken from the first of: `ARTIFACTS_AGENT_<SECTION>_<KEY>`, the TOML file, `TURBO_API` / `TURBO_TEAM` /
`TURBO_TEAMID` (when not empty), the default. `""` turns an optional key off. Relative paths are relative to the
directory of the TOML file, or to the current directory when a variable holds them; a leading `~` is `$HOME`.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agent.config.directories import CONTROL_SOCKET, Directories, absolute_path, usable_path, usable_socket
from agent.config.schema import KEYS, SECTIONS, Config, ConflictError
from agent.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX: Final = "ARTIFACTS_AGENT_"
VARIABLES: Final = {f"{PREFIX}{key.replace('.', '_').upper()}": key for key in KEYS}
TURBO_VARIABLES: Final = {"TURBO_API": "api.url", "TURBO_TEAM": "api.slug", "TURBO_TEAMID": "api.team_id"}
FILE_LIMIT: Final = 32 * 1024  # bytes; the example with all its comments has a sixth of it
PROBLEM_LIMIT: Final = 20  # so many are named, the others counted
_SOCKETS: Final = {
    "listen.stream": "events.sock",
    "listen.datagram": "datagram.sock",
    "listen.control": CONTROL_SOCKET,
}
_TOKEN_FILES: Final = {"api.token_file", "http.token_file"}
_PATHS: Final = {"http.socket", "metrics.socket", "queue.directory", "queue.adopt", *_TOKEN_FILES, *_SOCKETS}
# A word of letters and digits that nobody would write by hand, or one of Vercel's own tokens.
_LIKE_A_TOKEN: Final = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9_.~+=-]{20,}|vc[a-z]_.*", re.DOTALL)
_TOKEN_OF_VERCEL: Final = re.compile(
    r"vc[a-z]_.*", re.DOTALL
)  # no path begins so, while one may be as long as other tokens
_NAME_LIKE_A_TOKEN: Final = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9-]{20,}|vc[a-z]_.*", re.DOTALL)
_NOT_SHOWN: Final = "(not shown, it may hold a secret)"


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
        self.problems: list[str] = []

    def take_turbo(self) -> None:
        for variable, key in TURBO_VARIABLES.items():
            if value := self.environ.get(variable):
                self.found[key] = _Setting(value, f"{variable} ({key})")

    def take_file(self, path: Path) -> None:
        for section, table in _read_toml(path).items():
            if section not in SECTIONS:
                self._unknown(f"{path}: {_name(section)}", section, {*SECTIONS, *KEYS})
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
        sections = tuple(f"{PREFIX}{section.upper()}_" for section in SECTIONS)
        for variable in sorted(self.environ):
            if key := VARIABLES.get(variable):
                self.found[key] = _Setting(self.environ[variable], f"{variable} ({key})")
            elif variable.startswith(sections):
                self._unknown(_name(variable), variable, VARIABLES)

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
        raise ConfigError(f"{setting.origin} = {_shown(key, setting.value)}: {reason}")

    def config(self) -> Config:
        """Check everything found. Derived keys that are missing were reported before."""
        from pydantic import ValidationError

        from agent.config.validation import validate

        try:
            config = validate(self._values())
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
        values: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
        for key, setting in self.found.items():
            section, _, name = key.partition(".")
            try:
                values[section][name] = self._located(key, setting) if key in _PATHS else setting.value
            except ValueError as error:
                self.problems.append(f"{setting.origin} = {_shown(key, setting.value)}: {error}")
        return values

    def _located(self, key: str, setting: _Setting) -> object:
        text = setting.value
        if not isinstance(text, str) or not text:
            return text
        if key not in _TOKEN_FILES and _TOKEN_OF_VERCEL.match(text):
            raise ValueError("looks like a token, which belongs into the file that api.token_file names")
        if not text.startswith("~"):
            return (setting.base / text).absolute()
        home = absolute_path(self.environ, "HOME")
        if home is None or text[1:2] not in {"", "/"}:
            raise ValueError("~ stands for HOME, which must be set; write the home of another user out")
        return home / text[2:].lstrip("/")

    def _explain(self, detail: "ErrorDetails") -> str:
        error = detail.get("ctx", {}).get("error")
        keys = error.keys if isinstance(error, ConflictError) else (".".join(map(str, detail["loc"][:2])),)
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
        kind = "variable" if valid is VARIABLES else "key"
        hint = ", the path of a file with the token alone" if VARIABLES.get(near, near) in _TOKEN_FILES else ""
        self.problems.append(f"{where}: unknown {kind}; the nearest is {near}{hint}")


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


def _name(text: str) -> str:
    """A name as far as it can be shown: one that looks like a token was pasted there."""
    section, dot, name = text.partition(".")
    if _NAME_LIKE_A_TOKEN.fullmatch(name if dot and section in SECTIONS else section):
        return _NOT_SHOWN
    return _short(text if text.isprintable() else repr(text))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shown(key: str, value: object) -> str:
    """The value on one line and not too long; one that may be a token, or a URL with a password, is not shown at all."""
    may_be_a_token = key in _TOKEN_FILES or (isinstance(value, str) and _LIKE_A_TOKEN.fullmatch(value.strip()))
    if may_be_a_token or (key == "api.url" and isinstance(value, str) and {"@", "?", "#"} & set(value)):
        return _NOT_SHOWN
    try:
        return _short(repr(value))
    except ValueError:  # Python refuses to write integers of thousands of digits
        return "(a number of thousands of digits)"
