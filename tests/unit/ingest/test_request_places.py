"""How the places of requests that are passed on are shared out."""

import pytest

from agent.ingest.request_places import Place, RequestPlaces


@pytest.mark.parametrize(("greedy", "held"), [(1, [342]), (2, [205, 205]), (3, [146, 146, 146])])
def test_there_is_a_place_for_another_destination_however_many_take_all_they_can(greedy: int, held: list[int]) -> None:
    places, names = RequestPlaces(512), [f"d{number}" for number in range(greedy)]
    taken: dict[str, list[Place]] = {name: [] for name in names}
    for _ in range(400):
        for name in names:
            taken[name] += [place for place in [places.take("tcp", name)] if place is not None]
    assert [len(each) for each in taken.values()] == pytest.approx(held, abs=2)
    assert places.take("tcp", "another") is not None
    assert all(places.take("another user", name) is not None for name in names)
    for _ in range(5):
        places.give_back(taken["d0"].pop())
    assert places.take("tcp", "d0") is not None


def test_a_request_whose_client_has_left_takes_no_place() -> None:
    places, gone = RequestPlaces(3), [True]
    assert all(places.take("tcp", "web", lambda: gone[0]) is not None for _ in range(9))
    gone[0] = False
    assert places.take("tcp", "web") is None
