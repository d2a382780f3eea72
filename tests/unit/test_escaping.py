"""What commands no terminal: text and JSON, escaped."""

import ast
import json
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.queue.export import encode
from agent.escaping import printable, printable_json
from tests.support.documents import ROOT

CLI = ROOT / "agent/cli"
COMMANDING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # https://www.unicode.org/reports/tr44/#General_Category_Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, déjà vu, 日本, 🙂", "plain, déjà vu, 日本, 🙂"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\x7f\x80\x9b\x9d\x9f", r"\x7f\x80\x9b\x9d\x9f"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("\u202e\u2066\u200f\ufeff", r"\u202e\u2066\u200f\ufeff"),
        ("\udc9b", r"\udc9b"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_has_no_glyph_is_escaped_and_all_else_stays(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":"é"}\n{"b":1}', '{"a":"é"}\n{"b":1}'),
        ('{\r\n\t"a": 1}', '{ \n "a": 1}'),
        ('"\x7f\x9b\u2028"', r'"\u007f\u009b\u2028"'),
        ('"\U000e0041"', r'"\udb40\udc41"'),
        ('"\udc9b"', r'"\udc9b"'),
    ],
)
def test_json_stays_json(text: str, expected: str) -> None:
    assert printable_json(text) == expected


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys_and_json_keeps_its_values(text: str) -> None:
    assert not COMMANDING & {unicodedata.category(character) for character in printable(text)}
    line = (
        encode(text).decode() if not any("\ud800" <= c <= "\udfff" for c in text) else printable_json(json.dumps(text))
    )
    assert not COMMANDING & {unicodedata.category(character) for character in line}
    assert json.loads(line) == text
    shown = printable_json(json.dumps([text], ensure_ascii=False, indent=1))
    assert shown.replace("\n", " ").isprintable()
    assert json.loads(shown) == [text]


def test_a_value_that_is_json_already_is_escaped_as_well() -> None:
    assert printable_json(msgspec.json.encode(msgspec.Raw('{"a":"\x9b"}')).decode()) == r'{"a":"\u009b"}'


def _calls(path: Path) -> set[str]:
    """Return what a module calls, as it is written there."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


def test_no_command_writes_but_by_way_of_the_functions_that_escape() -> None:
    writers = {"click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write"}
    found = {path.relative_to(CLI).as_posix() for path in CLI.rglob("*.py") if _calls(path) & writers}
    assert found == {"views/output.py"}


def test_no_view_makes_text_but_by_way_of_the_function_that_escapes() -> None:
    trees = {path: ast.walk(ast.parse(path.read_text())) for path in CLI.rglob("*.py")}
    found = {
        path.relative_to(CLI).as_posix()
        for path, tree in trees.items()
        for node in tree
        if isinstance(node, ast.Call)
        and node.args
        and ast.unparse(node.func).rpartition(".")[2] in {"Text", "from_markup"}
    }
    assert found == {"views/rendered.py"}
