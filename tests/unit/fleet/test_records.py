"""The records of a fleet come back as they went, and what is none changes nothing."""

import pytest

from agent.fleet.records import (
    Intent,
    Part,
    QueueLedger,
    Record,
    Released,
    Seen,
    Settled,
    decode_record,
    encode_record,
    event_count,
)
from agent.queue.cursor import Ledger, Outcome, Span

PARTS = (Part("aa.e.web.linux", "q1", (Span(1, 4), Span(9, 10))), Part("aa.e.web.mac", "q2", (Span(1, 2),)))


@pytest.mark.parametrize(
    "record",
    [
        Intent("i1", "r1", PARTS),
        Released("i1"),
        Settled(Outcome.DELIVERED, PARTS, "i1"),
        Settled(Outcome.EXPIRED, PARTS),
        Seen((QueueLedger("aa.e.web.linux", "q1", Ledger(3, 2, 0, {"expired": 1}, 0)),), 1_750_000_000.0),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_comes_back_as_it_went(record: Record) -> None:
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"type": "tomorrow"}', b'{"type": "intent"}'])
def test_what_is_no_record_changes_nothing(body: bytes) -> None:
    assert decode_record(body) is None


def test_the_events_of_all_parts_are_counted() -> None:
    assert event_count(PARTS) == 5
