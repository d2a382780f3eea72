"""Who is let into a queue: everybody up to half of it, from there on by shares, and nobody in another's place."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers import UNKNOWN
from agent.queue.cursor import MAX_RUNS, Outcome, Run
from agent.queue.shares import (
    NOBODY,
    SENDING_SECONDS,
    UNNAMED,
    Occupancy,
    Part,
    Senders,
    SharedDisk,
    admit,
    owner_of,
    runs_from,
    runs_until,
    runs_with,
)

QUOTA, OVERFLOW = Outcome.QUOTA, Outcome.OVERFLOW
A, B, C = 1000, 1001, 1002


class Wish(NamedTuple):
    """A claim."""

    owner: int
    size: int
    retried: bool = False


def part(**held: int) -> Part:
    """Return a segment in which these owners hold so much, and in which nothing else is."""
    sizes = {{"a": A, "b": B, "c": C, "nobody": NOBODY}[name]: size for name, size in held.items()}
    return Part(sum(sizes.values()), sizes)


HALF = (part(a=50),)
FULL = (part(a=30), part(a=30), part(a=40))
MIXED = (part(a=20, b=10), part(a=30), part(a=40))


@pytest.mark.parametrize(
    ("parts", "senders", "replaceable", "claims", "refused", "replaced"),
    [
        pytest.param((), 9, 0, [Wish(A, 50)], [None], 0, id="up to half everybody is let in"),
        pytest.param((), 9, 0, [Wish(A, 51)], [QUOTA], 0, id="from there on not beyond a share"),
        pytest.param(HALF, 2, 0, [Wish(A, 1), Wish(B, 50)], [QUOTA, None], 0, id="a share is for each"),
        pytest.param(HALF, 2, 0, [Wish(B, 1)] * 51, [None] * 50 + [QUOTA], 0, id="a share is used up"),
        pytest.param(HALF, 1, 0, [Wish(A, 50)], [None], 0, id="who is alone has all of it"),
        pytest.param(HALF, 1, 0, [Wish(A, 51), Wish(A, 50)], [OVERFLOW, None], 0, id="and no more"),
        pytest.param(FULL, 2, 0, [Wish(B, 1)], [OVERFLOW], 0, id="what somebody who was alone has filled is full"),
        pytest.param(FULL, 2, 3, [Wish(B, 1)], [OVERFLOW], 0, id="and makes no room for others"),
        pytest.param(FULL, 1, 2, [Wish(A, 1)], [None], 1, id="it makes room for its own"),
        pytest.param(FULL, 1, 2, [Wish(A, 31), Wish(A, 29)], [None, None], 2, id="as far as it has to"),
        pytest.param(FULL, 1, 2, [Wish(A, 61), Wish(A, 1)], [OVERFLOW, None], 1, id="but not in vain"),
        pytest.param(FULL, 1, 3, [Wish(A, 100)], [None], 3, id="even all of it"),
        pytest.param(MIXED, 1, 2, [Wish(A, 30)], [OVERFLOW], 0, id="not if somebody else has events in it"),
        pytest.param((part(nobody=100),), 1, 1, [Wish(A, 1)], [OVERFLOW], 0, id="nor if that is not known"),
        pytest.param((Part(5, {}), *FULL), 1, 3, [Wish(A, 1)], [None], 2, id="an empty one is in nobody's way"),
        pytest.param(FULL, 1, 2, [Wish(NOBODY, 1, True)], [OVERFLOW], 0, id="dead letters push nothing out"),
        pytest.param(HALF, 9, 0, [Wish(NOBODY, 50, True)], [None], 0, id="and have no share"),
    ],
)
def test_claims_are_decided_by_the_table(
    parts: Sequence[Part],
    senders: int,
    replaceable: int,
    claims: list[Wish],
    refused: list[Outcome | None],
    replaced: int,
) -> None:
    shares = dict.fromkeys(range(A, A + senders), 100 // senders)
    assert admit(claims, Occupancy(100, parts, shares, replaceable)) == (refused, replaced)


OWNERS = st.sampled_from([A, B, C])
PARTS = st.lists(st.dictionaries(OWNERS | st.just(NOBODY), st.integers(1, 40), min_size=1), max_size=6)


@given(
    PARTS,
    st.lists(st.builds(Wish, OWNERS, st.integers(1, 60), st.just(False)), max_size=12),
    st.booleans(),
    st.integers(100, 400),
    st.fixed_dictionaries({owner: st.integers(1, 5) for owner in (A, B, C)}),
)
def test_nothing_acknowledged_is_pushed_out_by_another_and_shares_are_kept(
    held: list[dict[int, int]], claims: list[Wish], replace: bool, size: int, weights: dict[int, int]
) -> None:
    parts = [Part(sum(each.values()), each) for each in held]
    senders = Senders(())
    senders.last = {claim.owner: (0.0, weights[claim.owner]) for claim in claims}
    queue = Occupancy(size, parts, senders.shares(size, 0.0), len(parts) if replace else 0)
    assert sum(queue.shares.values()) <= size
    refused, replaced = admit(claims, queue)
    used, has = (
        sum(each.size for each in parts),
        {owner: sum(each.get(owner, 0) for each in held) for owner in (A, B, C)},
    )
    assert all(len(each) == 1 and each.keys() <= {claim.owner for claim in claims} for each in held[:replaced])
    before = used
    for claim, reason in zip(claims, refused, strict=True):
        within = has[claim.owner] + claim.size <= queue.shares[claim.owner]
        if reason is QUOTA:
            assert len(queue.shares) > 1
            assert not within or replaced
        elif reason is OVERFLOW:
            assert used + claim.size > size
        else:
            used, has[claim.owner] = used + claim.size, has[claim.owner] + claim.size
            assert within or len(queue.shares) == 1 or used <= size // 2 or replaced
    assert used - sum(each.size for each in parts[:replaced]) <= max(before, size)


def test_who_has_sent_something_lately_counts_whatever_the_clock_does() -> None:
    senders = Senders({A, NOBODY})
    senders.last[B] = 1000.0, 1
    assert senders.shares(90, 1000.0) == {A: 30, NOBODY: 30, B: 30}
    senders.last[C] = 1001.0, 3
    assert senders.shares(90, 1000.0 + SENDING_SECONDS) == {A: 15, NOBODY: 15, B: 15, C: 45}
    assert senders.shares(90, 1001.0 + SENDING_SECONDS) == {C: 90}
    assert senders.last == {C: (1001.0, 3)}
    assert senders.shares(90, 0.0) == {}


@given(st.dictionaries(OWNERS, st.integers(1, 1000), min_size=1), st.integers(0, 2**40))
def test_shares_are_as_the_weights_and_together_no_more_than_there_is(weights: dict[int, int], size: int) -> None:
    senders = Senders(())
    senders.last = {owner: (0.0, weight) for owner, weight in weights.items()}
    shares, total = senders.shares(size, 0.0), sum(weights.values())
    assert size - len(shares) < sum(shares.values()) <= size
    for owner, weight in weights.items():
        assert 0 <= size * weight - shares[owner] * total < total


TOTAL = 1000
QUEUES = st.sampled_from("abcd")
USES = st.tuples(st.just("use"), QUEUES, st.integers(1, TOTAL))
CHANGES = st.tuples(st.sampled_from(["free", "leave"]), QUEUES, st.integers(1, TOTAL))


@given(st.lists(USES | CHANGES, max_size=40))
def test_queues_together_use_no_more_than_the_disk_that_they_share_whoever_comes_and_goes(
    steps: list[tuple[str, str, int]],
) -> None:
    disk, used = SharedDisk(TOTAL), dict[str, int]()
    for step, queue, size in steps:
        if queue not in used:
            disk.use(queue, 0)
            used[queue] = 0
        match step:
            case "use" if used[queue] + size <= disk.bound(queue):
                used[queue] += size
            case "free":
                used[queue] -= min(used[queue], size)
            case "leave":
                disk.leave(queue)
                del used[queue]
        if queue in used:
            disk.use(queue, used[queue])
        assert sum(used.values()) <= TOTAL
        part = TOTAL // max(len(used), 1)
        for each in used:
            if all(used[other] <= part for other in used):  # as long as none has joined them lately
                assert disk.bound(each) == part


def test_all_whom_the_kernel_does_not_name_are_one_owner() -> None:
    assert UNKNOWN.uid == UNNAMED


def test_runs_tell_whose_segments_are_whose() -> None:
    runs: tuple[Run, ...] = ()
    for first_seq, owners, begun in [
        (1, {A}, True),
        (1, {A}, False),
        (10, {A}, True),
        (20, {A}, True),
        (20, {B}, False),
        (30, {B}, True),
        (40, {A, B}, True),
        (40, {A}, False),
        (50, {NOBODY}, True),
        (60, {B}, True),
    ]:
        runs = runs_with(runs, first_seq, owners, begun=begun)
    assert runs == (Run(1, A), Run(20, None), Run(30, B), Run(40, None), Run(60, B))
    owners_found = [owner_of(runs, first_seq) for first_seq in (1, 10, 20, 30, 40, 50, 60, 99)]
    assert owners_found == [A, A, NOBODY, B, NOBODY, NOBODY, B, B]
    assert runs_from(runs, 30) == (Run(30, B), Run(40, None), Run(60, B))
    assert runs_from(runs, 5) == runs
    assert runs_from((), 5) == ()
    assert runs_until(runs, 60) == (Run(1, A), Run(20, None), Run(30, B), Run(40, None))
    assert runs_until(runs, 10) == (Run(1, A), Run(10, None))


def test_nothing_is_known_of_a_segment_that_was_there_before() -> None:
    assert owner_of((), 7) == NOBODY
    assert runs_with((), 7, {A}, begun=False) == ()
    assert runs_with((Run(20, A),), 7, {NOBODY}, begun=True) == ()


def test_so_many_runs_are_remembered_and_the_latest_ones() -> None:
    runs: tuple[Run, ...] = ()
    for number in range(1, MAX_RUNS + 10):
        runs = runs_with(runs, number, {A if number % 2 else B}, begun=True)
    assert (len(runs), runs[0].first_seq, runs[-1]) == (MAX_RUNS, 10, Run(MAX_RUNS + 9, A))
    assert owner_of(runs, 9) == NOBODY
