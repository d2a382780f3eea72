"""The seam between delivery and the API: what is sent, and what came of it.

It knows neither HTTP nor time. `agent.delivery.http_transport` is the real implementation; tests have another one.
"""

from enum import StrEnum
from typing import NamedTuple, Protocol

from agent.events import Context


class Kind(StrEnum):
    """What an answer means for the events that were sent."""

    ACCEPTED = "accepted"
    TRANSIENT = "transient"  # the same request may well succeed later
    REJECTED = "rejected"  # something in the events, or at least one of them, is wrong
    TOO_LARGE = "too_large"  # fewer events may be taken
    CUT_OFF = "cut_off"  # the connection broke in mid-upload: too large, or just a broken connection
    BLOCKED = "blocked"  # the account may not send now
    MISCONFIGURED = "misconfigured"  # this is not the API, or not this request


class Verdict(NamedTuple):
    """One answer. `retry_after` is in seconds from now; `message` is fit for people and has no secrets."""

    kind: Kind
    message: str = ""
    status: int | None = None
    retry_after: float | None = None


class Transport(Protocol):
    """Sends batches to one destination. Never raises for what the network or the server does: that is a verdict."""

    async def send(self, context: Context, body: bytes) -> Verdict:
        """Send one batch: a JSON array of at least one event."""

    async def probe(self) -> Verdict | None:
        """Ask whether the account may send, without sending; None if the server cannot say."""

    async def aclose(self) -> None:
        """Release connections."""
