"""What a request asks for: its parameters, checked. Pure."""

from collections.abc import Mapping

from agent.cli.periods import DEFAULT_SINCE, period
from agent.cli.views.web_page import DEFAULT_REFRESH, REFRESHES, Asked
from agent.usage.report import Period

PARAMETERS = ("since", "until", "session", "refresh")
MAX_VALUE = 512
"""Characters; names of sessions are shortened far below it."""


class BadQuestionError(Exception):
    """The parameters of a request are wrong; the message says which, and what would be right."""


def asked_in(query: Mapping[str, str]) -> Asked:
    """Return what parameters ask for; an empty one counts as none. Raises BadQuestionError."""
    if unknown := [name for name in query if name not in PARAMETERS]:
        raise BadQuestionError(f"There is no parameter {unknown[0]!r}, only {', '.join(PARAMETERS)}.")
    if too_long := [name for name, value in query.items() if len(value) > MAX_VALUE]:
        raise BadQuestionError(f"{too_long[0]} is too long: it may have {MAX_VALUE} characters.")
    given = {name: value.strip() for name, value in query.items() if value.strip()}
    refresh = given.get("refresh", DEFAULT_REFRESH)
    if refresh not in REFRESHES:
        raise BadQuestionError(f"refresh is {refresh!r}: it may be {', '.join(REFRESHES)}.")
    session = given.get("session")
    since = given.get("since", "" if session else DEFAULT_SINCE)
    return Asked(since, given.get("until", ""), session, refresh)


def period_of(asked: Asked, now: float) -> Period:
    """Return the time that is asked about; `now` is in seconds since the epoch. Raises BadQuestionError."""
    try:
        return period(asked.since or None, asked.until or None, asked.session, now)
    except ValueError as error:
        raise BadQuestionError(f"{error}.") from error
