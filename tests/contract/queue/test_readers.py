"""One suite over every reader of the queue's files: each finds exactly what was written and is not settled.

The queues are written to a real disk by the agent's own code. What is true of them is known from what was done, never read.
"""

import copy
import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.queue import record, segment
from agent.queue.cursor import SLOT_BYTES, Outcome, decode_slot
from agent.queue.record import encode_frame
from tests.support import agent_reader, second_reader
from tests.support.queue_history import CONTEXTS, History, Truth


class QueueReader(Protocol):
    """A module that reads the directory of a destination; the tuples are those of `tests.support.agent_reader`."""

    def queued_events(self, directory: Path, /) -> list[Any]:
        """Return what is queued and readable, by number."""

    def ledger(self, directory: Path, /) -> dict[str, Any]:
        """Return the ledger."""

    def dead_letters(self, directory: Path, /) -> list[Any]:
        """Return the last dead letter of each number, by number."""


READERS: list[QueueReader] = [agent_reader, second_reader]
each_reader = pytest.mark.parametrize("reader", READERS, ids=[getattr(r, "__name__", "") for r in READERS])

NONE: Final = frozenset[int]()


def check(reader: QueueReader, directory: Path, truth: Truth, *, lost: set[int] | frozenset[int] = NONE) -> None:
    """Hold a reader to what is true of a queue from which damage took the numbers `lost`; it must change nothing."""
    before = files(directory)
    assert reader.queued_events(directory) == truth.queued(but=lost)
    assert reader.ledger(directory) == truth.ledger()
    assert reader.dead_letters(directory) == truth.dead_letters()
    assert files(directory) == before


def files(directory: Path) -> dict[Path, bytes]:
    """Return all that a reader must not change."""
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def segments(directory: Path) -> list[Path]:
    """Return the queue's segments, oldest first."""
    return sorted((directory / "segments").iterdir())


class Place(NamedTuple):
    """A frame, where it stands in which file, and whether it is the one that holds its numbers."""

    path: Path
    offset: int
    size: int
    numbers: frozenset[int]
    counts: bool


def places(directory: Path) -> list[Place]:
    """Return the frames of an undamaged queue, leftovers too."""
    found = []
    for path, after in zip_longest(segments(directory), segments(directory)[1:]):
        limit = float("inf") if after is None else int(after.stem)
        for frame in segment.scan(path.read_bytes(), segment.HEADER_BYTES, whole=True).frames:
            size = record.HEADER_BYTES + len(frame.payload)
            numbers = frozenset(range(frame.first_seq, frame.next_seq))
            found.append(Place(path, frame.end - size, size, numbers, frame.next_seq <= limit))
    return found


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def busy(directory: Path) -> History:
    """Return a queue that has met everything but damage."""
    history = History(directory / "default")
    history.append(3, 1, context=CONTEXTS[1])
    history.append_with_failed_sync(1, 2, context=CONTEXTS[3])
    history.append(2, context=CONTEXTS[2])
    history.refuse(2)
    history.append(3)
    history.settle(9, 11)
    history.settle(2, 4, Outcome.EXPIRED)
    history.dead_letter(6, "no such session")
    history.dead_letter(12, "bad hash")
    history.dead_letter(6, "no such session, again")
    history.shed(5, Outcome.OVERFLOW)
    history.shed(1, Outcome.STALLED)
    history.restart()
    history.append(1, 2, context=CONTEXTS[1])
    history.settle(15, 16, Outcome.OVERFLOW)
    history.pause()
    return history


End = Callable[[History], Path]
each_end = pytest.mark.parametrize("end", [History.close, History.kill], ids=["closed", "killed"])


class Killed(NamedTuple):
    """A busy queue as a killed daemon left it."""

    directory: Path
    truth: Truth


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    history = busy(tmp_path_factory.mktemp("queue"))
    return Killed(history.kill(), history.truth)


@pytest.fixture
def killed(built: Killed, tmp_path: Path) -> Killed:
    """A copy for one test."""
    return Killed(Path(shutil.copytree(built.directory, tmp_path / "default")), copy.deepcopy(built.truth))


