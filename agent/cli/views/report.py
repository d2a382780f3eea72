"""What `report` shows to people on a terminal. Pure: a report in, something that rich renders out."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from agent.cli.views.rendered import labelled, rendered
from agent.cli.views.tables import Column, FittedTable
from agent.cli.views.words import amount, clock, percent
from agent.usage.report import Build, RepeatedMiss, Report, Summary
from agent.usage.report import Group as Part

MOST_PARTS = 50
_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 48
_NO_CI = "none"
_TIMES = ("hour", "day")


def screen(report: Report) -> RenderableType:
    """Return all of a report on one screen; of parts that were asked for, the last MOST_PARTS."""
    parts: list[RenderableType] = [_headline(report), Text(), labelled(_rows(report))]
    if report.by is not None:
        parts += _titled(f"by {report.by}", _parts(report.by, report.groups))
    elif len(report.by_ci) > 1:
        parts += _titled("by ci", _parts("ci", report.by_ci))
    if report.session is None and report.worst:
        parts += _titled("worst builds: most tasks that no cache had", _worst(report.worst))
    if report.missed_again:
        parts += _titled("built more than once: missed in several sessions", _missed_again(report.missed_again))
    return Group(*parts)


def period_of(report: Report) -> str:
    """Return when a report is about."""
    since, until = (text and f"{text[:10]} {text[11:16]}" for text in (report.since, report.until))
    if since and until:
        return f"{since} to {until} UTC"
    if since:
        return f"since {since} UTC"
    return f"until {until} UTC" if until else "all that is known"


def not_known(report: Report) -> Iterator[str]:
    """Yield what is missing in a report, or may be."""
    unknown = report.unknown
    if report.session is not None and not report.sessions:
        when = " of this time" if report.since or report.until else ""
        yield f"no event{when} is known of session {report.session}: is it its ID, or the first 4 characters at least?"
    if not unknown.history:
        yield "history.max_bytes is 0: what is delivered between two reports is in none of them"
    if unknown.deleted:
        yield f"{amount(unknown.deleted, 'event')} left the history before a report counted them"
    if unknown.damaged:
        yield f"{amount(unknown.damaged, 'event')} cannot be read: damaged on disk"
    if unknown.dropped:
        yield f"{amount(unknown.dropped, 'event')} were dropped before they were on disk: `artifacts-agent status` says why"
    if unknown.adopted:
        yield f"{amount(unknown.adopted, 'event')} of adopted spools are in no report"
    yield from unknown.problems


def _headline(report: Report) -> Text:
    about = f"session {report.session}" if report.session else amount(report.sessions, "session")
    return rendered(f"{period_of(report)} · {about} · {amount(report.events, 'event')}", style="bold")


def _rows(report: Report) -> Iterator[tuple[str, Text]]:
    rate = f"{percent(report.hit_rate)}: {report.all_hits:,} of {amount(report.tasks, 'task')}"
    yield "hit rate", rendered(rate if report.tasks else "no tasks", style="bold")
    yield "hits", rendered(f"{report.hits.local:,} local, {report.hits.remote:,} remote")
    yield "misses", rendered(f"{report.misses:,}")
    off = f"{report.unanswered:,}: no answer from the remote cache, which was off or failing"
    yield "unanswered", rendered(off, style="yellow") if report.unanswered else rendered("none")
    saved = [clock(each / 1000) for each in (report.all_saved_ms, report.saved_ms.local, report.saved_ms.remote)]
    yield "time saved", rendered(f"{saved[0]} of task time: {saved[1]} by local hits, {saved[2]} by remote ones")
    yield "", rendered("tasks run in parallel: builds got shorter by less", style="dim")
    if len(report.trend) > 1:
        shown = report.trend[-_MOST_BARS:]
        ends = f"{percent(shown[0].hit_rate)} at first, {percent(shown[-1].hit_rate)} at last"
        yield "trend", rendered(f"{bars([each.hit_rate for each in shown])}  hit rate by {report.trend_by}: {ends}")
    for line in not_known(report):
        yield "not known", rendered(line, style="yellow")


def hour_of(at: str) -> str:
    """Return the hour that a time (ISO 8601) is in, such as "2026-11-20 02h"."""
    return f"{at[:10]} {at[11:13]}h"


def bars(rates: Sequence[float | None]) -> str:
    """Return a bar for each rate; a blank for none."""
    return "".join(" " if rate is None else _BARS[min(int(rate * len(_BARS)), len(_BARS) - 1)] for rate in rates)


def part_name(by: str, name: str | None) -> str:
    """Return how a part of a report is called."""
    if name is None:
        return _NO_CI
    return f"{name[:10]} {name[11:16]}" if by == "hour" else name


def _parts(by: str, parts: Sequence[Part]) -> list[RenderableType]:
    shown = parts[-MOST_PARTS:]
    table = FittedTable(
        Column(by, [part_name(by, each.name) for each in shown], is_name=by not in _TIMES),
        *_figures(shown),
        Column("local", [f"{each.hits.local:,}" for each in shown]),
        Column("remote", [f"{each.hits.remote:,}" for each in shown]),
        *_misses(shown),
        Column("saved", [clock(each.all_saved_ms / 1000) for each in shown]),
    )
    more = len(parts) - MOST_PARTS
    return [table, rendered(f"  {more:,} more before them: see --format csv", style="dim")] if more > 0 else [table]


def _figures(parts: Sequence[Summary]) -> Iterator[Column]:
    yield Column("hit rate", [percent(each.hit_rate) for each in parts])
    yield Column("tasks", [f"{each.tasks:,}" for each in parts])


def _misses(parts: Sequence[Summary]) -> Iterator[Column]:
    yield Column("missed", [f"{each.misses:,}" for each in parts])
    yield Column("unanswered", [f"{each.unanswered:,}" for each in parts])


def _worst(builds: Sequence[Build]) -> list[RenderableType]:
    columns = [
        Column("session", [each.session for each in builds], is_name=True),
        *_figures(builds),
        *_misses(builds),
        Column("began (UTC)", [f"{each.at[:10]} {each.at[11:16]}" for each in builds]),
        Column("ci", [each.ci or _NO_CI for each in builds], is_name=True),
    ]
    if any(each.job for each in builds):
        columns.append(Column("job", [each.job or "" for each in builds], is_name=True))
    return [FittedTable(*columns)]


def _missed_again(misses: Sequence[RepeatedMiss]) -> list[RenderableType]:
    columns = [
        Column("hash", [each.hash for each in misses], is_name=True),
        Column("missed", [f"{each.misses:,}" for each in misses]),
        Column("found", [f"{each.hits:,}" for each in misses]),
        Column("last missed (UTC)", [hour_of(each.last_miss) for each in misses]),
    ]
    if any(each.task for each in misses):
        columns.append(Column("task", [each.task or "" for each in misses], is_name=True))
    return [FittedTable(*columns)]


def _titled(title: str, parts: Sequence[RenderableType]) -> list[RenderableType]:
    return [Text(), rendered(title, style="bold"), *parts]
