"""The page of `web`: what the cache did, as `report` says it, and how the agent is doing, as `status` says it. Pure."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple
from urllib.parse import urlencode

from agent.cli.views.charts import text
from agent.cli.views.report_page import Tile, about, document, report_tiles, sections, tiles
from agent.cli.views.status import delivery, headline
from agent.cli.views.status import sections as status_sections
from agent.cli.views.words import amount, duration
from agent.control.schema import StatusReport
from agent.timestamps import iso
from agent.usage.report import Report, Timeline

RANGES = (("24h", "24 hours"), ("7d", "7 days"), ("30d", "30 days"), ("90d", "90 days"))
REFRESHES = {"off": 0, "30": 30, "60": 60, "300": 300}
"""What may be asked for, and the seconds that it means."""
DEFAULT_REFRESH = "60"
NOT_DELIVERING = ("paused", "backing_off", "failed")
SOON_SECONDS = 3
"""When a page shows itself again that has nothing to show yet."""
_REFRESH_WORDS = {"off": "off", "30": "30 s", "60": "1 min", "300": "5 min"}


class Asked(NamedTuple):
    """What a request asks for, as it was written."""

    since: str
    until: str = ""
    session: str | None = None
    refresh: str = DEFAULT_REFRESH


class Counted(NamedTuple):
    """What is known of a time, drawn already, without what is known of all times: that is in the report's `unknown`."""

    about: str
    tiles: tuple[Tile, ...]
    sections: str


class Folding(NamedTuple):
    """When the last count that succeeded was made, in seconds since the epoch, and what was wrong with the last one."""

    at: float | None = None
    problem: str | None = None


class View(NamedTuple):
    """All that a page shows; `counted` and `status` are None while there is no answer yet, and text is why there is none."""

    asked: Asked
    counted: Counted | str | None
    folding: Folding
    status: StatusReport | str | None
    now: float


def draw(report: Report, timeline: Timeline) -> Counted:
    """Draw what is known of a time."""
    return Counted(about(report), tuple(report_tiles(report)), "\n".join(sections(report, timeline, "?session=")))


def page(view: View) -> str:
    """Return the page."""
    counted = view.counted
    lines = chain(
        ["<header><h1>Remote cache</h1>", *_controls(view.asked)],
        [f"<p>{text(counted.about)}</p>"] if isinstance(counted, Counted) else [],
        [_state(view.status)],
        _troubles(view.status, view.now),
        ["</header><main>"],
        tiles([*(counted.tiles if isinstance(counted, Counted) else ()), _queue_tile(view.status)]),
        _problems(view),
        [counted.sections] if isinstance(counted, Counted) else [],
        _delivery(view.status, view.now),
        ["</main>", _footer(view)],
    )
    return document("Remote cache", lines)


def refresh_seconds(view: View) -> int:
    """Return after how many seconds a page shows itself again; 0 if it does not."""
    seconds = REFRESHES[view.asked.refresh]
    return min(seconds, SOON_SECONDS) if view.counted is None or view.folding == Folding() else seconds


def problem_page(title: str, message: str) -> str:
    """Return a page that says what is wrong with a request."""
    body = f'<main><h1>{text(title)}</h1><p>{text(message)}</p><p><a href="/">The last 7 days</a></p></main>'
    return document(title, [body])


def _controls(asked: Asked) -> Iterator[str]:
    yield '<nav class="ranges" aria-label="Time">'
    is_range = asked.session is None and not asked.until
    for since, words in RANGES:
        current = ' aria-current="page"' if is_range and asked.since == since else ""
        yield f'<a href="{text(_link(since, asked.refresh))}"{current}>{words}</a>'
    options = "".join(
        f'<option value="{value}"{" selected" if value == asked.refresh else ""}>{words}</option>'
        for value, words in _REFRESH_WORDS.items()
    )
    hint = 'placeholder="7d" title="So long ago, such as 7d, or a date, such as 2026-11-20, in UTC"'
    yield (
        f'<form method="get" action="/">'
        f'<label for="since">from</label><input id="since" name="since" value="{text(asked.since)}" {hint}>'
        f'<label for="until">to</label><input id="until" name="until" value="{text(asked.until)}" {hint.replace("7d", "1d")}>'
        f'<label for="refresh">refresh</label><select id="refresh" name="refresh">{options}</select>'
        f"<button>Show</button></form></nav>"
    )