def newest_slot(directory: Path) -> int:
    """Return the offset of the slot that counts."""
    data = (directory / "cursor").read_bytes()
    found = {offset: decode_slot(data[offset : offset + SLOT_BYTES]) for offset in (0, SLOT_BYTES)}
    generations = {offset: checkpoint.generation for offset, checkpoint in found.items() if checkpoint is not None}
    return max(generations, key=generations.__getitem__)


@each_reader
@each_end
def test_a_new_queue_is_empty(reader: QueueReader, end: End, tmp_path: Path) -> None:
    history = History(tmp_path / "default")
    check(reader, end(history), history.truth)


@each_reader
@each_end
def test_what_is_not_settled_is_found_whatever_has_happened(reader: QueueReader, end: End, tmp_path: Path) -> None:
    history = busy(tmp_path)
    directory = end(history)
    assert len(segments(directory)) >= 3
    assert sum(not place.counts for place in places(directory)) == 3, (
        "leftovers of a failed sync and of a refused append"
    )
    check(reader, directory, history.truth)


@each_reader
@each_end
def test_deleted_segments_are_not_missed(reader: QueueReader, end: End, tmp_path: Path) -> None:
    history = busy(tmp_path)
    history.settle(1, 13)
    history.append(1)
    directory = end(history)
    assert int(segments(directory)[0].stem) > 1
    check(reader, directory, history.truth)


@each_reader
@pytest.mark.parametrize("kept", [1, 4, 12, 23, 24, 60])
def test_a_torn_tail_was_never_there(reader: QueueReader, kept: int, killed: Killed) -> None:
    frame = encode_frame(len(killed.truth.rows) + 1, 2, bytes(100))
    with segments(killed.directory)[-1].open("ab") as file:
        file.write(frame[:kept])
    check(reader, killed.directory, killed.truth)


@each_reader
def test_zeros_at_the_end_are_a_torn_tail(reader: QueueReader, killed: Killed) -> None:
    with segments(killed.directory)[-1].open("ab") as file:
        file.write(bytes(500))
    check(reader, killed.directory, killed.truth)


@each_reader
def test_a_frame_that_the_cursor_knows_is_missed_where_it_was_cut_off(reader: QueueReader, killed: Killed) -> None:
    last = places(killed.directory)[-1]
    last.path.write_bytes(last.path.read_bytes()[:-1])
    check(reader, killed.directory, killed.truth, lost=last.numbers)


@each_reader
@pytest.mark.parametrize("field", [0, 4, 8, 12, 20, 24])
@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_damaged_frame_costs_its_own_events_alone(
    reader: QueueReader, which: int, field: int, killed: Killed
) -> None:
    place = places(killed.directory)[which]
    flip(place.path, place.offset + field, which % 8)
    check(reader, killed.directory, killed.truth, lost=place.numbers if place.counts else NONE)


@each_reader
@pytest.mark.parametrize("field", [0, 4, 12, 24])
def test_a_damaged_last_frame_that_no_cursor_knows_is_still_accepted(
    reader: QueueReader, field: int, tmp_path: Path
) -> None:
    history = History(tmp_path / "default")
    history.append(1)
    history.append(3)
    directory = history.kill()
    (directory / "cursor").unlink()
    last = places(directory)[-1]
    flip(last.path, last.offset + field, 1)
    check(reader, directory, history.truth, lost=last.numbers)


@each_reader
@pytest.mark.parametrize("offset", [0, 6, 8, 24])
def test_a_damaged_header_costs_nothing(reader: QueueReader, offset: int, killed: Killed) -> None:
    for path in segments(killed.directory):
        flip(path, offset)
    check(reader, killed.directory, killed.truth)


@each_reader
@pytest.mark.parametrize("field", [0, 4, 6, 10, 14, 30])
def test_the_older_slot_counts_where_the_newer_one_is_damaged(reader: QueueReader, field: int, tmp_path: Path) -> None:
    history = History(tmp_path / "default")
    history.append(4)
    history.restart()
    before = copy.deepcopy(history.truth)
    history.settle(1, 3)
    directory = history.kill()
    check(reader, directory, history.truth)
    flip(directory / "cursor", newest_slot(directory) + field)
    check(reader, directory, before)


