"""Where tokens are found, and how their files look, to see when they are replaced.

A token is no part of a `Config`, so that a `Config` can be logged.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from agent.config.directories import absolute_path
from agent.config.schema import Config
from agent.errors import ConfigError
from agent.rules import DEFAULT
from agent.secret import Secret

TOKEN_VARIABLES: Final = ("ARTIFACTS_AGENT_TOKEN", "TURBO_TOKEN", "VERCEL_ARTIFACTS_TOKEN")
SYSTEM_TOKEN_FILE: Final = "/etc/artifacts-agent/token"  # noqa: S105 - a path
TOKEN_LIMIT: Final = 8192  # bytes; servers refuse a header line that is longer


def token_variable(destination: str) -> str:
    """Return the variable that may hold the token of a destination other than DEFAULT."""
    return f"ARTIFACTS_AGENT_DESTINATIONS_{destination.upper().replace('-', '_')}_TOKEN"


def token_source(config: Config, environ: Mapping[str, str], destination: str = DEFAULT) -> Path | str | None:
    """Where `read_token` takes the token from: the file to watch, the name of a variable, or None."""
    file = config.accounts[destination].api.token_file
    if destination == DEFAULT:
        return _source(file, environ)
    return _source(file, environ, f"token.{destination}", (token_variable(destination),))


def _source(
    token_file: Path | None,
    environ: Mapping[str, str],
    name: str = "token",
    variables: Sequence[str] = TOKEN_VARIABLES,
) -> Path | str | None:
    if token_file:
        return token_file
    credentials = absolute_path(environ, "CREDENTIALS_DIRECTORY")
    credential = credentials / name if credentials and os.path.lexists(credentials / name) else None
    if credential is not None and not _is_blank(credential):
        return credential
    return next((name for name in variables if environ.get(name, "").strip()), credential)


def read_token(config: Config, environ: Mapping[str, str], destination: str = DEFAULT) -> Secret | None:
    """The API token without the space around it, or None where there is no token anywhere.

    Raises ConfigError, which never shows the content, when the source exists and does not hold one usable token.
    """
    return _read(token_source(config, environ, destination), config.accounts[destination].api.token_file, environ)


def find_token(token_file: Path | None, environ: Mapping[str, str]) -> Secret | None:
    """Do as `read_token` does for DEFAULT, where of a configuration no more than api.token_file is known."""
    return _read(_source(token_file, environ), token_file, environ)


def _read(source: Path | str | None, token_file: Path | None, environ: Mapping[str, str]) -> Secret | None:
    if source is None:
        return None
    if isinstance(source, str):
        return _usable(Secret(environ[source].strip()), source)
    if source != token_file and _is_blank(source):
        where = f"write it into the file that LoadCredential= names, {SYSTEM_TOKEN_FILE}"
        raise ConfigError(f"the service has no token: {where}, or set api.token_file; then restart the service")
    return read_token_file(source)


def _usable(secret: Secret, source: Path | str) -> Secret:
    if complaint := _complaint(secret):
        raise ConfigError(f"{source}: {complaint}; it should hold the token alone, on one line")
    return secret


class ClientTokens(NamedTuple):
    """What clients are to send, by the destination that it is for, and by destination what is wrong with its token."""

    tokens: dict[str, Secret]
    problems: dict[str, str]


def read_http_tokens(
    config: Config, environ: Mapping[str, str], before: Mapping[str, Secret] | None = None
) -> ClientTokens:
    """What clients are to send; empty where neither front nor port is.

    That for DEFAULT is in http.token_file, or else the API's. What is wrong with one destination's token concerns that one
    alone: its token stays as it was `before`, or there is none. Raises ConfigError as `read_token` does where DEFAULT's is not
    usable and there was none before, and where nobody has one.
    """
    http, before = config.http, before or {}
    if http.listen is None and not (config.front.enabled and (http.token_file or http.tokens)):
        return ClientTokens({}, {})
    reads: dict[str, Callable[[], Secret | None]] = {
        name: partial(read_token_file, path) for name, path in http.tokens.items()
    }
    if http.token_file is not None:
        reads[DEFAULT] = partial(read_token_file, http.token_file)
    elif http.listen is not None:
        reads.setdefault(DEFAULT, partial(read_token, config, environ))
    found: dict[str, Secret] = {}
    problems: dict[str, str] = {}
    for name, read in reads.items():
        try:
            token = read()
        except ConfigError as error:
            if name == DEFAULT and name not in before:
                raise
            token, problems[name] = before.get(name), str(error)
        if token is not None:
            found[name] = token
    if not found and not problems:
        raise ConfigError("http.listen: clients need a token there: set http.token_file, or one for the API")
    return _apart(found, problems, before)


def _apart(found: dict[str, Secret], problems: dict[str, str], before: Mapping[str, Secret]) -> ClientTokens:
    """Leave each token to one destination: to whom it has led before, else to DEFAULT, else to none of them."""
    names: dict[Secret, list[str]] = {}
    for name, token in found.items():
        names.setdefault(token, []).append(name)
    tokens = dict(found)
    for token, several in names.items():
        if len(several) == 1:
            continue
        rightful = next((name for name in several if before.get(name) == token), DEFAULT)
        for name in several:
            if name == rightful:
                continue
            other = rightful if rightful in several else next(each for each in several if each != name)
            problems[name] = (
                f"http.tokens: {other} and {name} have the same token: it has to say which of them is meant"
            )
            del tokens[name]
            if name in before and before[name] not in names:
                tokens[name] = before[name]
    return ClientTokens(tokens, problems)


def read_token_file(path: Path, *, may_show: bool = False) -> Secret:
    """Return the token in a file without the space around it. Raises ConfigError as `read_token` does.

    `may_show` says that the path cannot be a token that stands in its place, as it may in a configuration.
    """
    return _usable(_token_in(path, may_show=may_show), path)


def _token_in(path: Path, *, may_show: bool) -> Secret:
    try:
        with open(path, "rb", opener=_open_regular_file) as file:
            return Secret(file.read(TOKEN_LIMIT + 1).decode("ascii", "replace").strip())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        shown = path if may_show else _as_far_as_it_exists(path)
        reason = f"{shown}: cannot read the token file: {reason}; let the daemon's user read it"
    # Not from within the handler: the system's error has the whole path.
    raise ConfigError(reason)


def _open_regular_file(path: str, flags: int) -> int:
    """Open it without waiting for a writer, as a FIFO would make the daemon do for ever. Raises OSError."""
    fd = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "not a regular file", path)


def _as_far_as_it_exists(path: Path) -> str:
    """Return a token file's path; of one that is not there only the directory, since the rest may be the token itself."""
    if os.path.lexists(path):
        return str(path)
    parent = next(each for each in path.parents if os.path.lexists(each) or each == each.parent)
    return f"{parent}/… (the rest is not shown: is it the token? that belongs into a file)"


