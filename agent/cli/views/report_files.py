"""What `report` writes for job summaries (Markdown) and spreadsheets (CSV). Pure: a report in, text out, escaped."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from agent.cli.views.job import job_line
from agent.cli.views.report import not_known, part_name, period_of
from agent.cli.views.words import amount, clock, percent
from agent.escaping import printable
from agent.usage.counting import Totals
from agent.usage.report import Report, Summary

_COLUMNS = (
    "events",
    "tasks",
    "local_hits",
    "remote_hits",
    "misses",
    "unanswered",
    "local_saved_ms",
    "remote_saved_ms",
    "hit_rate",
)
_FORMULA = ("=", "+", "-", "@")
_MOST_PARTS = 50


def csv_text(report: Report) -> str:
    """Return the parts that were asked for, or else the trend, a line each.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    by, parts = (report.by, report.groups) if report.by else (report.trend_by, report.trend)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([by, *_COLUMNS])
    for part in parts:
        rows.writerow([_cell(part.name or ""), *_numbers(part)])
    return text.getvalue()


def _cell(name: str) -> str:
    text = printable(name)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _numbers(part: Summary) -> list[int | str]:
    rate = "" if part.hit_rate is None else f"{part.hit_rate:.4f}"
    hits, saved = part.hits, part.saved_ms
    return [
        *(part.events, part.tasks, hits.local, hits.remote, part.misses, part.unanswered),
        *(saved.local, saved.remote, rate),
    ]


def markdown(report: Report) -> str:
    """Return a report as Markdown."""
    return "\n".join(_markdown(report)) + "\n"


def _markdown(report: Report) -> Iterator[str]:
    yield "### Remote cache"
    yield ""
    about = f"session {_code(report.session)}" if report.session else amount(report.sessions, "session")
    yield f"**{job_line(_totals(report))}** · {period_of(report)} · {about}"
    yield ""
    yield from _table(
        ["tasks", "local hits", "remote hits", "misses", "unanswered", "task time saved"], [_cells(report)]
    )
    if report.by is not None:
        parts = [
            [_code(part_name(report.by, each.name)), percent(each.hit_rate), *_cells(each)] for each in report.groups
        ]
        columns = [
            report.by,
            "hit rate",
            "tasks",
            "local hits",
            "remote hits",
            "misses",
            "unanswered",
            "task time saved",
        ]
        yield from _table(columns, parts[-_MOST_PARTS:])
    if report.session is None and report.worst:
        builds = (
            [
                _code(each.session),
                percent(each.hit_rate),
                *(f"{number:,}" for number in (each.tasks, each.misses, each.unanswered)),
                _code(each.job) if each.job else "",
            ]
            for each in report.worst
        )
        yield from _table(["worst builds", "hit rate", "tasks", "misses", "unanswered", "job"], builds)
    if report.missed_again:
        misses = (
            [_code(each.hash), f"{each.misses:,}", f"{each.hits:,}", _code(each.task) if each.task else ""]
            for each in report.missed_again
        )
        yield from _table(["built more than once", "missed", "found", "task"], misses)
    yield "Task time is not build time: tasks run in parallel, and builds got shorter by less."
    for line in not_known(report):
        yield f"- Not known: {_plain(line)}"


def _totals(summary: Summary) -> Totals:
    return Totals(
        *(summary.events, summary.hits.local, summary.hits.remote, summary.misses, summary.unanswered),
        *(summary.saved_ms.local, summary.saved_ms.remote),
    )


def _cells(part: Summary) -> list[str]:
    numbers = (part.tasks, part.hits.local, part.hits.remote, part.misses, part.unanswered)
    return [*(f"{number:,}" for number in numbers), clock(part.all_saved_ms / 1000)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --: |' * len(columns)}".replace(" --: ", " --- ", 1)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _code(text: str) -> str:
    """Return text from outside as code, in which Markdown means nothing."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|') or ' '}`"


def _plain(text: str) -> str:
    """Return a sentence that may have a path in it."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
