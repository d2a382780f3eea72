"""Writing to standard output: in colour on a terminal, and what happens when the pipe is broken or the disk full."""

import os
import sys
from typing import TYPE_CHECKING

from agent.errors import AgentError

if TYPE_CHECKING:
    from rich.console import RenderableType

_UNWRAPPED = 100_000  # columns: more than any line has

BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports it


def say(text: str) -> None:
    """Write a line, or lines, and flush them. Raises SystemExit for a broken pipe, and AgentError for a full disk."""
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


def say_json(value: object) -> None:
    """Write a value as one line of JSON."""
    import msgspec

    say(msgspec.json.encode(value).decode())


def show(renderable: "RenderableType") -> None:
    """Write what rich renders; where standard output is no terminal, plain text whose lines are as long as they are."""
    from rich.console import Console

    terminal = is_terminal()
    console = Console(force_terminal=terminal, highlight=False, width=None if terminal else _UNWRAPPED)
    with console.capture() as capture:
        console.print(renderable)
    text = capture.get()
    say(text if terminal else "\n".join(line.rstrip() for line in text.splitlines()))


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
