"""tests/FAILURES.md: every row of its tables names tests, and each of them exists."""

import re
from itertools import pairwise

import pytest

from tests.support.documents import ROOT, names_in, read

HEADER = ["", "what goes wrong", "what happens then"]
TABLES, _, LIST = read("tests/FAILURES.md").partition("\n## The tests of each row\n")


def tables() -> list[list[list[str]]]:
    """Return the cells of each row of each table, without headers and rules."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in TABLES.splitlines() if line[:1] == "|"]
    starts = [index for index, cells in enumerate(lines) if cells == HEADER] + [len(lines)]
    return [lines[start + 2 : end] for start, end in pairwise(starts)]


def listed() -> list[tuple[str, str]]:
    """Return the number of a row and what is said of its tests, for each entry of the list below the tables."""
    return [(number, names.strip()) for number, names in re.findall(r"^- (\S+)((?: .*\n?)+)", LIST, re.MULTILINE)]


ROWS = [row for table in tables() for row in table]
NAMED = dict(listed())


def test_failures_are_tables_without_repetitions() -> None:
    assert len(ROWS) > 80
    assert all(len(row) == len(HEADER) and all(row) for row in ROWS)
    assert len({row[1] for row in ROWS}) == len(ROWS), "something is said twice"


def test_rows_are_numbered_and_the_tests_of_each_are_listed_in_that_order() -> None:
    expected = [f"{group}.{number}" for group, table in enumerate(tables(), 1) for number, _ in enumerate(table, 1)]
    assert [row[0] for row in ROWS] == expected
    assert [number for number, _ in listed()] == expected
    assert LIST.count("\n- ") == len(expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_every_row_names_tests_and_each_of_them_exists(row: list[str]) -> None:
    said = NAMED[row[0]]
    named = re.findall(r"`([^`]+)`", said)
    assert named
    assert "`" + "`,\n  `".join(named) + "`" == said, "nothing but names, in backticks, one a line, with commas between"
    for path, _, name in (each.partition("::") for each in named):
        assert name.rpartition("::")[2].lower().startswith("test"), name
        assert name.replace("::", ".") in names_in(ROOT / "tests" / path), f"tests/{path} has no {name}"
