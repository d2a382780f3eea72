"""How much of a sender's a rule lets through in a second: an allowance that refills all the time, and holds a second's worth.

What comes in one go passes as long as anything is left of the allowance, which then may be overdrawn, and is paid back by
waiting: so a limit below what one read brings still lets its rate through.
"""

from collections import OrderedDict
from collections.abc import Hashable

# Of so many senders it is remembered what is left; who is forgotten has a full allowance.
REMEMBERED = 4096


class Allowance:
    """What is left of one limit."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._left = rate
        self._at = now

    def has_any(self, now: float) -> bool:
        """Refill it; tell whether anything is left."""
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        return self._left > 0

    def spend(self, amount: float) -> None:
        """Take so much of it."""
        self._left -= amount


class RateLimits:
    """The allowances of all senders, each for events and for bytes. Times are in seconds, on the steady clock."""

    def __init__(self) -> None:
        self._allowances: OrderedDict[Hashable, list[Allowance | None]] = OrderedDict()

    def take(
        self, sender: Hashable, rates: tuple[float | None, float | None], amounts: tuple[int, int], now: float
    ) -> bool:
        """Tell whether so many events and bytes of a sender may pass; `rates` are how many may in a second, None for any."""
        found = self._allowances.get(sender)
        if found is None:
            found = [None if rate is None else Allowance(rate, now) for rate in rates]
            self._allowances[sender] = found
            if len(self._allowances) > REMEMBERED:
                self._allowances.popitem(last=False)
        self._allowances.move_to_end(sender)
        if not all(each is None or each.has_any(now) for each in found):
            return False
        for each, amount in zip(found, amounts, strict=True):
            if each is not None:
                each.spend(amount)
        return True
