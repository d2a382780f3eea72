"""Tables of names and figures that fit the terminal. Pure.

Where there is too little room names are shortened in the middle, then columns go, from the right. A figure is never cut: part of
one is another one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from agent.cli.views.rendered import rendered
from agent.escaping import printable

LEAST_NAME = 12
"""To how many columns of text a name may be shortened."""
_GAP = 2  # before each column


class Column(NamedTuple):
    """A column: its title, and what is in each row. Only names may be shortened."""

    title: str
    cells: Sequence[str]
    is_name: bool = False


class FittedTable:
    """Columns, of which the first one is always shown; `styles` are those of the rows' figures, as rich has them."""

    def __init__(self, *columns: Column, styles: Sequence[str] = ()) -> None:
        self._columns = [each._replace(cells=[printable(cell) for cell in each.cells]) for each in columns]
        self._styles = styles or [""] * len(columns[0].cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what fits."""
        widths = _widths(self._columns, options.max_width)
        table = Table(box=None, show_header=False, padding=(0, 0, 0, _GAP))
        for index, width in enumerate(widths):
            left = index == 0 or self._columns[index].is_name
            table.add_column(justify="left" if left else "right", no_wrap=True, width=width)
        shown = self._columns[: len(widths)]
        table.add_row(
            *(rendered(shortened(each.title, width), "dim") for each, width in zip(shown, widths, strict=True))
        )
        for row, style in enumerate(self._styles):
            table.add_row(
                *(
                    rendered(shortened(each.cells[row], width), "" if each.is_name else style)
                    for each, width in zip(shown, widths, strict=True)
                )
            )
        yield table


def shortened(text: str, width: int) -> str:
    """Return a text of `width` columns at most, without its middle if it is longer."""
    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{set_cell_size(text, width - 1 - tail)}…{set_cell_size(text[::-1], tail)[::-1]}"


def _widths(columns: Sequence[Column], room: int) -> list[int]:
    """Return how wide each column is, of those that fit into so many columns of text."""
    wanted = [max(map(cell_len, (each.title, *each.cells))) for each in columns]
    widths = [min(width, LEAST_NAME) if each.is_name else width for each, width in zip(columns, wanted, strict=True)]
    while len(widths) > 1 and sum(widths) + _GAP * len(widths) > room:
        widths.pop()
    spare = room - sum(widths) - _GAP * len(widths)
    for index, width in enumerate(widths):
        more = min(wanted[index] - width, spare)
        widths[index] = max(width + more, 1)
        spare -= more
    return widths
