"""Opening the queues of destinations, and whose they are. All of it blocks, in any thread."""

import contextlib
import secrets
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import structlog

from agent.daemon.settings import (
    Settings,
    account_of,
    destinations_directory,
    limits_of,
    queue_directory,
    refuse_to_swap,
)
from agent.delivery.opening import QueueFiles, open_files
from agent.errors import StorageError
from agent.queue.committer import NO_ANSWER
from agent.queue.filesystem import Filesystem, Lock
from agent.queue.lock import lock_queue
from agent.queue.snapshot import read_queue
from agent.rules import DEFAULT
from agent.runtime import begin_in_thread
from agent.spools import identity
from agent.spools.identity import DESTINATION, Account, SpoolIdentity


def open_queue(fs: Filesystem, settings: Settings, name: str, account: Account) -> tuple[Lock, QueueFiles]:
    """Open a queue, and write down whose it is.

    Raises StorageError or QueueLockedError, or ConfigError if what waits there is for the account of another destination.
    """
    directory, limits = queue_directory(settings.config, name), limits_of(settings.config)
    if name != DEFAULT:
        _refuse_link(fs, directory)
    lock = lock_queue(fs, directory)
    try:
        _refuse_what_is_anothers(fs, directory, name, settings)
        files = open_files(fs, directory / DESTINATION, limits)
    except BaseException:
        lock.release()
        raise
    identify(fs, name, directory, account)
    return lock, files


def identify(fs: Filesystem, name: str, directory: Path, account: Account) -> None:
    """Write down whose the queue is, for whoever adopts it one day; say so if it has been another account's."""
    log, before = structlog.get_logger("agent.daemon"), None
    with contextlib.suppress(StorageError):  # it is damaged, and made anew
        before = identity.read_identity(fs, directory)
    if before is not None and before.account.named != account.named:
        was, now = str(before.account), str(account)
        log.warning("account_changed", destination=name, was=was, now=now, hint="what waits goes there, too")
    try:
        identity.identify(fs, directory, account, secrets.token_hex(16))
    except StorageError as error:
        log.warning("identity_not_written", destination=name, error=str(error))


def queues_left(fs: Filesystem, settings: Settings, seconds: float) -> dict[str, tuple[Account, str]]:
    """Return destinations that are configured no more, and in which events wait, each with its account and one that has the same.

    Others are said, and so are those whose disks have not answered within `seconds`.
    """
    log, parent = structlog.get_logger("agent.daemon"), destinations_directory(settings.config)
    names = fs.names(parent) if fs.is_directory(parent) else []
    heirs = {account_of(settings, name): name for name in reversed(settings.config.accounts)}
    left = sorted({*names} - settings.config.accounts.keys())
    looking = {name: begin_in_thread(partial(_look_into, fs, parent / name)) for name in left}
    wait(looking.values(), seconds)
    found: dict[str, tuple[Account, str]] = {}
    for name, looked in looking.items():
        try:
            queued, whose = looked.result(0)
        except (StorageError, TimeoutError) as error:
            log.warning("destination_left", destination=name, error=str(error) or NO_ANSWER)
            continue
        if queued and whose is not None and whose.account in heirs:
            found[name] = whose.account, heirs[whose.account]
        elif queued:
            hint = f"configure [destinations.{name}] again to have it delivered"
            log.warning("destination_left", destination=name, queued=queued, hint=hint)
    return found


def _look_into(fs: Filesystem, directory: Path) -> tuple[int, SpoolIdentity | None]:
    """Return how many events wait in a queue directory, and whose it is. Raises StorageError."""
    _refuse_link(fs, directory)
    return read_queue(fs, directory / DESTINATION).cursor.queued, identity.read_identity(fs, directory)


def _refuse_what_is_anothers(fs: Filesystem, directory: Path, name: str, settings: Settings) -> None:
    """Raise ConfigError if events wait in a destination's directory that are for the account of another one."""
    with contextlib.suppress(StorageError):  # it is damaged, and mended when it is opened
        found = identity.read_identity(fs, directory)
        if found is not None and name in settings.config.accounts and found.account != account_of(settings, name):
            refuse_to_swap(settings, name, found.account, read_queue(fs, directory / DESTINATION).cursor.queued)


def _refuse_link(fs: Filesystem, directory: Path) -> None:
    """Raise StorageError for a link in the place of a destination's directory: it would lead to another one's, or elsewhere."""
    if (
        not fs.is_directory(directory)
        and fs.is_directory(directory.parent)
        and directory.name in fs.names(directory.parent)
    ):
        what = "it is no directory of its own: move away what is in the way"
        raise StorageError(f"{directory}: the queue directory cannot be used: {what}")
