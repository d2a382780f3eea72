"""Reads the dead letters of a daemon that has ended, from its files."""

from pathlib import Path

from agent.queue.dead_letters import DeadLetter, decode_dead_letter
from agent.queue.filesystem import OsFilesystem
from agent.queue.log import Log
from agent.queue.quarantine import Quarantine
from agent.queue.reader import Reader
from agent.queue.record import Frame


def read_dead_letters(queue: Path) -> list[DeadLetter]:
    """Return every letter below the directory of a queue, oldest first; AssertionError for what cannot be read."""
    fs, directory = OsFilesystem(), queue / "default" / "dead-letters"
    quarantine = Quarantine(fs, directory / "quarantine")
    log = Log.recover(fs, directory, quarantine, segment_bytes=1 << 20)
    first_seq = log.view.segments[0].first_seq if log.view.segments else log.view.next_seq
    reader, letters = Reader(fs, log, quarantine, first_seq), []
    while items := reader.read(1 << 20):
        for item in items:
            assert isinstance(item, Frame), item
            letters.append(decode_dead_letter(item.payload))
    reader.close()
    return letters
