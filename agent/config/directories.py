"""Where sockets and queue are unless told otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

APPLICATION: Final = "artifacts-agent"


def runtime_directory(environ: Mapping[str, str], euid: int) -> Path | None:
    """Where the sockets are unless told otherwise; None where neither systemd nor XDG gives a place."""
    xdg = absolute_path(environ, "XDG_RUNTIME_DIR")
    own = Path("/run", APPLICATION) if euid == 0 else xdg and xdg / APPLICATION
    return absolute_path(environ, "RUNTIME_DIRECTORY") or own


def state_directory(environ: Mapping[str, str], euid: int) -> Path | None:
    """Where the queue is unless told otherwise; None for a user without a home."""
    home = absolute_path(environ, "HOME")
    base = absolute_path(environ, "XDG_STATE_HOME") or (home and home / ".local/state")
    own = Path("/var/lib", APPLICATION) if euid == 0 else base and base / APPLICATION
    return absolute_path(environ, "STATE_DIRECTORY") or own


def absolute_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Only an absolute path counts (the XDG rule); of the several that systemd may list, the first."""
    value = environ.get(name, "")
    value = value.partition(":")[0] if name.endswith("_DIRECTORY") else value
    return Path(value) if value.startswith("/") else None
