"""Writing to standard output and standard error: escaped, in colour on a terminal, and what happens when nobody can read it.

Every command writes by way of these functions, and nothing else does. What they are given may have come from outside.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from agent.cli.views.words import PROGRAM
from agent.errors import AgentError
from agent.escaping import printable, printable_json

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNWRAPPED = 100_000  # columns: more than any line has

BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


def say(*lines: str) -> None:
    """Write lines, escaped, each on one line, and flush them. Raises as `write`."""
    write("\n".join(map(printable, lines)))


def say_json(value: object) -> None:
    """Write a value as one line of JSON, escaped; JSON that is text already as a `msgspec.Raw`. Raises as `write`."""
    import msgspec

    write(printable_json(msgspec.json.encode(value).decode()))


def show(renderable: "RenderableType") -> None:
    """Write what rich renders; where standard output is no terminal, plain text whose lines are as long as they are.

    All text in it has to be from `agent.cli.views.rendered`, which escapes it. Raises as `write`.
    """
    from rich.console import Console

    terminal = is_terminal()
    console = Console(force_terminal=terminal, highlight=False, width=None if terminal else _UNWRAPPED)
    with console.capture() as capture:
        console.print(renderable)
    text = capture.get()
    write(text if terminal else "\n".join(line.rstrip() for line in text.split("\n")))


@contextmanager
def full_screen() -> Iterator[Callable[[Callable[[int], "RenderableType"]], None]]:
    """Have the whole terminal for the time of the block, and leave it as it was. For a terminal that moves its cursor.

    The block is given a function that draws what another one returns for so many columns; what is below the last line is cut off.
    All text is as for `show`. Raises SystemExit if the terminal is gone.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(force_terminal=True, highlight=False)
    live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def draw(make: Callable[[int], "RenderableType"]) -> None:
        live.update(make(console.width), refresh=True)

    try:
        with live:
            yield draw
    except OSError:
        _abandon_stdout()
        raise SystemExit(BROKEN_PIPE) from None


def write(text: str) -> None:
    """Write the program's own text, or what is escaped, and flush it.

    Raises SystemExit for a broken pipe, and AgentError for a full disk.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        _abandon_stdout()
        raise AgentError(f"standard output: cannot write: {error.strerror}") from error


def complain(*lines: str, before: str = "") -> None:
    """Write lines to standard error, escaped, with the program's name before each, and `before` in front of that."""
    for line in lines:
        click.echo(f"{before}{PROGRAM}: {printable(line)}", err=True)


def show_section(name: str, title: str, lines: Sequence[str], now: int) -> None:
    """Write a section to standard error that GitLab's log shows folded, below its title. `now` is in seconds since the epoch.

    https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections
    """
    start = f"\x1b[0Ksection_start:{now}:{name}[collapsed=true]\r\x1b[0K"
    end = f"\x1b[0Ksection_end:{now}:{name}\r\x1b[0K"
    click.echo(f"{start}{PROGRAM}: {printable(title)}", err=True, color=True)  # it is no terminal
    complain(*lines)
    click.echo(end, err=True, color=True)


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def has_colours() -> bool:
    """Whether colours are wanted there (https://no-color.org)."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def _abandon_stdout() -> None:
    """Let what is still buffered go nowhere: the interpreter flushes it at exit, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
