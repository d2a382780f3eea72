"""The times that a report is asked about, as people write them. Pure."""

import datetime as dt
import math
from typing import TYPE_CHECKING

from agent.units import parse_duration

if TYPE_CHECKING:
    from agent.usage.report import Period

DEFAULT_SINCE = "7d"
_HOUR_SECONDS = 3600
_LAST = 253_402_300_800 - _HOUR_SECONDS  # the year 10000


def period(since: str | None, until: str | None, session: str | None, now: float) -> "Period":
    """Return the whole hours around two times; without a beginning DEFAULT_SINCE, but for a session.

    `now` is in seconds since the epoch. Raises ValueError, which says what is wrong with which of them.
    """
    from agent.usage.report import Period

    if since is None and session is None:
        since = DEFAULT_SINCE
    begin, end = _moment("since", since, now), _moment("until", until, now)
    if begin is not None and end is not None and begin >= end:
        raise ValueError(f"since is {since!r} and until is {until!r}: the first has to be before the second")
    return Period(
        since=None if begin is None else math.floor(begin / _HOUR_SECONDS),
        until=None if end is None else math.ceil(end / _HOUR_SECONDS),
        session=session,
    )


def _moment(name: str, text: str | None, now: float) -> float | None:
    """Return a time in seconds since the epoch: so long before `now`, or a date and perhaps a time, in UTC unless it says."""
    if text is None:
        return None
    try:
        found = _seconds(text, now)
    except (ValueError, OverflowError):
        found = -1.0
    if not 0 <= found < _LAST:
        right = '"7d" (ago; units are s, m, h and d), "2026-11-20" or "2026-11-20T14:00"'
        raise ValueError(f"{name}: {text!r} is not a time: write it like {right}")
    return found


def _seconds(text: str, now: float) -> float:
    if text[-1:].isalpha() and not text.endswith("Z"):
        return now - parse_duration(text)
    found = dt.datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()
