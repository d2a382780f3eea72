"""What `queue verify` promises: every rule of the format is checked, and each finding has its place, its price and a remedy."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.events import Context, encode_events
from agent.queue import segment
from agent.queue.cursor import SLOT_BYTES, Outcome, Span
from agent.queue.cursor_file import read_slots
from agent.queue.dead_letters import DeadLetter, DeadLetters, weigh
from agent.queue.filesystem import OsFilesystem
from agent.queue.log import Entry
from agent.queue.maintenance.audit import Audit, audit
from agent.queue.maintenance.browse import EventFilter, event_page, list_segments
from agent.queue.record import Record, encode_frame, encode_record
from agent.queue.snapshot import read_queue
from agent.queue.store import Limits
from tests.support.fault_filesystem import FaultFilesystem, failing
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import DIRECTORY, EPOCH, events, numbered

SEGMENTS = DIRECTORY / "segments"
FIRST, SECOND = (SEGMENTS / segment.name(seq) for seq in (1, 7))
LIMITS = Limits(segment_bytes=700)


def made() -> FaultFilesystem:
    """Return a disk with a queue of two segments, six events in each, in records of three."""
    fs = FaultFilesystem()
    queue = OpenQueue(fs, DIRECTORY, LIMITS)
    for start in range(0, 12, 3):
        entry = Entry(
            3, encode_record(Record(EPOCH + start, Context(), encode_events(events(*numbered(12)[start : start + 3]))))
        )
        queue.commit([entry], EPOCH)
    queue.cursor.settle([Span(1, 3)], Outcome.DELIVERED)
    queue.close()
    assert [path.name for path in fs.paths() if path.parent == SEGMENTS] == [FIRST.name, SECOND.name]
    return fs


def check(fs: FaultFilesystem) -> Audit:
    log, repeats = DeadLetters.beside(fs, DIRECTORY, LIMITS).read(lambda *found: found)
    slots = read_slots(fs, DIRECTORY / "cursor")
    return audit(read_queue(fs, DIRECTORY), slots, log, lambda frame: weigh(repeats, frame))


def unreadable(fs: FaultFilesystem) -> int:
    """Return how many queued events a page after page of them finds unreadable."""
    queue, count, start = read_queue(fs, DIRECTORY), 0, 1
    while start:
        page = event_page(queue, EventFilter(), start, 2)
        count, start = count + page.unreadable, page.next or 0
    return count


def test_a_sound_queue_has_no_problem_and_nothing_to_note() -> None:
    found = check(made())
    assert (found.ok, found.problems, found.notes) == (True, [], [])
    assert (found.segments, found.records, found.events) == (2, 4, 12)


def rot_a_record(fs: FaultFilesystem) -> None:
    fs.flip(FIRST, segment.HEADER_BYTES + 30, 0)


def lose_a_segment(fs: FaultFilesystem) -> None:
    cut(fs, FIRST)


def cut(fs: FaultFilesystem, path: object) -> None:
    assert path == FIRST
    fs.unlink(FIRST)
    fs.sync_directory(SEGMENTS)


def truncate(fs: FaultFilesystem) -> None:
    fs.truncate_durable(FIRST, len(fs.read_bytes(FIRST)) - 1)


def truncate_to_a_frame(fs: FaultFilesystem) -> None:
    size = len(fs.read_bytes(FIRST)) - segment.HEADER_BYTES
    fs.truncate_durable(FIRST, segment.HEADER_BYTES + size // 2)


def rot_the_end(fs: FaultFilesystem) -> None:
    fs.flip(SECOND, len(fs.read_bytes(SECOND)) - 1, 7)


def other_things(fs: FaultFilesystem) -> None:
    """A frame whose CRC holds over a record with another number of events."""
    record = encode_record(Record(EPOCH, Context(), encode_events(events("h"))))
    data = fs.read_bytes(SECOND)
    fs.write_bytes(SECOND, data + encode_frame(13, 2, record))


@pytest.mark.parametrize(
    ("damage", "file", "costs", "said"),
    [
        (rot_a_record, FIRST.name, 1, "damaged bytes in the place of 3 events from number 1 on"),
        (lose_a_segment, "segments", 4, "4 events before the first segment are missing"),
        (truncate, FIRST.name, 3, "damaged bytes in the place of 3 events from number 4 on"),
        (truncate_to_a_frame, FIRST.name, 3, "3 events from number 4 on are missing: the file has no bytes of them"),
        (rot_the_end, SECOND.name, 3, "damaged bytes in the place of 3 events from number 10 on"),
        (other_things, SECOND.name, 2, "a record of 2 events from number 13 on holds other things than it says"),
    ],
)
def test_damage_is_named_with_what_it_costs_of_what_waits(
    damage: Callable[[FaultFilesystem], None], file: str, costs: int, said: str
) -> None:
    fs = made()
    damage(fs)
    (problem,) = check(fs).problems
    assert problem.file.endswith(file)
    assert (problem.costs, said in problem.what, "repair" in str(problem.remedy)) == (costs, True, True)
    listing = list_segments(read_queue(fs, DIRECTORY))
    assert (listing.unreadable, unreadable(fs)) == (costs, costs)
    assert listing.queued == (12 if damage is other_things else 10)


def test_letters_in_a_file_that_cannot_be_read_are_priced_by_its_name_and_the_next_ones() -> None:
    fs = made()
    log = DeadLetters.beside(fs, DIRECTORY, LIMITS)
    for number in range(5):
        log.append(DeadLetter(number, EPOCH, 400, "400: no", Context(), encode_events(events(f"h{number}"))), EPOCH)
    files = [path for path in fs.paths() if path.parent.name == "dead-letters"]
    fs.errors = failing("open", errno.EACCES, files[0])
    (problem,) = check(fs).problems
    assert problem.what == "cannot be read: Permission denied"
    assert problem.costs == int(files[1].stem) - int(files[0].stem)
    fs.errors = failing("open", errno.EACCES, files[-1])
    (problem,) = check(fs).problems
    assert problem.what == "cannot be read: Permission denied; it may hold more letters than one"
    assert problem.costs == 1


def test_one_event_that_is_missing_is_missing() -> None:
    fs = made()
    queue = OpenQueue(fs, DIRECTORY, LIMITS)
    queue.cursor.settle([Span(3, 6)], Outcome.DELIVERED)
    queue.close()
    lose_a_segment(fs)
    (problem,) = check(fs).problems
    assert problem.what == "1 event before the first segment is missing: a segment is gone"


def test_damage_of_what_is_settled_is_worth_a_note() -> None:
    fs = made()
    queue = OpenQueue(fs, DIRECTORY, LIMITS)
    queue.cursor.settle([Span(3, 4)], Outcome.DELIVERED)
    queue.close()
    rot_a_record(fs)
    found = check(fs)
    assert found.ok
    (note,) = found.notes
    assert note.what.endswith("in the place of 3 events from number 1 on; all of them are settled already")


def test_a_file_that_cannot_be_read_is_a_problem_that_gives_nothing_up() -> None:
    fs = made()
    fs.errors = failing("open", errno.EACCES, FIRST)
    (problem,) = check(fs).problems
    assert (problem.what, problem.costs) == ("cannot be read: Permission denied", 4)
    listing = list_segments(read_queue(fs, DIRECTORY))
    assert (listing.segments[0].problem, listing.segments[0].queued, listing.segments[0].unreadable) == (
        "Permission denied",
        4,
        4,
    )
    assert unreadable(fs) == 4


def test_a_damaged_header_costs_no_event() -> None:
    fs = made()
    fs.flip(FIRST, 20, 0)
    (problem,) = check(fs).problems
    assert (problem.offset, problem.costs, "header" in problem.what) == (0, 0, True)
    assert unreadable(fs) == 0


def test_leftovers_and_foreign_files_are_worth_a_note() -> None:
    fs = made()
    fs.write_bytes(FIRST, fs.read_bytes(FIRST) + encode_frame(7, 3, b"of a write that was done again"))
    fs.write_bytes(SECOND, fs.read_bytes(SECOND) + b"\xa4\xec\xe5R\x01")
    fs.write_bytes(SEGMENTS / "README", b"")
    fs.write_bytes(DIRECTORY / "cursor.unreadable", b"")
    found = check(fs)
    assert found.ok
    assert [note.what.split(" of a")[0].split(",")[0] for note in found.notes] == [
        "54 bytes",
        "5 bytes",
        "a cursor without a readable checkpoint",
        "is no file of the queue",
    ]


def test_what_the_history_holds_is_the_queues_own_whichever_queue_it_is_of() -> None:
    fs = made()
    history = DIRECTORY / "history"
    fs.make_directory(history)
    for name in (segment.name(1), f"job-1-{segment.name(1)}", f"0f3a-2-{segment.name(3)}", "README", "job-1.seg"):
        fs.write_bytes(history / name, b"")
    fs.set_mode(history / f"job-1-{segment.name(1)}", 0o644)
    found = check(fs)
    ignored = "is no file of the queue, and is ignored"
    assert {note.file for note in found.notes if note.what == ignored} == {"history/README", "history/job-1.seg"}
    assert f"history/job-1-{segment.name(1)}" in {problem.file for problem in found.problems}  # for its mode
    fs.write_bytes(SEGMENTS / f"job-1-{segment.name(1)}", b"")
    assert f"segments/job-1-{segment.name(1)}" in {note.file for note in check(fs).notes}


def test_a_slot_that_is_damaged_is_worth_a_note_and_a_cursor_that_is_lost_is_a_problem() -> None:
    fs = made()
    slots = read_slots(fs, DIRECTORY / "cursor")
    written = next(number for number, slot in enumerate(slots) if slot.strip(b"\0"))
    fs.write_bytes(DIRECTORY / "cursor", slots[written] * 2)
    fs.flip(DIRECTORY / "cursor", SLOT_BYTES + 20, 0)
    found = check(fs)
    assert (found.ok, [note.offset for note in found.notes]) == (True, [SLOT_BYTES])
    fs = made()
    for offset in (20, SLOT_BYTES + 20):
        fs.flip(DIRECTORY / "cursor", offset, 0)
    found = check(fs)
    assert [problem.offset for problem in found.problems][-1:] == [None]
    assert "there is no readable checkpoint: 12 events count as queued" in found.problems[-1].what
    fs = made()
    fs.unlink(DIRECTORY / "cursor")
    assert "no readable checkpoint" in check(fs).problems[0].what


def test_a_directory_in_a_segments_place_is_named_and_costs_nothing_that_was_not_there(tmp_path: Path) -> None:
    queue = OpenQueue(OsFilesystem(), tmp_path / "queue", LIMITS)
    queue.close()
    (tmp_path / "queue" / "segments" / segment.name(9999)).mkdir(mode=0o755)
    (tmp_path / "queue" / "dead-letters").mkdir(mode=0o700)
    fs = OsFilesystem()
    log, repeats = DeadLetters.beside(fs, tmp_path / "queue", LIMITS).read(lambda *found: found)
    slots = read_slots(fs, tmp_path / "queue" / "cursor")
    found = audit(read_queue(fs, tmp_path / "queue"), slots, log, lambda frame: weigh(repeats, frame))
    assert (found.ok, found.ledger.accepted) == (True, 0)
    assert [note.what for note in found.notes] == [
        "is no file, so none of the queue: a daemon puts it aside when it starts"
    ]


def test_permissions_that_let_others_look_or_keep_the_owner_out_are_problems_and_a_groups_are_not() -> None:
    fs = made()
    fs.set_mode(FIRST, 0o644)
    fs.set_mode(SECOND, 0o660)
    fs.set_mode(SEGMENTS, 0o500)
    assert [(problem.file, problem.what) for problem in check(fs).problems] == [
        ("segments", "has mode 0500 instead of 0700"),
        (f"segments/{FIRST.name}", "has mode 0644 instead of 0600"),
    ]


def test_a_page_never_reaches_into_the_next_segment_and_goes_on_where_it_stopped() -> None:
    queue = read_queue(made(), DIRECTORY)
    seen, start, pages = [], 1, 0
    while start:
        page = event_page(queue, EventFilter(after=EPOCH + 3), start, 4)
        seen += [each.seq for each in page.events]
        start, pages = page.next or 0, pages + 1
    assert (seen, pages) == (list(range(4, 13)), 3)
