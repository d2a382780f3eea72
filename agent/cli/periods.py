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


def moment(text: str, now: float) -> float:
    """Return a time in seconds since the epoch: so long before `now`, or a date and perhaps a time, which is UTC unless it says.

    Raises ValueError, whose message goes on where the text ends.
    """
    try:
        found = _moment(text, now)
    except (ValueError, OverflowError):
        found = -1.0
    if not 0 <= found < _LAST:
        raise ValueError('is not a time: write it like "7d" (ago), "2026-11-20" or "2026-11-20T14:00"')
    return found


def _moment(text: str, now: float) -> float:
    if text[-1:].isalpha() and not text.endswith("Z"):
        return now - parse_duration(text)
    found = dt.datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()


def period(since: float | None, until: float | None, session: str | None, now: float) -> "Period":
    """Return the whole hours around two times; without a beginning DEFAULT_SINCE, but for a session."""
    from agent.usage.report import Period

    if since is None and session is None:
        since = now - parse_duration(DEFAULT_SINCE)
    return Period(
        since=None if since is None else math.floor(since / _HOUR_SECONDS),
        until=None if until is None else math.ceil(until / _HOUR_SECONDS),
        session=session,
    )
