"""Logging for people and for machines, to standard error, where systemd and containers pick it up."""

import contextlib
import io
import logging
import sys
from typing import Literal, TextIO, cast

import anyio
import structlog

from agent.daemon import journal
from agent.escaping import printable
from agent.throttle import held_back

# What was held back is said so many seconds later at the latest, and looked for so often.
REPORT_SECONDS = 60.0
LOOK_SECONDS = 5.0


class _StandardError(io.TextIOBase):
    """Standard error, whose reader may leave and whose disk may fill: a line that cannot be written is dropped."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


def _printable(_logger: object, _method: str, facts: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what clients and servers wrote, such as the hash of an event; of a traceback the lines stay."""
    escaped = {name: printable(text) for name, text in facts.items() if isinstance(text, str)}
    if isinstance(trace := facts.get("exception"), str):
        escaped["exception"] = "\n".join(map(printable, trace.split("\n")))
    return {**facts, **escaped}


def _prioritized(_logger: object, method: str, line: object) -> str:
    """Take what a renderer has made."""
    return journal.with_priority(str(line), method)


def configure(level: str, form: Literal["console", "json"], *, to_journal: bool = False) -> None:
    """Send every log line of this process to standard error, from `level` on; `to_journal` with its priority before it."""
    rendering: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if form == "console":
        # Structlog before 26 warns, in lines of its own, where another formatter is set and the traceback is text already.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
        rendering = [*rendering, _printable, renderer]
    else:
        rendering.append(structlog.processors.JSONRenderer())
    if to_journal:
        rendering.append(_prioritized)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _StandardError())),
        cache_logger_on_first_use=False,
    )


async def report_held_back() -> None:
    """Say regularly how many lines were held back, until cancelled."""
    while True:
        await anyio.sleep(LOOK_SECONDS)
        say_held_back(REPORT_SECONDS - LOOK_SECONDS)


def say_held_back(seconds: float = 0.0) -> None:
    """Say how many lines were held back, and not said since, for at least so many seconds."""
    for each in held_back(anyio.current_time(), seconds):
        facts = {"of": each.event, "lines": each.lines, "about": each.about, "most": each.most}
        structlog.get_logger("agent.daemon").warning("log_lines_held_back", **facts)
