"""The seam between delivery and the API: what is sent, and what came of it.

`agent.delivery.http_transport` is the real implementation, `tests.support.fake_transport` the one in memory.
"""

from enum import StrEnum
from typing import NamedTuple, Protocol

from agent.delivery.batching import Batch
from agent.queue.cursor import Outcome


class Kind(StrEnum):
    """What an answer means for the batch that was sent."""

    ACCEPTED = "accepted"
    TRANSIENT = "transient"  # the same request may well succeed later
    REJECTED = "rejected"  # something in the events, or at least one of them, is wrong
    TOO_LARGE = "too_large"  # fewer events may be taken
    CUT_OFF = "cut_off"  # the connection broke in mid-upload: the batch is too large, or just the connection broke
    BLOCKED = "blocked"  # the account may not send now
    MISCONFIGURED = "misconfigured"  # this is not the API, or not this request


class Verdict(NamedTuple):
    """One answer. `retry_after` is in seconds from now; `message` is fit for people and has no secrets.

    `outcome` is what becomes of the events if it is ACCEPTED: delivered, or forwarded to those who deliver them. With
    `unsent` nothing was sent: there was no connection.
    """

    kind: Kind
    message: str = ""
    status: int | None = None
    retry_after: float | None = None
    outcome: Outcome = Outcome.DELIVERED
    unsent: bool = False


class Transport(Protocol):
    """Sends batches to one destination. Never raises for what the network or the server does: that is a verdict."""

    async def send(self, batch: Batch) -> Verdict:
        """Send one batch of at least one event; one that was refused before over another connection."""

    async def probe(self) -> Verdict | None:
        """Ask whether the account may send, without sending; None if the server cannot say."""

    async def aclose(self) -> None:
        """Release connections."""


class NoTransport:
    """A transport to a destination that cannot be asked before somebody has mended its configuration: see `Transport`."""

    def __init__(self, reason: str) -> None:
        self._verdict = Verdict(Kind.MISCONFIGURED, reason)

    async def send(self, _: Batch) -> Verdict:
        """See `Transport`: it sends nothing."""
        return self._verdict

    async def probe(self) -> Verdict:
        """See `Transport`."""
        return self._verdict

    async def aclose(self) -> None:
        """See `Transport`: there is nothing to release."""
