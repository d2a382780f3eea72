"""Where every event of a team is: the sum is exact, and what the engine lost has a number."""

from typing import Any

import pytest
from rich.console import Console

from agent.cli.views.fleet import fleet_screen
from agent.delivery.batching import Batch
from agent.events import Context, encode_events
from agent.fleet import accounting, message, names, overview
from agent.fleet.accounting import FleetLedger
from agent.fleet.engine import ConsumerState
from agent.fleet.inspection import TeamStatus
from agent.fleet.overview import Counts, Overview, look
from agent.fleet.records import Intent, Part, QueueLedger, Seen, Settled, encode_record
from agent.queue.cursor import Ledger, Outcome, Span
from tests.support import virtual_time
from tests.support.memory_engine import MemoryBroker, MemoryEngine
from tests.support.pipelines import event

pytestmark = pytest.mark.anyio

LINUX, MAC = names.events_subject("web", "linux"), names.events_subject("web", "mac")
NOW = 1_750_000_000.0


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class Fleet:
    """What runners and relays have left in an engine."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()

    def publish(self, subject: str, queue: str, span: Span, ledger: Ledger | None = None, at: float = NOW) -> None:
        """Forward events."""
        lines = encode_events([event(f"h{number}") for number in range(span.length)])
        batch = Batch(Context(), lines, (span,), enqueued_at=at)
        self.broker.publish(subject, lines, message.encode(batch, queue, ledger))

    def record(self, *records: Settled | Seen | Intent) -> None:
        """Write records down."""
        for each in records:
            self.broker.publish(names.ledger_subject("web"), encode_record(each), {})

    async def look(self, snapshot: bytes | None = None) -> Overview:
        """Return what there is."""
        return await look(MemoryEngine(self.broker), "web", snapshot)


def forwarded(count: int, queued: int = 0, expired: int = 0) -> Ledger:
    """Return what a queue says of itself that has forwarded so many."""
    return Ledger(count + queued + expired, 0, 0, {"expired": expired} if expired else {}, queued, forwarded=count)


def settled(outcome: Outcome, subject: str, queue: str, span: Span) -> Settled:
    """Return a record."""
    return Settled(outcome, (Part(subject, queue, (span,)),))


async def test_an_empty_fleet_has_nothing() -> None:
    found = await Fleet().look()
    assert (found.counts, found.pools, found.oldest_event_at, found.in_doubt) == (Counts(), {}, None, 0)


async def test_every_event_is_at_one_place() -> None:
    fleet = Fleet()
    fleet.publish(LINUX, "q1", Span(21, 31), forwarded(20, queued=15, expired=2))
    fleet.publish(MAC, "q2", Span(1, 6), at=NOW - 60)
    fleet.record(
        settled(Outcome.DELIVERED, LINUX, "q1", Span(1, 15)),
        settled(Outcome.DEAD_LETTERED, LINUX, "q1", Span(15, 16)),
        settled(Outcome.EXPIRED, LINUX, "q1", Span(16, 21)),
    )
    found = await fleet.look()
    assert found.pools[LINUX].counts == Counts(30, 14, 1, 5, 10, 0, queued=5, dropped=2)
    assert found.pools[MAC].counts == Counts(forwarded=5, in_stream=5)
    assert found.counts == Counts(35, 14, 1, 5, 15, 0, queued=5, dropped=2)
    assert (found.messages, found.oldest_event_at, found.is_whole) == (2, NOW - 60, True)


async def test_what_was_forwarded_and_is_nowhere_is_lost() -> None:
    fleet = Fleet()
    fleet.record(
        settled(Outcome.DELIVERED, LINUX, "q1", Span(1, 6)),
        Seen((QueueLedger(LINUX, "q1", forwarded(9)),), NOW),
        settled(Outcome.DELIVERED, MAC, "q1", Span(1, 6)),  # of another pool: another queue, whatever its id
    )
    found = await fleet.look()
    assert (found.counts.forwarded, found.counts.delivered, found.counts.lost) == (14, 10, 4)
    assert (found.pools[LINUX].counts.lost, found.pools[LINUX].seen_at, found.pools[MAC].seen_at) == (4, NOW, None)


async def test_events_that_are_twice_in_the_stream_or_settled_already_count_once() -> None:
    fleet = Fleet()
    for _ in range(2):
        fleet.publish(LINUX, "q1", Span(1, 6))
        fleet.broker.forget_ids()
    fleet.record(settled(Outcome.DELIVERED, LINUX, "q1", Span(1, 3)))
    found = await fleet.look()
    assert found.counts == Counts(forwarded=5, delivered=2, in_stream=3)


async def test_requests_without_an_end_are_in_doubt() -> None:
    fleet = Fleet()
    fleet.record(Intent("i1", "r1", (Part(LINUX, "q1", (Span(1, 8),)),)))
    assert (await fleet.look()).in_doubt == 7


async def test_messages_that_say_nothing_are_counted() -> None:
    fleet = Fleet()
    fleet.broker.publish(LINUX, b"rubbish", {})
    found = await fleet.look()
    assert (found.unreadable, found.messages, found.counts) == (1, 1, Counts())


async def test_a_snapshot_shortens_the_reading_and_changes_nothing() -> None:
    fleet = Fleet()
    records = [settled(Outcome.DELIVERED, LINUX, "q1", Span(number, number + 1)) for number in range(1, 10)]
    fleet.record(*records)
    ledger = FleetLedger()
    for seq, each in enumerate(records[:5], 1):
        ledger.apply(each, seq)
    assert (await fleet.look(ledger.encode())).counts == (await fleet.look()).counts == Counts(9, 9)
    assert (await fleet.look(b"rubbish")).counts == Counts(9, 9)


@pytest.mark.parametrize("records", [1, 20], ids=["shorter than before", "longer than before"])
async def test_what_was_settled_stays_so_when_the_ledger_is_made_anew(records: int) -> None:
    fleet, before = Fleet(), FleetLedger()
    before.begin(await MemoryEngine(fleet.broker).stream_state(names.LEDGER))
    for seq in range(1, 10):
        before.apply(settled(Outcome.DELIVERED, MAC, "old", Span(seq, seq + 1)), seq)
    fleet.broker.renew(names.LEDGER)
    fleet.record(*(settled(Outcome.DELIVERED, LINUX, "q1", Span(seq, seq + 1)) for seq in range(1, records + 1)))
    assert (await fleet.look(before.encode())).counts == Counts(9 + records, 9 + records)


async def test_a_pool_that_publishes_too_much_is_looked_at_up_to_a_bound_and_costs_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overview, "MAX_SPANS", 9)
    fleet = Fleet()
    for number in range(1, 9):
        fleet.publish(LINUX, f"q{number}", Span(1, 6))  # each counts two
        fleet.publish(MAC, "q1", Span(10 * number, 10 * number + 1)) if number <= 4 else None
    found = await fleet.look()
    assert (found.messages, found.is_whole) == (12, False)
    assert (found.pools[LINUX].queues, found.pools[LINUX].counts) == (4, Counts(forwarded=20, in_stream=20))
    assert found.pools[MAC].counts == Counts(forwarded=4, in_stream=4)


async def test_ledgers_of_many_reasons_count_as_more_than_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MAX_SPANS", 9)
    fleet = Fleet()
    many = Ledger(9, 0, 0, {f"a reason {number}": 1 for number in range(40)}, 0, forwarded=9)
    fleet.publish(LINUX, "q1", Span(1, 6), many)
    found = await fleet.look()
    assert (found.pools, found.is_whole) == ({}, False)


async def test_it_is_said_that_queues_of_a_pool_were_forgotten_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_KEPT", 2)
    fleet = Fleet()
    fleet.record(*[settled(Outcome.DELIVERED, LINUX, f"q{number}", Span(1, 3)) for number in range(5)])
    found = await fleet.look()
    assert (found.pools[LINUX].queues, found.pools[LINUX].forgotten_early) == (5, 3)
    assert found.counts == Counts(forwarded=10, delivered=10)
    console = Console(width=200)
    with console.capture() as said:
        console.print(fleet_screen("web", TeamStatus(found, ConsumerState(0, 0, 1, None), None), NOW))
    assert "linux had too much to be kept: 3 queues forgotten early" in said.get()
