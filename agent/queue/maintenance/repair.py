"""Accounts for what an audit finds: damaged bytes go to quarantine, missing numbers are settled as corrupt.

Segments are never changed. Each step can be done again after a crash.
"""

from functools import partial
from pathlib import Path

import msgspec

from agent.errors import StorageError
from agent.queue import segment
from agent.queue.cursor import Outcome, Span
from agent.queue.filesystem import DIRECTORY_MODE, Filesystem
from agent.queue.maintenance.audit import DIRECTORIES, wrong_modes
from agent.queue.maintenance.browse import missing
from agent.queue.maintenance.handle import QueueHandle
from agent.queue.quarantine import Copies, DamagedBytes
from agent.queue.record import record_in
from agent.queue.snapshot import Contents, LogSnapshot, snapshot_of
from agent.queue.writer import Writer


class Repaired(msgspec.Struct, frozen=True):
    """What a repair did.

    `corrupt` events are settled as that; `quarantined` pieces of damage were kept, `not_kept` were not; `dead_letters` are
    damaged and gone but for their bytes; `removed` are leftovers, `restored` files whose permissions were wrong.
    """

    corrupt: int
    quarantined: int
    not_kept: int
    dead_letters: int
    removed: list[str]
    restored: list[str]


async def repair(handle: QueueHandle) -> Repaired:
    """Account for all damage: kept in quarantine, settled, a fresh cursor. Raises StorageError; it can then be done again."""
    store = handle.store
    restored = await handle.run_blocking(partial(restore_modes, handle.fs, store.directory))
    queue = snapshot_of(handle.fs, store)
    copies, lost = Copies(), []
    if count := missing(queue):
        lost.append(Span(queue.cursor.position, queue.cursor.position + count))
    for index in range(len(queue.log.view.segments)):
        damaged, spans = await handle.run_blocking(partial(_damage, queue.log, index))
        lost += spans
        if damaged:
            done = await handle.writer.run(partial(Writer.quarantine, pieces=damaged))
            copies = Copies(copies.kept + done.kept, copies.lost + done.lost)
    corrupt = store.cursor.settle(lost, Outcome.CORRUPT)
    await handle.checkpoint()
    await handle.writer.run(Writer.refresh)
    now = handle.wall_clock()
    dead_letters = await handle.dead_letters.run(lambda dead_letters: dead_letters.repair(now))
    removed = await handle.writer.run(Writer.tidy)
    removed += await handle.dead_letters.run(lambda dead_letters: dead_letters.tidy())
    names = [str(path.relative_to(store.directory)) for path in removed]
    return Repaired(corrupt, copies.kept, copies.lost, dead_letters.damaged, names, restored)


def _damage(log: LogSnapshot, index: int) -> tuple[list[DamagedBytes], list[Span]]:
    """Return the damaged bytes of a segment, as the queue's reader would keep them, and the numbers that cannot be read.

    A file that cannot be opened is left alone: it may be readable later. Raises StorageError for a shortage.
    """
    found = log.contents(index)
    if found is None or found.error is not None:
        return [], []
    damaged = [_piece(found, each.start, each.end) for each in found.damage]
    if found.header_damaged:
        damaged.insert(0, _piece(found, 0, segment.HEADER_BYTES))
    unreadable = [frame for frame in found.frames if record_in(frame) is None]
    damaged += [DamagedBytes(frame.first_seq, 0, frame.payload) for frame in unreadable]
    lost = [Span(frame.first_seq, frame.next_seq) for frame in unreadable]
    return damaged, lost + [gap.span for gap in found.gaps]


def _piece(found: Contents, start: int, end: int) -> DamagedBytes:
    return DamagedBytes(found.segment.first_seq, start, found.data[start:end])


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
