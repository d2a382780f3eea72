"""What the files that hold tokens look like, to see when they are replaced. It must never read a token."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from agent import config
from agent.config import Config


class Fingerprint(NamedTuple):
    """What changes when a file does; `changed_at` is in seconds since the epoch."""

    changed_at: float
    inode: int
    size: int


class TokenFiles(NamedTuple):
    """The files with the API's token, and with that of clients over TCP."""

    api: Fingerprint | None
    clients: Fingerprint | None


def token_files(settings: Config, environ: Mapping[str, str]) -> TokenFiles:
    """Look at the files that a configuration names."""
    return TokenFiles(_fingerprint(config.token_source(settings, environ)), _fingerprint(settings.http.token_file))


def _fingerprint(path: Path | str | None) -> Fingerprint | None:
    """Return what a token's file looks like; None if the token comes from elsewhere, or the file is being replaced."""
    if not isinstance(path, Path):
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return Fingerprint(status.st_mtime, status.st_ino, status.st_size)
