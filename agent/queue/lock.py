"""The lock that keeps a queue directory to one process."""

import errno
from pathlib import Path

from agent.errors import QueueLockedError, StorageError
from agent.queue.filesystem import FOREIGN, Filesystem, Lock

LOCK = "lock"


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
