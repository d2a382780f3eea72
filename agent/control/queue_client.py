"""Asking the daemon about its queue and its dead letters: these requests, as methods."""

from urllib.parse import urlencode

import msgspec

from agent.control.client import ControlClient
from agent.queue.maintenance.audit import Audit
from agent.queue.maintenance.browse import EventFilter, EventPage, Listing
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter, DeadLetterPage
from agent.queue.maintenance.purge import DeadLettersPurged, Purged
from agent.queue.maintenance.repair import Repaired
from agent.queue.maintenance.retry import Retried
from agent.rules import DEFAULT


class QueueClient:
    """A destination's queue, of a daemon that runs. `purge_seconds` is how long a purge waits for requests that are under way.

    Every method may raise what `ControlClient.ask` does.
    """

    def __init__(self, control: ControlClient, purge_seconds: float, destination: str = DEFAULT) -> None:
        self._control = control
        self._purge_seconds = purge_seconds
        self._about = (
            {"destination": destination} if destination != DEFAULT else {}
        )  # which an older daemon does not know

    def listing(self) -> Listing:
        """Return what the segments hold."""
        return self._control.ask("GET", self._target("/queue"), Listing)

    def event_page(self, wanted: EventFilter, start: int, limit: int) -> EventPage:
        """Return queued events, from the number `start` on."""
        return self._control.ask("GET", self._target("/queue/events", **_parameters(wanted, start, limit)), EventPage)

    def audit(self) -> Audit:
        """Check the queue's files."""
        return self._control.ask("GET", self._target("/queue/verify"), Audit)

    def dead_letter_page(self, wanted: DeadLetterFilter, start: int, limit: int) -> DeadLetterPage:
        """Return dead letters, from the place `start` on."""
        return self._control.ask(
            "GET", self._target("/dead-letters", **_parameters(wanted, start, limit)), DeadLetterPage
        )

    def repair(self) -> Repaired:
        """Account for all damage."""
        return self._control.ask("POST", self._target("/queue/repair"), Repaired)

    def purge(self) -> Purged:
        """Drop all that is queued. Raises DeadlineError if requests are under way for too long: then nothing is purged."""
        return self._control.ask("POST", self._target("/queue/purge", deadline=repr(self._purge_seconds)), Purged)

    def retry(self, wanted: DeadLetterFilter) -> Retried:
        """Put events of dead letters back into the queue."""
        return self._control.ask("POST", self._target("/dead-letters/retry"), Retried, body=msgspec.json.encode(wanted))

    def purge_dead_letters(self, wanted: DeadLetterFilter) -> DeadLettersPurged:
        """Remove dead letters."""
        body = msgspec.json.encode(wanted)
        return self._control.ask("POST", self._target("/dead-letters/purge"), DeadLettersPurged, body=body)

    def _target(self, path: str, **parameters: object) -> str:
        query = urlencode({**parameters, **self._about})
        return f"{path}?{query}" if query else path


def _parameters(wanted: EventFilter, start: int, limit: int) -> dict[str, object]:
    parameters: dict[str, object] = msgspec.to_builtins(wanted)
    if "numbers" in parameters:
        parameters["numbers"] = ",".join(map(str, msgspec.to_builtins(parameters["numbers"])))
    return {**parameters, "from": start, "limit": limit}
