"""The status screen: from the control socket's JSON to what a person reads."""

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from agent.cli.views.status import DROPS, screen
from agent.cli.views.words import amount, duration, size
from agent.control.schema import decode_status
from agent.queue.cursor import DROP_REASONS
from agent.usage.counting import Totals
from agent.usage.day import Day

NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def status(**changes: Any) -> dict[str, Any]:
    ledger = {"accepted": 10, "delivered": 10, "dead_lettered": 0, "dropped": {}, "queued": 0}
    destination: dict[str, Any] = {
        "state": "running",
        "reason": None,
        "since": None,
        "until": None,
        "ledger": ledger | changes.pop("ledger", {}),
        "oldest_event_age": None,
        "last_delivery_at": "2023-11-14T22:12:50.000Z",
        "requests": 3,
        "queue": {"bytes": 20, "segments": 1, "quarantined": 0},
        "storage_error": None,
    }
    head = {"version": "9.9.9", "pid": 77, "uptime": 3700.5, "connections": 1, "rejected": changes.pop("rejected", 0)}
    return head | {"destinations": {"default": destination | changes}}


def shown(report: dict[str, Any], width: int = 120, usage: Day | str | None = None, token: str | None = None) -> str:
    file = io.StringIO()
    usages = {} if usage is None else {"default": usage}
    tokens = {} if token is None else {"default": token}
    rendered = screen(decode_status(msgspec.json.encode(report)), NOW, usages, tokens)
    Console(file=file, width=width, force_terminal=False).print(rendered)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def test_a_daemon_in_good_order_shows_so() -> None:
    lines = [line.strip() for line in shown(status()).splitlines()]
    assert lines == [
        "artifacts-agent 9.9.9 · pid 77 · up 1 h 1 min · 1 connection",
        "",
        "default",
        "delivery       delivering: nothing waits",
        "queued         nothing, 20 B on disk",
        "last delivery  30 s ago, at 2023-11-14 22:12:50 UTC (3 requests)",
        "dropped        none",
        "dead letters   none",
        "rejected       none",
        "ledger         10 accepted = 10 delivered + 0 dead-lettered + 0 dropped + 0 queued",
    ]


def test_a_pause_shows_the_reason_since_when_and_when_the_server_is_asked_again() -> None:
    text = shown(
        status(
            state="paused",
            reason="blocked: 402 Payment Required: over the [bold]limit[/nonsense]",
            since="2023-11-14T22:10:00.000Z",
            until="2023-11-14T22:18:25.000Z",
        )
    )
    assert "paused: blocked: 402 Payment Required: over the [bold]limit[/nonsense]" in text
    assert "for 3 min 20 s; asks the server again in 5 min 5 s, at 2023-11-14 22:18:25 UTC" in text


def test_where_delivery_fails_it_is_said_when_a_server_answered_last_and_what() -> None:
    failing = {"state": "backing_off", "reason": "connection refused", "since": "2023-11-14T22:13:10.000Z"}
    answer = {"last_answer_at": "2023-11-14T22:11:20.000Z", "last_answer": "503 Service Unavailable: [b]Down"}
    said = "last answer    2 min ago, at 2023-11-14 22:11:20 UTC: 503 Service Unavailable: [b]Down\n"
    assert said in shown(status(**failing, **answer))
    assert "last answer" not in shown(status(**answer))  # of one event that is refused, say
    accepted = {"last_answer_at": "2023-11-14T22:12:50.000Z", "last_answer": "200"}
    assert "last answer" not in shown(status(**failing, **accepted))  # the line above has it


def test_a_failure_that_may_be_older_than_the_daemon_is_said_to_be() -> None:
    until = {"until": "2023-11-14T22:13:30.000Z", "since": "2023-11-14T22:13:10.000Z"}
    failing = {"state": "backing_off", "reason": "connection refused", "last_delivery_at": None, **until}
    older = "for 10 s or longer, as none was delivered since the start; tries again in 10 s"
    assert older in shown(status(**failing, oldest_event_age=7200.0))
    for known in ({"oldest_event_age": 12.0}, {"oldest_event_age": 7200.0, "last_delivery_at": until["since"]}):
        assert "for 10 s; tries again in 10 s" in shown(status(**{**failing, **known}))


@pytest.mark.parametrize("answer", ["401 Unauthorized", "403 Forbidden"])
def test_a_token_that_is_refused_says_where_to_look_and_what_to_do(answer: str) -> None:
    report = status(state="paused", reason=f"blocked: {answer}: no")
    advice = "and the team, and ask with `artifacts-agent check --online`; a new token in its file is tried at once"
    assert f"look at the token (api.token_file, /etc/t) {advice}" in shown(report, 300, token="api.token_file, /etc/t")
    where = "api.token_file, the service's credential, or a variable"
    assert f"look at the token ({where}) {advice}" in shown(report, 300)
    assert "look at the token" not in shown(status(state="paused", reason="blocked: 402 Payment Required"), 300)


