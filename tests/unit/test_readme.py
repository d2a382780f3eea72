"""What the README says of the tests: that each one it names is there, and that no row of its tables goes without one."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
HEADER = ["what goes wrong", "what happens then", "the test that shows it"]


def rows() -> list[list[str]]:
    """Return the cells of each row of the tables below "What can go wrong", without headers and rules."""
    section = README.partition("\n## What can go wrong\n")[2].partition("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"
    ]
    return [row for row in cells if row != HEADER and not set("".join(row)) <= set("-|")]


ROWS = rows()


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


def test_the_readme_has_a_table_of_what_can_go_wrong() -> None:
    assert len(ROWS) > 80
    assert all(len(row) == len(HEADER) and all(row) for row in ROWS)
    assert len({row[0] for row in ROWS}) == len(ROWS), "something is said twice"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_names_tests_and_each_of_them_exists(row: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", row[-1])
    assert named
    assert "`" + "`, `".join(named) + "`" == row[-1], "nothing but names, in backticks, with commas between them"
    for path, _, name in (each.partition("::") for each in named):
        assert name.rpartition("::")[2].lower().startswith("test"), name
        assert name in names_in(path), f"tests/{path} has no {name}"
