"""Shares in a queue on a disk: whose events may go is known after kills and power cuts, and what is not known stays."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events import Block, Context
from agent.queue import segment
from agent.queue.cursor import Outcome, Span
from agent.queue.grouping import Submitted
from agent.queue.log import Entry
from agent.queue.shares import NOBODY, SENDING_SECONDS, SharedDisk
from agent.queue.store import Limits, Refusal
from tests.support.fault_filesystem import FaultFilesystem, KeepAll, LoseAll
from tests.support.open_queue import OpenQueue

ROOT = Path("/queue")
A, B = 1000, 1001
LIMITS = Limits(segment_bytes=200, max_bytes=1000)
QUOTA, OVERFLOW = Outcome.QUOTA, Outcome.OVERFLOW


def of(owner: int, size: int = 100, *, retried: bool = False) -> Entry:
    """Return an event of this owner."""
    return Entry(1, b"x" * size, retried, owner)


def opened(disk: FaultFilesystem, limits: Limits = LIMITS) -> OpenQueue:
    return OpenQueue(disk, ROOT, limits)


def fill(queue: OpenQueue, owner: int, now: float = 0.0) -> int:
    """Commit events of an owner until one is refused or pushes another one out; return how many were taken."""
    count = 0
    while queue.commit([of(owner)], now).refused is None and not queue.cursor.ledger().dropped:
        count += 1
    return count


class TestShares:
    def test_each_owner_has_a_share_and_what_is_beyond_is_counted_as_quota(self) -> None:
        queue = opened(FaultFilesystem())
        assert queue.commit([of(B)]).refused is None
        assert fill(queue, A) == 3
        assert [queue.commit([of(B)]).refused for _ in range(4)] == [None, None, QUOTA, QUOTA]
        ledger = queue.cursor.ledger()
        assert (ledger.queued, ledger.dropped) == (6, {QUOTA: 3})

    def test_a_refusal_is_of_an_owners_events_alone_and_says_how_much_that_holds(self) -> None:
        queue = opened(FaultFilesystem())
        queue.commit([of(B)])
        fill(queue, A)
        blocks = [Submitted((Block(Context(), 2, b"x" * 200),), owner) for owner in (A, B, A)]
        admitted = queue.store.admit(blocks, 0.0)
        assert admitted.accepted == [blocks[1]]
        assert [why for _, why in admitted.refused] == [QUOTA, QUOTA]
        size = blocks[0].size
        assert admitted.refusals == [Refusal(A, QUOTA, 4, 2 * size, 3 * 124, (1000 - segment.HEADER_BYTES) // 2)]

    def test_an_owner_has_the_weight_that_it_sent_something_with_last(self) -> None:
        queue = opened(FaultFilesystem())
        block = Block(Context(), 1, b"x" * 500)
        queue.commit([of(B)])
        assert queue.store.admit([Submitted((block,), A)], 0.0).refusals[0].reason is QUOTA
        assert not queue.store.admit([Submitted((block,), A, 3)], 0.0).refused
        assert queue.store.admit([Submitted((block,), A)], 0.0).refusals[0].share == (1000 - segment.HEADER_BYTES) // 2

    def test_who_has_not_sent_for_long_has_no_share(self) -> None:
        queue = opened(FaultFilesystem())
        queue.commit([of(B)], 0.0)
        assert queue.commit([of(A, 600)], SENDING_SECONDS).refused is QUOTA
        assert queue.commit([of(A, 600)], SENDING_SECONDS + 1).refused is None

    def test_an_owner_alone_pushes_out_its_own_oldest_events(self) -> None:
        queue = opened(FaultFilesystem())
        assert fill(queue, A) == 6
        assert queue.cursor.ledger().dropped == {OVERFLOW: 1}

    def test_a_segment_that_an_append_has_left_empty_is_in_nobodys_way(self) -> None:
        disk = FaultFilesystem()
        queue = opened(disk)
        queue.commit([of(A)])
        disk.capacity = disk.used + 40
        assert queue.commit([of(A)]).refused is Outcome.DISK_FULL
        assert len(queue.view.segments) == 2
        disk.capacity = None
        for _ in range(9):
            assert queue.commit([of(A)]).refused is None
        assert queue.cursor.ledger().dropped[OVERFLOW] == queue.cursor.position - 1

    def test_dead_letters_that_come_back_are_nobodys(self) -> None:
        queue = opened(FaultFilesystem())
        queue.commit([of(NOBODY, retried=True)])
        assert fill(queue, A) == 5
        assert queue.cursor.ledger().dropped == {OVERFLOW: 1}
        assert queue.cursor.position == 1
        assert queue.commit([of(NOBODY, retried=True)]).refused is OVERFLOW
        assert queue.cursor.ledger().dropped == {OVERFLOW: 1}


class TestSharedDisks:
    def test_a_full_queue_takes_nothing_from_the_others_and_leaves_them_its_part_when_it_is_closed(self) -> None:
        fs, disk = FaultFilesystem(), SharedDisk(1000)
        full, other = (OpenQueue(fs, ROOT / name, LIMITS, disk) for name in ("full", "other"))
        assert fill(full, A) == 3
        assert full.cursor.ledger().dropped.keys() == {OVERFLOW}
        assert (full.store.max_bytes, other.store.max_bytes) == (500, 500)
        assert fill(other, B) == 3
        assert full.view.size + other.view.size <= 1000
        full.close()
        assert other.store.max_bytes == 1000

    def test_one_that_joins_has_what_the_others_leave_until_they_are_within_their_parts(self) -> None:
        fs, disk = FaultFilesystem(), SharedDisk(1000)
        first = OpenQueue(fs, ROOT / "first", LIMITS, disk)
        assert fill(first, A) == 6
        later = OpenQueue(fs, ROOT / "later", LIMITS, disk)
        assert later.commit([of(B)]).refused is OVERFLOW
        assert first.commit([of(A)]).refused is None  # the oldest go
        assert first.store.max_bytes == later.store.max_bytes == 500
        assert later.commit([of(B)]).refused is None
        assert first.view.size + later.view.size <= 1000

    def test_what_is_delivered_makes_room_again(self) -> None:
        fs, disk = FaultFilesystem(), SharedDisk(1000)
        first = OpenQueue(fs, ROOT / "first", LIMITS, disk)
        assert fill(first, A) == 6
        later = OpenQueue(fs, ROOT / "later", LIMITS, disk)
        assert later.commit([of(B)]).refused is OVERFLOW
        first.cursor.settle([Span(first.cursor.position, first.cursor.next_seq)], Outcome.DELIVERED)
        first.commit()
        assert [later.commit([of(B)]).refused for _ in range(3)] == [None] * 3


class TestRestarts:
    def test_after_a_restart_it_is_known_whose_segments_are_whose(self) -> None:
        disk = FaultFilesystem()
        assert fill(opened(disk), A) == 6
        disk.kill()
        queue = opened(disk)
        assert queue.commit([of(B)]).refused is OVERFLOW
        assert queue.commit([of(A)]).refused is QUOTA
        assert queue.commit([of(A)], SENDING_SECONDS * 2).refused is None

    def test_what_a_lost_checkpoint_knew_of_owners_is_unknown_and_makes_room_for_nobody(self) -> None:
        disk = FaultFilesystem()
        queue = opened(disk)
        queue.commit([of(A)])
        queue.writer.sync()
        queue.commit([of(B, 10)])  # into the same segment; no checkpoint after this is durable
        queue.commit([of(A)])
        assert len(queue.view.segments) == 2
        disk.crash(LoseAll())
        queue = opened(disk)
        assert queue.cursor.queued == 3
        queue.commit([of(A, 1)])
        later = SENDING_SECONDS * 2
        while queue.commit([of(A)], later).refused is None:
            later += 1
        assert queue.cursor.position == 1
        assert queue.cursor.ledger().dropped == {OVERFLOW: 1}

    def test_without_a_cursor_nothing_is_known(self) -> None:
        disk = FaultFilesystem()
        assert fill(opened(disk), A) == 6
        disk.kill()
        disk.unlink(ROOT / "cursor")
        queue = opened(disk)
        before = queue.cursor.position
        assert queue.commit([of(A)], SENDING_SECONDS * 9).refused is OVERFLOW
        assert queue.cursor.position == before


class Witness:
    """Whose the events with these numbers are, and that only their owner pushes them out."""

    def __init__(self) -> None:
        self.owners: dict[int, int] = {}
        self.committing = NOBODY

    def settled(self, spans: Sequence[Span], outcome: Outcome) -> None:
        """Look at what is settled."""
        if outcome is OVERFLOW:
            assert {self.owners[number] for span in spans for number in range(*span)} == {self.committing}

    @property
    def passed(self) -> bool:
        """It looks on to the end."""
        return False


OWNERS = st.sampled_from([A, B, 1002])
STEPS = st.one_of(
    st.tuples(st.just("commit"), OWNERS, st.integers(1, 300)),
    st.tuples(st.just("commit"), OWNERS, st.integers(1, 300)),
    st.tuples(st.just("wait"), st.just(0), st.integers(1, int(SENDING_SECONDS))),
    st.tuples(st.just("deliver"), st.just(0), st.integers(1, 4)),
    st.tuples(st.sampled_from(["sync", "kill", "lose", "keep"]), st.just(0), st.just(0)),
)


@pytest.mark.parametrize("overflow", ["drop-oldest", "drop-newest"])
@given(steps=st.lists(STEPS, max_size=40))
def test_whatever_happens_nobody_is_pushed_out_by_another(overflow: str, steps: list[tuple[str, int, int]]) -> None:
    limits = Limits(
        segment_bytes=200, max_bytes=1000, overflow="drop-oldest" if overflow == "drop-oldest" else "drop-newest"
    )
    disk, witness, now = FaultFilesystem(), Witness(), 0.0
    queue = opened(disk, limits)
    queue.cursor.watchers.append(witness)
    for step, owner, amount in steps:
        cursor = queue.cursor
        match step:
            case "commit":
                witness.committing, number = owner, queue.view.next_seq
                if queue.commit([of(owner, amount)], now).refused is None:
                    witness.owners[number] = owner
                in_use = [each for each in queue.view.segments if queue.view.next_seq > cursor.position]
                assert sum(each.size for each in in_use[segment.deletable(in_use, cursor.position) :]) <= 1000
            case "wait":
                now += amount
            case "deliver":
                cursor.settle(
                    [Span(cursor.position, min(cursor.position + amount, cursor.next_seq))], Outcome.DELIVERED
                )
                queue.commit((), now)
            case "sync":
                queue.writer.sync()
            case _:
                if step == "kill":
                    disk.kill()
                else:
                    disk.crash(LoseAll() if step == "lose" else KeepAll())
                queue = opened(disk, limits)
                queue.cursor.watchers.append(witness)
    ledger = queue.cursor.ledger()
    assert ledger.accepted == ledger.delivered + sum(ledger.dropped.values()) + ledger.queued