def test_the_last_day_is_shown_where_it_has_been_counted_and_says_how_old_that_is() -> None:
    counted = "(counted 1 min 5 s ago; `artifacts-agent report` counts what is new)"
    totals = Totals(
        local_hits=100, remote_hits=20, misses=7, unanswered=3, local_saved_ms=600_000, remote_saved_ms=62_000
    )
    text = shown(status(), 300, usage=Day(totals, NOW - 65))
    assert text.endswith(
        f"\n\ncache\n  last 24 h  92 % hits: 120 of 130 tasks, 11m02s of task time saved, 3 unanswered {counted}\n"
    )
    assert "unanswered" not in shown(status(), 300, usage=Day(Totals(local_hits=1, misses=1), NOW))
    assert f"last 24 h  no tasks {counted}" in shown(status(), usage=Day(Totals(), NOW - 65))
    assert "last 24 h  not known: it is [bold]locked" in shown(status(), usage="it is [bold]locked")
    assert "last 24 h" not in shown(status())


@pytest.mark.parametrize(
    ("totals", "warned"),
    [
        (Totals(local_hits=500, unanswered=19), False),  # too few to tell
        (Totals(local_hits=500, unanswered=20), True),
        (Totals(misses=100, unanswered=100), False),
        (Totals(misses=50, remote_hits=50, unanswered=101), True),
    ],
)
def test_a_remote_cache_that_does_not_answer_is_warned_of(totals: Totals, warned: bool) -> None:
    text = shown(status(), 300, usage=Day(totals, NOW))
    said = f"{totals.unanswered} of {totals.tasks - totals.local_hits} tasks that the local cache did not have got no answer"
    assert (f"{said} from the remote cache: it was off in these builds, or failing" in text) == warned


def test_an_operators_pause_says_how_to_end_it() -> None:
    text = shown(status(state="paused", reason="operator: paused by an operator", since="2023-11-14T22:13:10.000Z"))
    assert "delivery       paused by an operator\n" in text
    assert "for 10 s; until `artifacts-agent resume`" in text


def test_who_has_sent_more_than_a_share_is_named() -> None:
    over = [{"uid": uid, "events": 3, "bytes": 2048} for uid in (65534, None, 0, 1, 2)]
    text = shown(status(ledger={"dropped": {"quota": 15}}, over_quota=over))
    assert "15 events: 15 quota (beyond their sender's share)" in text
    assert "beyond their share: uid 65534 (2.0 KiB), TCP (2.0 KiB), uid 0 (2.0 KiB), 2 others\n" in text


def test_backing_off_shows_the_failure_and_the_next_attempt() -> None:
    text = shown(status(state="backing_off", reason="503 Service Unavailable", until="2023-11-14T22:13:32.000Z"))
    assert "backing off: 503 Service Unavailable" in text
    assert "tries again in 12 s, at 2023-11-14 22:13:32 UTC" in text


def test_what_is_queued_dropped_dead_lettered_and_rejected_is_counted_and_explained() -> None:
    ledger = {"accepted": 1300, "dead_lettered": 2, "dropped": {"overflow": 80, "expired": 4}, "queued": 1204}
    queue = {"bytes": 1_572_864, "segments": 1, "quarantined": 1}
    text = shown(status(ledger=ledger, rejected=1, oldest_event_age=95.2, last_delivery_at=None, queue=queue))
    assert "delivery       delivering\n" in text
    assert "1,204 events, the oldest is 1 min 35 s old, 1.5 MiB on disk, 1 damaged piece kept in quarantine" in text
    assert "none since the daemon started" in text
    assert "84 events: 80 overflow (queue.max_bytes was reached), 4 expired (older than queue.max_age)" in text
    assert "2 events refused by the API, one by one" in text
    assert "1 line not valid, since the daemon started" in text
    assert "1,300 accepted = 10 delivered + 2 dead-lettered + 84 dropped + 1,204 queued\n" in text


@pytest.mark.parametrize(
    ("refused", "kept", "said"),
    [
        (0, 0, "none"),
        (0, 1, "none; 1 letter kept now"),
        (2, 0, "2 events refused by the API, one by one; 0 letters kept now"),
        (2, 2, "2 events refused by the API, one by one; 2 letters kept now"),
        (2, None, "2 events refused by the API, one by one"),
    ],
)
def test_how_many_dead_letters_are_kept_now_is_shown_where_it_is_known(
    refused: int, kept: int | None, said: str
) -> None:
    text = shown(status(ledger={"dead_lettered": refused}, dead_letters=kept))
    assert f"dead letters   {said}\n" in text


def test_a_ledger_that_does_not_add_up_is_not_hidden() -> None:
    assert "does not add up" in shown(status(ledger={"accepted": 11}))


