"""A whole pipeline dies before and after every call that it makes to the disk: no promise is broken by what that leaves.

Each workload of tests.support.workloads is run once, and a copy of the world is taken before and after each call. On each copy
another process starts, as after a SIGKILL, and as after a power cut, for each outcome that tests.support.crash_outcomes
enumerates (its docstring says what is complete there). That process recovers, is held to what the witness saw, works on, and dies
as well: at a call, during recovery or later, and with an outcome that are chosen by chance, from fixed seeds (it may be done
before that call: the report counts the second deaths). A third one recovers again. Each of them, whatever became of it by then in
another copy of the world, delivers everything, stops in order, and finds the same exact ledger when it opens the queue once more.

Complete with `--hypothesis-profile=nightly`: every call, before and after, a kill and all the enumerated outcomes of a power cut
(at most BOUND combinations, see there). Sampled without it: at every call, before and after, one of these outcomes: in turn a
kill, all that was not synced lost, all kept, and one of the others by chance. Calls between which nothing has changed, outside
or on the disk, leave the same; they are counted each, and tried together. Always complete: one write of each kind torn at each of
its bytes. Always sampled: how the second process dies.

A call that is itself cut in the middle leaves on the disk what a torn write leaves.
"""

import random
from collections.abc import Iterable, Iterator, Sequence

import pytest

from agent.queue import record, segment
from agent.queue.cursor import Outcome
from tests.support import profiles
from tests.support.afterlives import Death, live_on
from tests.support.crash_outcomes import Cuts, Remains, every_byte
from tests.support.lives import Moment, live
from tests.support.witness import Witness
from tests.support.workloads import WORKLOADS, Workload

BOUND = 1000 if profiles.is_nightly() else 64
FIELDS = (1, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 28)
"""Where a field of a frame, a segment's header or a cursor's slot ends."""

pytestmark = [pytest.mark.timeout(profiles.seconds(300)), pytest.mark.usefixtures("quiet")]


def at_fields(data: bytes) -> Iterable[int]:
    """Cut a write where a field of it, or one of its frames, ends, in the middle, and before its last byte."""
    starts = [place for place in range(len(data)) if data.startswith(record.MARKER, place)]
    cuts = {*FIELDS, len(data) // 2, len(data) - 1, *(start + cut for start in starts for cut in (0, *FIELDS))}
    return sorted(cut for cut in cuts if 0 < cut < len(data))


def outcomes(moment: Moment, cuts: Cuts, seed: int) -> list[Remains | None]:
    """Return what dying at that moment may leave; the first is that of a kill."""
    return [None, *moment.disk.remains(cuts, bound=BOUND, seed=seed)]


def sampled(found: Sequence[Remains | None], place: int) -> Sequence[Remains | None]:
    """Take one of them, so that along the moments every kind has its turn."""
    turn = place % 4
    return [found[turn] if turn < min(3, len(found)) else random.Random(place).choice(found)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_no_promise_is_broken_by_a_crash_at_any_call(workload: Workload, report: list[str]) -> None:
    moments = live(workload.script, workload.setup, watched=True)
    points = covered = lives = deaths = 0
    for place, moment in enumerate(moments):
        found = outcomes(moment, at_fields, place)
        tried = found if profiles.is_nightly() else sampled(found, place)
        points += len(moment.calls) * len(found)
        covered += len(moment.calls) * len(tried)
        for number, remains in enumerate(tried):
            deaths += live_on(Death(moment, remains), workload.setup, seed=1000 * place + number)
            lives += 1
    calls = len({call.index for moment in moments for call, _ in moment.calls})
    assert covered >= 2 * calls
    assert deaths > lives // 3
    report.append(
        f"{workload.name:26} {calls:4} calls, {points:6} crash points, {covered:6} covered by {lives:5} deaths; "
        f"{deaths:5} second deaths"
    )


def written(moments: Sequence[Moment], directory: str, suffix: str) -> Iterator[Moment]:
    """Yield the moments just after a write to such a file."""
    for moment in moments:
        for call, when in moment.calls:
            if (call.operation, when, call.path.parent.name) == ("pwrite", "after", directory) and call.path.match(
                suffix
            ):
                yield moment


KINDS = [
    pytest.param("deliver_out_of_order", "segments", "*.seg", 0, segment.MAGIC, id="segment header"),
    pytest.param("deliver_out_of_order", "segments", "*.seg", 1, record.MARKER, id="first frame"),
    pytest.param("deliver_out_of_order", "segments", "*.seg", 2, record.MARKER, id="second frame"),
    pytest.param("deliver_out_of_order", "default", "cursor", 2, b"AAQC", id="cursor slot"),
    pytest.param("keep_dead_letters", "dead-letters", "*.seg", 1, record.MARKER, id="dead letter"),
    pytest.param("rot", "quarantine", "*.new", 0, record.MARKER, id="quarantine copy"),
]


@pytest.mark.parametrize(("name", "directory", "suffix", "place", "magic"), KINDS)
def test_no_promise_is_broken_by_a_write_torn_at_any_byte(
    name: str, directory: str, suffix: str, place: int, magic: bytes, report: list[str], request: pytest.FixtureRequest
) -> None:
    workload = next(each for each in WORKLOADS if each.name == name)
    moment = list(written(live(workload.script, workload.setup, watched=True), directory, suffix))[place]
    torn: list[int] = []

    def cuts(data: bytes) -> Iterable[int]:
        if not data.startswith(magic):
            return ()
        torn.append(len(data))
        return every_byte(data)

    found = moment.disk.remains(cuts, bound=0, seed=0)
    assert len(found) > max(torn) // 2  # a cut after which the bytes are the same as before is none
    for remains in found:
        live_on(Death(moment, remains), workload.setup, seed=0, deaths=0)
    report.append(f"{request.node.callspec.id:26} torn at each of {max(torn)} bytes, {len(found)} outcomes")


def test_every_workload_does_what_it_is_for() -> None:
    calls: dict[str, set[tuple[str, str]]] = {}
    seen: dict[str, Witness] = {}
    for workload in WORKLOADS:
        name, seen[workload.name] = workload.name, Witness(workload.setup.bounds, workload.setup.poison)
        moments = live(workload.script, workload.setup, witness=seen[name], watched=True)
        calls[name] = {(call.path.parent.name, call.operation) for each in moments for call, _ in each.calls}
    assert all(("segments", "unlink") in each for each in calls.values())
    assert ("dead-letters", "unlink") in calls["keep_dead_letters"]
    assert ("quarantine", "rename") in calls["rot"]
    assert ("default", "rename") in calls["fail_to_sync"]
    assert set(seen["overflow_with_the_newest"].failed.values()) == {Outcome.OVERFLOW}
    assert set(seen["fill_the_disk"].failed.values()) == {Outcome.DISK_FULL}
    assert seen["meet_a_difficult_api"].lost_answers > 0
    undelivered = {
        name for name, witness in seen.items() if witness.acked.keys() - witness.taken - set(witness.refused)
    }
    assert undelivered == {"lose_power_and_recover", "overflow", "expire", "rot"}
