"""The JSON Schema for editors lets pass what `load` accepts, and marks what it refuses, but for what a schema cannot see."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from agent.config import KEYS, load
from agent.config.file_schema import file_schema
from agent.config.schema import DestinationConfig, RuleConfig
from agent.errors import ConfigError
from tests.support.documents import read
from tests.unit.config.test_config import DEFAULTS, ENVIRON, REFUSED, USER, assigned

SCHEMA = file_schema()
VALIDATOR = Draft7Validator(SCHEMA)
EXAMPLE = read("config.example.toml")
UNCOMMENTED = re.sub(r"^# +(\w+ = |\[)", r"\1", EXAMPLE, flags=re.MULTILINE)
# What JSON Schema cannot say: how keys go together, how much a text in quotes means, what exists, bytes and not characters.
UNSEEN = (
    r"belong together|are the same path|do not fit|there is no (user|group|destination)|destination or deny|"
    r"= '[^']*': should be (greater|less) than|should be at least \"1d\"|at most \"36500d\"|is not a size|is not a duration|"
    r":0': should have a scheme|4096\.0: should be a (user|group)|"
    r"107|NUL|[Pp]ort|IPv6|control characters|~ stands for|this machine alone"
)
SPELLINGS = [
    *("", "a", "two words", "~", "~root/x", "a/b", "5", "0", "true", "root", "default", "stream"),
    *("8MiB", "64 KB", "1.5 GiB", "0.3KiB", "8M", "1,5GiB", "250ms", "1.5s", " 3 s ", "36501d", "0s", "-5s"),
    *("0660", "0o777", "1777", "0888", "127.0.0.1:0", "[::1]:9", "[::]:9", "0.0.0.0:9", "127.0.0.1"),
    *("https://a.example/b@c/", "HTTPS://A", "http://a.example", "ftp://a", "https://u@a.example", "https://a?b"),
    *("http://LocalHost:3/", "http://127.9.9.9", "http://[::1]:3", "commit", "drop-newest", "allow", "debug", "json"),
]
VALUES = [
    *SPELLINGS,
    0,
    1,
    5,
    -1,
    65,
    4096,
    2**32 - 1,
    2**63,
    0.5,
    4096.0,
    True,
    False,
    [],
    ["a"],
    [5, 5],
    ["root"],
    {},
    {"a": "b"},
]


def problems(document: dict[str, Any]) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(document)]


def literal(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {literal(each)}" for key, each in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def complaint(directory: Path, text: str) -> str:
    """Return what `load` says is wrong with it; nothing if it is right."""
    path = directory / "config.toml"
    path.write_text(text)
    try:
        load(path, ENVIRON, euid=USER)
    except ConfigError as error:
        return str(error)
    return ""


def places() -> Iterator[tuple[str, str]]:
    """Yield each key that may be written, and the text before its value."""
    for key in KEYS:
        section, _, name = key.partition(".")
        yield name, f"[{section}]\n{name} = "
        if section in {"api", *(each.name for each in fields(DestinationConfig))}:
            yield name, f"[destinations.web{'' if section == 'api' else f'.{section}'}]\n{name} = "
    for field in fields(RuleConfig):
        decision = "" if field.name in {"destination", "deny"} else 'destination = "default"\n'
        yield field.name, f"[[rules]]\n{decision}{field.name} = "


@pytest.mark.parametrize("text", [EXAMPLE, UNCOMMENTED, ""], ids=["example", "uncommented", "empty"])
def test_the_example_is_right(text: str) -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert problems(tomllib.loads(text)) == []


def test_it_has_every_key_and_no_other() -> None:
    tables = {name: table["properties"] for name, table in SCHEMA["properties"].items() if "properties" in table}
    assert [f"{table}.{key}" for table, keys in tables.items() for key in keys] == list(KEYS)


def test_its_defaults_are_written_as_in_the_example() -> None:
    shown = {
        f"{section}.{key}": value["default"]
        for section, table in SCHEMA["properties"].items()
        for key, value in table.get("properties", {}).items()
        if "default" in value
    }
    assert shown == {
        f"{table}.{key}": value for table, keys in tomllib.loads(EXAMPLE).items() for key, value in keys.items()
    }
    assert set(shown) <= set(DEFAULTS)


@pytest.mark.parametrize(("name", "before"), [*places()])
def test_it_says_what_a_daemon_would(tmp_path: Path, name: str, before: str) -> None:
    """But for numbers and booleans in quotes, as variables have them, which are right and marked."""
    wrong: list[tuple[str, str]] = []
    for value in VALUES:
        text = before + literal(value) + "\n"
        marked, refused = problems(tomllib.loads(text)), complaint(tmp_path, text)
        if refused and not marked and not re.search(UNSEEN, refused):
            wrong.append((text, refused))
        if marked and not refused and not _is_plain(value, marked):
            wrong.append((text, marked[0]))
    assert wrong == []


def _is_plain(value: object, marked: list[str]) -> bool:
    """Tell whether it is marked because it is to be a number, or true or false, and written otherwise."""
    plain = (isinstance(value, str) and value.isdigit()) or value in ("true", 0, 1)
    return plain and re.search(r"'(integer|boolean)'|any of the given", marked[0]) is not None


@pytest.mark.parametrize(("key", "text", "reason"), REFUSED)
def test_it_marks_what_is_refused_as_far_as_it_can_see(tmp_path: Path, key: str, text: str, reason: str) -> None:
    document = assigned(key, text)
    assert problems(tomllib.loads(document)) or re.search(UNSEEN, complaint(tmp_path, document))


@pytest.mark.parametrize(
    "text",
    [
        "[batch]\nmax_event = 1",
        "[quue]\n",
        'url = "https://a.example"',
        "api = 5",
        "destinations = 5",
        "[destinations]\nweb = 5",
        "[destinations.default]",
        "[destinations.Web]",
        "[destinations.web]\nmax_bytes = 1",
        "[destinations.web.api]",
        "[destinations.web.queue]",
        "[rules]",
        "rules = [5]",
        "[[rules]]\nuser = 5\ndeny = true",
    ],
)
def test_it_marks_keys_and_tables_that_there_are_not(tmp_path: Path, text: str) -> None:
    assert problems(tomllib.loads(text))
    assert complaint(tmp_path, text)
