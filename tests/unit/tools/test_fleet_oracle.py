"""What counts the events of a fleet under faults notices each that was lost, invented or came again."""

from tests.fleet.counting import Arrivals


def arrived(*hashes: str) -> Arrivals:
    """Return what has seen these."""
    found = Arrivals()
    for each in hashes:
        found.add(each)
    return found


def test_what_came_once_is_neither_lost_nor_invented_nor_repeated() -> None:
    found = arrived("a-2", "b-1", "a-1")
    made = {"a": 2, "b": 1, "nothing": 0}
    assert ([*found.lost(made)], [*found.invented(made)], found.total, found.repeats) == ([], [], 3, 0)


def test_what_never_came_is_lost_be_it_in_the_middle_at_the_end_or_all() -> None:
    assert [*arrived("a-1", "a-3").lost({"a": 4, "b": 1})] == ["a-2", "a-4", "b-1"]


def test_what_nobody_made_is_invented() -> None:
    assert [*arrived("a-0", "a-1", "a-2", "b-1").invented({"a": 1})] == ["a-0", "a-2", "b-1"]


def test_what_came_again_is_counted() -> None:
    found = arrived(*["a-1"] * 300, "a-2", "a-2")
    assert (found.total, found.repeats) == (255 + 2, 254 + 1)  # no event is counted more often than 255 times
    assert arrived("a-1", "a-1", "b-1").repeats == 1
