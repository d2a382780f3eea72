"""agent/OPERATIONS.md names every command, option, exit code, key, metric, log line and drop reason, and no other."""

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import click
import msgspec
import pytest

from agent import errors
from agent.cli.main import cli
from agent.config import KEYS, load
from agent.control.schema import StatusReport
from agent.fleet import names, permissions
from agent.fleet.engine import ConsumerState
from agent.fleet.inspection import TeamStatus
from agent.fleet.overview import Overview
from agent.queue.cursor import DROP_REASONS
from agent.rules import Sender, dead_rules
from tests.support.documents import blocks, code, documents, read, rows, section
from tests.support.source import logged_events, metric_names

OPERATIONS = read("agent/OPERATIONS.md")
EVERYWHERE = {"--config", "--help", "--version"}


def first_cells(title: str) -> list[str]:
    """Return what stands in backticks in the first cells of a section's tables."""
    return [name for row in rows(section(OPERATIONS, title)) for name in code(row[0])]


# --- commands ----------------------------------------------------------------------------------------------------


def _commands(command: click.Command, name: str = "artifacts-agent") -> Iterator[tuple[str, set[str]]]:
    if isinstance(command, click.Group):
        for each in command.list_commands(click.Context(command)):
            member = command.get_command(click.Context(command), each)
            assert member is not None
            yield from _commands(member, f"{name} {each}")
    else:
        options = (each for each in command.params if isinstance(each, click.Option) and not each.hidden)
        yield name, {name for option in options for name in option.opts if name.startswith("--")}


COMMANDS = dict(_commands(cli))


def _command_in(line: str) -> str:
    """Return the command that a command line begins with, as far as its words are those of one."""
    words = line.split()
    return next((name for end in (4, 3, 2) if (name := " ".join(words[:end])) in COMMANDS), line)


def test_every_command_is_documented_and_there_is_no_other() -> None:
    assert {_command_in(line) for line in first_cells("Commands")} == set(COMMANDS)


def test_every_option_is_documented_and_there_is_no_other() -> None:
    options = {option for options in COMMANDS.values() for option in options}
    own = [line for span in code(OPERATIONS) for line in span.splitlines() if not line.startswith(("nsc ", "nats "))]
    named = {option for span in own for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert options - EVERYWHERE <= {name for span in code(section(OPERATIONS, "Commands")) for name in span.split()}
    assert named - {"--unix-socket"} <= options | EVERYWHERE


@pytest.mark.parametrize("row", [row for row in rows(section(OPERATIONS, "Commands")) if "artifacts-agent" in row[0]])
def test_a_command_has_the_options_that_its_row_names(row: list[str]) -> None:
    named = {span for span in code(row[1]) if span.startswith("--")}
    assert all(named <= COMMANDS[_command_in(line)] for line in code(row[0]))


@pytest.mark.parametrize("name", [str(path) for path in documents()])
def test_every_command_line_in_a_document_is_one(name: str) -> None:
    lines = "\n".join(code(read(name)))
    # After --groups it is the name of a group; a line of output has a colon or a number.
    for found in re.findall(r"(?<!--groups )(?<![/\w-])artifacts-agent [a-z][^\n|;<>`\"]*", lines):
        command = _command_in(found)
        assert command in COMMANDS or any(each.startswith(f"{found.strip()} ") for each in COMMANDS), found
        own = found.partition(" -- ")[0]  # what follows is the command that `exec` runs
        assert {*re.findall(r"(?<!\S)--[a-z][a-z-]*", own)} <= COMMANDS.get(command, set()) | EVERYWHERE, found


def test_every_exit_code_is_documented_and_there_is_no_other() -> None:
    codes = [int(row[0]) for row in rows(section(OPERATIONS, "Exit codes"))]
    assert codes == [int(found) for found in re.findall(r"^ +(\d+)  ", cli.epilog or "", re.MULTILINE)]
    raised = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.AgentError)]
    assert {each.exit_code for each in raised} <= set(codes)


# --- configuration -----------------------------------------------------------------------------------------------


def test_every_key_is_documented_and_there_is_no_other() -> None:
    assert tuple(name for name in first_cells("Configuration") if "." in name) == KEYS


@pytest.mark.parametrize("name", [str(path) for path in documents() if path.name != "CHANGELOG.md"])
def test_every_key_in_a_document_is_one(name: str) -> None:
    sections = "|".join({key.partition(".")[0] for key in KEYS})
    ends = "py|sock|md|seg|bin|json"  # what looks like a key and is a file
    named = {span for span in code(read(name)) if re.fullmatch(rf"(?:{sections})\.(?!(?:{ends})$)[a-z_]+", span)}
    assert named <= set(KEYS)


def test_defaults_are_those_of_the_example() -> None:
    example = tomllib.loads(read("config.example.toml"))
    for row in rows(section(OPERATIONS, "Configuration")):
        table, _, key = row[0].strip("`").partition(".")
        if (default := example.get(table, {}).get(key)) is not None:
            assert row[1] == f"`{str(default).lower() if isinstance(default, bool) else default}`", row[0]


CI, GUEST, MOBILE, WEB = 1001, 1009, 2001, 2002


