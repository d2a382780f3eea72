"""The id by which a fleet knows a queue's numbers. Relays settle each number of an id once, so that no two events may share one.

What is the same here as elsewhere gets another id: a queue whose cursor was lost, or that was opened on another boot or host, as
the clones of a machine's image are, or after a power cut with a queue that is not synced at once. All that costs is that what was
under way comes twice.
"""

import socket
from pathlib import Path
from typing import Final

import msgspec

from agent.errors import StorageError
from agent.queue.cursor import Ledger
from agent.queue.filesystem import Filesystem
from agent.spools.identity import Numbering, SpoolIdentity, change_identity

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def place(boot_id: Path = _BOOT_ID) -> str:
    """Return what tells this boot of this machine, or container, from others; nothing where that is hidden."""
    try:
        boot = boot_id.read_text().strip()
    except OSError:  # as by ProcSubset=pid of systemd
        return ""
    return f"{boot} {socket.gethostname()}"


def numbering_of(
    fs: Filesystem, directory: Path, place: str, ledger: Ledger, new_id: str, *, is_new: bool
) -> Numbering:
    """Return the id of a spool's queue, durably written down; a new one if it `is_new`, or has none of this place.

    `ledger` is the queue's. A `place` that is not known is none. Where the id cannot be written, `new_id` is good until the end
    of the process.
    """
    new = Numbering(new_id, place, ledger)

    def numbered(found: SpoolIdentity | None) -> SpoolIdentity:
        if found is None:  # damaged, or never written: who opens the queue does that
            raise StorageError(f"{directory}: it is not known whose queue it is")
        is_known = place != "" and found.numbering is not None and found.numbering.place == place and not is_new
        return found if is_known else msgspec.structs.replace(found, numbering=new)

    try:
        return change_identity(fs, directory, numbered).numbering or new
    except StorageError:
        return new


def ledger_since(ledger: Ledger, before: Ledger) -> Ledger:
    """Return a ledger as if the counting had begun `before`: what was queued then is all that had been accepted."""
    dropped = {reason: count - before.dropped.get(reason, 0) for reason, count in ledger.dropped.items()}
    return Ledger(
        ledger.accepted - before.accepted + before.queued,
        ledger.delivered - before.delivered,
        ledger.dead_lettered - before.dead_lettered,
        {reason: count for reason, count in dropped.items() if count},
        ledger.queued,
        ledger.retried - before.retried,
        ledger.forwarded - before.forwarded,
    )
