"""`check`: whether everything is in order, without starting anything."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import config_option, find_config, json_option
from agent.cli.views.output import has_colours, say_json, write
from agent.escaping import printable

if TYPE_CHECKING:
    from agent.cli.checks.local import CheckResult


@click.command(short_help="Check configuration, token, sockets and queue directory.")
@click.option("--online", is_flag=True, help="Also ask the server whether it accepts the token.")
@config_option
@json_option
def check(path: Path | None, online: bool, as_json: bool) -> int:
    """Check the configuration, the token, the sockets and the queue directory.

    It prints one line for each check, with what to do about a problem. It creates nothing and does not disturb a running daemon.
    Permissions are checked for the user who runs it: run it as the daemon's user. Exit code 0: everything is in order, but for
    warnings; 1: there are problems.

    --online asks the server for the account's status and for an artifact that nobody has, with the token and with a wrong one;
    it sends no event. A server that refuses the wrong one and lets the right one in has proven that the token is right. What it
    refuses, what is no such server, and what cannot be reached, is a problem. "not proven" is a warning: it gives everybody the
    same answers, and only a delivery shows more. With [relay] it asks the engine, too, for what a relay has to read.

    With [relay] it is the configuration of a relay, which has neither sockets nor a queue: they are not looked at.
    """
    from agent.cli.checks import local

    findings = []
    for finding in local.examine(find_config(path), os.environ, online=online):
        findings.append(finding)
        if not as_json:
            write(_line(finding))
    ok = all(finding.ok for finding in findings)
    if as_json:
        say_json({"ok": ok, "checks": [_facts(finding) for finding in findings]})
    return 0 if ok else 1


def _facts(finding: "CheckResult") -> dict[str, object]:
    return {name: value for name, value in finding._asdict().items() if name != "warning" or value}


def _line(finding: "CheckResult") -> str:
    word, colour = ("ok     ", "green") if finding.ok else ("problem", "red")
    if finding.ok and finding.warning:
        word, colour = "warning", "yellow"
    if has_colours():
        word = click.style(word, fg=colour)
    return f"{word}  {printable(f'{finding.check}: {finding.message}')}"
