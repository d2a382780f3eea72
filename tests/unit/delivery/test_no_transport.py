"""A transport to a destination that cannot be asked: nothing is sent, and whoever asks is told why."""

import pytest

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, NoTransport, Verdict
from agent.events import Context


@pytest.mark.anyio
async def test_it_sends_nothing_and_says_why() -> None:
    transport = NoTransport("no token")
    batch = Batch(Context(), b"", ())
    assert await transport.send(batch) == await transport.probe() == Verdict(Kind.MISCONFIGURED, "no token")
    await transport.aclose()
