"""The pictures of the documents, made of fixed data by the code that draws on a terminal. `python -m tests.pictures` draws them.

`tests/unit/documents/test_pictures.py` fails when one is out of date.
"""

import datetime as dt
import io
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from agent.cli.views.status import screen
from agent.control.schema import DestinationStatus, HttpStatus, QueueStatus, StatusReport
from agent.demo.view import PanelView, Snapshot, panel
from agent.queue.cursor import Ledger

ROOT = Path(__file__).parents[1]
NOW = dt.datetime(2026, 3, 2, 9, 41, 7, tzinfo=dt.UTC)
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"

THEME = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [
        (72, 79, 88),
        (255, 123, 114),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (201, 209, 217),
    ],
    [
        (110, 118, 129),
        (255, 161, 152),
        (126, 231, 135),
        (240, 200, 90),
        (165, 214, 255),
        (226, 197, 255),
        (179, 240, 255),
        (240, 246, 252),
    ],
)

# rich's own template refers to a font on another server.
TEMPLATE = f"""\
<svg viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg">
<style>
.{{unique_id}}-matrix {{{{ font-family: {FONTS}; font-size: {{char_height}}px; line-height: {{line_height}}px; }}}}
.{{unique_id}}-title {{{{ font-family: system-ui, sans-serif; font-size: 18px; font-weight: bold; }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal"><rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}"/></clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix" xml:space="preserve">
{{matrix}}
</g>
</g>
</svg>
"""


def demo() -> str:
    """Draw the demo after the agent was killed with events in its queue."""
    console = _console(96)
    view = PanelView(console)
    view.heading("3/6", "The account is blocked (402). Delivery pauses; events wait on disk.")
    view.say("paused: blocked: 402 Payment Required: The account is missing a payment", "magenta")
    view.say("3 builds sent 116 events: 0.041 ms a call (median), 0.38 ms the slowest.")
    view.say("116 events are waiting.")
    view.heading("4/6", "kill -9, with all of these undelivered. Then the agent is started again.")
    view.say("Killed.", "red")
    view.say("Back, and still paused: 116 events waiting, 0 lost.")
    status = DestinationStatus(
        state="paused",
        reason="blocked: 402 Payment Required: The account is missing a payment",
        until="2026-03-02T09:41:54.000Z",
        ledger=Ledger(266, 150, 0, {}, 116),
    )
    console.print()
    console.print(panel(Snapshot(status, "answers 402; has 150 events from 10 requests"), NOW, 96))
    return _svg(console, "artifacts-agent demo", "demo")


def status() -> str:
    """Draw the screen of `status` while the API is away."""
    destination = DestinationStatus(
        state="backing_off",
        reason="503 Service Unavailable: Down for maintenance",
        since="2026-03-02T09:37:45.000Z",
        until="2026-03-02T09:41:31.000Z",
        ledger=Ledger(48_210, 46_887, 1, {}, 1_322),
        oldest_event_age=202.0,
        last_delivery_at="2026-03-02T09:37:44.000Z",
        requests=61,
        queue=QueueStatus(bytes=178_000, segments=1),
        dead_letters=1,
    )
    report = StatusReport(
        version="0.1.0",
        pid=812,
        uptime=187_440.0,
        connections=14,
        http=HttpStatus(listen="127.0.0.1:9900"),
        destinations={"default": destination},
    )
    console = _console(100)
    console.print(screen(report, NOW.timestamp()))
    return _svg(console, "artifacts-agent status", "status")


def _console(width: int) -> Console:
    return Console(
        record=True,
        width=width,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )


def _svg(console: Console, title: str, name: str) -> str:
    return console.export_svg(title=title, theme=THEME, code_format=TEMPLATE, unique_id=name, font_aspect_ratio=0.6)


PICTURES: dict[str, Callable[[], str]] = {"agent/demo/demo.svg": demo, "agent/cli/views/status.svg": status}

if __name__ == "__main__":
    for path, draw in PICTURES.items():
        (ROOT / path).write_text(draw(), encoding="utf-8")
