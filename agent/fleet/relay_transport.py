"""The transport of a relay: writes each request down before it is made, and says so afterwards if the API took nothing of it."""

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, Transport, Verdict
from agent.fleet.backlog import StreamBacklog

_OF_A_GATEWAY = frozenset({502, 504})  # what stands behind it may have taken the events, and not been heard


def took_nothing(verdict: Verdict) -> bool:
    """Whether it is certain that no event was taken: nothing was sent, or an answer says so."""
    return verdict.unsent or (
        verdict.kind is not Kind.ACCEPTED and verdict.status is not None and verdict.status not in _OF_A_GATEWAY
    )


class RelayTransport:
    """See `Transport`: sends by another one what the backlog has written down."""

    def __init__(self, transport: Transport, backlog: StreamBacklog) -> None:
        self._transport = transport
        self._backlog = backlog

    async def send(self, batch: Batch) -> Verdict:
        """See `Transport`."""
        refused = await self._backlog.write_intent(batch)
        if refused is not None:
            return refused
        verdict = await self._transport.send(batch)
        await self._backlog.note_answer(batch, verdict, took_nothing=took_nothing(verdict))
        return verdict

    async def probe(self) -> Verdict | None:
        """See `Transport`: it says nothing of events."""
        return await self._transport.probe()

    async def aclose(self) -> None:
        """See `Transport`."""
        await self._transport.aclose()
