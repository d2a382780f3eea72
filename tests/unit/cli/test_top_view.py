"""The live screen: from samples of the daemon to what a person sees, on terminals of any width."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from agent.cli.top.samples import Measured, Sample
from agent.cli.views.top import Seen, screen
from agent.control.schema import DestinationStatus, QueueStatus, StatusReport
from agent.queue.cursor import Ledger
from agent.usage.counting import Totals
from agent.usage.recent import Recent, RecentSession

NOW = 1_700_000_000.0
GIB = 1 << 30
TOTALS = Totals(events=12, local_hits=3, remote_hits=5, misses=1, unanswered=1, local_saved_ms=59_000.0)
NOBODY = Recent((), 600.0, 0)


def build(name: str, totals: Totals = TOTALS, ci: str | None = "GITHUB_ACTIONS", ago: float = 5.0) -> RecentSession:
    return RecentSession(name, ci, NOW - ago, totals)


def sample(
    at: float, accepted: int = 0, delivered: int = 0, *, measured: Measured | None = None, **more: Any
) -> Sample:
    dropped, dead = more.pop("dropped", {}), more.pop("dead", 0)
    queued = accepted - delivered - dead - sum(dropped.values())
    pid, rejected = more.pop("pid", 77), more.pop("rejected", 0)
    destination = DestinationStatus(
        state=more.pop("state", "running"),
        ledger=Ledger(accepted, delivered, dead, dropped, queued),
        queue=QueueStatus(bytes=more.pop("size", 0), segments=1, max_bytes=more.pop("max_bytes", GIB)),
        **more,
    )
    report = StatusReport("9.9.9", pid, at, rejected, destinations={"default": destination})
    return Sample(at, report, {} if measured is None else {"default": measured})


def shown(samples: Sequence[Sample], width: int = 120, **more: Any) -> str:
    clock, began = more.pop("clock", samples[-1].at), more.pop("began", samples[0].at)
    seen = Seen(samples, NOW, clock, began, 2.0, width, more.pop("recent", NOBODY), **more)
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(seen))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def test_the_screen_has_all_that_matters() -> None:
    before = Measured(((0.005, 0), (0.1, 0), (math.inf, 0)), {"200": 0})
    after = Measured(((0.005, 6), (0.1, 10), (math.inf, 10)), {"200": 9, "503": 1, "none": 0})
    samples = [
        sample(1, 1000, 900, measured=before),
        sample(3, 4000, 901, measured=after, size=GIB // 4, oldest_event_age=3.0, requests=10),
    ]
    text = shown(samples, recent=Recent((build("build-1"),), 600.0, 1), keys=True)
    assert text.splitlines() == [
        "artifacts-agent 9.9.9 · pid 77 · up 3 s · 0 connections",
        "p pause · r try now · f flush · q quit",
        "",
        "default",
        "  delivery       delivering",
        "  in             1,500/s       █",
        "  out            0.5/s         █",
        "  queued         3,099 events, the oldest is 3 s old, 256.0 MiB on disk",
        "  disk           ███░░░░░░░ 25 % of 1.0 GiB",
        "  requests       10 since top began: half within 5 ms, 95 % within 100 ms",
        "  answers        9 with 200, 1 with 503",
        "  last delivery  none since the daemon started (10 requests)",
        "  dead letters   none",
        "  dropped        none",
        "",
        "builds of the last 10 min: 1",
        "  session  hit rate  tasks  missed  unanswered  saved  last event  ci",
        "  build-1      80 %     10       1           1    59s     5 s ago  GITHUB_ACTIONS",
    ]


def test_of_one_sample_no_rate_is_known() -> None:
    text = shown([sample(1, 5, 5)])
    assert "  in             -\n" in text
    assert "  requests       none since top began\n" in text
    assert "  answers        none since the daemon started\n" in text
    assert "q quit" not in text


def test_of_less_than_a_minute_it_speaks_of_no_minute() -> None:
    samples = [sample(at) for at in (0, 59)]
    assert "requests       none since top began\n" in shown(samples)
    assert "requests       none in the last minute\n" in shown([*samples, sample(60)])
    assert "requests       none in the last minute\n" in shown(samples, began=-1.0)  # older samples are not kept


def test_rates_are_drawn_the_newest_last_as_far_as_there_is_room() -> None:
    samples = [sample(at, at * at, 0) for at in range(1, 100)]
    (line,) = [line for line in shown(samples, 60).splitlines() if line.startswith("  in ")]
    assert line.startswith("  in             197/s         ▆")
    assert line.endswith("█")
    assert len(line) == 59  # of 60 columns


def test_what_grew_in_the_last_minute_stands_out() -> None:
    drops = [sample(at, 100, 0, dropped={"overflow": at}, dead=at, dead_letters=7) for at in (1, 50, 55)]
    text = shown(drops, 200)
    assert "dropped        55 events: 55 overflow (queue.max_bytes was reached); 54 of them since top began" in text
    assert "dead letters   55 events refused by the API, one by one; 7 letters kept now; 54 of them since top" in text
    assert "54 of them in the last minute" in shown(drops, 200, began=-5.0)
    later = shown([*drops, sample(200, 100, 0, dropped={"overflow": 55}, dead=55)], 200)
    assert "in the last minute" not in later.replace("none in the last minute", "")


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0.025, 2.5, math.inf), "half within 25 ms, 95 % above 2.5 s"),
        ((1.0, 2.5, 5.0), "half within 1 s, 95 % within 5 s"),
        ((math.inf,), "half of unknown length, 95 % of unknown length"),
    ],
)
def test_latency_is_as_fine_as_the_daemons_buckets(bounds: tuple[float, ...], said: str) -> None:
    samples = [
        sample(at, measured=Measured(tuple((bound, at * (5 + index)) for index, bound in enumerate(bounds))))
        for at in (0, 10)
    ]
    assert said in shown(samples)


def test_a_pause_shows_why_and_the_key_then_resumes() -> None:
    text = shown([sample(1, state="paused", reason="blocked: 401 Unauthorized: no")], 200, keys=True)
    assert "p resume · r try now" in text
    assert "paused: blocked: 401 Unauthorized: no" in text
    assert "look at the token (api.token_file, " in text


def test_a_disk_that_fills_up_and_a_daemon_that_does_not_say_how_large_it_may_be() -> None:
    assert "disk           ██████████ 99 % of 1.0 GiB" in shown([sample(1, size=GIB - 1)])
    assert "disk           ██████████ 200 % of 1.0 GiB" in shown([sample(1, size=2 * GIB)])
    assert "disk           1.0 GiB\n" in shown([sample(1, size=GIB, max_bytes=0)])


def test_trouble_with_the_daemon_is_said_and_how_old_the_rest_is() -> None:
    samples = [sample(100), sample(102)]
    assert " old\n" not in shown(samples, clock=105.9)
    assert "what follows is 4 s old\n" in shown(samples, clock=106.1)
    text = shown(samples, clock=103.5, trouble="/run/x: no [bold]daemon")
    assert "/run/x: no [bold]daemon\nwhat follows is 1 s old\n" in text


def test_another_daemon_is_said_for_a_minute() -> None:
    samples = [sample(100, 10, 10), sample(102, 4000, 10, pid=78), sample(104, 4006, 10, pid=78)]
    text = shown(samples)
    assert "the daemon was restarted, or is another one: pid 78, before it pid 77\n" in text
    assert "in             3.0/s          █\n" in text
    assert "restarted" not in shown([*samples, sample(170, pid=78)])


def test_lines_that_are_not_valid_are_counted() -> None:
    assert "rejected       3 lines not valid" in shown([sample(1, rejected=3)])


def test_where_delivery_fails_it_is_said_what_a_server_answered_last() -> None:
    answer: dict[str, Any] = {"last_answer_at": "2023-11-14T22:11:20.000Z", "last_answer": "503 Service Unavailable"}
    said = "  last answer    2 min ago, at 2023-11-14 22:11:20 UTC: 503 Service Unavailable\n"
    assert said in shown([sample(1, state="backing_off", reason="connection refused", **answer)])
    assert "last answer" not in shown([sample(1, **answer)])


def test_of_several_destinations_it_is_said_which_one_a_build_is_of() -> None:
    alone = sample(1)
    both = StatusReport(destinations=dict.fromkeys(("default", "web"), alone.status.destinations["default"]))
    recent = Recent((build("build-1")._replace(destination="web"),), 600.0, 1)
    text = shown([alone._replace(status=both)], recent=recent)
    assert "  session  destination  hit rate  tasks  missed  unanswered  saved  last event  ci\n" in text
    assert "  build-1  web              80 %     10       1           1    59s     5 s ago  GITHUB_ACTIONS\n" in text


@pytest.mark.parametrize(
    ("recent", "said"),
    [
        ("/q: Permission denied", "builds\n  not known: /q: Permission denied\n"),
        (NOBODY, "builds of the last 10 min: 0\n"),
        (Recent((), 600.0, 1234), "builds of the last 10 min: 1,234\n"),
        (NOBODY._replace(complete=False), "  more came than is counted here: see `artifacts-agent report`\n"),
        (NOBODY._replace(problem="x.seg: Input/output error"), "  x.seg: Input/output error\n"),
        (Recent((build("b", Totals(), ci=None),), 600.0, 1), "  b            none      0"),
    ],
)
def test_what_is_not_known_of_builds_is_said(recent: Recent | str, said: str) -> None:
    assert said in shown([sample(1)], recent=recent)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 300])
def test_it_fits_a_terminal_of_any_width_with_rates_of_builds(width: int) -> None:
    builds = tuple(build(f"01234567-89ab-cdef-0123-4567{number:08}", ci="A" * 128) for number in range(100))
    text = shown([sample(1, 10**9, 10**8)], width, recent=Recent(builds, 600.0, 100), keys=True)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    if width >= 40:
        assert re.match(r"  012345\S*000029 +80 % +10", lines[-1])
    assert sum("  012345" in line for line in lines) in {0, 30}  # no more than a screen


def test_hostile_names_command_no_terminal() -> None:
    hostile = "\x1b[2J\x9b\u202e[red]"
    recent = Recent((build(hostile, ci=hostile),), 600.0, 1, problem=hostile)
    measured = Measured(((1.0, 1.0),), {hostile: 1.0})
    samples = [sample(1, measured=measured, state="paused", reason=hostile)]
    text = shown(samples, 200, recent=recent, trouble=hostile, notice=hostile)
    assert text.count(r"\x1b[2J\x9b\u202e[r") == 7
    assert all(line.isprintable() for line in text.splitlines())
