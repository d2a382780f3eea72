"""What `report --format html` writes: one file, without scripts or anything from elsewhere. Pure: a report in, HTML out."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from agent.cli.views.report import not_known, part_name, period_of
from agent.cli.views.words import amount, clock, percent
from agent.escaping import printable
from agent.timestamps import iso
from agent.usage.report import Group, Report, Summary

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --dim: #59636e; --back: #ffffff; --tile: #f6f8fa; --line: #d1d9e0;
  --local: #1a7f37; --remote: #0969da; --miss: #bc4c00; --unanswered: #8250df; }
@media (prefers-color-scheme: dark) { :root { --text: #f0f6fc; --dim: #9198a1; --back: #0d1117; --tile: #151b23;
  --line: #3d444d; --local: #3fb950; --remote: #4493f8; --miss: #db6d28; --unanswered: #ab7df8; } }
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 70rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { margin: .5rem 0; }
.dim { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; padding: 0; }
.tiles div { background: var(--tile); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
.tiles dt { color: var(--dim); font-size: .875rem; } .tiles dd { margin: 0; font-size: 1.5rem; font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; font-size: .875rem; }
th:first-child, td:first-child { text-align: left; font-family: ui-monospace, monospace; font-size: .875rem;
  overflow-wrap: anywhere; white-space: normal; }
svg { width: 100%; height: 9rem; display: block; } .local { fill: var(--local); } .remote { fill: var(--remote); }
.miss { fill: var(--miss); } .unanswered { fill: var(--unanswered); }
.key span::before { content: ""; display: inline-block; width: .75em; height: .75em; margin: 0 .35em 0 0; background: var(--c); }
.key span { margin-right: 1rem; }
"""
_KINDS = (("local", "local hits"), ("remote", "remote hits"), ("miss", "misses"), ("unanswered", "unanswered"))
_COLUMNS = ("hit rate", "tasks", "local hits", "remote hits", "misses", "unanswered", "task time saved")
_MOST_BARS = 100
_MOST_PARTS = 500


def page(report: Report, now: float) -> str:
    """Return a report as a page; `now` is in seconds since the epoch."""
    made = f"{iso(now)[:10]} {iso(now)[11:16]} UTC"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>Remote cache: {_text(period_of(report))}</title><style>{_STYLE}</style></head><body><main>",
            *_body(report),
            f'<p class="dim">Made by artifacts-agent, {made}</p>',
            "</main></body></html>",
        ]
    )


def _body(report: Report) -> Iterator[str]:
    about = f"session {report.session}" if report.session else amount(report.sessions, "session")
    yield f"<h1>Remote cache</h1><p>{_text(period_of(report))} · {_text(about)} · {amount(report.events, 'event')}</p>"
    yield '<dl class="tiles">'
    yield from (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _tiles(report))
    yield "</dl>"
    yield '<p class="dim">Task time is not build time: tasks run in parallel, and builds got shorter by less.</p>'
    yield from (f"<p><strong>Not known:</strong> {_text(line)}</p>" for line in not_known(report))
    if report.trend:
        yield f"<h2>Tasks by {report.trend_by}</h2>"
        yield _chart(report.trend[-_MOST_BARS:], report.trend_by)
        kinds = (f'<span style="--c:var(--{kind})">{words}</span>' for kind, words in _KINDS)
        yield f'<p class="key">{"".join(kinds)}</p>'
    if report.by is not None:
        yield from _parts(report.by, report.groups)
    elif report.by_ci:
        yield from _parts("ci", report.by_ci)
    if report.session is None and report.worst:
        builds = (
            [each.session, *_cells(each), _clock(each.at), each.ci or "none", each.job or ""] for each in report.worst
        )
        yield from _table("Worst builds", ["session", *_COLUMNS, "began (UTC)", "ci", "job"], builds)
    if report.missed_again:
        misses = (
            [each.hash, f"{each.misses:,}", f"{each.hits:,}", _clock(each.last_miss)] for each in report.missed_again
        )
        yield from _table("Built more than once", ["hash", "missed", "found", "last missed (UTC)"], misses)


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    yield "hit rate", percent(report.hit_rate)
    yield "task time saved", clock(report.all_saved_ms / 1000)
    yield "tasks", f"{report.tasks:,}"
    yield "local hits", f"{report.hits.local:,}"
    yield "remote hits", f"{report.hits.remote:,}"
    yield "misses", f"{report.misses:,}"
    yield "unanswered", f"{report.unanswered:,}"


def _chart(trend: Sequence[Group], by: str) -> str:
    """Return a bar for each part, stacked by what became of its tasks."""
    highest = max(1, *(each.tasks for each in trend))
    shapes = []
    for index, each in enumerate(trend):
        top = 100.0
        name = part_name(by, each.name)
        shapes.append(f"<g><title>{_text(name)}: {percent(each.hit_rate)} of {amount(each.tasks, 'task')}</title>")
        numbers = (each.hits.local, each.hits.remote, each.misses, each.unanswered)
        for (kind, _), number in zip(_KINDS, numbers, strict=True):
            height = 100.0 * number / highest
            top -= height
            shapes.append(f'<rect class="{kind}" x="{index + 0.1:g}" y="{top:.2f}" width="0.8" height="{height:.2f}"/>')
        shapes.append("</g>")
    label = f"Tasks by {by}, from {part_name(by, trend[0].name)} to {part_name(by, trend[-1].name)}"
    box = f"0 0 {max(len(trend), 12)} 100"
    inner = "".join(shapes)
    return f'<svg role="img" aria-label="{_text(label)}" viewBox="{box}" preserveAspectRatio="none">{inner}</svg>'


def _parts(by: str, parts: Sequence[Group]) -> Iterator[str]:
    rows = ([part_name(by, each.name), *_cells(each)] for each in parts[-_MOST_PARTS:])
    yield from _table(f"By {by}", [by, *_COLUMNS], rows)


def _cells(part: Summary) -> list[str]:
    numbers = (part.tasks, part.hits.local, part.hits.remote, part.misses, part.unanswered)
    return [percent(part.hit_rate), *(f"{number:,}" for number in numbers), clock(part.all_saved_ms / 1000)]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f'<h2>{_text(title)}</h2><div class="wide" tabindex="0" role="region" aria-label="{_text(title)}"><table><thead><tr>'
    yield "".join(f'<th scope="col">{_text(each)}</th>' for each in columns) + "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
    yield "</tbody></table></div>"


def _clock(at: str) -> str:
    return f"{at[:10]} {at[11:16]}"


def _text(text: str) -> str:
    return escape(printable(text))
