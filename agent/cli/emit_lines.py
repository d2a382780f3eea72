"""The lines of standard input, validated as the daemon does it, and sent as they come."""

import os
from collections import Counter
from collections.abc import Iterator
from time import sleep

from msgspec import UNSET

from agent.cli.views.emit import EmitReport
from agent.client import DETECT, EventClient
from agent.errors import AgentError
from agent.events import MAX_LINE_BYTES, Context, Event, Session, decode_events, decode_lines
from agent.ingest.framing import LineFramer, Lines

# How long to wait in all for a daemon that does not keep up, before events count as not sent: a build may hang on the other end
# of the pipe. With `strict`, the wait begins anew whenever the daemon has read something.
PATIENCE_SECONDS = 2.0
_RETRY_SECONDS = 0.002


def send_standard_input(report: EmitReport, path: str | None, destination: str | None, *, strict: bool) -> None:
    """Send what standard input holds, up to its end; to `destination`, unless a context line names another one.

    Raises AgentError if it cannot be read.
    """
    framer, sender = LineFramer(MAX_LINE_BYTES), _Sender(report, path, destination, strict=strict)
    for chunk in _chunks():
        sender.take(framer.feed(chunk))
    sender.take(framer.end())


def _chunks() -> Iterator[bytes]:
    """Give what is there without waiting for more, so that an event of a slow writer is sent when it is written."""
    try:
        while chunk := os.read(0, MAX_LINE_BYTES):
            yield chunk
    except OSError as error:
        raise AgentError(f"standard input: cannot read: {error.strerror}") from error


_UNSTATED = Session().context
"""The context before any context line, known by its identity: the client then detects where it runs."""


class _Sender:
    """Sends lines to one socket; a change of context takes a new connection, which is what a context is bound to."""

    def __init__(self, report: EmitReport, path: str | None, destination: str | None, *, strict: bool) -> None:
        self._report = report
        self._strict = strict
        self._path = path
        self._session = Session(asks_for=destination)
        self._line = 0
        self._patience = PATIENCE_SECONDS
        self._context = _UNSTATED
        self._destination = destination
        self._client = EventClient(path, destination=destination)
        self._failures: Counter[str] = Counter()

    def take(self, lines: Lines) -> None:
        """Send the events of whole lines, and report those that are not valid."""
        for _ in range(lines.oversized):
            self._line += 1
            self._report.reject(self._line, f"Line is longer than {MAX_LINE_BYTES:,} bytes")
        decoded = decode_lines(lines.block, self._session)
        self._session = decoded.session
        for line, reason in decoded.rejects:
            self._report.reject(self._line + line, reason)
        self._line += lines.block.count(b"\n")
        for block in decoded.blocks:
            self._use(block.context, block.asks_for)
            for event in decode_events(block.lines):
                self._send(event)

    def _use(self, context: Context, destination: str | None) -> None:
        """Go on in that context; one that a line has stated is sent as stated, even if it is empty, and not detected."""
        is_same = context is self._context or (context == self._context and self._context is not _UNSTATED)
        if is_same and destination == self._destination:
            return
        self._client.close()
        self._context, self._destination = context, destination
        detected = context is _UNSTATED
        self._client = EventClient(
            self._path,
            ci=DETECT if detected else context.ci,
            interactive=DETECT if detected else context.interactive,
            job=context.job or DETECT,
            destination=destination,
        )
        self._failures.clear()

    def _send(self, event: Event) -> None:
        duration = None if event.duration is UNSET else event.duration
        while not self._client.emit(event.event, event.source, event.hash, event.session_id, duration):
            reason = self._last_failure()
            if reason != "full" or self._patience <= 0:
                self._report.unsent[reason] += 1
                return
            sleep(_RETRY_SECONDS)
            self._patience -= _RETRY_SECONDS
        if self._strict:
            self._patience = PATIENCE_SECONDS

    def _last_failure(self) -> str:
        now: Counter[str] = Counter(self._client.unsent_by_reason)
        (reason,) = now - self._failures
        self._failures = now
        return reason
