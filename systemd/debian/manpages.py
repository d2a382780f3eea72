"""Writes a man page for each command, from the same words as `--help`: `manpages.py DIRECTORY`, with `agent` to be imported."""

import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from agent import __version__
from agent.cli.main import cli
from agent.cli.views.words import PROGRAM

VERBATIM = "\b\n"  # click's mark of a paragraph whose lines are kept
_ESCAPES = {"\\": r"\e", "-": r"\-", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga"}  # roff prints others in their places


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name, `artifacts-agent-queue-ls` for example, and the text of each page."""
    yield from _pages(click.Context(cli, info_name=PROGRAM, **cli.context_settings))


def _pages(context: click.Context) -> Iterator[tuple[str, str]]:
    subcommands = _subcommands(context)
    yield _name(context), _page(context, subcommands)
    for each in subcommands:
        yield from _pages(each)


def _subcommands(context: click.Context) -> list[click.Context]:
    group = context.command
    if not isinstance(group, click.Group):
        return []
    named = ((name, group.get_command(context, name)) for name in group.list_commands(context))
    return [click.Context(command, info_name=name, parent=context) for name, command in named if command is not None]


def _page(context: click.Context, subcommands: list[click.Context]) -> str:
    command, name = context.command, _name(context)
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    lines = [f'.TH {name.upper()} 1 {date} "{PROGRAM} {__version__}" "User Commands"', ".nh", ".ad l"]
    lines += [".SH NAME", rf"{_escaped(name)} \- {_escaped(command.get_short_help_str(limit=300).rstrip('.'))}"]
    words = " ".join(command.collect_usage_pieces(context))
    lines += [".SH SYNOPSIS", f".B {_escaped(context.command_path)}", _escaped(words)]
    lines += [".SH DESCRIPTION", *_text(command.help or "")]
    records = [each.get_help_record(context) for each in command.get_params(context)]
    if options := [record for record in records if record is not None and record[1]]:
        lines.append(".SH OPTIONS")
        for option, meaning in options:
            lines += [".TP", rf"\fB{_escaped(option)}\fR", _escaped(" ".join(meaning.split()))]
    if subcommands:
        lines.append(".SH COMMANDS")
        for each in subcommands:
            lines += [".TP", rf"\fB{_escaped(_name(each))}\fR(1)", _escaped(each.command.get_short_help_str(limit=300))]
    if command.epilog:
        lines += [".SH NOTES", *_text(command.epilog)]
    if context.parent is not None:
        lines += [".SH SEE ALSO", rf"\fB{_escaped(_name(context.parent))}\fR(1)"]
    return "\n".join(lines) + "\n"


def _name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _text(text: str) -> Iterator[str]:
    """Yield the lines of paragraphs; those of a verbatim one as they are."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        yield ".PP"
        if paragraph.startswith(VERBATIM):
            yield from (".nf", *map(_escaped, paragraph.removeprefix(VERBATIM).split("\n")), ".fi")
        else:
            yield _escaped(" ".join(paragraph.split()))


def _escaped(text: str) -> str:
    """Return what roff prints as `text`: its own characters are escaped, and no line begins with a request."""
    escaped = text.translate({ord(character): name for character, name in _ESCAPES.items()})
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for page, text in pages():
        (directory / f"{page}.1").write_text(text)
