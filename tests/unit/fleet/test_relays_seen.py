"""Which relays were at work: the last ones that wrote requests down, whoever reads it from whatever snapshot."""

import pytest
from rich.console import Console

from agent.cli.views.fleet import fleet_screen
from agent.fleet import accounting, names
from agent.fleet.accounting import FleetLedger, RelaySeen
from agent.fleet.engine import ConsumerState
from agent.fleet.inspection import TeamStatus
from agent.fleet.overview import InStream, RelayAtWork, account
from agent.fleet.records import Intent, Part, Record, Released, Settled
from agent.queue.cursor import Outcome, Pause, Span

NOW = 1_750_000_000.0
LINUX = names.events_subject("web", "linux")


def intent(relay: str, number: int) -> Intent:
    """Return what a relay writes down before a request."""
    return Intent(f"{relay}-{number}", relay, (Part(LINUX, "q", (Span(number, number + 1),)),))


def fold(*records: tuple[Record, float], ledger: FleetLedger | None = None) -> FleetLedger:
    """Return the accounts after records, each with its time."""
    ledger = ledger or FleetLedger()
    for record, at in records:
        ledger.apply(record, ledger.seq + 1, at)
    return ledger


def test_a_relay_is_known_by_its_first_request_and_its_last_and_by_those_that_are_open() -> None:
    ledger = fold(
        (intent("vm-a-1", 1), NOW),
        (intent("vm-a", 2), NOW + 1),
        (intent("vm-a-1", 3), NOW + 2),
        (intent("vm-a-1", 3), NOW + 9),  # a copy that came late
        (Settled(Outcome.DELIVERED, (), "vm-a-1-1"), NOW + 3),
        (Released("vm-a-2"), NOW + 4),
    )
    assert ledger.relays == {"vm-a": RelaySeen(NOW + 1, NOW + 1), "vm-a-1": RelaySeen(NOW, NOW + 2)}
    found = account(ledger, InStream()).relays
    assert [*found.items()] == [
        ("vm-a", RelayAtWork(NOW + 1, NOW + 1, 0)),
        ("vm-a-1", RelayAtWork(NOW, NOW + 2, 1)),
    ]


def test_those_that_were_heard_of_last_are_kept_and_a_snapshot_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_RELAYS", 2)
    ledger = fold((intent("a", 1), NOW), (intent("b", 1), NOW + 1), (intent("a", 2), NOW + 2))
    again = FleetLedger.decode(ledger.encode())
    assert again is not None
    for each in (ledger, again):
        fold((intent("c", 1), NOW + 3), ledger=each)
        assert [*each.relays.items()] == [("a", RelaySeen(NOW, NOW + 2)), ("c", RelaySeen(NOW + 3, NOW + 3))]
    assert again.encode() == ledger.encode()


def _shown(status: TeamStatus, now: float) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(fleet_screen("web", status, now))
    return captured.get()


@pytest.mark.parametrize(
    ("probe_at", "said"),
    [
        (NOW + 125, "the next probe is in 2 min 5 s, or at once with `artifacts-agent fleet resume`"),
        (NOW - 1, "a probe is due, or under way"),
        (float("inf"), "it is not probed"),
    ],
)
def test_the_screen_says_why_a_team_is_paused_and_when_it_is_probed(probe_at: float, said: str) -> None:
    pause = Pause("blocked", "402 Payment Required", NOW - 60, probe_at, 1)
    status = TeamStatus(account(FleetLedger(), InStream()), ConsumerState(0, 0, 0, None), pause)
    assert f"paused for 1 min: 402 Payment Required; {said}" in _shown(status, NOW)


def test_the_screen_has_those_of_the_hour_and_says_when_nobody_takes_what_waits() -> None:
    ledger = fold((intent("old", 1), NOW - 3_700), (intent("a", 1), NOW - 7200), (intent("a", 2), NOW - 120))
    overview = account(ledger, InStream())
    text = _shown(TeamStatus(overview, ConsumerState(3, 2, 0, NOW - 120), None), NOW)
    assert "relay a: first request 2 h ago, last one 2 min ago, 2 under way or in doubt" in text
    assert "paused" not in text
    assert "relay old" not in text
    assert "3 wait, 2 held by relays; the last one was taken 2 min ago; 0 requests for more" in text
