"""The soak's oracle finds each broken promise, and nothing in an account that is in order."""

from dataclasses import replace
from typing import Any

import pytest

from tests.soak.cast import ACCOUNTS, CLIENTS, account_of, clients_of
from tests.soak.events import POISON_EVERY, Id, ci_of, fields, identify, is_poisonous, line
from tests.soak.oracle import Account, Bounds, Evidence, Handed, Letter, judge
from tests.support.accounts import ledger

POISON = POISON_EVERY // 2
SENT = 2 * POISON
TAKEN = bytes(index != POISON for index in range(SENT))
DURABLE = Handed(0, durable=True, sent=SENT, acked=SENT, resent=40, dropped=10, taken=TAKEN)
CARELESS = Handed(1, durable=False, sent=30, acked=0, resent=0, dropped=0, taken=bytes([1, 0, 2]))
DEFAULT = Account(
    "default",
    ledgers={"default": ledger(SENT + 12, delivered=SENT + 1, dead_lettered=1) | {"dropped": {"disk_full": 10}}},
    clients=[DURABLE, CARELESS],
    letters=[Letter(7, Id(0, POISON)), Letter(7, Id(0, POISON))],
    taken_events=SENT + 4,
    unanswered=1,
    drop_reasons=frozenset({"disk_full"}),
)
ASKED = {
    "full": {"sent": 70, "durable": 60, "rate_limited": 6, "denied": 4},
    "full-renamed": {"sent": 40, "durable": 40},
}
FULL = Account(
    "full",
    ledgers={
        "full": ledger(66, delivered=50) | {"dropped": {"rate_limited": 6, "overflow": 10}},
        "full-renamed": ledger(40, delivered=40),
    },
    clients=[Handed(6, True, 100, 100, 10, 10, taken=bytes(90), asked=ASKED)],
    taken_events=90,
    drop_reasons=frozenset({"overflow", "rate_limited"}),
)
FULL = replace(FULL, clients=[replace(FULL.clients[0], taken=bytes(10) + b"\x01" * 90)])
GOOD = Evidence(
    bounds=Bounds(max_events=10, concurrency=2, segment_events=100), accounts=[DEFAULT, FULL], interruptions=1
)


def but(ledger_has: dict[str, Any] | None = None, durable: dict[str, Any] | None = None, **changes: Any) -> Evidence:
    """Return the good account with some of it changed."""
    clients = [replace(DURABLE, **(durable or {})), CARELESS]
    ledgers = {"default": DEFAULT.ledger | (ledger_has or {})}
    of_account = {key: value for key, value in changes.items() if hasattr(DEFAULT, key)}
    default = replace(DEFAULT, **{"ledgers": ledgers, "clients": clients} | of_account)
    rest = {key: value for key, value in changes.items() if key not in of_account}
    return replace(GOOD, accounts=[default, FULL], **rest)


def full(
    asked: dict[str, dict[str, int]] | None = None, ledgers: dict[str, dict[str, Any]] | None = None, **changes: Any
) -> Evidence:
    """Return the good account with some of the full destination changed."""
    clients = [replace(FULL.clients[0], asked={**ASKED, **(asked or {})})]
    changed = {name: {**each, **(ledgers or {}).get(name, {})} for name, each in FULL.ledgers.items()}
    return replace(GOOD, accounts=[DEFAULT, replace(FULL, **{"clients": clients, "ledgers": changed} | changes)])


def test_an_account_in_order_has_no_problems() -> None:
    assert judge(GOOD) == []
    assert [(each.lost, len(each.missing)) for each in GOOD.accounts] == [(0, 0), (0, 10)]
    assert [each.repeats for each in GOOD.accounts] == [3, 0]
    assert [GOOD.most_repeats(each) for each in GOOD.accounts] == [2 * 10 + 10, 2 * 2 * 10]


