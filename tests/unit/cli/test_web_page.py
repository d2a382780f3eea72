"""The page of `web`: what is said when all is well, when nothing is known, and when something is wrong."""

import re
from pathlib import Path

import msgspec
import pytest

from agent.cli.views.web_page import Asked, Counted, Folding, View, draw, page, problem_page
from agent.control.schema import AdoptionStatus, DestinationStatus, StatusReport
from agent.queue.cursor import Ledger
from agent.usage.report import Period, timeline
from tests.support.usage import NOW, CountedQueue, use
from tests.unit.cli.test_report_view import HOSTILE, Page

WELL = StatusReport(
    version="1.2.3", pid=7, destinations={"default": DestinationStatus("running", ledger=Ledger(9, 9, 0, {}, 0))}
)
WAITING = msgspec.structs.replace(
    WELL,
    destinations={
        "default": DestinationStatus(
            *("paused", "blocked: 402 Payment Required", None, None, Ledger(9, 2, 1, {"expired": 1}, 5), 200.0),
            storage_error="No space left on device",
        ),
        "other": DestinationStatus("backing_off", ledger=Ledger(3, 2, 0, {}, 1), oldest_event_age=5.0),
    },
    adopted=AdoptionStatus(),
)


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    queue = CountedQueue(tmp_path)
    queue.append([use("a build", "LOCAL", "HIT", "h", duration=65_000), use("a build", "LOCAL", "MISS", "i")])
    return draw(queue.report(), queue.ask(lambda store: timeline(store, Period(), int(NOW // 3600))))


def view(**changes: object) -> View:
    return View(Asked("7d"), None, Folding(NOW - 5), WELL, NOW)._replace(**changes)  # type: ignore[arg-type]


def tiles(text: str) -> dict[str, str]:
    return dict(re.findall(r'<div><dt>([^<]+)</dt><dd class="[a-z]*">([^<]+)</dd>', text))


def test_it_shows_numbers_charts_and_the_state_of_the_agent(counted: Counted) -> None:
    text = page(view(counted=counted))
    assert tiles(text) == {
        "hit rate": "50 %",
        "task time saved": "1m05s",
        "tasks": "2",
        "unanswered": "1",
        "queue": "0",
    }
    said = Page(text).text
    for words in (
        "artifacts-agent 1.2.3 · pid 7",
        "delivering: nothing waits",
        "9 accepted = 9 delivered + 0 dead-lettered + 0 dropped + 0 queued",
        "Tasks by hour",
        "Hit rate by day",
        "Worst builds",
        "last counted 15:06:35 UTC, 5 s ago. It shows itself again in 60 seconds.",
    ):
        assert words in said


def test_it_says_why_nothing_is_delivered_and_how_much_waits() -> None:
    text = page(view(status=WAITING))
    assert tiles(text)["queue"] == "6"
    said = Page(text).text
    for words in (
        "events wait, the oldest for 3 min 20 s",
        "paused: blocked: 402 Payment Required",
        "failing: No space left on device",
        "9 accepted = 2 delivered + 1 dead-lettered + 1 dropped + 5 queued",
        "adopted spools",
    ):
        assert words in said
    assert '<dd class="bad">failing' in text
    assert '<dd class="warn">1 event: 1 expired' in text


def test_what_is_not_delivered_is_said_at_the_top_in_red(counted: Counted) -> None:
    failed = DestinationStatus("failed", "its token cannot be read")
    several = msgspec.structs.replace(WAITING, destinations={**WAITING.destinations, "third": failed})
    top = page(view(counted=counted, status=several)).partition("</header>")[0]
    said = re.findall('<p class="bad">([^<]+)</p>', top)
    assert [each.partition(" · ")[0] for each in said] == [
        "default: paused: blocked: 402 Payment Required",
        "other: backing off: None",
        "third: failed: its token cannot be read",
    ]
    assert "storage failing: No space left on device" in said[0]
    alone = msgspec.structs.replace(WELL, destinations={"default": failed})
    assert '<p class="bad">failed: its token cannot be read · ' in page(view(status=alone))
    assert '<p class="bad">' not in page(view(counted=counted)).partition("</header>")[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"counted": None}, "The events are being counted"),
        ({"counted": "Nothing has been counted yet."}, "Nothing has been counted yet."),
        ({"folding": Folding()}, "events were not counted yet"),
        ({"folding": Folding(NOW, "the disk is full")}, "Not counted: the disk is full"),
        ({"status": None}, "The daemon has not answered yet."),
        ({"status": "c.sock: no daemon answers there"}, "c.sock: no daemon answers there"),
        ({"asked": Asked("7d", refresh="off")}, "It stays as it is."),
        ({"counted": "", "asked": Asked("7d", refresh="300")}, "It shows itself again in 300 seconds."),
        ({"counted": "", "folding": Folding()}, "It shows itself again in 3 seconds."),
        ({"counted": None}, "It shows itself again in 3 seconds."),
    ],
)
def test_what_is_not_known_is_said(changes: dict[str, object], said: str) -> None:
    assert said in Page(page(view(**changes))).text


def test_the_time_that_is_shown_is_marked_and_the_others_are_links() -> None:
    tags = Page(page(view(asked=Asked("30d", refresh="off")))).tags
    links = {attributes["href"]: attributes.get("aria-current") for tag, attributes in tags if tag == "a"}
    assert links == {
        f"?since={since}&refresh=off": "page" if since == "30d" else None for since in ("24h", "7d", "30d", "90d")
    }
    fields = {
        attributes["name"]: attributes.get("value")
        for tag, attributes in tags
        if "name" in attributes and tag == "input"
    }
    assert fields == {"since": "30d", "until": ""}
    assert [attributes["value"] for tag, attributes in tags if tag == "option" and "selected" in attributes] == ["off"]
    labels = {attributes["for"] for tag, attributes in tags if tag == "label"}
    assert labels == {attributes["id"] for tag, attributes in tags if tag in {"input", "select"}}
    other = Page(page(view(asked=Asked("7d", "1d")))).tags
    assert not [tag for tag, attributes in other if "aria-current" in attributes]


@pytest.mark.parametrize("hostile", [HOSTILE, "'\"><img src=x onerror=alert(1)>", "\x00\u2066", "y" * 10_000])
def test_hostile_names_are_shown_and_do_nothing(hostile: str, tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    for session in (hostile, f"{hostile}2"):
        queue.append([use(session, "REMOTE", "MISS", hostile)], ci=hostile)
    found = draw(queue.report(), queue.ask(lambda store: timeline(store, Period(), int(NOW // 3600))))
    status = msgspec.structs.replace(WELL, version=hostile, destinations={hostile: DestinationStatus(hostile, hostile)})
    for text in (
        page(View(Asked(hostile, hostile, hostile), found, Folding(NOW, hostile), status, NOW)),
        page(View(Asked("7d"), hostile, Folding(), hostile, NOW)),
        problem_page("The request is wrong", hostile),
    ):
        parsed = Page(text)
        assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in parsed.tags}
        assert not {name for _, attributes in parsed.tags for name in attributes if name.startswith("on")}
        links = [str(attributes["href"]) for tag, attributes in parsed.tags if tag == "a"]
        assert all(link.startswith("?") or link == "/" for link in links)
        assert not re.search("[\x00\x1b\u202e\u2066]", text)


def test_a_session_is_a_link_to_its_own_page(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([use("a&b ü", "REMOTE", "MISS", "h")])
    found = draw(queue.report(), queue.ask(lambda store: timeline(store, Period(), int(NOW // 3600))))
    assert '<a href="?session=a%26b%20%C3%BC">a&amp;b ü</a>' in found.sections
