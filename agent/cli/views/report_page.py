"""A report as HTML: what `report --format html` writes, one file without scripts or links, and the same parts for `web`.

Pure: a report in, HTML out. All text goes through `charts.text`.
"""

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple
from urllib.parse import quote

from agent.cli.views.charts import Bar, Chart, Kind, ceiling, figure, text
from agent.cli.views.report import hour_of, not_known, part_name, period_of
from agent.cli.views.words import amount, clock, percent
from agent.timestamps import iso
from agent.usage.report import Group, Report, Summary, Timeline

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --dim: #59636e; --back: #ffffff; --tile: #f6f8fa; --line: #d1d9e0;
  --link: #0550ae; --local: #1a7f37; --remote: #0969da; --miss: #bc4c00; --unanswered: #8250df;
  --good: #116329; --warn: #8a4600; --bad: #b3131f; }
@media (prefers-color-scheme: dark) { :root { --text: #f0f6fc; --dim: #9198a1; --back: #0d1117; --tile: #151b23;
  --line: #3d444d; --link: #79b8ff; --local: #3fb950; --remote: #4493f8; --miss: #db6d28; --unanswered: #ab7df8;
  --good: #56d364; --warn: #e3b341; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 76rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { margin: .5rem 0; }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
a { color: var(--link); } :focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.dim { color: var(--dim); font-size: .875rem; } .good { color: var(--good); } .warn { color: var(--warn); }
.bad { color: var(--bad); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tiles div { background: var(--tile); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
.tiles dt, .tiles dd + dd { color: var(--dim); font-size: .875rem; font-weight: 400; }
.tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem; }
.chart { display: grid; grid-template-columns: auto 1fr; gap: .25rem .5rem; margin: .5rem 0; }
.chart svg { width: 100%; height: 10rem; display: block; overflow: visible; } .grid { stroke: var(--line); }
.scale, .axis { display: flex; justify-content: space-between; color: var(--dim); font-size: .75rem; line-height: 1; }
.scale { flex-direction: column; text-align: right; height: 10.75rem; margin-top: -.375rem; }
.axis, figcaption { grid-column: 2; }
.local { fill: var(--local); --c: var(--local); } .remote { fill: var(--remote); --c: var(--remote); }
.miss { fill: var(--miss); --c: var(--miss); } .unanswered { fill: var(--unanswered); --c: var(--unanswered); }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; margin: .25rem 0; padding: 0; font-size: .875rem; }
.key li::before { content: ""; display: inline-block; width: .75em; height: .75em; margin-right: .35em; background: var(--c); }
summary { cursor: pointer; color: var(--dim); font-size: .875rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; font-size: .875rem; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; }
th.words, td.words { text-align: left; white-space: normal; min-width: 7rem; }
@media (max-width: 48rem) { .wide::before { content: "The table scrolls sideways \\2192"; display: block; position: sticky;
  left: 0; width: max-content; color: var(--dim); font-size: .875rem; } }
td:first-child { font-family: ui-monospace, monospace; font-size: .875rem; }
.state { display: grid; grid-template-columns: max-content 1fr; gap: .125rem 1rem; margin: 0; }
.state dt { color: var(--dim); grid-column: 1; } .state dd { margin: 0; grid-column: 2; }
.ranges { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .75rem 0; }
.ranges a { display: inline-block; padding: .25rem 0; } .ranges a[aria-current] { color: var(--text); font-weight: 600; }
form { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; }
input, select, button { font: inherit; color: inherit; background: var(--tile); border: 1px solid var(--dim);
  border-radius: .375rem; padding: .2rem .5rem; } input { width: 8.5rem; } button { cursor: pointer; }
"""
_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'self'"
"""What a page may do: have this style, and send its own form back. Nothing is fetched, and no script runs."""

_ANSWERS = (
    Kind("local", "local hits"),
    Kind("remote", "remote hits"),
    Kind("miss", "misses"),
    Kind("unanswered", "unanswered"),
)
_HITS = _ANSWERS[:2]
_COLUMNS = ("hit rate", "tasks", "local hits", "remote hits", "misses", "unanswered", "task time saved")
_WORDS = ("ci", "job", "task")
"""Columns of words, which wrap; numbers do not."""
_MOST_PARTS = 500
_UNITS = (("h", 3_600_000), ("min", 60_000), ("s", 1000))
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Tile(NamedTuple):
    """A number that is to be seen first: what it is, the number, and a few words below it; `css` is the class of the number."""

    name: str
    value: str
    about: str = ""
    css: str = ""


def page(report: Report, timeline: Timeline, now: float) -> str:
    """Return a report as a file of its own; `now` is in seconds since the epoch."""
    body = chain(
        [f"<header><h1>Remote cache</h1><p>{text(about(report))}</p></header><main>"],
        tiles(report_tiles(report)),
        sections(report, timeline),
        [f'</main><footer><p class="dim">Made by artifacts-agent, {minute(iso(now))} UTC</p></footer>'],
    )
    return document(
        f"Remote cache: {period_of(report)}", body, f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    )


def document(title: str, body: Iterable[str], head: str = "") -> str:
    """Return a whole document; `body` and `head` are HTML."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8">{head}',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def about(report: Report) -> str:
    """Return what a report is about."""
    whose = f"session {report.session}" if report.session else amount(report.sessions, "session")
    return f"{period_of(report)} · {whose} · {amount(report.events, 'event')}"


def tiles(found: Iterable[Tile]) -> Iterator[str]:
    """Yield numbers that are to be seen first."""
    yield '<dl class="tiles">'
    for each in found:
        more = f"<dd>{text(each.about)}</dd>" if each.about else ""
        yield f'<div><dt>{text(each.name)}</dt><dd class="{each.css}">{text(each.value)}</dd>{more}</div>'
    yield "</dl>"


def report_tiles(report: Report) -> Iterator[Tile]:
    """Yield those of a report."""
    hits, saved = report.hits, [clock(each / 1000) for each in (report.saved_ms.local, report.saved_ms.remote)]
    yield Tile("hit rate", percent(report.hit_rate), f"{report.all_hits:,} of {amount(report.tasks, 'task')}")
    yield Tile("task time saved", clock(report.all_saved_ms / 1000), f"{saved[0]} local, {saved[1]} remote")
    yield Tile(
        "tasks", f"{report.tasks:,}", f"{hits.local:,} local and {hits.remote:,} remote hits, {report.misses:,} missed"
    )
    off = "the remote cache was off or failing" if report.unanswered else "every task got an answer"
    yield Tile("unanswered", f"{report.unanswered:,}", off if report.tasks else "", "warn" if report.unanswered else "")


def sections(report: Report, timeline: Timeline, session_link: str | None = None) -> Iterator[str]:
    """Yield what follows the tiles. With `session_link`, a session's name is a link to that, and the name."""
    yield '<p class="dim">Task time is not build time: tasks run in parallel, and builds got shorter by less.</p>'
    yield from (f'<p><strong class="warn">Not known:</strong> {text(line)}</p>' for line in not_known(report))
    if report.tasks:
        yield from _charts(report, timeline)
    else:
        yield "<p>There were no tasks in this time.</p>"
    if report.by is not None:
        yield from _parts(report.by, report.groups)
    elif report.by_ci:
        yield from _parts("ci", report.by_ci)
    if report.session is None and report.worst:
        builds = (
            [
                _session(each.session, session_link),
                *(percent(each.hit_rate), f"{each.tasks:,}", f"{each.misses:,}", f"{each.unanswered:,}"),
                *(minute(each.at), text(each.ci or "none"), text(each.job or "")),
            ]
            for each in report.worst
        )
        yield from table(
            "Worst builds: most tasks that no cache had",
            ["session", "hit rate", "tasks", "missed", "unanswered", "began (UTC)", "ci", "job"],
            builds,
        )
    if report.missed_again:
        misses = (
            [text(each.hash), f"{each.misses:,}", f"{each.hits:,}", hour_of(each.last_miss), text(each.task or "")]
            for each in report.missed_again
        )
        title = "Built more than once: missed in several sessions"
        yield from table(title, ["hash", "missed", "found", "last missed (UTC)", "task"], misses)


def _session(name: str, link: str | None) -> str:
    shown = text(name)
    return shown if link is None else f'<a href="{text(link + quote(name, safe=""))}">{shown}</a>'


def _charts(report: Report, timeline: Timeline) -> Iterator[str]:
    yield f"<h2>Tasks by {timeline.by}</h2>"
    yield from figure(_tasks(timeline))
    yield from _as_table(f"Tasks by {timeline.by}", timeline.by, timeline.parts)
    yield '<div class="charts"><div><h2>Hit rate by day</h2>'
    yield from figure(_rates(timeline.days, report.hit_rate))
    yield "</div><div><h2>Task time saved by day</h2>"
    yield from figure(_saved(timeline.days, report.all_saved_ms))
    yield "</div></div>"
    yield from _as_table("Hit rate and task time saved by day", "day", timeline.days)


def _tasks(timeline: Timeline) -> Chart:
    bars = [
        Bar(_numbers(each), _at(timeline.by, each), f"{_said(timeline.by, each)}: {_in_words(each)}")
        for each in timeline.parts
    ]
    most = max((each.tasks for each in timeline.parts), default=0)
    said = f"At most {amount(most, 'task')} in one {timeline.by}. The table below has every {timeline.by} with tasks."
    return Chart(
        "tasks",
        f"Tasks by {timeline.by}{_span(timeline.by, timeline.parts)}",
        said,
        _ANSWERS,
        bars,
        ceiling(most),
        _number,
    )


def _rates(days: Sequence[Group], overall: float | None) -> Chart:
    bars = [
        Bar(
            [100 * hits / max(each.tasks, 1) for hits in (each.hits.local, each.hits.remote)],
            _at("day", each),
            f"{each.name}: {percent(each.hit_rate)} of {amount(each.tasks, 'task')}",
        )
        for each in days
    ]
    said = f"{percent(overall)} over the whole time. The table below has every day with tasks."
    return Chart("rates", f"Hit rate by day{_span('day', days)}", said, _HITS, bars, 100, lambda value: f"{value:g} %")


def _saved(days: Sequence[Group], overall: int) -> Chart:
    most = max((each.all_saved_ms for each in days), default=0)
    unit, length = next(((unit, length) for unit, length in _UNITS if most >= 2 * length), _UNITS[-1])
    bars = [
        Bar(
            [each.saved_ms.local / length, each.saved_ms.remote / length],
            _at("day", each),
            f"{each.name}: {clock(each.all_saved_ms / 1000)} of task time saved",
        )
        for each in days
    ]
    said = f"{clock(overall / 1000)} over the whole time. The table below has every day with tasks."
    title = f"Task time saved by day{_span('day', days)}"
    return Chart("saved", title, said, _HITS, bars, ceiling(most / length), lambda value: f"{_number(value)} {unit}")


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _numbers(part: Summary) -> tuple[int, int, int, int]:
    return part.hits.local, part.hits.remote, part.misses, part.unanswered


def _in_words(part: Summary) -> str:
    named = (f"{number:,} {kind.name}" for kind, number in zip(_ANSWERS, _numbers(part), strict=True) if number)
    return f"{amount(part.tasks, 'task')}: {', '.join(named)}" if part.tasks else "no tasks"


def _span(by: str, parts: Sequence[Group]) -> str:
    return f", from {_said(by, parts[0])} to {_said(by, parts[-1])} (UTC)" if parts else ""


def _said(by: str, part: Group) -> str:
    return part_name(by, part.name)


def _at(by: str, part: Group) -> str:
    """Return such as "20 Nov", and for an hour "20 Nov 14:00"."""
    name = part_name(by, part.name)
    day = f"{int(name[8:10])} {_MONTHS[int(name[5:7]) - 1]}"
    return f"{day} {name[11:]}" if by == "hour" else day


def _as_table(title: str, by: str, parts: Sequence[Group]) -> Iterator[str]:
    """Yield a table of what a chart shows, closed until it is wanted."""
    rows = ([text(_said(by, each)), *_cells(each)] for each in parts if each.tasks)
    yield "<details><summary>As a table</summary>"
    yield from _grid(title, [f"{by} (UTC)", *_COLUMNS], rows)
    yield "</details>"


def _parts(by: str, parts: Sequence[Group]) -> Iterator[str]:
    rows = ([text(part_name(by, each.name)), *_cells(each)] for each in parts[-_MOST_PARTS:])
    yield from table(f"By {by}", [by, *_COLUMNS], rows)


def _cells(part: Summary) -> list[str]:
    numbers = (f"{number:,}" for number in (part.tasks, *_numbers(part)))
    return [percent(part.hit_rate), *numbers, clock(part.all_saved_ms / 1000)]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table below a title; cells are HTML."""
    yield f"<h2>{text(title)}</h2>"
    yield from _grid(title, columns, rows)


def _grid(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{text(title)}"><table><thead><tr>'
    classes = [' class="words"' if each in _WORDS else "" for each in columns]
    named = zip(classes, columns, strict=True)
    yield "".join(f'<th scope="col"{css}>{text(each)}</th>' for css, each in named) + "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td{css}>{cell}</td>' for css, cell in zip(classes, row, strict=True))}</tr>"
    yield "</tbody></table></div>"


def minute(at: str) -> str:
    """Return a time (ISO 8601) up to its minute."""
    return f"{at[:10]} {at[11:16]}"
