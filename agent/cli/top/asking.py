"""What `top` asks: the daemon behind its control socket, and the files of its queue. A daemon that hangs costs a moment."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from agent.cli.top.samples import Measured, Sample
from agent.cli.views.words import delivered, duration
from agent.control.client import ControlClient
from agent.control.schema import FlushVerdict
from agent.errors import AgentError, StorageError
from agent.queue.filesystem import OsFilesystem
from agent.rules import DEFAULT
from agent.usage.recent import Recent, RecentSessions, of_all

FLUSH_SECONDS = 2.0
GRACE_SECONDS = 0.5
SHARE_OF_TIME = 0.05
"""How much of the time may be spent on reading the queue."""
_DURATION = "artifacts_agent_request_duration_seconds"
_RESPONSES = "artifacts_agent_responses"


class Source:
    """Asks for samples, and does what keys ask for. `queue_of` returns a destination's queue, or it is why none is known."""

    def __init__(self, control: ControlClient, queue_of: Callable[[str], Path] | str) -> None:
        self._control = control
        self._queue_of = queue_of
        self._sessions: dict[str, RecentSessions] = {}  # of each destination that there was in the last sample
        self._destinations = [DEFAULT]
        self._recent: Recent | str = "nothing was read yet"
        self._next_read = -math.inf

    def sample(self) -> Sample:
        """Return what the daemon says now. Raises AgentError."""
        status = self._control.status()
        self._destinations = [name for name, each in status.destinations.items() if each.state != "failed"]
        return Sample(time.monotonic(), status, measured_in(self._control.metrics()))

    def recent(self) -> Recent | str:
        """Return the sessions of the last minutes of all destinations, or why none of them are known."""
        if isinstance(self._queue_of, str):
            return self._queue_of
        began = time.monotonic()
        if began >= self._next_read:
            self._recent = self._read(self._queue_of)
            now = time.monotonic()
            self._next_read = now + (now - began) / SHARE_OF_TIME
        return self._recent

    def _read(self, queue_of: Callable[[str], Path]) -> Recent | str:
        known = self._sessions
        self._sessions = {
            name: known.get(name) or RecentSessions(OsFilesystem(), queue_of(name)) for name in self._destinations
        }
        found: dict[str, Recent] = {}
        problems: list[str] = []
        for name, sessions in self._sessions.items():
            try:
                found[name] = sessions.read(time.time(), len(self._sessions))
            except StorageError as error:
                problems.append(str(error))
        if not found:
            return problems[0] if problems else "there is no destination"
        together = of_all(found)
        return together._replace(problem=problems[0]) if problems else together

    def pause(self) -> str:
        """Pause delivery; return what to say of it. Raises AgentError, as those that follow."""
        self._control.pause()
        return "paused: events are taken and kept"

    def resume(self) -> str:
        """Have the daemon deliver now, whatever it is waiting for."""
        wait = self._control.resume().retry_after_overridden
        return (
            "delivery goes on"
            if wait is None
            else f"the server had asked to wait for {duration(wait)} more: it is asked now"
        )

    def flush(self) -> str:
        """Wait for a moment until what is queued now has been delivered."""
        flushed = self._control.flush(FLUSH_SECONDS, grace=GRACE_SECONDS)
        return f"no answer within {FLUSH_SECONDS:g} s" if flushed is None else said_of(flushed.verdict)


def said_of(verdict: FlushVerdict) -> str:
    """Return what a flush has come to, in a line."""
    counts = [delivered(verdict.delivered, verdict.forwarded)]
    if verdict.dead_lettered:
        counts.append(f"{verdict.dead_lettered:,} dead-lettered")
    counts += [f"{count:,} dropped as {reason}" for reason, count in verdict.dropped.items()]
    if verdict.queued:
        counts.append(f"{verdict.queued:,} still queued{f': {verdict.held_up}' if verdict.held_up else ''}")
    return f"flushed: {', '.join(counts)}"


def measured_in(metrics: str) -> Mapping[str, Measured]:
    """Return what the text of the metrics says of requests, by destination. Raises AgentError if it is not understood."""
    lines = [line for line in metrics.splitlines(keepends=True) if _DURATION in line or _RESPONSES in line]
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    responses: dict[str, dict[str, float]] = defaultdict(dict)
    try:
        samples = [each for family in text_string_to_metric_families("".join(lines)) for each in family.samples]
        for name, labels, value, *_ in samples:
            if name == f"{_DURATION}_bucket":
                buckets[labels["destination"]].append((float(labels["le"]), value))
            elif name == f"{_RESPONSES}_total":
                responses[labels["destination"]][labels["status"]] = value
    except (ValueError, KeyError) as error:
        raise AgentError(f"the daemon's metrics are not understood: {error}") from error
    return {name: Measured(tuple(found), responses[name]) for name, found in buckets.items()}
