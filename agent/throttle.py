"""The throttle that keeps a repeated failure from filling the disk with log lines, and accounts for those that it held back."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakSet

MAX_KEYS = 1024
_ABOUT_OTHERS: tuple[tuple[str, object], ...] = ()


@dataclass
class HeldBack:
    """How many lines of an event were held back, about how many `about`, and the one that most of them were about."""

    event: str
    lines: int = 0
    about: int = 0
    most: dict[str, object] = field(default_factory=dict)
    lines_of_most: int = 0


@dataclass(slots=True)
class _Count:
    last: float = float("-inf")
    lines: int = 0
    since: float = 0.0


class Throttle:
    """Lets one line in `interval` seconds through for each event, and each `about`: whom it is about, such as a uid and a pid.

    Of all together it lets no more than `burst` through in that time, so that many senders cannot fill the disk either. The
    others are counted: the next line carries the number, or `held_back` gives it.
    """

    def __init__(self, interval: float, burst: int = 20) -> None:
        self._interval = interval
        self._burst = burst
        self._counts: dict[tuple[str, tuple[tuple[str, object], ...]], _Count] = {}
        self._window = self._cleared = float("-inf")
        self._let_through = 0
        _throttles.add(self)

    def allow(self, event: str, now: float, **about: object) -> int | None:
        """Return how many such lines were held back since the last one, or None to hold this one back too."""
        if now - self._window >= self._interval:
            self._window, self._let_through = now, 0
        key = event, tuple(about.items())
        if key not in self._counts and len(self._counts) >= MAX_KEYS and not self._make_room(now):
            key = event, _ABOUT_OTHERS
        count = self._counts.setdefault(key, _Count())
        if now - count.last < self._interval or self._let_through >= self._burst:
            count.since = count.since if count.lines else now
            count.lines += 1
            return None
        lines, count.last, count.lines = count.lines, now, 0
        self._let_through += 1
        return lines

    def take(self, now: float, seconds: float) -> Iterable[tuple[str, dict[str, object], int]]:
        """Give event, `about` and number of what was held back for at least so many seconds, and count it anew."""
        for (event, about), count in self._counts.items():
            if count.lines and now - count.since >= seconds:
                yield event, dict(about), count.lines
                count.lines = 0

    def _make_room(self, now: float) -> bool:
        """Forget those whose next line would be let through anyway, once in an interval; return whether there is room."""
        if now - self._cleared >= self._interval:
            self._cleared = now
            kept = {key: each for key, each in self._counts.items() if each.lines or now - each.last < self._interval}
            self._counts = kept
        return len(self._counts) < MAX_KEYS


# All throttles of this process: its log is one, too.
_throttles: WeakSet[Throttle] = WeakSet()


def held_back(now: float, seconds: float = 0.0) -> list[HeldBack]:
    """Return by event what all throttles have held back for at least so many seconds; it counts as reported."""
    found: dict[str, HeldBack] = {}
    for throttle in [*_throttles]:
        for event, about, lines in throttle.take(now, seconds):
            each = found.setdefault(event, HeldBack(event))
            each.lines += lines
            each.about += 1
            if lines > each.lines_of_most:
                each.most, each.lines_of_most = about, lines
    return list(found.values())
