"""A stream that is read in order, over nats-py."""

import contextlib
from collections.abc import Sequence
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from agent.fleet.engine import EngineError, Message
from agent.fleet.nats_connection import Dialer, Link

IDLE_SECONDS: Final = 60.0
"""After so long without a call the server forgets a consumer by itself."""


class NatsReader:
    """See `agent.fleet.engine.Reader`: a consumer that is made anew, from where it was, whenever something is wrong with it."""

    def __init__(self, dialer: Dialer, stream: str, subject: str, after: int) -> None:
        self._dialer = dialer
        self._stream = stream
        self._subject = subject
        self._after = after
        self._consumer: tuple[Link, JetStreamContext.PullSubscription] | None = None
        self._delivered = 0

    async def read(self, most: int, seconds: float) -> Sequence[Message]:
        """See `Reader`."""
        if self._consumer is None or not self._consumer[0].is_open:
            self._consumer = await self._open()
            self._delivered = 0
        link, pull = self._consumer
        try:
            found = await link.pull(pull, most, seconds)
        except EngineError:
            await self.aclose()
            raise
        messages = []
        for each in found:
            if each.metadata.sequence.consumer != self._delivered + 1:  # one was lost on the way here
                await self.aclose()
                break
            self._delivered += 1
            messages.append(message_of(each))
        if messages:
            self._after = messages[-1].seq
        return messages

    async def aclose(self) -> None:
        """See `Reader`: the server forgets the consumer by itself."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None and consumer[0].is_open:
            with contextlib.suppress(nats.errors.Error):
                await consumer[1].unsubscribe()

    async def _open(self) -> tuple[Link, JetStreamContext.PullSubscription]:
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._after + 1,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=IDLE_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        link = await self._dialer.link()
        return link, await link.call(link.stream.pull_subscribe(self._subject, stream=self._stream, config=config))


def message_of(delivered: Msg) -> Message:
    """Return what a consumer has delivered."""
    found = delivered.metadata
    return Message(
        delivered.subject,
        delivered.headers or {},
        delivered.data,
        found.sequence.stream,
        found.num_delivered or 1,
        delivered.reply,
        found.timestamp.timestamp(),
    )
