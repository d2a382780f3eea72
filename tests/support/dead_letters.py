"""Reads the dead letters of a daemon that has ended, from its files."""

from pathlib import Path

from agent.queue.dead_letters import DeadLetter, decode_dead_letter
from agent.queue.filesystem import OsFilesystem
from agent.queue.log import Log
from agent.queue.quarantine import Quarantine
from agent.queue.reader import Reader
from agent.queue.record import Frame
from tests.support.open_queue import read_all


def read_dead_letters(queue: Path) -> list[DeadLetter]:
    """Return every letter below the directory of a queue, oldest first; AssertionError for what cannot be read."""
    fs, directory = OsFilesystem(), queue / "default" / "dead-letters"
    view = Log.recover(fs, directory, Quarantine(fs, directory / "quarantine"), segment_bytes=1 << 20).view
    first_seq = view.segments[0].first_seq if view.segments else view.next_seq
    letters = []
    for item in read_all(Reader(fs, directory, first_seq), view):
        assert isinstance(item, Frame), item
        letters.append(decode_dead_letter(item.payload))
    return letters