@each_reader
def test_without_a_cursor_all_is_queued_and_the_ledger_begins_anew(reader: QueueReader, killed: Killed) -> None:
    for slot in (0, SLOT_BYTES):
        flip(killed.directory / "cursor", slot)
    check(reader, killed.directory, Truth(rows=killed.truth.rows, letters=killed.truth.letters))


@each_reader
def test_files_that_are_no_segments_are_ignored(reader: QueueReader, killed: Killed) -> None:
    whole = segments(killed.directory)[0].read_bytes()
    for name in ("1.seg", "00000000000000000099.seg.bak", "9" * 20 + ".seg", "0000000000000000000x.seg"):
        (killed.directory / "segments" / name).write_bytes(whole)
    (killed.directory / "cursor.new").write_bytes((killed.directory / "cursor").read_bytes()[:100])
    check(reader, killed.directory, killed.truth)


@each_reader
def test_a_name_that_is_no_file_makes_up_no_events(reader: QueueReader, killed: Killed) -> None:
    (killed.directory / "segments" / segment.name(len(killed.truth.rows) + 5)).mkdir()
    assert reader.ledger(killed.directory) == killed.truth.ledger()
    assert reader.queued_events(killed.directory) == killed.truth.queued()


@each_reader
def test_a_frame_damaged_outside_of_its_payload_is_accepted_even_if_it_looks_torn(
    reader: QueueReader, tmp_path: Path
) -> None:
    history = History(tmp_path / "default")
    history.append(2)
    directory = history.kill()
    (directory / "cursor").unlink()
    last = places(directory)[-1]
    flip(last.path, last.offset + 6, 4)  # its length, to one that is below the limit and beyond the file
    check(reader, directory, history.truth, lost=last.numbers)


numbers = st.integers(1, 40)
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(CONTEXTS)),
    st.tuples(st.just("fail"), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(CONTEXTS)),
    st.tuples(
        st.just("settle"), numbers, st.integers(1, 8), st.sampled_from(list(Outcome)[2:] + [Outcome.DELIVERED] * 4)
    ),
    st.tuples(st.just("letter"), numbers),
    st.tuples(st.just("shed"), numbers, st.sampled_from([Outcome.OVERFLOW, Outcome.DISK_FULL])),
    st.tuples(st.just("restart")),
)


def perform(history: History, step: tuple[Any, ...]) -> None:
    """Do one step of a random history."""
    match step:
        case ("append", counts, context):
            history.append(*counts, context=context)
        case ("fail", counts, context):
            history.append_with_failed_sync(*counts, context=context)
        case ("refuse", count):
            history.refuse(count)
        case ("settle", start, length, outcome):
            history.settle(start, start + length, outcome)
        case ("letter", seq) if seq in history.truth.rows:
            history.dead_letter(seq, f"refused for the {len(history.truth.letters)}th time")
        case ("shed", count, reason):
            history.shed(count, reason)
        case ("restart",):
            history.restart()


def damage(directory: Path, which: int, byte: int, bit: int) -> frozenset[int]:
    """Flip a bit of some frame; return the numbers that are lost with it."""
    found = places(directory)
    if not found:
        return NONE
    place = found[which % len(found)]
    flip(place.path, place.offset + byte % place.size, bit)
    return place.numbers if place.counts else NONE


@each_reader
@given(
    story=st.lists(steps, max_size=12),
    end=st.sampled_from([History.close, History.kill]),
    flipped=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 999), st.integers(0, 7)),
)
@settings(deadline=None, max_examples=50)
def test_any_history_reads_back(
    reader: QueueReader, story: list[tuple[Any, ...]], end: End, flipped: tuple[int, int, int] | None
) -> None:
    with TemporaryDirectory() as name:
        history = History(Path(name) / "default")
        for step in story:
            perform(history, step)
        directory = end(history)
        lost = NONE if flipped is None else damage(directory, *flipped)
        check(reader, directory, history.truth, lost=lost)
