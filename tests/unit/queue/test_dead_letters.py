"""The dead-letter log: durable, bounded, readable later, and honest when the disk refuses."""

import errno
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.events import Context, Event, encode_events
from agent.queue.dead_letters import DeadLetter, DeadLetters, decode_dead_letter, encode_dead_letter
from tests.support.crash_model import LoseAll
from tests.support.fault_filesystem import FaultFilesystem, failing, no_errors
from tests.support.pipelines import DIRECTORY, dead_letters, event

PLACE = DIRECTORY / "dead-letters"


def letter(number: int, message: str = "400 Bad Request: no") -> DeadLetter:
    """Return a letter about event `number`."""
    return DeadLetter(
        number, 1_750_000_000.25, 400, message, Context("VERCEL", 0), encode_events([event(f"h{number}")])
    )


def opened(fs: FaultFilesystem, *, segment_bytes: int = 1024, max_bytes: int = 10_000) -> DeadLetters:
    """Return the log."""
    return DeadLetters(fs, PLACE, segment_bytes, max_bytes)


@pytest.mark.parametrize(
    "kept",
    [
        letter(1),
        DeadLetter(2**40, 0.5, None, "", Context(), encode_events([Event("s", "REMOTE", "MISS", "h", 0)])),
        DeadLetter(3, 1.0, 413, "ü\n", Context(None, 1), encode_events([Event("s", "REMOTE", "MISS", "h")])),
    ],
)
def test_a_letter_reads_back_as_it_was(kept: DeadLetter) -> None:
    assert decode_dead_letter(encode_dead_letter(kept)) == kept


def test_nothing_is_created_before_the_first_letter() -> None:
    fs = FaultFilesystem()
    opened(fs).close()
    assert fs.paths() == []


def test_a_letter_is_durable_when_append_returns() -> None:
    fs = FaultFilesystem()
    log = opened(fs)
    for number in range(3):
        log.append(letter(number), now=5.0)
    fs.crash(LoseAll())
    assert dead_letters(fs) == [letter(number) for number in range(3)]


def test_letters_of_another_life_stay_and_new_ones_follow() -> None:
    fs = FaultFilesystem()
    for number in range(3):
        log = opened(fs)
        log.append(letter(number), now=5.0)
        log.close()
    assert [kept.seq for kept in dead_letters(fs)] == [0, 1, 2]


def test_beyond_its_size_the_oldest_letters_go_and_are_counted() -> None:
    fs = FaultFilesystem()
    log = opened(fs, segment_bytes=500, max_bytes=2000)
    for number in range(100):
        log.append(letter(number), now=5.0)
    kept = [each.seq for each in dead_letters(fs)]
    assert kept == list(range(100 - len(kept), 100))
    assert log.counts.discarded == 100 - len(kept) > 50
    assert sum(len(fs.read_bytes(path)) for path in fs.paths()) <= 2000 + 2 * 500


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", ["create", "pwrite", "sync", "sync_directory"])
def test_a_disk_that_refuses_is_an_error_and_the_next_try_keeps_the_letter_once(operation: str, code: int) -> None:
    fs = FaultFilesystem()
    log = opened(fs)
    fs.errors = lambda called, path: failing(operation, code)(called, path) if PLACE in {path, path.parent} else None
    with pytest.raises(StorageError):
        log.append(letter(1), now=5.0)
    fs.errors = no_errors
    log.append(letter(1), now=5.0)
    fs.crash(LoseAll())
    opened(fs).append(letter(2), now=6.0)
    assert [kept.seq for kept in dead_letters(fs)] == [1, 2]


def test_how_many_letters_there_are_is_known_whatever_comes_and_goes_and_in_another_life() -> None:
    fs = FaultFilesystem()
    log = opened(fs, segment_bytes=500, max_bytes=2000)
    assert log.counts.held is None
    log.count()
    assert log.counts.held == 0
    for number in range(100):
        log.append(letter(number), now=5.0)
        assert log.counts.held == len(dead_letters(fs))
    log.remove(lambda each: each.dead_letter.seq % 2 == 0, now=6.0)
    assert log.counts.held == len(dead_letters(fs)) > 0
    log.close()
    another = opened(fs)
    another.count()
    assert another.counts.held == log.counts.held
    another.remove(lambda _: True, now=7.0)
    assert another.counts.held == 0


def test_how_many_letters_there_are_is_not_known_where_they_cannot_be_listed() -> None:
    fs = FaultFilesystem()
    opened(fs).append(letter(1), now=5.0)
    fs.errors = failing("names", errno.EACCES)
    log = opened(fs)
    log.count()
    assert log.counts.held is None


def test_what_could_not_be_deleted_is_not_counted_as_discarded() -> None:
    fs = FaultFilesystem()
    log = opened(fs, segment_bytes=300, max_bytes=600)
    for number in range(8):
        log.append(letter(number), now=5.0)
    before = log.counts.discarded
    fs.errors = failing("unlink", errno.EIO)
    for _ in range(3):
        with pytest.raises(StorageError):
            log.append(letter(8), now=5.0)
    assert log.counts.discarded == before
    fs.errors = no_errors
    log.append(letter(8), now=5.0)
    kept = [each.seq for each in dead_letters(fs)]
    assert kept == list(range(log.counts.discarded, 9))


def test_a_damaged_letter_costs_that_letter_only() -> None:
    fs = FaultFilesystem()
    log = opened(fs)
    for number in range(3):
        log.append(letter(number), now=5.0)
    log.close()
    path: Path = next(path for path in fs.paths() if path.parent == PLACE)
    fs.flip(path, fs.read_bytes(path).index(b"h1"), 0)
    opened(fs).append(letter(3), now=6.0)
    assert [kept.seq for kept in dead_letters(fs)] == [0, 2, 3]
