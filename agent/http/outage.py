"""Whether the API has failed for longer than clients wait before they ask again, and which of them would still go on asking.

It is pure; `now` is in seconds, of a clock that does not jump.
"""

import re
from typing import Final

# turbo waits 2 s before it asks again: what has failed since then has failed for a client that waited.
LASTING_SECONDS: Final = 1.5
# How many failures in a row are passed on within that time: one less than with which turbo sends nothing more, events included.
TOLERATED: Final = 2
# For so long nobody needs to ask the API again: it may take its time to fail.
FRESH_SECONDS: Final = 5.0
# A failure so long after the last one, with no request between them, is a new one.
FORGOTTEN_SECONDS: Final = 10.0

# turbo before it was written in Rust, "turbo 1.10.16 go1.20.10 linux (amd64)". It asks three times, after 2 and 4 s, unless three
# requests have failed in all. Alone those with its events fail, too; the agent takes them, and so it would go on for longer.
_INSISTS = re.compile(r"turbo \S+ go\d").match


class Outage:
    """The failures of one API: answers after which turbo asks again, and no answer at all."""

    def __init__(self) -> None:
        self._count = 0
        self._since = self._last = 0.0

    def note(self, now: float, status: int | None) -> None:
        """Take note of the status that the API has answered; None if it has not answered."""
        if status is not None and not _is_failure(status):
            self._count = 0
            return
        if self._count == 0 or now - self._last >= FORGOTTEN_SECONDS:
            self._count, self._since = 0, now
        self._count, self._last = self._count + 1, now

    @property
    def lasts(self) -> bool:
        """Whether the last request failed, and asking again would not have helped."""
        return self._count > TOLERATED or (self._count > 0 and self._last - self._since >= LASTING_SECONDS)

    def is_fresh(self, now: float) -> bool:
        """Tell whether it lasts, and that was seen just now."""
        return self.lasts and now - self._last < FRESH_SECONDS


def _is_failure(status: int) -> bool:
    return status == 429 or (status >= 500 and status != 501)


def insists(user_agent: str) -> bool:
    """Tell whether a client asks again for longer than it would without the agent."""
    return _INSISTS(user_agent) is not None
