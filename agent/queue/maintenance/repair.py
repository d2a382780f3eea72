"""Accounting for what `agent.queue.maintenance.audit` finds: damaged bytes go to quarantine, missing numbers are named.

It knows what to keep and set right on the disk. It must never settle anything itself: that is the cursor's owner's.
Segments are never changed.
"""

from pathlib import Path

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.filesystem import DIRECTORY_MODE, Filesystem
from agent.queue.maintenance.audit import DIRECTORIES, wrong_modes
from agent.queue.maintenance.browse import missing
from agent.queue.quarantine import Quarantine
from agent.queue.record import record_in
from agent.queue.snapshot import Contents, QueueSnapshot, holes


def account(queue: QueueSnapshot, quarantine: Quarantine) -> list[Span]:
    """Keep every damaged stretch in quarantine; return the numbers of events that cannot be read, settled or not.

    A file that cannot be opened is left alone: it may be readable later. Raises StorageError for a shortage.
    """
    lost = [Span(queue.cursor.position, queue.cursor.position + missing(queue))] if missing(queue) else []
    for found in queue.log.all_contents():
        if found.error is None:
            lost += _keep(found, quarantine)
    return lost


def _keep(found: Contents, quarantine: Quarantine) -> list[Span]:
    """Keep what is damaged in one segment, under the names that the queue's reader would give; return what is lost."""
    first_seq, lost = found.segment.first_seq, []
    if found.header_damaged:
        quarantine.keep(first_seq, 0, found.data[: segment.HEADER_BYTES])
    for damage in found.damage:
        quarantine.keep(first_seq, damage.start, found.data[damage.start : damage.end])
    for frame in found.frames:
        if record_in(frame) is None:
            quarantine.keep(frame.first_seq, 0, frame.payload)
            lost.append(Span(frame.first_seq, frame.next_seq))
    return lost + [hole.span for hole in holes(found)]


def restore_modes(fs: Filesystem, root: Path) -> list[str]:
    """Give directories mode 0700 and files 0600 where others may look or the owner may not; return them. Raises StorageError."""
    restored: list[str] = []
    for _ in DIRECTORIES:  # what is in a directory shows only once that can be looked into
        wrong = [each for each in wrong_modes(fs, root) if each[0] not in restored]
        for file, _mode, wanted in wrong:
            try:
                fs.set_mode(root / file, wanted)
            except OSError as error:
                advice = f"chmod {wanted:o} it as its owner or as root"
                raise StorageError(
                    f"{root / file}: cannot restore its mode: {error.strerror or error}: {advice}"
                ) from error
            restored.append(file)
        if not any(wanted == DIRECTORY_MODE for _, _, wanted in wrong):
            break
    return restored
