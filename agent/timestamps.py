"""Times as people and machines read them: ISO 8601 in UTC."""

import datetime as dt


def iso(seconds: float) -> str:
    """Return seconds since the epoch as text such as "2025-06-15T12:00:00.000Z"."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(text: str) -> float:
    """Return the seconds since the epoch that `iso` gave as `text`."""
    return dt.datetime.fromisoformat(text).timestamp()
