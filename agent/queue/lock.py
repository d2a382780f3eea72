"""Whose a queue directory is: the lock that keeps it to one process, and what a configuration says of it.

It knows the configuration's section `[queue]` and the lock. It must never know who wants the queue, or for what.
"""

import errno
from pathlib import Path

from agent.config import Config
from agent.errors import QueueLockedError, StorageError
from agent.queue import segment
from agent.queue.filesystem import FOREIGN, Filesystem, Lock
from agent.queue.store import Limits
from agent.spools.identity import DESTINATION, LOCK, Account

__all__ = ["DESTINATION", "account_of", "limits_of", "lock_queue"]


def lock_queue(fs: Filesystem, directory: Path) -> Lock:
    """Become the queue directory's only user. Raises QueueLockedError if another process is, StorageError if it cannot."""
    try:
        fs.make_directory(directory)
        lock = fs.lock(directory / LOCK)
    except OSError as error:
        reason = f"{directory}: the queue directory cannot be used: {error.strerror or error}"
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            reason += ": make it writable for this user, or set queue.directory"
        elif error.errno in {errno.EEXIST, errno.ENOTDIR}:
            reason += ": move away what is in the way, or set queue.directory"
        elif error.errno in FOREIGN:
            reason = f"{directory / LOCK}: is no regular file: move it away"
        raise StorageError(reason) from error
    if lock is None:
        raise QueueLockedError(f"{directory}: another daemon uses this queue: stop it, or set another queue.directory")
    return lock


def limits_of(settings: Config) -> Limits:
    """Return what bounds the queue of a configuration."""
    queue = settings.queue
    return Limits(
        # Room is made by whole segments; and one has a length to which it can be told from a file that is none.
        segment_bytes=min(queue.segment_bytes, queue.max_bytes // 4, segment.MAX_BYTES // 2),
        max_bytes=queue.max_bytes,
        max_age=queue.max_age,
        overflow=queue.overflow,
        min_free_bytes=queue.min_free_bytes,
        sync=queue.sync,
    )


def account_of(settings: Config) -> Account:
    """Return where the events of a configuration go."""
    return Account(settings.api.url, settings.api.team_id, settings.api.slug)
