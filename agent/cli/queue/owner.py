"""The owner of a queue directory: what a command makes there has to be theirs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import StorageError


@contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Let root be the owner of the queue meanwhile: a file that root makes there, the daemon could not open.

    Raises StorageError if there is no such directory, or it is another user's.
    """
    owner = _owner(directory)
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def become_owner(directory: Path) -> None:
    """Let root be the owner of the queue from now on, for good: for a process that stays. Raises as `as_owner`."""
    owner = _owner(directory)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _owner(directory: Path) -> os.stat_result:
    try:
        owner = directory.stat()
        os.scandir(directory).close()
    except FileNotFoundError as error:
        reason = "there is no queue here: no daemon has run with this configuration yet, or queue.directory is wrong"
        raise StorageError(f"{directory}: {reason}") from error
    except OSError as error:
        raise denied(directory, error) from error
    return owner


def denied(directory: Path, error: OSError) -> StorageError:
    """Return what to say of a queue directory that this user cannot use."""
    advice = ": run it as the daemon's user, or as root" if isinstance(error, PermissionError) else ""
    return StorageError(f"{directory}: the queue directory cannot be used: {error.strerror}{advice}")
