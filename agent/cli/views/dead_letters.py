"""What the `dead-letters` commands show to people. Pure."""

import json
from collections.abc import Iterable, Iterator

import msgspec
from rich.console import RenderableType
from rich.table import Table

from agent.cli.views.rendered import rendered
from agent.queue.maintenance.browse_dead_letters import ListedDeadLetter

_SESSION_WIDTH = 9
_COLUMNS = ("seq", "refused at", "status", "session", "hash", "message")


def letter_table(letters: Iterable[ListedDeadLetter], *, narrow: bool) -> RenderableType:
    """Return a line for each letter; a narrow one leaves room for the message, and shows the beginning of the session."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    for name in _COLUMNS[1:-1]:
        table.add_column(no_wrap=True, max_width=_SESSION_WIDTH if narrow and name == "session" else None)
    table.add_column(overflow="fold")
    table.add_row(*(rendered(name, style="dim") for name in _COLUMNS))
    for letter in letters:
        status = "" if letter.status is None else str(letter.status)
        facts = (str(letter.seq), letter.rejected_at, status, letter.event.session_id, letter.event.hash)
        table.add_row(*(rendered(fact) for fact in facts), rendered(letter.message))
    return table if table.row_count > 1 else rendered("No dead letters.")


def letter_lines(letter: ListedDeadLetter) -> Iterator[str]:
    """Yield everything of a letter."""
    facts = {
        "seq": str(letter.seq),
        "refused at": letter.rejected_at,
        "status": "none" if letter.status is None else str(letter.status),
        "message": letter.message,
        "ci": letter.context.ci or "none",
        "interactive": "not said" if letter.context.interactive is None else str(letter.context.interactive),
        **{name: value if isinstance(value, str) else json.dumps(value) for name, value in _fields(letter)},
    }
    width = max(map(len, facts))
    return (f"{name:<{width}}  {value}" for name, value in facts.items())


def _fields(letter: ListedDeadLetter) -> Iterator[tuple[str, object]]:
    fields: dict[str, object] = msgspec.to_builtins(letter.event)
    return iter(fields.items())
