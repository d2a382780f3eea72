"""What a report says, as data: the answer of `report --format json`, and what all other formats are made of."""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from agent.errors import AgentError
from agent.timestamps import iso
from agent.usage.counting import HOUR_SECONDS, Totals, shortened
from agent.usage.store import ADOPTED, DAMAGED, DELETED, UsageStore

By = Literal["hour", "day", "session", "ci", "job"]
WORST = 10
MAX_COLUMNS = 400
"""Of more days the last ones are drawn."""
_DAY_HOURS = 24
_HOURLY_DAYS = 8
_NEVER = 2**62
_KEYS: dict[By, str] = {"hour": "hour", "day": f"hour / {_DAY_HOURS}", "session": "name", "ci": "ci", "job": "job"}
_ORDERS: dict[By, str] = {
    "hour": "1",
    "day": "1",
    "session": "min(first), 1",
    "job": "min(first), 1",
    "ci": "sum(local_hits + remote_hits + misses + unanswered) DESC, 1",
}
_SUMS = (
    "coalesce(sum(events), 0), coalesce(sum(local_hits), 0), coalesce(sum(remote_hits), 0), coalesce(sum(misses), 0), "
    "coalesce(sum(unanswered), 0), total(local_saved_ms), total(remote_saved_ms)"
)


class Period(NamedTuple):
    """What a report is about: whole hours since the epoch, from `since` up to, not including, `until`; and the session, if one.

    None is without a limit.
    """

    since: int | None = None
    until: int | None = None
    session: str | None = None


class BySource(msgspec.Struct, frozen=True):
    """A number for the local cache, and one for the remote one."""

    local: int
    remote: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks and what became of them. `saved_ms` is task time; `hit_rate` is from 0.0 to 1.0, null without tasks."""

    events: int
    tasks: int
    hits: BySource
    misses: int
    unanswered: int
    saved_ms: BySource
    hit_rate: float | None

    @property
    def all_hits(self) -> int:
        """Those of both sources."""
        return self.hits.local + self.hits.remote

    @property
    def all_saved_ms(self) -> int:
        """That of both sources."""
        return self.saved_ms.local + self.saved_ms.remote


class Group(Summary, frozen=True, kw_only=True):
    """A part of a report: `name` is an hour or day (ISO 8601, UTC), a session, a CI system, or a job; null for none."""

    name: str | None


class Build(Summary, frozen=True, kw_only=True):
    """A session; `at` is when it began (ISO 8601)."""

    session: str
    ci: str | None
    at: str
    job: str | None = None


class RepeatedMiss(msgspec.Struct, frozen=True):
    """A hash that was missed in several sessions, so that it was built again: in how many it was missed, and found.

    `last_miss` is the hour of the last one (ISO 8601), `task` what turbo calls it, such as "web#build", where that is known.
    """

    hash: str
    misses: int
    hits: int
    last_miss: str
    task: str | None = None


class Unknown(msgspec.Struct, frozen=True):
    """What is missing in all reports of this queue together, in events since it began.

    `deleted` left the history before they were folded, `damaged` cannot be read, `dropped` were dropped before they were written.
    `adopted` were of adopted spools that could not hand their history over, as others have with `handed_over` events. `history`
    says whether a history is kept at all, and `problems` what went wrong this time.
    """

    deleted: int
    damaged: int
    dropped: int = 0
    adopted: int = 0
    handed_over: int = 0
    history: bool = True
    problems: list[str] = []


class Report(Summary, frozen=True, kw_only=True):
    """All of it. `since` and `until` are null without a limit; `trend` is by hour or day, oldest first.

    `groups` are what was asked for with `by`. `worst` are the sessions in which most tasks were not in the cache.
    """

    since: str | None
    until: str | None
    session: str | None
    sessions: int
    by: By | None
    groups: list[Group]
    trend_by: Literal["hour", "day"]
    trend: list[Group]
    by_ci: list[Group]
    worst: list[Build]
    missed_again: list[RepeatedMiss]
    unknown: Unknown


class Question(NamedTuple):
    """What is asked: about when, and broken down by what."""

    period: Period
    by: By | None = None


LEAST_PREFIX = 4
"""So many characters of a session's name are enough, if no other one begins with them."""
_MOST_CANDIDATES = 5


