"""How the demo looks: on a terminal, lines that scroll above a live panel; elsewhere, the same lines, plain."""

import datetime as dt
import os
import sys
from dataclasses import dataclass
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.control.schema import DestinationStatus
from agent.escaping import printable
from agent.queue.cursor import Ledger

MAX_WIDTH = 100
FULL_BAR = 120  # events: about what waits at most
INDENT = 5

_COLORS = {"running": "green", "backing_off": "yellow", "paused": "magenta"}


@dataclass(frozen=True)
class Snapshot:
    """The state of everything at one moment. `status` is None while the daemon is down; `api` describes the server."""

    status: DestinationStatus | None
    api: str


class DemoView(Protocol):
    """Where the demo is shown, for `with`."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def heading(self, number: str, title: str) -> None:
        """Announce what is shown next."""

    def say(self, text: str, style: str = "") -> None:
        """Say what just happened."""

    def show(self, snapshot: Snapshot) -> None:
        """Show how everything is now."""


def for_stdout() -> "PanelView | PlainView":
    """Return the view that standard output can show."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}
    return PanelView() if on_terminal else PlainView()


class PlainView:
    """A line for each step, without control characters."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def heading(self, number: str, title: str) -> None:
        """See `DemoView`."""
        self._write(f"[{number}] {title}")

    def say(self, text: str, style: str = "") -> None:
        """See `DemoView`."""
        self._write(f"      {text}")

    def show(self, snapshot: Snapshot) -> None:
        """Show nothing: what matters is said."""

    def _write(self, line: str) -> None:
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough; the demo goes on to its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PanelView:
    """Lines that scroll, and below them a panel that is drawn anew; it vanishes at the end, the lines stay."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, markup=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def heading(self, number: str, title: str) -> None:
        """See `DemoView`."""
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_column(width=INDENT - 1)
        row.add_row(Text(number, "bold cyan"), Text(title, "bold"))
        self._print(Padding(row, (1, 0, 0, 0)))

    def say(self, text: str, style: str = "") -> None:
        """See `DemoView`."""
        self._print(Padding(Text(text, style), (0, 0, 0, INDENT)))

    def show(self, snapshot: Snapshot) -> None:
        """See `DemoView`."""
        # Two columns stay free for the ^C that a terminal writes: it must not begin a line that nobody erases.
        self._live.update(
            panel(snapshot, dt.datetime.now(dt.UTC), min(self._console.width - 2, MAX_WIDTH)), refresh=True
        )

    def _print(self, content: RenderableType) -> None:
        self._console.print(content, width=min(self._console.width, MAX_WIDTH))


def panel(snapshot: Snapshot, now: dt.datetime, width: int = MAX_WIDTH) -> Panel:
    """Return the panel, `width` columns wide."""
    status = snapshot.status
    facts = Table.grid(padding=(0, 2, 0, 0), expand=True)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    facts.add_row("state", _state(status, now))
    facts.add_row("reason", Text(printable(status.reason or "-") if status else "-"))
    facts.add_row("queue", _queue(status.ledger.queued if status else None))
    facts.add_row("API", Text(snapshot.api))
    content = Group(facts, Text(), _ledger(status.ledger if status else None))
    return Panel(
        content, title="artifacts-agent", title_align="left", box=box.ROUNDED, width=width, border_style="cyan"
    )


def _state(status: DestinationStatus | None, now: dt.datetime) -> Text:
    if status is None:
        return Text("not running", "bold red")
    text = Text(status.state, f"bold {_COLORS.get(status.state, '')}")
    if status.until is not None:
        seconds = (dt.datetime.fromisoformat(status.until) - now).total_seconds()
        text.append(f"   asks again in {max(seconds, 0):.1f} s", "not bold")
    return text


def _queue(queued: int | None) -> RenderableType:
    if queued is None:
        return Text("on disk", "dim")
    row = Table.grid(padding=(0, 2, 0, 0), expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", width=11)
    bar = ProgressBar(total=max(FULL_BAR, queued), completed=queued, complete_style="yellow", finished_style="yellow")
    row.add_row(bar, Text(f"{queued} waiting", "yellow" if queued else "dim"))
    return row


def _ledger(ledger: Ledger | None) -> Table:
    """Draw the equation, names above numbers."""
    names = ("accepted", "=", "delivered", "+", "dead_lettered", "+", "dropped", "+", "queued")
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in names:
        table.add_column(justify="right")
    table.add_row(*(Text(name, "dim") for name in names))
    if ledger is None:
        table.add_row("")  # the panel keeps its height
        return table
    table.add_row(
        Text(f"{ledger.accepted}", "bold"),
        "=",
        Text(f"{ledger.delivered}", "bold green"),
        "+",
        Text(f"{ledger.dead_lettered}", "bold red" if ledger.dead_lettered else ""),
        "+",
        Text(f"{sum(ledger.dropped.values())}", "bold red" if ledger.dropped else ""),
        "+",
        Text(f"{ledger.queued}", "bold yellow" if ledger.queued else ""),
    )
    return table
