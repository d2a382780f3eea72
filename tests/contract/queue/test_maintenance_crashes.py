"""Repair, purge, retry and the removal of dead letters, with a crash at every single call: nothing is lost."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import StorageError
from agent.events import Context, encode_events
from agent.queue import segment
from agent.queue.cursor import Ledger, Outcome, Span
from agent.queue.cursor_file import read_slots
from agent.queue.dead_letters import DeadLetter, DeadLetters, dead_letters_in, weigh
from agent.queue.log import Entry
from agent.queue.maintenance.audit import Audit, audit
from agent.queue.maintenance.browse import EventFilter, event_page
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter
from agent.queue.maintenance.offline import OfflineQueue, at_once
from agent.queue.maintenance.purge import purge, purge_dead_letters
from agent.queue.maintenance.repair import Repaired, repair
from agent.queue.maintenance.retry import Retried, retry
from agent.queue.record import Record, encode_frame, encode_record
from agent.queue.snapshot import read_queue
from agent.queue.store import Limits
from tests.support.fault_filesystem import MUTATING, Chooser, Crash, FaultFilesystem, LoseAll, RandomChooser, When
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import DIRECTORY, EPOCH, events, numbered

LIMITS = Limits(segment_bytes=8 * 600)  # of dead letters: 600
ORIGINS = (Context("A", 0), Context())
EVERYTHING = DeadLetterFilter()
LETTERS = numbered(9, "letter")
QUEUED = numbered(6, "queued")
DELIVERED = numbered(4, "delivered")


def wall_clock() -> float:
    return EPOCH


def seeded() -> FaultFilesystem:
    """Return a disk with a queue: some events delivered, some that wait, and dead letters in several segments."""
    fs = FaultFilesystem()
    queue = OpenQueue(fs, DIRECTORY, LIMITS)
    append(queue, DELIVERED)
    append(queue, LETTERS)
    queue.cursor.settle([Span(1, 5)], Outcome.DELIVERED)
    letters = DeadLetters.beside(fs, DIRECTORY, LIMITS)
    for number, event in enumerate(events(*LETTERS)):
        said = "400 Bad Request: no" if number % 2 else "422: never"
        letters.append(
            DeadLetter(
                5 + number, EPOCH, 400 + 22 * (1 - number % 2), said, ORIGINS[number % 2], encode_events([event])
            ),
            EPOCH,
        )
    queue.cursor.settle([Span(5, 14)], Outcome.DEAD_LETTERED)
    append(queue, QUEUED[:3])
    append(queue, QUEUED[3:])
    letters.close()
    queue.close()
    assert len(segments(fs, "dead-letters")) >= 3
    return fs


def append(queue: OpenQueue, names: Sequence[str], context: Context = ORIGINS[0]) -> None:
    entry = Entry(len(names), encode_record(Record(EPOCH, context, encode_events(events(*names)))))
    queue.commit([entry], EPOCH)


def segments(fs: FaultFilesystem, directory: str = "segments") -> list[Path]:
    return [path for path in fs.paths() if path.parent == DIRECTORY / directory]


def damaged() -> FaultFilesystem:
    """Return the same, with rot: in a record that waits, in a dead letter, in a slot of the cursor; and leftovers."""
    fs = seeded()
    last = segments(fs)[-1]
    fs.flip(last, len(fs.read_bytes(last)) - 5, 3)
    fs.flip(segments(fs, "dead-letters")[1], segment.HEADER_BYTES + 40, 1)
    slots = read_slots(fs, DIRECTORY / "cursor")
    older = min(range(2), key=lambda slot: slots[slot][14:22])
    fs.flip(DIRECTORY / "cursor", older * 32 * 1024 + 30, 0)
    fs.write_bytes(DIRECTORY / "cursor.new", b"half")
    fs.write_bytes(DIRECTORY / "quarantine" / "x.new", b"half")
    fs.set_mode(last, 0o604)
    return fs


def perform(fs: FaultFilesystem, work: Callable[[OfflineQueue], Any]) -> Any:
    """Open the queue, do the work, close it."""
    host = OfflineQueue(fs, DIRECTORY, LIMITS, wall_clock)
    result = work(host)
    host.close()
    return result


def run(change: Callable[..., Any], *args: object) -> Callable[[OfflineQueue], Any]:
    """Return the work of one change."""
    return lambda host: at_once(change(host, *args))


def names_queued(fs: FaultFilesystem) -> list[str]:
    queue, found = read_queue(fs, DIRECTORY), []
    start: int | None = 1
    while start is not None:
        page = event_page(queue, EventFilter(), start, 4)
        found += [each.event.hash for each in page.events]
        start = page.next
    return found


def names_of_letters(fs: FaultFilesystem) -> list[str]:
    read = DeadLetters.beside(fs, DIRECTORY, LIMITS).read
    return read(lambda log, repeats: [each.dead_letter.event.hash for each in dead_letters_in(log, repeats)])


def ledger(fs: FaultFilesystem) -> Ledger:
    return read_queue(fs, DIRECTORY).cursor.ledger()


def check(fs: FaultFilesystem) -> Audit:
    log, repeats = DeadLetters.beside(fs, DIRECTORY, LIMITS).read(lambda *found: found)
    return audit(read_queue(fs, DIRECTORY), read_slots(fs, DIRECTORY / "cursor"), log, partial(weigh, repeats))


def balanced(fs: FaultFilesystem) -> bool:
    found = ledger(fs)
    return (
        found.accepted
        == found.delivered + found.forwarded + found.dead_lettered + sum(found.dropped.values()) + found.queued
    )


def calls_of(make: Callable[[], FaultFilesystem], work: Callable[[OfflineQueue], Any]) -> list[tuple[int, str]]:
    """Return the calls that the work makes."""
    fs = make()
    before = fs.calls
    perform(fs, work)
    return [(call.index, call.operation) for call in fs.log if call.index >= before]


def after_each_crash(
    make: Callable[[], FaultFilesystem], work: Callable[[OfflineQueue], Any], holds: Callable[[FaultFilesystem], None]
) -> int:
    """Crash before and after every call that changes something, and let `holds` look; return how many crashes that was."""
    points, fresh = 0, make()
    for index, operation in calls_of(make, work):
        if operation not in MUTATING:
            continue
        for when, chooser in ways_to_die(index):
            fs = copy.deepcopy(fresh)
            fs.crash_at(index, when)
            with pytest.raises(Crash):
                perform(fs, work)
            die(fs, chooser)
            holds(fs)
            points += 1
    return points


def ways_to_die(seed: int) -> list[tuple[When, Chooser | None]]:
    """Return when, and what it leaves: None is a kill, the others are power losses."""
    return [("before", RandomChooser(seed)), ("after", None), ("after", LoseAll()), ("after", RandomChooser(-seed))]


def die(fs: FaultFilesystem, chooser: Chooser | None) -> None:
    if chooser is None:
        fs.kill()
    else:
        fs.crash(chooser)


def test_what_is_tested_here_is_a_queue_without_problems_and_one_with_many() -> None:
    assert check(seeded()).ok
    found = check(damaged())
    assert [problem.file.split("/")[0] for problem in found.problems] == [
        "segments",
        "dead-letters",
        "segments",
    ]
    assert sum(problem.costs for problem in found.problems) == 4
    assert {note.file for note in found.notes} == {"cursor", "cursor.new", "quarantine/x.new"}


def test_a_crash_in_a_purge_leaves_each_event_queued_or_purged() -> None:
    def holds(fs: FaultFilesystem) -> None:
        waiting, counts = names_queued(fs), ledger(fs)
        assert waiting in ([], QUEUED)
        assert counts.dropped.get("purged", 0) == len(QUEUED) - len(waiting)
        assert (counts.accepted, counts.delivered, counts.dead_lettered) == (19, 4, 9)
        assert balanced(fs)
        perform(fs, run(purge, 0.0))
        assert names_queued(fs) == []
        assert ledger(fs).dropped == {"purged": 6}
        assert check(fs).ok
        assert ledger(fs).accepted == 19
        new_ones_get_new_numbers(fs)

    assert after_each_crash(seeded, run(purge, 0.0), holds) > 60


def new_ones_get_new_numbers(fs: FaultFilesystem) -> None:
    queue = OpenQueue(fs, DIRECTORY, LIMITS)
    append(queue, ["new"])
    queue.close()
    found = read_queue(fs, DIRECTORY)
    assert [(each.seq, each.event.hash) for each in event_page(found, EventFilter(), 1, 9).events] == [(20, "new")]


@pytest.mark.parametrize("chosen", [EVERYTHING, DeadLetterFilter(numbers=frozenset({6, 7}))])
def test_a_crash_in_a_retry_leaves_every_event_a_letter_or_queued_and_another_one_completes_it(
    chosen: DeadLetterFilter,
) -> None:
    meant = {name for number, name in enumerate(LETTERS) if is_meant(chosen, number)}
    rest = [name for name in LETTERS if name not in meant]

    def holds(fs: FaultFilesystem) -> None:
        counts = ledger(fs)
        letters, waiting = Counter(names_of_letters(fs)), Counter(names_queued(fs))
        assert set(letters.values()) <= {1}
        assert set(rest) <= set(letters)
        assert meant <= set(letters) | set(waiting)
        assert set(QUEUED) <= set(waiting) <= set(QUEUED) | meant
        assert max(waiting.values()) == 1
        assert balanced(fs)
        assert counts.accepted == 19 + len(waiting) - 6
        assert counts.dead_lettered == 9
        perform(fs, run(retry, chosen))
        waiting = Counter(names_queued(fs))
        assert sorted(names_of_letters(fs)) == sorted(rest)
        assert set(waiting) == set(QUEUED) | meant
        assert max(waiting.values()) <= 2  # at most one repeat for one crash
        assert check(fs).ok
        assert balanced(fs)
        assert ledger(fs).retried <= ledger(fs).accepted - 19

    assert after_each_crash(seeded, run(retry, chosen), holds) > 100


def is_meant(chosen: DeadLetterFilter, number: int) -> bool:
    by_number = isinstance(chosen.numbers, frozenset) and 5 + number in chosen.numbers
    return chosen == EVERYTHING or by_number or (chosen.status == 422 and number % 2 == 0)


def test_a_retry_without_a_crash_is_counted_exactly_and_leaves_no_letter() -> None:
    fs = seeded()
    assert perform(fs, run(retry, EVERYTHING)) == Retried(9, 0, None, None)
    assert names_of_letters(fs) == []
    assert sorted(names_queued(fs)) == sorted(QUEUED + LETTERS)
    assert ledger(fs) == Ledger(28, 4, 9, {}, 15, 9)


@pytest.mark.parametrize(
    "chosen", [EVERYTHING, DeadLetterFilter(numbers=frozenset({5, 13})), DeadLetterFilter(status=422)]
)
def test_a_crash_in_a_removal_costs_no_letter_that_was_to_stay_and_doubles_none(chosen: DeadLetterFilter) -> None:
    stays = [name for number, name in enumerate(LETTERS) if not is_meant(chosen, number)]

    def holds(fs: FaultFilesystem) -> None:
        left = names_of_letters(fs)
        assert set(stays) <= set(left)
        assert len(left) == len(set(left))
        torn = [problem.what for problem in check(fs).problems]  # of copies: their originals are still there
        assert all("damaged bytes in the place of" in what for what in torn), torn
        perform(fs, run(purge_dead_letters, chosen))
        assert sorted(names_of_letters(fs)) == sorted(stays)
        perform(fs, run(repair))
        assert sorted(names_of_letters(fs)) == sorted(stays)
        assert (check(fs).ok, check(fs).dead_letters) == (True, len(stays))
        assert ledger(fs) == Ledger(19, 4, 9, {}, 6)

    assert after_each_crash(seeded, run(purge_dead_letters, chosen), holds) > 50


def quarantined(fs: FaultFilesystem) -> dict[Path, bytes]:
    return {path: fs.read_bytes(path) for path in fs.paths() if path.parent.name == "quarantine"}


def test_a_crash_in_a_repair_loses_nothing_more_and_another_one_completes_it() -> None:
    perform(undisturbed := damaged(), run(repair))
    damage = quarantined(undisturbed)
    assert {path.parent.parent.name for path in damage} == {"default", "dead-letters"}
    assert len(damage) == 2

    def holds(fs: FaultFilesystem) -> None:
        assert names_queued(fs) == QUEUED[:3]
        assert ledger(fs).dropped in ({}, {"corrupt": 3})
        assert balanced(fs)
        assert set(names_of_letters(fs)) == set(LETTERS) - {lost_letter()}
        perform(fs, run(repair))
        assert names_queued(fs) == QUEUED[:3]
        assert ledger(fs) == Ledger(19, 4, 9, {"corrupt": 3}, 3)
        assert sorted(names_of_letters(fs)) == sorted(set(LETTERS) - {lost_letter()})
        found = check(fs)
        assert found.problems == []
        assert not [path for path in fs.paths() if path.name.endswith(".new")]
        kept = quarantined(fs)
        assert kept.items() >= damage.items()
        # What else is there are copies of letters that a power cut has torn: their originals are among the letters above.
        assert {path.parent.parent.name for path in kept.keys() - damage.keys()} <= {"dead-letters"}

    assert after_each_crash(damaged, run(repair), holds) > 150


def lost_letter() -> str:
    """Return the letter whose bytes are damaged."""
    (lost,) = set(LETTERS) - set(names_of_letters(damaged()))
    return lost


def test_reading_changes_nothing_not_even_a_torn_tail() -> None:
    fs = damaged()
    last = segments(fs)[-1]
    torn = fs.read_bytes(last) + b"\xa4\xec\xe5R\x09"
    fs.write_bytes(last, torn)
    before = {path: fs.read_bytes(path) for path in fs.paths()}
    calls = fs.calls
    names_queued(fs)
    names_of_letters(fs)
    check(fs)
    assert {call.operation for call in fs.log[calls:]} & MUTATING == set()
    assert {path: fs.read_bytes(path) for path in fs.paths()} == before


def test_a_purge_of_all_letters_and_of_the_queue_works_on_a_disk_without_a_byte_left() -> None:
    fs = seeded()
    fs.capacity = fs.used
    perform(fs, run(purge_dead_letters, EVERYTHING))
    assert names_of_letters(fs) == []
    fs.capacity = fs.used
    done = perform(fs, run(purge, 0.0))
    assert (done.purged, names_queued(fs), ledger(fs).dropped) == (6, [], {"purged": 6})


def test_a_removal_that_finds_no_room_removes_nothing_and_says_so() -> None:
    fs = seeded()
    fs.capacity = fs.used
    host = OfflineQueue(fs, DIRECTORY, LIMITS, wall_clock)
    with pytest.raises(StorageError, match="no letter was removed"):
        run(purge_dead_letters, DeadLetterFilter(numbers=frozenset({13})))(host)
    assert sorted(names_of_letters(fs)) == sorted(LETTERS)


def test_a_retry_that_finds_no_room_keeps_the_letters_and_drops_nothing() -> None:
    fs = seeded()
    fs.capacity = fs.used
    assert perform(fs, run(retry, EVERYTHING)) == Retried(0, 9, "disk_full", None)
    assert ledger(fs) == Ledger(19, 4, 9, {}, 6)
    assert sorted(names_of_letters(fs)) == sorted(LETTERS)


def test_a_retry_pushes_no_queued_event_out() -> None:
    fs = seeded()
    limits = Limits(segment_bytes=700, max_bytes=sum(len(fs.read_bytes(path)) for path in segments(fs)) + 50)
    host = OfflineQueue(fs, DIRECTORY, limits, wall_clock)
    assert run(retry, EVERYTHING)(host) == Retried(0, 9, "overflow", None)
    assert host.store.cursor.ledger() == Ledger(19, 4, 9, {}, 6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_rots_a_repair_accounts_for_it_and_what_is_left_can_be_had(data: st.DataObject) -> None:
    fs = seeded()
    for _ in range(data.draw(st.integers(1, 4))):
        rot(fs, data)
    before = check(fs)
    readable, letters = names_queued(fs), names_of_letters(fs)
    perform(fs, run(repair))
    after = check(fs)
    assert after.problems == []
    assert balanced(fs)
    assert set(readable) <= set(names_queued(fs)) <= set(QUEUED + LETTERS + DELIVERED)
    assert sorted(names_of_letters(fs)) == sorted(letters)
    unreadable = sum(problem.costs for problem in before.problems if problem.file.startswith("segments"))
    assert unreadable <= ledger(fs).dropped.get("corrupt", 0)
    assert len(names_queued(fs)) == ledger(fs).queued
    again = perform(fs, run(repair))
    assert again == Repaired(0, 0, 0, 0, [], [])


def rot(fs: FaultFilesystem, data: st.DataObject) -> None:
    """Flip a bit, cut or add an end, remove a file."""
    path = data.draw(st.sampled_from(fs.paths()))
    contents = fs.read_bytes(path)
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "remove", "zero"]))
    where = data.draw(st.integers(0, max(len(contents) - 1, 0)))
    if kind == "remove":
        fs.unlink(path)
        fs.sync_directory(path.parent)
    elif kind == "cut":
        fs.truncate_durable(path, where)
    elif kind == "add":
        fs.write_bytes(path, contents + data.draw(st.binary(min_size=1, max_size=60)))
    elif kind == "zero":
        fs.write_bytes(path, contents[:where] + bytes(len(contents[where : where + 512])) + contents[where + 512 :])
    elif contents:
        fs.flip(path, where, data.draw(st.integers(0, 7)))


def test_frames_that_are_whole_and_hold_other_things_are_kept_in_quarantine_and_counted() -> None:
    """Only another writer can have written them; the daemon would count them as corrupt too."""
    fs = seeded()
    for path, frame in (
        (segments(fs)[-1], encode_frame(20, 2, b"no record")),
        (segments(fs, "dead-letters")[-1], encode_frame(10, 1, b"no letter")),
    ):
        fs.write_bytes(path, fs.read_bytes(path) + frame)
    assert [problem.costs for problem in check(fs).problems] == [2, 1]
    assert perform(fs, run(repair)) == Repaired(2, 1, 0, 1, [], [])
    assert check(fs).problems == []
    assert ledger(fs) == Ledger(21, 4, 9, {"corrupt": 2}, 6)
    kept = {fs.read_bytes(path) for path in fs.paths() if path.parent.name == "quarantine"}
    assert kept == {b"no record", b"no letter"}
    assert sorted(names_of_letters(fs)) == sorted(LETTERS)
