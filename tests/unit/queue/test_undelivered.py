"""The file of undelivered events holds what it was told, whatever the disk does, and nothing that was not settled."""

import errno
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.queue.cursor import Cursor, Outcome, Span
from agent.queue.log import Entry
from agent.queue.store import Limits
from agent.queue.undelivered import COMPACTED_BYTES, FILE_NAME, Undelivered, UndeliveredFile, read_undelivered, rows_in
from tests.support.fault_filesystem import FaultFilesystem, LoseAll, failing, no_errors
from tests.support.open_queue import OpenQueue

ROOT = Path("/queue")
PATH = ROOT / FILE_NAME


def settled_to(next_seq: int) -> Cursor:
    """Return a cursor that has settled everything below a number."""
    cursor = Cursor()
    cursor.next_seq = next_seq
    cursor.settle([Span(1, next_seq)], Outcome.DELIVERED)
    return cursor


def opened(fs: FaultFilesystem, next_seq: int = 1000) -> UndeliveredFile:
    """Open the file of a queue that has settled everything."""
    fs.make_directory(ROOT)
    return UndeliveredFile(fs, PATH, settled_to(next_seq), durable=True)


def row(start: int, stop: int, outcome: Outcome = Outcome.EXPIRED) -> Undelivered:
    return Undelivered(start, stop, outcome)


def test_rows_that_follow_one_another_become_one_and_survive_a_power_cut() -> None:
    fs = FaultFilesystem()
    file = opened(fs)
    file.append([row(1, 3), row(3, 5), row(5, 6, Outcome.PURGED)])
    file.append([row(7, 9)])
    fs.crash(LoseAll())
    assert read_undelivered(fs, ROOT) == [row(1, 5), row(5, 6, Outcome.PURGED), row(7, 9)]
    assert (fs.open(PATH).pread(99, 0)) == b'[1,5,"expired"]\n[5,6,"purged"]\n[7,9,"expired"]\n'


def test_rows_of_forwarded_events_alone_wait_for_the_next_sync() -> None:
    fs = FaultFilesystem()
    file = opened(fs)
    file.append([row(1, 3)])
    file.append([row(3, 9, Outcome.FORWARDED)])
    assert read_undelivered(fs, ROOT) == [row(1, 3), row(3, 9, Outcome.FORWARDED)]
    file.append([row(9, 10)])
    fs.crash(LoseAll())
    assert read_undelivered(fs, ROOT) == [row(1, 3), row(3, 9, Outcome.FORWARDED), row(9, 10)]


def test_no_file_is_made_for_nothing() -> None:
    fs = FaultFilesystem()
    opened(fs).append([])
    assert fs.names(ROOT) == []
    assert read_undelivered(fs, ROOT) == []


@pytest.mark.parametrize("line", [b"[1,2]", b'[2,1,"expired"]', b'[0,1,"expired"]', b"nonsense", b"", b'[5,6,"expi'])
def test_what_is_no_row_is_passed_over(line: bytes) -> None:
    assert rows_in(b'[3,4,"purged"]\n' + line + b'\n[5,6,"later"]\n[7,8,"tor') == [
        row(3, 4, Outcome.PURGED),
        Undelivered(5, 6, "later"),
    ]


def test_what_the_checkpoint_does_not_know_of_goes_at_the_start() -> None:
    fs = FaultFilesystem()
    opened(fs).append([row(1, 3), row(8, 12), row(12, 14)])
    fs.kill()
    opened(fs, next_seq=10).append([row(4, 5)])
    assert read_undelivered(fs, ROOT) == [row(1, 3), row(4, 5)]


@pytest.mark.parametrize("operation", ["pwrite", "sync", "create", "rename"])
def test_what_the_disk_refuses_is_added_again(operation: str) -> None:
    fs = FaultFilesystem()
    file = opened(fs)
    file.append([row(1, 3)])
    fs.errors = failing(operation, errno.EIO)
    if operation in {"pwrite", "sync"}:
        with pytest.raises(OSError, match=r"Input/output"):
            file.append([row(4, 5)])
        with pytest.raises(OSError, match=r"Input/output"):
            file.append([row(4, 5)])
    fs.errors = no_errors
    file.append([row(4, 5)])
    assert {*read_undelivered(fs, ROOT)} == {row(1, 3), row(4, 5)}


def test_the_room_of_old_rows_comes_back() -> None:
    fs = FaultFilesystem()
    file, seq = opened(fs), 1
    while fs.names(ROOT) == [] or fs.open(PATH).size() < COMPACTED_BYTES:
        file.append([row(seq + 2 * each, seq + 2 * each + 1) for each in range(500)])
        seq += 1000
    file.forget_before(seq - 10)
    assert read_undelivered(fs, ROOT) == [row(each, each + 1) for each in range(seq - 10, seq, 2)]
    file.append([row(seq, seq + 1)])
    assert read_undelivered(fs, ROOT)[-1] == row(seq, seq + 1)


@pytest.mark.parametrize("code", [errno.EIO, errno.ELOOP])
def test_a_file_that_cannot_be_read_is_put_aside(code: int) -> None:
    fs = FaultFilesystem()
    opened(fs).append([row(1, 3)])
    fs.errors = failing("open", code)
    opened(fs)
    fs.errors = no_errors
    assert fs.names(ROOT) == [FILE_NAME + ".unreadable"]


def test_a_queue_that_finds_no_free_descriptor_is_not_opened() -> None:
    fs = FaultFilesystem()
    queue = OpenQueue(fs, ROOT, Limits())
    queue.commit([Entry(4, b"x")])
    queue.cursor.settle([Span(1, 3)], Outcome.PURGED)
    queue.close()
    fs.errors = lambda call, path: OSError(errno.EMFILE, "Too many open files") if path == PATH else None
    with pytest.raises(StorageError, match=r"undelivered.ndjson: cannot be read: Too many open files"):
        OpenQueue(fs, ROOT, Limits())
    fs.errors = no_errors
    assert OpenQueue(fs, ROOT, Limits()).cursor.queued == 2


def test_rows_that_a_full_disk_refuses_wait_for_room() -> None:
    fs = FaultFilesystem()
    queue = OpenQueue(fs, ROOT, Limits())
    queue.commit([Entry(4, b"x")])
    queue.cursor.settle([Span(1, 3)], Outcome.PURGED)
    fs.capacity = 0
    committed = queue.commit()
    assert committed.undelivered_error is not None
    assert "No space left" in committed.undelivered_error
    assert committed.checkpoint_error is None
    assert [*queue.store.undelivered] == [row(1, 3, Outcome.PURGED)]
    fs.capacity = None
    assert queue.commit().undelivered_error is None
    assert not queue.store.undelivered
    assert read_undelivered(fs, ROOT) == [row(1, 3, Outcome.PURGED)]