class AmbiguousError(AgentError):
    """Several sessions begin so."""


def whole_session(store: UsageStore, given: str) -> str:
    """Return the session that is named so, or whose name alone begins so; `given` if there is none. Raises AmbiguousError."""
    name = shortened(given)
    with store.reading() as connection:
        found = connection.execute(
            "SELECT name FROM sessions WHERE name >= ?1 AND substr(name, 1, length(?1)) = ?1 "
            "ORDER BY name = ?1 DESC, last DESC LIMIT ?2",
            (name, _MOST_CANDIDATES + 1),
        ).fetchall()
    names = [str(each) for (each,) in found]
    if not names or name in names or len(given) < LEAST_PREFIX:
        return given
    if len(names) == 1:
        return names[0]
    more = ", and more" if len(names) > _MOST_CANDIDATES else ""
    raise AmbiguousError(f"several sessions begin with {given!r}: {', '.join(names[:_MOST_CANDIDATES])}{more}")


def report(store: UsageStore, question: Question) -> Report:
    """Answer a question from what has been folded. What is not known by that, `unknown` does not say yet."""
    period = question.period
    where, values = _condition(period)
    with store.reading() as connection:
        asked = _Asked(connection, where, values)
        losses = store.losses()
        summary = asked.totals()
        first, last = asked.span()
        trend_by: Literal["hour", "day"] = "hour" if last - first <= 2 * _DAY_HOURS else "day"
        return Report(
            **_fields(summary),
            since=None if period.since is None else _time(period.since),
            until=None if period.until is None else _time(period.until),
            session=period.session,
            sessions=asked.sessions(),
            by=question.by,
            groups=asked.groups(question.by) if question.by else [],
            trend_by=trend_by,
            trend=asked.groups(trend_by),
            by_ci=asked.groups("ci"),
            worst=asked.worst(),
            missed_again=asked.missed_again(period),
            unknown=Unknown(losses.get(DELETED, 0), losses.get(DAMAGED, 0), handed_over=int(store.fact(ADOPTED) or 0)),
        )


def totals_since(store: UsageStore, hour: int) -> Totals:
    """Return what all tasks from an hour on come to; it is counted from the epoch."""
    query = f"SELECT {_SUMS} FROM usage WHERE hour >= ?"  # noqa: S608 - the sums are ours
    with store.reading() as connection:
        return Totals(*connection.execute(query, (hour,)).fetchone())


class Timeline(NamedTuple):
    """What a chart is drawn of: the parts of a period, oldest first, those without tasks as well; and each of its days.

    `parts` are hours, or days where the hours would be too many to be told apart. Of each there are at most MAX_COLUMNS.
    """

    by: Literal["hour", "day"]
    parts: list[Group]
    days: list[Group]


