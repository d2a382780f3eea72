"""What the README says of the tests: that each one it names is there, and that no row of its tables goes without one."""

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
HEADER = ["", "what goes wrong", "what happens then"]
TABLES, _, LIST = README.partition("\n## What can go wrong\n")[2].partition("\n## ")[0].partition("\n### ")


def tables() -> list[list[list[str]]]:
    """Return the cells of each row of each table below "What can go wrong", without headers and rules."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in TABLES.splitlines() if line[:1] == "|"]
    starts = [index for index, cells in enumerate(lines) if cells == HEADER] + [len(lines)]
    return [lines[start + 2 : end] for start, end in pairwise(starts)]


def listed() -> list[tuple[str, str]]:
    """Return the number of a row and what is said of its tests, for each entry of the list below the tables."""
    return [(number, names.strip()) for number, names in re.findall(r"^- (\S+)((?: .*\n?)+)", LIST, re.MULTILINE)]


ROWS = [row for table in tables() for row in table]
NAMED = dict(listed())


@cache
def names_in(path: str) -> frozenset[str]:
    """Return the tests of a file below tests/ as pytest names them: functions, classes and what is in them."""
    found = set[str]()
    for node in ast.parse((TESTS / path).read_bytes()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found |= {f"{name}::{each.name}" for each in body if isinstance(each, ast.FunctionDef)}
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("Test"):
                found.add(name)
    return frozenset(found)


def test_the_readme_has_tables_of_what_can_go_wrong() -> None:
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
        assert name in names_in(path), f"tests/{path} has no {name}"
