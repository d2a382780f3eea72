"""Text for rich: the only way in which views make it, so that whatever is in it is escaped. Pure."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from agent.escaping import printable


def rendered(text: str, style: str = "") -> Text:
    """Return a text of one line, escaped, in a style of rich's."""
    return Text(printable(text), style)


def labelled(rows: Iterable[tuple[str, Text]]) -> Table:
    """Return texts one below the other, each behind its label."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(rendered(f"  {label}"), text)
    return table