def timeline(store: UsageStore, period: Period, now: int) -> Timeline:
    """Return what happened when in a period, which ends with the hour `now` unless it says; hours are since the epoch.

    Without a beginning it begins with the first task, a session's ends with the last one.
    """
    where, values = _condition(period)
    with store.reading() as connection:
        asked = _Asked(connection, where, values)
        hours = {each.name: each for each in asked.groups("hour")}
        days = {each.name: each for each in asked.groups("day")}
        first, last = asked.span()
    since = first if period.since is None else period.since
    until = 1 + (last if period.session else now)
    if period.until is not None:
        until = min(until, period.until)
    daily = range(since // _DAY_HOURS, (until - 1) // _DAY_HOURS + 1)[-MAX_COLUMNS:]
    every_day = [_group(days, _name("day", day)) for day in daily]
    if until - since > _HOURLY_DAYS * _DAY_HOURS:
        return Timeline("day", every_day, every_day)
    return Timeline("hour", [_group(hours, _name("hour", hour)) for hour in range(since, until)], every_day)


def _group(found: Mapping[str | None, Group], name: str | None) -> Group:
    """Return a part of a report that may be empty."""
    return found.get(name) or Group(name=name, **_fields(Totals()))


class _Asked:
    """Queries about some rows of `usage`."""

    def __init__(self, connection: sqlite3.Connection, where: str, values: Sequence[object]) -> None:
        self._rows = f"FROM usage JOIN sessions ON sessions.id = session WHERE {where}"
        self._values = tuple(values)
        self._connection = connection

    def totals(self) -> Totals:
        """Return what all of them come to."""
        (row,) = self._select(_SUMS)
        return Totals(*row)

    def span(self) -> tuple[int, int]:
        """Return the first and the last hour of them; 0 without any."""
        ((first, last),) = self._select("coalesce(min(hour), 0), coalesce(max(hour), 0)")
        return first, last

    def sessions(self) -> int:
        """Count the sessions."""
        ((number,),) = self._select("count(DISTINCT session)")
        return int(number)

    def groups(self, by: By) -> list[Group]:
        """Return the parts, in the order of their times, or those with most tasks first."""
        found = self._select(f"{_KEYS[by]}, {_SUMS}", f"GROUP BY {_KEYS[by]} ORDER BY {_ORDERS[by]}")
        return [Group(name=_name(by, key), **_fields(Totals(*sums))) for key, *sums in found]

    def worst(self) -> list[Build]:
        """Return the sessions in which most tasks had to be built."""
        having = "HAVING sum(misses + unanswered) > 0 ORDER BY sum(misses + unanswered) DESC, first DESC"
        found = self._select(f"name, ci, job, first, {_SUMS}", f"GROUP BY session {having} LIMIT {WORST}")
        return [
            Build(session=name, ci=ci, job=job, at=iso(first), **_fields(Totals(*sums)))
            for name, ci, job, first, *sums in found
        ]

    def missed_again(self, period: Period) -> list[RepeatedMiss]:
        """Return the hashes that were missed most often, and of those with a miss in the period; no session has such."""
        if period.session is not None:
            return []
        since, until = period.since or 0, _NEVER if period.until is None else period.until
        found = self._connection.execute(
            "SELECT hash, misses, hits, last_miss FROM hashes WHERE misses > 1 AND last_miss >= ? AND last_miss < ? "
            "ORDER BY misses DESC, last_miss DESC, hash LIMIT ?",
            (since, until, WORST),
        )
        return [RepeatedMiss(name, misses, hits, _time(hour)) for name, misses, hits, hour in found]

    def _select(self, what: str, then: str = "") -> list[tuple[Any, ...]]:
        return self._connection.execute(f"SELECT {what} {self._rows} {then}", self._values).fetchall()


def _condition(period: Period) -> tuple[str, list[object]]:
    """Return the condition for rows of a period, and its values."""
    session = None if period.session is None else shortened(period.session)
    terms: list[tuple[str, object]] = [("hour >= ?", period.since), ("hour < ?", period.until), ("name = ?", session)]
    given = [(term, value) for term, value in terms if value is not None]
    return " AND ".join(term for term, _ in given) or "true", [value for _, value in given]


def _fields(total: Totals) -> dict[str, Any]:
    """Return the fields of a Summary."""
    return {
        "events": total.events,
        "tasks": total.tasks,
        "hits": BySource(total.local_hits, total.remote_hits),
        "misses": total.misses,
        "unanswered": total.unanswered,
        "saved_ms": BySource(round(total.local_saved_ms), round(total.remote_saved_ms)),
        "hit_rate": total.hit_rate,
    }


def _name(by: By, key: int | str | None) -> str | None:
    match by:
        case "hour":
            return _time(int(key or 0))
        case "day":
            return _time(int(key or 0) * _DAY_HOURS).partition("T")[0]
        case _:
            return None if key is None else str(key)


def _time(hour: int) -> str:
    return iso(hour * HOUR_SECONDS)