@pytest.mark.parametrize(
    ("evidence", "problem"),
    [
        (but(durable={"taken": TAKEN[:-1]}), "nothing_is_lost: default: 1 acknowledged events"),
        (but(durable={"taken": b"\x01\x00" + TAKEN[2:]}), "nothing_is_lost: default: 1 acknowledged events"),
        (
            but(letters=[], ledger_has={"dead_lettered": 0, "delivered": SENT + 2}),
            "nothing_is_lost: default: 1 acknowledged",
        ),
        (but(durable={"acked": SENT - 1}), "nothing_is_lost: default: client 0 has 1 without ack"),
        (but(durable={"taken": TAKEN + b"\x01"}), f"nothing_is_made_up: default: client 0 sent {SENT}"),
        (but(invented=["an event"]), "nothing_comes_from_nobody: the server received an event"),
        (but(letters=[*DEFAULT.letters, Letter(7, None)]), "nothing_is_made_up: default: dead letter"),
        (
            but(letters=[*DEFAULT.letters, Letter(7, Id(0, POISON + POISON_EVERY))]),
            "nothing_is_made_up: default: dead letter",
        ),
        (but(letters=[*DEFAULT.letters, Letter(7, Id(0, 1))]), "only_bad_events_are_refused"),
        (
            but(letters=[*DEFAULT.letters, Letter(8, Id(0, POISON))]),
            "only_bad_events_are_refused: default: 2 dead letters in default",
        ),
        (but(letters_discarded=1), "only_bad_events_are_refused: default: 1 dead letters were discarded"),
        (but(ledger_has={"accepted": SENT + 13}), "the_ledger_is_exact"),
        (but(ledger_has={"queued": 1, "delivered": SENT}), "the_ledger_is_exact"),
        (
            but(durable={"resent": 0}, clients=[replace(DURABLE, resent=0)]),
            "the_ledger_is_exact: default: accepted",
        ),
        (but(durable={"dropped": 11}), "the_ledger_is_exact: default: clients were told of 11 drops"),
        (but(drop_reasons=frozenset()), "drops_have_reasons: default: 10 as disk_full"),
        (but(taken_events=SENT), "repeats_are_bounded: default: -1"),
        (but(taken_events=SENT + 32), "repeats_are_bounded: default: 31"),
        (but(violations=["a slash"]), "requests_keep_the_contract: a slash"),
        (but(log_problems=["Traceback"]), "the_log_is_clean: Traceback"),
        (but(peak_rss=201 * 1024), "resources_are_bounded"),
        (but(most_new_files=21), "resources_are_bounded"),
        (but(last_new_files=10), "resources_are_bounded"),
        (
            full(ledgers={"full": {"delivered": 51, "dropped": {"rate_limited": 6, "overflow": 9}}}, taken_events=91),
            "nothing_is_lost: full: 1 acknowledged events",
        ),
        (full(asked={"full-renamed": {"sent": 41, "durable": 41}}), "full-renamed: accepted 40, not from 41 to 41"),
        (
            full(asked={"full": {"sent": 69, "durable": 60, "rate_limited": 6, "denied": 4}}),
            "full: accepted 66, not from 60 to 65",
        ),
        (
            full(asked={"full": {"sent": 70, "durable": 59, "rate_limited": 7, "denied": 4}}),
            "full: 7 were dropped as rate_limited, the ledger says",
        ),
        (
            full(
                ledgers={"full": {"delivered": 49, "dead_lettered": 1}},
                letters=[Letter(3, Id(6, POISON), "full")],
                taken_events=89,
            ),
            "nothing_is_made_up: full: dead letter",
        ),
        (full(letters=[Letter(3, Id(6, POISON), "elsewhere")]), "nothing_is_made_up: full: dead letter"),
    ],
)
def test_a_broken_promise_is_found_and_named(evidence: Evidence, problem: str) -> None:
    (found,) = judge(evidence)
    assert problem in found


def test_drops_that_no_checkpoint_could_keep_may_be_missing_in_the_ledger() -> None:
    assert judge(but(durable={"dropped": 11}, checkpoints_failed=True)) == []


def test_a_failed_file_system_explains_two_segments_of_repeats() -> None:
    default = GOOD.accounts[0]
    assert but(disk_losses=1).most_repeats(default) - GOOD.most_repeats(default) == 2 * 10 + 2 * 100


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


def test_each_account_has_one_client_whose_events_are_known_as_its_own() -> None:
    assert [account_of(number) for number in range(len(CLIENTS))][-len(ACCOUNTS) :] == [each.name for each in ACCOUNTS]
    for number in range(len(CLIENTS)):
        assert identify(fields(Id(number, 5))) == Id(number, 5)
    assert identify(fields(Id(0, 5)) | {"sessionId": f"soak-{len(CLIENTS)}"}) is None
    assert {each.account for each in clients_of(0)} == {None}
    assert clients_of(len(ACCOUNTS)) == CLIENTS