def _link(since: str, refresh: str) -> str:
    return "?" + urlencode({"since": since} | ({} if refresh == DEFAULT_REFRESH else {"refresh": refresh}))


def _state(status: StatusReport | str | None) -> str:
    """Say in a line how the agent is doing."""
    match status:
        case None:
            return '<p class="warn">The daemon has not answered yet.</p>'
        case str():
            return f'<p class="bad">{text(status)}</p>'
        case _:
            return f'<p class="dim">{text(headline(status).plain)}</p>'


def _troubles(status: StatusReport | str | None, now: float) -> Iterator[str]:
    """Yield why destinations deliver nothing at present, a paragraph for each of them."""
    if not isinstance(status, StatusReport):
        return
    for name, destination in status.destinations.items():
        if destination.state in NOT_DELIVERING or destination.storage_error:
            facts = [
                f"{label} {said.plain}" if label == "storage" else said.plain
                for label, said in delivery(destination, now)
            ]
            title = "" if len(status.destinations) == 1 else f"{name}: "
            yield f'<p class="bad">{text(title + " · ".join(facts))}</p>'


def _queue_tile(status: StatusReport | str | None) -> Tile:
    if not isinstance(status, StatusReport):
        return Tile("queue", "unknown", "no daemon answers", "warn")
    queued = sum(each.ledger.queued for each in status.destinations.values())
    ages = [each.oldest_event_age for each in status.destinations.values() if each.oldest_event_age is not None]
    words = f", the oldest for {duration(max(ages))}" if ages else ""
    return Tile("queue", f"{queued:,}", f"events wait{words}" if queued else "nothing waits")


def _problems(view: View) -> Iterator[str]:
    if view.folding.problem is not None:
        yield f'<p><strong class="bad">Not counted:</strong> {text(view.folding.problem)}</p>'
    if view.counted is None:
        yield '<p class="warn">The events are being counted: show the page again in a moment.</p>'
    elif isinstance(view.counted, str):
        yield f'<p class="warn">{text(view.counted)}</p>'


def _delivery(status: StatusReport | str | None, now: float) -> Iterator[str]:
    """Yield the state and the ledger of each destination."""
    if not isinstance(status, StatusReport):
        return
    yield "<h2>Delivery</h2>"
    for title, rows in status_sections(status, now):
        yield f'<h3>{text(title)}</h3><dl class="state">'
        for label, said in rows:
            term = f"<dt>{text(label)}</dt>" if label else ""  # without one it goes on
            yield f'{term}<dd class="{_css(str(said.style))}">{text(said.plain)}</dd>'
        yield "</dl>"


def _css(style: str) -> str:
    """Return the class for a style of a terminal's."""
    return next((css for colour, css in (("red", "bad"), ("yellow", "warn"), ("green", "good")) if colour in style), "")


def _footer(view: View) -> str:
    at, seconds = view.folding.at, refresh_seconds(view)
    counted = "not counted yet" if at is None else f"last counted {_clock(at)}, {_ago(view.now - at)} ago"
    again = f"It shows itself again in {amount(seconds, 'second')}." if seconds else "It stays as it is."
    return f'<footer><p class="dim">This page is of {_clock(view.now)}; events were {counted}. {again}</p></footer>'


def _ago(seconds: float) -> str:
    return duration(max(seconds, 0.0))


def _clock(now: float) -> str:
    return f"{iso(now)[11:19]} UTC"
