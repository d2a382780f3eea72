"""Forwarding: batches go to a fleet's engine, which keeps them until a relay has delivered them."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, Verdict
from agent.fleet.engine import Engine, EngineError, MessageTooLargeError, NotPermittedError
from agent.fleet.message import MAX_SPANS, encode, encode_ledger
from agent.queue.cursor import Ledger, Outcome

LEDGER_SECONDS = 30.0
LEDGER_MESSAGES = 100
LAST_SECONDS = 2.0
"""What the last message may take, which brings nothing but the ledger."""


class Queue(NamedTuple):
    """A queue as the fleet knows it: an id that no other queue has, and its ledger."""

    id: str
    ledger: Callable[[], Ledger]


class NatsTransport:
    """See `agent.delivery.transport.Transport`: a batch is a message of its own, and is accepted once the engine has it durably.

    Every LEDGER_MESSAGES or LEDGER_SECONDS one brings the queue's ledger, so that a machine that vanishes leaves a last count.
    """

    def __init__(self, engine: Engine, subject: str, identify: Callable[[], Awaitable[Queue]]) -> None:
        """`identify` is called before the first message. The engine is closed with the transport."""
        self._engine = engine
        self._subject = subject
        self._identify = identify
        self._identifying = anyio.Lock()
        self._queue: Queue | None = None
        self._ledger_due_at = float("-inf")
        self._messages = 0  # since the last ledger
        self._reached = False  # whether the engine took the last message

    async def send(self, batch: Batch) -> Verdict:
        """See `Transport`."""
        if len(batch.spans) > MAX_SPANS:
            return Verdict(Kind.TOO_LARGE, f"{len(batch.spans)} stretches of numbers are more than {MAX_SPANS}")
        queue = await self._identified()
        ledger = queue.ledger() if self._ledger_is_due() else None
        self._reached = False
        try:
            try:
                await self._publish(batch, queue.id, ledger)
            except MessageTooLargeError:
                if ledger is None:
                    raise
                ledger = None
                await self._publish(batch, queue.id, None)
        except MessageTooLargeError as error:
            return Verdict(Kind.TOO_LARGE, str(error))
        except NotPermittedError as error:
            return Verdict(Kind.BLOCKED, str(error))
        except EngineError as error:
            return Verdict(Kind.TRANSIENT, str(error))
        self._reached = True
        self._messages = 1 if ledger is not None else self._messages + 1
        if ledger is not None:
            self._ledger_due_at = anyio.current_time() + LEDGER_SECONDS
        return Verdict(Kind.ACCEPTED, outcome=Outcome.FORWARDED)

    async def _identified(self) -> Queue:
        async with self._identifying:
            if self._queue is None:
                self._queue = await self._identify()
            return self._queue

    async def _publish(self, batch: Batch, queue: str, ledger: Ledger | None) -> None:
        await self._engine.publish(self._subject, batch.lines, encode(batch, queue, ledger))

    def _ledger_is_due(self) -> bool:
        return self._messages >= LEDGER_MESSAGES or anyio.current_time() >= self._ledger_due_at

    async def probe(self) -> None:
        """See `Transport`: only a message shows whether the engine takes it."""

    async def aclose(self) -> None:
        """See `Transport`. Says what has become of all events, if the engine took the last of them."""
        if self._reached and (queue := self._queue) is not None:
            with anyio.move_on_after(LAST_SECONDS, shield=True):
                with contextlib.suppress(EngineError):  # the one before has to do
                    await self._engine.publish(self._subject, b"", encode_ledger(queue.id, queue.ledger()))
        await self._engine.aclose()
