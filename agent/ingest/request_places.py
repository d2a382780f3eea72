"""How many requests may be passed on at one time, so that an API that hangs takes no place from who sends elsewhere. Pure."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

GREED = 2


@dataclass(frozen=True, eq=False)
class Place:
    """The place of a request; once its client `has_left`, others can have it."""

    owner: Hashable
    destination: str
    has_left: Callable[[], bool]


class RequestPlaces:
    """Places for requests, `size` for each owner.

    Of what all requests of an owner leave free, those to one destination may take GREED times as much: who is alone has two
    thirds, two that take all they can have two fifths each, and there is always something left for another one.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken: dict[Place, None] = {}

    def take(self, owner: Hashable, destination: str, has_left: Callable[[], bool] = lambda: False) -> Place | None:
        """Take a place; None if the destination may have no more."""
        waiting = [each for each in self._taken if each.owner == owner and not each.has_left()]
        if sum(each.destination == destination for each in waiting) >= GREED * (self._size - len(waiting)):
            return None
        place = Place(owner, destination, has_left)
        self._taken[place] = None
        return place

    def give_back(self, place: Place) -> None:
        """Give a place back."""
        del self._taken[place]