@pytest.mark.parametrize(
    ("sender", "destination", "rule"),
    [
        (Sender("stream", GUEST, frozenset({WEB})), None, 1),
        (Sender("stream", CI, asks_for="mobile"), "mobile", 2),
        (Sender("stream", CI), "default", 3),
        (Sender("stream", 1002, frozenset({MOBILE})), "mobile", 4),
        (Sender("datagram", 1003, frozenset({WEB})), "default", 5),
        (Sender("stream", 1003, frozenset({WEB}), asks_for="mobile"), None, 5),
        (Sender("tcp", slug="web"), "default", 6),
        (Sender("stream", 1004), None, None),
    ],
)
def test_the_shared_host_in_the_example_does_what_is_said(
    tmp_path: Path, sender: Sender, destination: str | None, rule: int | None
) -> None:
    (example,) = blocks(section(OPERATIONS, "Several destinations"), "toml")
    for name, number in {
        'uid = "ci"': CI,
        'uid = "guest"': GUEST,
        'gid = "mobile"': MOBILE,
        'gid = "web"': WEB,
    }.items():
        assert name in example
        example = example.replace(name, f"{name[:3]} = {number}")
    file = tmp_path / "config.toml"
    file.write_text(example)
    routing = load(file, {}).routing
    assert routing.route(sender)[:2] == (destination, rule)
    assert not [*dead_rules(routing.rules)]


# --- monitoring --------------------------------------------------------------------------------------------------


def _fields(kind: object) -> Iterator[str]:
    """Yield the names of a struct's fields, and of those of the structs in them."""
    for argument in get_args(kind):
        yield from _fields(argument)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for name, nested in get_type_hints(kind).items():
            yield name
            yield from _fields(nested)


def test_every_field_of_the_status_is_documented_and_there_is_no_other() -> None:
    fields, table = set(_fields(StatusReport)), section(OPERATIONS, "Status fields")
    assert fields - {name for span in code(table) for name in span.split(".")} == set()
    assert {name.partition(".")[0] for name in first_cells("Status fields")} <= fields


def test_every_field_of_a_fleets_status_is_documented_and_there_is_no_other() -> None:
    status = TeamStatus(Overview(), ConsumerState(0, 0, 0, None), None).to_json()
    tables = rows(section(OPERATIONS, "One agent per host, or a fleet"))
    documented = [name for row in tables for name in code(row[0]) if re.fullmatch("[a-z_]+", name)]
    assert sorted(documented) == sorted(status)


def test_every_metric_is_documented_and_there_is_no_other() -> None:
    assert sorted(first_cells("Metrics")) == sorted(metric_names())


def test_every_metric_of_a_relay_is_documented_and_there_is_no_other() -> None:
    documented = [name for name in first_cells("Relays") if name.startswith("artifacts_agent_")]
    assert sorted(documented) == sorted(
        {*metric_names("agent/control/relay_metrics.py")} - {"artifacts_agent_build_info"}
    )


def test_alerts_are_about_metrics_that_there_are() -> None:
    named = {
        found for span in code(section(OPERATIONS, "Alerts")) for found in re.findall(r"artifacts_agent_\w+", span)
    }
    assert named
    assert named <= {*metric_names(), *metric_names("agent/control/relay_metrics.py")}


def test_every_log_event_is_documented_with_its_level_and_there_is_no_other() -> None:
    documented: Mapping[str, str] = {row[0].strip("`"): row[1] for row in rows(section(OPERATIONS, "Logs"))}
    logged = logged_events()
    assert sorted(documented) == sorted(logged)
    assert not {name: level for name, level in documented.items() if level not in logged[name]}


def test_every_reason_for_a_drop_is_documented_and_there_is_no_other() -> None:
    assert sorted(first_cells("Dropped")) == sorted(DROP_REASONS)


# --- a fleet's engine --------------------------------------------------------------------------------------------


def _allowed(command: str) -> dict[str, tuple[str, ...]]:
    """Return what an `nsc add user` lets a user publish and subscribe to, by option."""
    words = shlex.split(command)
    return {name: tuple(value.split(",")) for name, value in pairwise(words) if name.startswith("--allow-")}


def test_the_credentials_of_a_pool_allow_what_its_runners_need_and_nothing_else() -> None:
    commands = [line for line in code(OPERATIONS) if line.startswith("nsc add user") and "--allow-" in line]
    (own,) = [_allowed(line) for line in commands if "$" not in line]  # those of relays are printed by a command
    assert own == {
        f"--allow-{name}": value for name, value in zip(("pub", "sub"), permissions.of_pool("web", "ci"), strict=True)
    }


def test_the_account_of_a_pool_reaches_that_of_the_fleet_by_the_pool_s_subject_alone() -> None:
    commands = [shlex.split(line) for line in code(OPERATIONS) if line.startswith(("nsc add export", "nsc add import"))]
    exported, imported = [dict(pairwise(words)) for words in commands]
    subject, account = names.events_subject("web", "ci"), imported["--account"]
    assert (exported["--account"], exported["--subject"]) == ("fleet", names.ALL_EVENTS)
    assert (imported["--remote-subject"], imported["--local-subject"]) == (subject, subject)
    assert all(words[-1] == "--service" for words in commands)
    (user,) = [shlex.split(line) for line in code(OPERATIONS) if line.startswith("nsc add user") and subject in line]
    assert dict(pairwise(user))["--account"] == account != "fleet"


@pytest.mark.parametrize("name", [str(path) for path in documents()])
def test_every_subject_and_every_stream_in_a_document_is_one_of_a_fleet(name: str) -> None:
    text = "\n".join(code(read(name)))
    subjects = tuple(each.removesuffix(">") for each in (names.ALL_EVENTS, names.ALL_RECORDS, names.ALL_DEAD))
    assert not [each for each in re.findall(r"(?<![\w.$])aa\.[\w.*>-]+", text) if not each.startswith(subjects)]
    streams = {names.EVENTS, names.LEDGER, names.DEAD, names.STATE, names.SNAPSHOTS}
    assert {*re.findall(r"(?<![A-Z])AA_[A-Z]+", text)} <= streams
