"""Tables that fit: names are shortened, columns go from the right, and a figure is whole or not there."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from agent.cli.views.tables import LEAST_NAME, Column, FittedTable, shortened

SESSION = "01234567-89ab-cdef-0123-456789abcdef"
JOB = "github/some-organisation/some-repository/.github/workflows/ci.yml/build/17"
TABLE = FittedTable(
    Column("session", [SESSION, "s"], is_name=True),
    Column("tasks", ["1,234,567", "2"]),
    Column("saved", ["11m02s", "14s"]),
    Column("job", [JOB, ""], is_name=True),
)


def shown(table: FittedTable, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_with_room_for_all_nothing_is_shortened() -> None:
    assert shown(TABLE, 200) == [
        f"  {'session':36}      tasks   saved  job",
        f"  {SESSION}  1,234,567  11m02s  {JOB}",
        f"  {'s':36}          2     14s",
    ]


@pytest.mark.parametrize("width", [*range(1, 60), 100, 150])
def test_at_any_width_each_row_is_a_line_and_a_figure_is_whole_or_not_there(width: int) -> None:
    head, first, second = shown(TABLE, width)
    assert max(map(len, (head, first, second))) <= width
    assert first.split()[1:3] in ([], ["1,234,567"], ["1,234,567", "11m02s"])
    assert second.split()[1:] in ([], ["2"], ["2", "14s"])
    if width >= 2 + LEAST_NAME + 2 + 9:
        assert head.split()[:2] == ["session", "tasks"]


def test_names_lose_their_middle_and_the_last_column_goes_first() -> None:
    assert shown(TABLE, 47)[1] == "  012345…bcdef  1,234,567  11m02s  github…ld/17"
    assert shown(TABLE, 46)[1] == "  01234567-89a…456789abcdef  1,234,567  11m02s"
    assert shown(TABLE, 33)[1] == "  012345…bcdef  1,234,567  11m02s"
    assert shown(TABLE, 32)[1].split() == ["01234567-…789abcdef", "1,234,567"]


def test_wide_and_hostile_characters_take_the_room_that_they_have() -> None:
    name = "構築" * 20
    for width in range(3, 40):
        assert cell_len(shortened(name, width)) == width
    (_, line) = shown(FittedTable(Column("session", ["\x1b[2J\u202e[red]"], is_name=True)), 40)
    assert line == r"  \x1b[2J\u202e[red]"


def test_the_rows_have_their_styles() -> None:
    table = FittedTable(Column("s", ["a"], is_name=True), Column("n", ["1"]), styles=["yellow"])
    console = Console(file=io.StringIO(), width=40, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(table)
    assert "\x1b[33m1" in capture.get()
