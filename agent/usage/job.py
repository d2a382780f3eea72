"""What the cache did for one job, found by its label in the newest segments: in milliseconds, and so not by the fold.

Only what has the label in it is looked at, so that the events of other jobs cost no more than a search through their bytes.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.queue import segment
from agent.queue.filesystem import Filesystem
from agent.queue.history import DIRECTORY as HISTORY
from agent.queue.history import SEGMENTS
from agent.queue.log import contents
from agent.queue.record import MARKER, Frame, Record, decode_frame, record_in
from agent.usage.counting import Sessions, Totals, count, events_in, totals_of

COUNTED_BYTES = 4 * 1024 * 1024
"""What a job may have: 30,000 events, which take 50 ms."""
SEARCHED_BYTES = 24 * 1024 * 1024
"""What is searched, newest first, and then the rest of that segment."""


def count_job(fs: Filesystem, directories: Iterable[Path], job: str, since: float = 0.0) -> Totals | None:
    """Return what the events of a job in some queues and their histories come to, those accepted since a time (epoch).

    None if that would take too long, or if older ones may not have been searched. Raises OSError.
    """
    found: list[Record] = []  # of each queue the newest segment first, and backwards in each
    size = 0
    for directory in directories:
        searched = 0
        for data in _newest_first(fs, directory):
            searched += len(data)
            records: list[Record] = []
            for record in _records_of(data, job.encode()):
                size += len(record.lines)
                if size > COUNTED_BYTES:
                    return None
                if record.context.job == job and record.enqueued_at >= since:
                    records.append(record)
            if records and searched >= SEARCHED_BYTES:
                return None
            found += reversed(records)
            if searched >= SEARCHED_BYTES:
                break
    sessions = Sessions()
    for record in reversed(found):  # of two hits of a task the first one counts
        count(sessions, events_in(record.lines)[0], record.context.ci, record.enqueued_at, job)
    return totals_of(sessions.values())


def _newest_first(fs: Filesystem, directory: Path) -> Iterator[bytes]:
    """Yield the bytes of one segment after another; one may move to the history meanwhile, or be deleted."""
    places = [directory / SEGMENTS, directory / HISTORY]
    names: set[str] = set()
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            names |= {name for name in fs.names(place) if segment.parse_name(name) is not None}
    for name in sorted(names, reverse=True):
        for place in places:
            with contextlib.suppress(FileNotFoundError):
                yield contents(fs, place / name)[0]
                break


def _records_of(data: bytes, label: bytes) -> Iterator[Record]:
    """Yield the records in whose bytes a label is."""
    end = 0
    while (place := data.find(label, end)) >= 0:
        start = data.rfind(MARKER, end, place)
        frame = decode_frame(data, start) if start >= 0 else None
        if isinstance(frame, Frame) and frame.end > place:
            end = frame.end
            if (record := record_in(frame)) is not None:
                yield record
        else:  # in damaged bytes, or the marker's own bytes are in a record's
            end = place + 1
