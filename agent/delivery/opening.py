"""What a pipeline is opened with: the files of its queue, and how it delivers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.delivery import policy
from agent.delivery.batching import BatchOptions
from agent.delivery.transport import Transport
from agent.queue.cursor import Ledger
from agent.queue.dead_letters import DeadLetters
from agent.queue.filesystem import Filesystem
from agent.queue.store import Limits
from agent.queue.writer import Writer
from agent.runtime import RunBlocking


@dataclass
class Source:
    """The queue that transports are for, one after another.

    `is_new` if its counting began when it was opened, as it had none, or had lost it; until somebody has taken note of that.
    """

    directory: Path
    ledger: Callable[[], Ledger]
    run_blocking: RunBlocking
    is_new: bool


@dataclass(frozen=True)
class DeliveryConfig:
    """How to deliver: everything about it that can be changed while the queue stays open.

    `connect` returns the transport of the one queue that it is used for.
    """

    connect: Callable[[Source], Transport]
    settings: policy.DeliverySettings = field(default_factory=policy.DeliverySettings)
    options: BatchOptions = field(default_factory=BatchOptions)


class QueueFiles(NamedTuple):
    """The files of an open queue."""

    writer: Writer
    dead_letters: DeadLetters


def open_files(fs: Filesystem, directory: Path, limits: Limits) -> QueueFiles:
    """Open the queue in `directory` and recover it; it blocks, in any thread. Raises StorageError."""
    files = QueueFiles(Writer(fs, directory, limits), DeadLetters.beside(fs, directory, limits))
    files.dead_letters.count()
    return files
