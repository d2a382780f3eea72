"""The seam between a worker and the others that deliver for the same account: when a request may begin, and who probes.

`LocalTurns` is for a worker that knows of no others; `agent.fleet.shared` has the one that relays share.
"""

from typing import Protocol

import anyio


class Turns(Protocol):
    """Says which requests with events may be made, and when. Times are on the steady clock.

    Nothing here raises for what cannot be found out now: then no request begins.
    """

    @property
    def next_at(self) -> float:
        """Before when it is no use to decide on a request; `-inf` if it is, as far as is known."""

    def reconfigure(self, requests_per_minute: int | None) -> None:
        """Let so many requests begin in a minute from now on; None for any number."""

    def note_begun(self) -> None:
        """Say that a request was decided on."""

    async def take(self, *, probing: bool) -> bool:
        """Wait for the turn of a request that was decided on; False if it may not be made, because others paused delivery.

        With `probing` it is the probe of that pause.
        """

    async def may_probe(self) -> float:
        """Ask to be the one that probes; return 0 if so, or for how many seconds not to ask again."""

    async def end_probe(self) -> None:
        """Let others probe again, once they can know what came of it."""


class LocalTurns:
    """See `Turns`: those of one worker alone."""

    def __init__(self, requests_per_minute: int | None) -> None:
        self.next_at = float("-inf")
        self._requests_per_minute = requests_per_minute

    def reconfigure(self, requests_per_minute: int | None) -> None:
        """See `Turns`."""
        self._requests_per_minute = requests_per_minute

    def note_begun(self) -> None:
        """See `Turns`: the next one's turn comes after this one's, even where this one was not waited for."""
        if self._requests_per_minute is not None:
            self.next_at = max(self.next_at, anyio.current_time()) + 60 / self._requests_per_minute

    async def take(self, *, probing: bool) -> bool:
        """See `Turns`: it was waited for before it was decided on."""
        return True

    async def may_probe(self) -> float:
        """See `Turns`: there is nobody else."""
        return 0.0

    async def end_probe(self) -> None:
        """See `Turns`."""