def _is_blank(credential: Path) -> bool:
    """Tell whether the unit's default stands in for a credential whose file is not there."""
    try:
        return not credential.read_bytes().strip()
    except OSError:  # reading the token says what is wrong
        return False


def _complaint(secret: Secret) -> str | None:
    # The content lives in this frame only, which never raises: tracebacks may show local variables.
    text = secret.reveal()
    complaints = {
        "the token is empty": not text,
        f"the token is longer than {TOKEN_LIMIT} bytes": len(text) > TOKEN_LIMIT,
        "the token has several lines": len(text.splitlines()) > 1,
        "the token has characters that are not ASCII": not text.isascii(),
        "the token has spaces or control characters": not text.isprintable() or " " in text,
    }
    return next((complaint for complaint, applies in complaints.items() if applies), None)


class Fingerprint(NamedTuple):
    """What changes when a file does; `changed_at` is in seconds since the epoch."""

    changed_at: float
    inode: int
    size: int


TokenFiles = Mapping[str, Fingerprint]
"""Files with tokens, by the key that names them, as far as they are there."""


def token_files(config: Config, environ: Mapping[str, str]) -> TokenFiles:
    """Look at the files that a configuration names."""
    found = {key: _fingerprint(path) for key, path in _token_paths(config, environ).items()}
    return {key: fingerprint for key, fingerprint in found.items() if fingerprint is not None}


def exposed_token_files(config: Config, environ: Mapping[str, str]) -> list[Path]:
    """Return those of the files with tokens that every user of the machine may read, as far as their own mode goes."""
    files = _token_paths(config, environ)
    if not config.http.listen:
        files = {key: path for key, path in files.items() if not key.startswith("http.")}
    return [path for path in dict.fromkeys(files.values()) if isinstance(path, Path) and _readable_by_others(path)]


def _token_paths(config: Config, environ: Mapping[str, str]) -> dict[str, Path | str | None]:
    """Return where each token is, by key: a file, or the name of a variable. Where it is forwarded, credentials are the token."""
    found: dict[str, Path | str | None] = {
        f"{name}.token": each.forward.credentials if each.forward.servers else token_source(config, environ, name)
        for name, each in config.accounts.items()
    }
    clients = {f"http.tokens.{name}": path for name, path in config.http.tokens.items()}
    return {**found, "http.token_file": config.http.token_file, **clients}


def _readable_by_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _fingerprint(path: Path | str | None) -> Fingerprint | None:
    """Return what a token's file looks like; None if the token comes from elsewhere, or the file is being replaced."""
    if not isinstance(path, Path):
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return Fingerprint(status.st_mtime, status.st_ino, status.st_size)
