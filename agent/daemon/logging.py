"""Logging for people and for machines, to standard error, where systemd and containers pick it up."""

import contextlib
import io
import logging
import sys
from typing import Literal, TextIO, cast

import structlog


class _StandardError(io.TextIOBase):
    """Standard error, whose reader may leave and whose disk may fill: a line that cannot be written is dropped."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


def _printable(_logger: object, _method: str, facts: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what clients and servers wrote, such as the hash of an event: it must not command the reader's terminal."""
    unprintable = {name: text for name, text in facts.items() if isinstance(text, str) and not text.isprintable()}
    escaped = {
        name: "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for name, text in unprintable.items()
    }
    return {**facts, **escaped}


def configure(level: str, form: Literal["console", "json"]) -> None:
    """Send every log line of this process to standard error, from `level` on."""
    rendering: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    if form == "console":
        rendering = [_printable, *rendering, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        rendering.append(structlog.processors.JSONRenderer())
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
