"""Logging for people and for machines.

It knows structlog. It must never know what is logged. Lines go to standard error, where systemd and containers pick them up.
"""

import contextlib
import io
import logging
import sys
from typing import Literal, TextIO, cast

import structlog


class _Forgiving(io.TextIOBase):
    """Standard error whose reader may leave and whose disk may fill: a line that cannot be written is not worth an event."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
        return len(text)


def _unchanged(_logger: object, _method: str, facts: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return facts


def _printable(_logger: object, _method: str, facts: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape what clients and servers wrote, such as the hash of an event: it must not command the reader's terminal."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in facts.items()}


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def configure(level: str, form: Literal["console", "json"]) -> None:
    """Send every log line of this process to standard error, from `level` on."""
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    shown = _unchanged
    if form == "console":
        shown = _printable
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            shown,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Forgiving())),
        cache_logger_on_first_use=False,
    )
