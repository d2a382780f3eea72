"""Where sockets and queue are unless told otherwise, and which paths can be used."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

APPLICATION: Final = "artifacts-agent"
CONTROL_SOCKET: Final = "control.sock"
SOCKET_PATH_LIMIT: Final = 107  # bytes; sun_path in unix(7) holds 108 with the closing NUL
SYSTEM_RUNTIME_DIRECTORY: Final = Path("/run", APPLICATION)
SYSTEM_STATE_DIRECTORY: Final = Path("/var/lib", APPLICATION)


def runtime_directory(environ: Mapping[str, str], euid: int) -> Path | None:
    """Where the sockets are unless told otherwise; None where neither systemd nor XDG gives a place."""
    xdg = absolute_path(environ, "XDG_RUNTIME_DIR")
    own = SYSTEM_RUNTIME_DIRECTORY if euid == 0 else xdg and xdg / APPLICATION
    return absolute_path(environ, "RUNTIME_DIRECTORY") or own


def state_directory(environ: Mapping[str, str], euid: int) -> Path | None:
    """Where the queue is unless told otherwise; None for a user without a home."""
    home = absolute_path(environ, "HOME")
    base = absolute_path(environ, "XDG_STATE_HOME") or (home and home / ".local/state")
    own = SYSTEM_STATE_DIRECTORY if euid == 0 else base and base / APPLICATION
    return absolute_path(environ, "STATE_DIRECTORY") or own


class Directories(NamedTuple):
    """Where sockets and queue are unless the configuration says otherwise; None where there is no place for them.

    `passed_over` are control sockets that were looked for before those of `runtime`, and are not there.
    """

    runtime: Path | None
    state: Path | None
    passed_over: tuple[Path, ...] = ()

    @classmethod
    def own(cls, environ: Mapping[str, str], euid: int) -> Self:
        """Where a daemon that this user starts has them."""
        return cls(runtime_directory(environ, euid), state_directory(environ, euid))

    @classmethod
    def of_system(cls) -> Self:
        """Where the system's daemon has them: for what opens neither sockets nor a queue, and needs no place of its own."""
        return cls(SYSTEM_RUNTIME_DIRECTORY, SYSTEM_STATE_DIRECTORY)

    @classmethod
    def of_daemon(cls, environ: Mapping[str, str], euid: int) -> Self:
        """Where the daemon has them that this user can ask: the user's own if there is one, else the system's."""
        runtime, state = runtime_directory(environ, euid), state_directory(environ, euid)
        passed_over: tuple[Path, ...] = ()
        if absolute_path(environ, "RUNTIME_DIRECTORY") is None and not (runtime and _has_daemon(runtime)):
            if runtime is not None and runtime != SYSTEM_RUNTIME_DIRECTORY:
                passed_over = (runtime / CONTROL_SOCKET,)
            runtime = SYSTEM_RUNTIME_DIRECTORY
        if absolute_path(environ, "STATE_DIRECTORY") is None and not (state and os.path.lexists(state)):
            state = SYSTEM_STATE_DIRECTORY if state is None or _is_systems_in_use() else state
        return cls(runtime, state, passed_over)

    def passed_over_for(self, control: Path) -> tuple[Path, ...]:
        """Return what was looked for before `control`: nothing, if that was named and not looked for."""
        return self.passed_over if self.runtime is not None and control == self.runtime / CONTROL_SOCKET else ()


def _is_systems_in_use() -> bool:
    """Tell whether the system's daemon runs, or this user may look at the queue that it has left."""
    may_look = os.access(SYSTEM_STATE_DIRECTORY, os.R_OK | os.X_OK)
    return may_look or (os.path.lexists(SYSTEM_STATE_DIRECTORY) and _has_daemon(SYSTEM_RUNTIME_DIRECTORY))


def _has_daemon(runtime: Path) -> bool:
    try:
        return stat.S_ISSOCK((runtime / CONTROL_SOCKET).stat().st_mode)
    except OSError:  # it is not there, or it is another user's
        return False


def absolute_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Only an absolute path counts (the XDG rule); of the several that systemd may list, the first."""
    value = environ.get(name, "")
    value = value.partition(":")[0] if name.endswith("_DIRECTORY") else value
    return Path(value) if value.startswith("/") else None


def usable_path(path: Path) -> Path:
    """Return a path that can be used. Raises ValueError; an empty string is ".", any other has been made absolute before."""
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("should be a path, not empty and without NUL")
    return path


def usable_socket(path: Path) -> Path:
    """Return a path that a socket can have. Raises ValueError."""
    if (length := len(os.fsencode(usable_path(path)))) > SOCKET_PATH_LIMIT:
        raise ValueError(f"is {length} bytes long; a socket's path may have {SOCKET_PATH_LIMIT}: use a shorter one")
    return path
