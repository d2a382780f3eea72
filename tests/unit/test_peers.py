"""Whose turn it is: among users first, and then among the processes of each. Counted in passes of the event loop."""

from collections import Counter
from collections.abc import Hashable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.peers import OWNER_TURNS, STRANGERS, Peer, Turns, owner_of, take_turns, token_holders

pytestmark = pytest.mark.anyio

FLOODER = 1
VICTIM = 2


def order(*peers: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the (uid, pid) of clients in the order in which they are served; they have come in the given one."""
    return [(each.uid, each.pid) for each in take_turns([Peer(pid, uid) for uid, pid in peers], lambda peer: peer)]


def test_a_process_that_comes_once_is_served_before_the_rest_of_a_crowd() -> None:
    crowd = [(FLOODER, 10)] * 30
    assert order(*crowd, (FLOODER, 11)).index((FLOODER, 11)) == 1
    assert order(*crowd, (VICTIM, 20)).index((VICTIM, 20)) == 1


def test_a_user_gains_nothing_by_many_processes() -> None:
    crowd = [(FLOODER, pid) for pid in range(30)]
    found = order(*crowd, (VICTIM, 20), (VICTIM, 20), (VICTIM, 21))
    assert [found.index((VICTIM, 20)), found.index((VICTIM, 21))] == [1, 3]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3))))
def test_everybody_is_served_and_nobody_twice_before_every_other_user_was_once(peers: list[tuple[int, int]]) -> None:
    found = order(*peers)
    assert Counter(found) == Counter(peers)
    seen: Counter[int] = Counter()
    for uid, _ in found:
        assert all(seen[uid] <= seen[other] for other in {each for each, _ in found[sum(seen.values()) :]})
        seen[uid] += 1


def test_what_is_of_one_process_keeps_its_order() -> None:
    items = [(Peer(1, FLOODER), number) for number in range(5)]
    items.insert(3, (Peer(2, FLOODER), 9))
    found = take_turns(items, lambda item: item[0])
    assert [number for peer, number in found if peer.pid == 1] == list(range(5))


def test_over_tcp_strangers_and_those_with_each_token_are_users_of_their_own() -> None:
    assert owner_of(Peer(1, 7)) == 7
    assert len({owner_of(STRANGERS), owner_of(token_holders("default")), owner_of(token_holders("web"))}) == 3


async def turns_taken(*groups: Hashable, passes: int) -> Counter[Hashable]:
    """Count how many turns each group has in so many passes of the event loop; each may be there several times."""
    turns, taken = Turns(), Counter[Hashable]()

    async def work(group: Hashable) -> None:
        turn = turns.of(group)
        while True:
            await turn.wait()
            taken[group] += 1

    async with anyio.create_task_group() as tasks:
        for group in groups:
            tasks.start_soon(work, group)
        for _ in range(passes):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    return taken


async def test_the_tasks_of_a_process_have_one_turn_together_in_a_pass() -> None:
    flooder, victim = Peer(1, FLOODER), Peer(2, FLOODER)
    taken = await turns_taken(*[flooder] * 100, victim, passes=300)
    assert taken[victim] >= taken[flooder] > 0


async def test_the_processes_of_a_user_have_a_few_turns_together_in_a_pass() -> None:
    crowd = [Peer(pid, FLOODER) for pid in range(100)]
    victim = Peer(1000, VICTIM)
    taken = await turns_taken(*crowd, victim, passes=300)
    assert sum(taken[each] for each in crowd) <= OWNER_TURNS * (taken[victim] + 1)
    assert 2 * min(taken[each] for each in crowd) >= max(taken[each] for each in crowd) > 0


async def test_a_process_has_its_turn_among_many_of_its_own_user() -> None:
    crowd = [Peer(pid, FLOODER) for pid in range(100)]
    victim = Peer(1000, FLOODER)
    taken = await turns_taken(*crowd, victim, passes=300)
    assert taken[victim] >= sum(taken[each] for each in crowd) // len(crowd) - 1 > 0
