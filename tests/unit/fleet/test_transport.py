"""Forwarding, over an engine in memory: one batch is one message, and what the engine says becomes a verdict."""

import anyio
import pytest

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, Verdict
from agent.events import Context, encode_events
from agent.fleet import names
from agent.fleet.message import MAX_SPANS, Events, decode
from agent.fleet.transport import LEDGER_MESSAGES, LEDGER_SECONDS, NatsTransport, Queue
from agent.queue.cursor import Ledger, Outcome, Span
from tests.support.memory_engine import MemoryBroker, MemoryEngine
from tests.support.pipelines import batch_of, events, numbered

pytestmark = pytest.mark.anyio

QUEUE = "c3" * 16
SUBJECT = names.events_subject("web", "ci")
ACCEPTED = Verdict(Kind.ACCEPTED, outcome=Outcome.FORWARDED)


class Runner:
    """A transport, and the ledger of its queue, which the test sets."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.ledger = Ledger(10, 0, 0, {}, 10)
        self.engine = MemoryEngine(broker)
        self.transport = NatsTransport(self.engine, SUBJECT, self.identify)

    async def identify(self) -> Queue:
        """Say whose events they are."""
        return Queue(QUEUE, lambda: self.ledger)

    def messages(self) -> list[Events]:
        """What the stream holds, as relays understand it."""
        found = self.broker.streams[names.EVENTS].messages.values()
        assert {message.subject for message in found} <= {SUBJECT}
        return [decode(message.headers, message.body) for message in found]


def numbered_batch(start: int, *hashes: str) -> Batch:
    lines = encode_events(events(*hashes))
    return Batch(Context("GITHUB_ACTIONS", 0), lines, (Span(start, start + len(hashes)),), enqueued_at=12.5)


async def test_a_batch_is_a_message_that_says_whose_events_it_has() -> None:
    runner, batch = Runner(MemoryBroker()), numbered_batch(4, "h1", "h2")
    assert await runner.transport.send(batch) == ACCEPTED
    (message,) = runner.messages()
    context = Context("GITHUB_ACTIONS", 0)
    assert message == Events(QUEUE, (Span(4, 6),), context, batch.lines, 12.5, runner.ledger)


async def test_what_is_sent_again_after_a_lost_answer_is_kept_once() -> None:
    runner, batch = Runner(MemoryBroker()), numbered_batch(1, "h1")
    runner.broker.lose_answers = 1
    assert await runner.transport.send(batch) == Verdict(Kind.TRANSIENT, "no answer")
    assert await runner.transport.send(batch) == ACCEPTED
    assert len(runner.messages()) == 1


@pytest.mark.parametrize(
    ("trouble", "verdict"),
    [
        ({"down": True}, Verdict(Kind.TRANSIENT, "no server answers")),
        ({"full": {names.EVENTS}}, Verdict(Kind.TRANSIENT, "maximum bytes exceeded")),
        ({"denied": {SUBJECT}}, Verdict(Kind.BLOCKED, f'permissions violation for publish to "{SUBJECT}"')),
    ],
)
async def test_what_the_engine_cannot_do_now_is_a_verdict_and_no_event_is_lost(
    trouble: dict[str, object], verdict: Verdict
) -> None:
    runner = Runner(MemoryBroker())
    for name, value in trouble.items():
        setattr(runner.broker, name, value)
    assert await runner.transport.send(numbered_batch(1, "h1")) == verdict
    assert runner.messages() == []


async def test_a_batch_that_no_message_holds_is_too_large_headers_included() -> None:
    runner = Runner(MemoryBroker(max_payload=1000))
    large = await runner.transport.send(batch_of(events(*numbered(20))))
    assert large.kind is Kind.TOO_LARGE
    assert "the server takes 1000" in large.message
    spans = tuple(Span(start, start + 1) for start in range(1, 2 * MAX_SPANS + 3, 2))
    lines = encode_events(events(*numbered(len(spans))))
    scattered = await Runner(MemoryBroker()).transport.send(Batch(Context(), lines, spans))
    assert scattered.kind is Kind.TOO_LARGE


async def test_the_ledger_is_left_out_where_it_would_make_a_message_too_large() -> None:
    whole = Runner(MemoryBroker())
    whole.ledger = Ledger(10, 0, 0, {"expired": 1}, 9)
    batch = numbered_batch(1, "h1")
    await whole.transport.send(batch)
    (message,) = whole.broker.streams[names.EVENTS].messages.values()
    size = len(message.body) + 12 + sum(len(name) + len(value) + 4 for name, value in message.headers.items())
    runner = Runner(MemoryBroker(max_payload=size - 1))
    runner.ledger = whole.ledger
    assert await runner.transport.send(batch) == ACCEPTED
    assert runner.messages()[0].ledger is None


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_now_and_then_a_message_brings_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    runner = Runner(MemoryBroker())
    for seq in range(1, LEDGER_MESSAGES + 3):
        await runner.transport.send(numbered_batch(seq, f"h{seq}"))
    assert [index for index, each in enumerate(runner.messages()) if each.ledger] == [0, LEDGER_MESSAGES]
    now += LEDGER_SECONDS
    await runner.transport.send(numbered_batch(1000, "h"))
    assert runner.messages()[-1].ledger == runner.ledger


async def test_at_its_end_it_brings_the_last_ledger() -> None:
    runner = Runner(MemoryBroker())
    await runner.transport.send(numbered_batch(1, "h1"))
    runner.ledger = Ledger(10, 0, 0, {}, 9, 0, 1)
    await runner.transport.aclose()
    assert runner.messages()[-1] == Events(QUEUE, (), Context(), b"", None, runner.ledger)
    assert runner.engine.closed


async def test_it_ends_without_a_word_where_nothing_was_forwarded_or_the_engine_is_gone() -> None:
    idle, cut_off = Runner(MemoryBroker()), Runner(MemoryBroker())
    await cut_off.transport.send(numbered_batch(1, "h1"))
    cut_off.broker.down = True
    for each in (idle, cut_off):
        await each.transport.aclose()
        assert each.engine.closed
    assert (idle.messages(), len(cut_off.messages())) == ([], 1)
