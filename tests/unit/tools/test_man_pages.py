"""The man pages of the Debian package, which are made of what `--help` says."""

import re
import runpy
from collections.abc import Iterator

import click
import pytest

from agent.cli.main import cli
from tests.support.documents import ROOT

PAGES: dict[str, str] = dict(runpy.run_path(str(ROOT / "systemd/debian/manpages.py"))["pages"]())


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its page's name."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from commands(found, f"{name}-{each}")


COMMANDS = dict(commands(cli, "artifacts-agent"))


def test_every_command_has_a_page_and_there_is_no_other() -> None:
    assert PAGES.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_and_no_mark_of_clicks(name: str) -> None:
    page = PAGES[name].replace(r"\-", "-")
    options = {option for each in COMMANDS[name].params if isinstance(each, click.Option) for option in each.opts}
    assert {option for option in options if option not in page} == set()
    assert "\b" not in page


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_of_a_page_is_taken_for_a_request_by_mistake(name: str) -> None:
    requests = re.findall(r"^[.'](\S*)", PAGES[name], re.MULTILINE)
    assert set(requests) <= {"TH", "SH", "PP", "TP", "B", "nf", "fi", "nh", "ad"}