def test_a_limit_that_the_server_taught_shows_with_its_words_and_the_configured_one_does_not() -> None:
    limit: dict[str, Any] = {"events": 200, "bytes": 25_000, "reason": "413 Payload Too Large: too many"}
    text = shown(status(batch_limit=limit))
    assert "batch limit    200 events, 24.4 KiB, since the server refuses more: 413 Payload Too Large: too many" in text
    assert "batch limit" not in shown(status(batch_limit=limit | {"reason": None}))


def test_a_disk_that_refuses_shows_its_error() -> None:
    assert "storage        failing: Input/output error" in shown(status(storage_error="Input/output error"))


def test_everything_at_once_still_fits_one_screen() -> None:
    ledger = {"dropped": dict.fromkeys(DROPS, 1), "accepted": 10 + len(DROPS)}
    text = shown(
        status(
            state="paused",
            reason="blocked: " + "many words " * 27,
            since="2023-11-14T22:10:00.000Z",
            until="2023-11-14T22:18:25.000Z",
            ledger=ledger,
            storage_error="No space left on device",
        ),
        width=80,
    )
    assert len(text.splitlines()) <= 24


def test_an_answer_of_another_version_is_shown_as_far_as_it_is_understood() -> None:
    ledger = {"accepted": 1, "delivered": 0, "dead_lettered": 0, "dropped": {"whim": 1}, "queued": 0}
    report = {"rejected": 0, "destinations": {"default": {"state": "resting", "reason": None, "ledger": ledger}}}
    text = shown(report)
    assert "resting" in text
    assert "1 event: 1 whim (see the logs)" in text


def test_several_destinations_are_shown_one_by_one_and_what_came_to_none_apart() -> None:
    report = status(rejected=2) | {"denied": 3}
    default = report["destinations"]["default"]
    web = default | {"state": "paused", "reason": "blocked: 401 Unauthorized: no", "retired": True}
    report["destinations"] |= {"web": web, "ios": {"state": "failed", "reason": "/q: move away what is in the way"}}
    day = Day(Totals(local_hits=4, misses=6), NOW)
    file = io.StringIO()
    usages: dict[str, Day | str] = {"default": day, "web": "it is locked"}
    tokens = {"default": "api.token_file, /etc/t"}
    console = Console(file=file, width=300, force_terminal=False)
    console.print(screen(decode_status(msgspec.json.encode(report)), NOW, usages, tokens))
    lines = [line.strip() for line in file.getvalue().splitlines()]
    blocks = [block.split("\n") for block in "\n".join(lines).split("\n\n")]
    assert [block[0] for block in blocks[1:]] == ["default", "web", "ios", "of no destination", "cache"]
    assert blocks[2][:3] == [
        "web",
        "delivery       paused: blocked: 401 Unauthorized: no",
        "retired: it takes no new events, and ends when none waits",
    ]
    assert "(destinations.web.token_file, the service's credential token.web, or a variable)" in blocks[2][4]
    assert blocks[3][1:] == [
        "delivery  failed: /q: move away what is in the way",
        "its events are denied; when that is mended: `artifacts-agent reload`",
    ]
    assert blocks[4][1:] == [
        "rejected  2 lines not valid, since the daemon started",
        "denied    3 events that no rule lets in: the log says whose",
    ]
    assert blocks[5][1].startswith("default last 24 h  40 % hits: 4 of 10 tasks")
    assert blocks[5][2] == "web last 24 h      not known: it is locked"
    assert not any("rejected" in line for block in blocks[1:4] for line in block)


def test_who_is_denied_is_shown_with_the_only_destination() -> None:
    assert "denied         1 event that no rule lets in" in shown(status() | {"denied": 1})
    assert "denied" not in shown(status())


def test_every_reason_for_a_drop_is_explained() -> None:
    assert set(DROPS) == set(DROP_REASONS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_shows_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (5 * 2**40, "5.0 TiB")],
)
def test_a_size_is_shown_in_its_largest_unit(count: int, text: str) -> None:
    assert size(count) == text


def test_an_amount_agrees_with_its_noun() -> None:
    assert [amount(count, "event") for count in (0, 1, 1204)] == ["0 events", "1 event", "1,204 events"]


def test_where_events_are_forwarded_it_says_where_to_and_how_many() -> None:
    ledger = {"accepted": 10, "delivered": 2, "forwarded": 8, "dead_lettered": 0, "dropped": {}, "queued": 0}
    text = shown(status(ledger=ledger, forward={"servers": ["nats://n:4222"], "team": "web", "pool": "ci"}))
    assert "forwarding: nothing waits" in text
    assert "team web, pool ci, at nats://n:4222" in text
    assert "10 accepted = 2 delivered + 8 forwarded + 0 dead-lettered + 0 dropped + 0 queued" in text
