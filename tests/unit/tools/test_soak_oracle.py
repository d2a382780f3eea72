"""The soak's oracle finds each broken promise, and nothing in an account that is in order."""

from dataclasses import replace
from typing import Any

import pytest

from tests.soak.events import POISON_EVERY, Id, ci_of, fields, identify, is_poisonous, line
from tests.soak.oracle import Bounds, Evidence, Handed, Letter, judge, lost
from tests.support.accounts import ledger

POISON = POISON_EVERY // 2
SENT = 2 * POISON
TAKEN = bytes(index != POISON for index in range(SENT))
DURABLE = Handed(0, durable=True, sent=SENT, acked=SENT, resent=40, dropped=10, taken=TAKEN)
CARELESS = Handed(1, durable=False, sent=30, acked=0, resent=0, dropped=0, taken=bytes([1, 0, 2]))
GOOD = Evidence(
    bounds=Bounds(max_events=10, concurrency=2, segment_events=100),
    ledger=ledger(SENT + 12, delivered=SENT + 1, dead_lettered=1) | {"dropped": {"disk_full": 10}},
    clients=[DURABLE, CARELESS],
    letters=[Letter(7, Id(0, POISON)), Letter(7, Id(0, POISON))],
    taken_events=SENT + 4,
    unanswered=1,
    interruptions=1,
    drop_reasons=frozenset({"disk_full"}),
)


def but(ledger_has: dict[str, Any] | None = None, durable: dict[str, Any] | None = None, **changes: Any) -> Evidence:
    """Return the good account with some of it changed."""
    clients = [replace(DURABLE, **(durable or {})), CARELESS]
    return replace(GOOD, **{"ledger": GOOD.ledger | (ledger_has or {}), "clients": clients} | changes)


def test_an_account_in_order_has_no_problems() -> None:
    assert judge(GOOD) == []
    assert lost(GOOD) == []
    assert (GOOD.repeats, GOOD.most_repeats) == (3, 2 * 10 + 10)


@pytest.mark.parametrize(
    ("evidence", "problem"),
    [
        (but(durable={"taken": TAKEN[:-1]}), "nothing_is_lost: 1 acknowledged events"),
        (but(durable={"taken": b"\x01\x00" + TAKEN[2:]}), "nothing_is_lost: 1 acknowledged events"),
        (but(letters=[], ledger_has={"dead_lettered": 0, "delivered": SENT + 2}), "nothing_is_lost: 1 acknowledged"),
        (but(durable={"acked": SENT - 1}), "nothing_is_lost: client 0 has 1 without ack"),
        (but(durable={"taken": TAKEN + b"\x01"}), f"nothing_is_made_up: client 0 sent {SENT}"),
        (but(invented=["an event"]), "nothing_is_made_up: the server received an event"),
        (but(letters=[*GOOD.letters, Letter(7, None)]), "nothing_is_made_up: dead letter"),
        (but(letters=[*GOOD.letters, Letter(7, Id(0, POISON + POISON_EVERY))]), "nothing_is_made_up: dead letter"),
        (but(letters=[*GOOD.letters, Letter(7, Id(0, 1))]), "only_bad_events_are_refused"),
        (but(letters=[*GOOD.letters, Letter(8, Id(0, POISON))]), "only_bad_events_are_refused: 2 dead letters"),
        (but(letters_discarded=1), "only_bad_events_are_refused: 1 dead letters were discarded"),
        (but(ledger_has={"accepted": SENT + 13}), "the_ledger_is_exact"),
        (but(ledger_has={"queued": 1, "delivered": SENT}), "the_ledger_is_exact"),
        (but(durable={"resent": 0}, clients=[replace(DURABLE, resent=0)]), "the_ledger_is_exact: accepted"),
        (but(durable={"dropped": 11}), "the_ledger_is_exact: clients were told of 11 drops"),
        (but(drop_reasons=frozenset()), "drops_have_reasons: 10 as disk_full"),
        (but(taken_events=SENT), "repeats_are_bounded: -1"),
        (but(taken_events=SENT + 32), "repeats_are_bounded: 31"),
        (but(violations=["a slash"]), "requests_keep_the_contract: a slash"),
        (but(log_problems=["Traceback"]), "the_log_is_clean: Traceback"),
        (but(peak_rss=201 * 1024), "resources_are_bounded"),
        (but(most_new_files=21), "resources_are_bounded"),
        (but(last_new_files=10), "resources_are_bounded"),
    ],
)
def test_a_broken_promise_is_found_and_named(evidence: Evidence, problem: str) -> None:
    (found,) = judge(evidence)
    assert problem in found


def test_drops_that_no_checkpoint_could_keep_may_be_missing_in_the_ledger() -> None:
    assert judge(but(durable={"dropped": 11}, checkpoints_failed=True)) == []


def test_a_failed_file_system_explains_two_segments_of_repeats() -> None:
    assert but(disk_losses=1).most_repeats - GOOD.most_repeats == 2 * 10 + 2 * 100


@pytest.mark.parametrize("index", [0, 1, 299, 300, POISON, 10**9])
def test_an_event_is_known_by_its_content_alone(index: int) -> None:
    event = fields(Id(3, index))
    assert identify(event) == Id(3, index)
    for key in event:
        assert identify({name: value for name, value in event.items() if name != key}) is None
        assert identify(event | {key: "other"}) is None
    assert line(Id(3, index)).endswith(b"}\n")


def test_clients_send_poison_and_two_contexts() -> None:
    assert {is_poisonous(index) for index in range(POISON_EVERY)} == {True, False}
    assert {ci_of(index) for index in range(1000)} == {"GITHUB_ACTIONS", None}
