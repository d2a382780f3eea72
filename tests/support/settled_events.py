"""What the disk says became of events that are settled: those in the history, and those in segments that are still there."""

from collections.abc import Iterator
from pathlib import Path

from agent.events import decode_events
from agent.queue.cursor import Outcome
from agent.queue.filesystem import Filesystem
from agent.queue.history import read_history
from agent.queue.record import record_in
from agent.queue.snapshot import read_queue
from agent.queue.undelivered import read_undelivered


def settled_events(fs: Filesystem, directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the hash of each, and what became of it; of a queue that nobody has open, in which nothing waits."""
    queue = read_queue(fs, directory)
    outcomes = {seq: row.outcome for row in read_undelivered(fs, directory) for seq in range(row.start, row.stop)}
    seen: set[int] = set()
    for log in (read_history(fs, directory, queue.cursor.next_seq), queue.log):
        for frame in (frame for each in log.all_contents() for frame in each.frames):
            record = record_in(frame)
            for seq, event in enumerate(decode_events(record.lines) if record is not None else (), frame.first_seq):
                if seq not in seen:
                    yield event.hash, outcomes.get(seq, Outcome.DELIVERED)
                seen.add(seq)
