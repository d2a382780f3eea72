"""The page in a real browser, as wide as a desk's and a phone's, dark and light: it fits, can be read, and does nothing.

`PICTURES=DIRECTORY` keeps what it looked like.
"""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli.views import report_page
from agent.usage.report import Period, Question, timeline
from tests.support.api_server import ApiServer
from tests.support.browser import look_at
from tests.support.daemon import Daemon
from tests.support.usage import CountedQueue, use, write_usage
from tests.support.web import Web, configured, served

WIDTHS = (1280, 390)
HOSTILE = [
    "<script>alert(1)</script>",
    "'\"><img src=https://evil.example/x onerror=alert(1)>",
    "</title></style></svg></table><h1>evil</h1>",
    "\u202e\u2066evil\u0000\x1b[2J",
    "ü" * 10_000,
]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """The page of an empty queue, without a daemon."""
    with served(configured(tmp_path)) as web:
        yield web


def in_all_ways(name: str, url: str, **more: object) -> list[dict[str, Any]]:
    """Look at a page at each width, dark and light; return what was found."""
    pictures = os.environ.get("PICTURES")
    views = [
        {
            "url": url,
            "width": width,
            "dark": dark,
            "picture": pictures and str(Path(pictures) / f"{name}-{width}-{'dark' if dark else 'light'}.png"),
            **more,
        }
        for width in WIDTHS
        for dark in (False, True)
    ]
    return look_at(views)


def check(found: list[dict[str, Any]]) -> None:
    """Nothing is wrong: it fits, axe-core finds nothing, and nothing was tried that the page does not allow itself."""
    assert found
    for each in found:
        assert each["violations"] == []
        assert each["said"] == []
        assert each["fits"]
        assert set(each["asked"]) == {each["address"]}
        assert not {"script", "img", "link", "iframe"} & set(each["elements"])
    assert len({each["back"] for each in found}) == 2, "dark is not light"


def test_without_data_or_a_daemon(web: Web) -> None:
    web.wait_for("There were no tasks in this time.")
    check(in_all_ways("empty", web.url))


def test_what_is_wrong_with_a_request(web: Web) -> None:
    found = look_at([{"url": f"{web.url}?since=yesterday", "width": width} for width in WIDTHS])
    for each in found:
        assert (each["status"], each["violations"], each["fits"]) == (400, [], True)
        assert "'yesterday' is not a time" in each["text"]


def test_a_million_events(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url) as daemon:
        write_usage(daemon.queue, 1_000_000, builds=4000, each=10, now=time.time())
        daemon.request("POST", "/pause").raise_for_status()
        daemon.send_lines(b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h","duration":5}\n')
        daemon.wait_destination(lambda default: default.ledger.queued == 1)
        with served(daemon.config) as web:
            web.wait_for("1 event, the oldest is")
            for name, query in (("week", ""), ("month", "?since=30d")):
                web.wait_for("Worst builds", query=query)
                found = in_all_ways(name, f"{web.url}{query}")
                check(found)
                assert all({"svg", "rect", "table"} <= set(each["elements"]) for each in found)
            assert "1,000,001 events" in web.get("?since=30d").text


def test_a_job_with_a_long_address_is_shown_whole(tmp_path: Path) -> None:
    config = configured(tmp_path)
    queue = CountedQueue(tmp_path / "queue")
    queue.now = time.time()
    job = f"build https://gitlab.example.com/{'a-team/' * 20}-/jobs/123456789"
    queue.append([use(str(uuid.uuid4()), "REMOTE", "MISS", "h")], ci="GITLAB", job=job)
    queue.ask(lambda _: None)
    with served(config) as web:
        web.wait_for("Worst builds")
        check(found := in_all_ways("job", web.url))
        assert [each["clipped"] for each in found] == [each["width"] < 700 for each in found]


def test_hostile_names_in_events(tmp_path: Path) -> None:
    config = configured(tmp_path)
    queue = CountedQueue(tmp_path / "queue")
    queue.now = time.time()
    for name in HOSTILE:
        queue.append(
            [use(name, "REMOTE", "MISS", each) for each in HOSTILE], ci=name if name in HOSTILE[::2][:2] else None
        )
    queue.ask(lambda _: None)
    with served(config) as web:
        web.wait_for("Worst builds", "Built more than once")
        check(found := in_all_ways("hostile", web.url))
        for each in found:
            assert "<script>alert(1)</script>" in each["text"]
            assert "evil" not in [line.strip() for line in each["text"].splitlines()]


def test_a_report_as_a_file(tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([use("a build", "LOCAL", "HIT", "h", duration=5000), use("a build", "REMOTE", "MISS", "<script>")])
    when = queue.ask(lambda store: timeline(store, Period(), int(queue.now // 3600)))
    file = tmp_path / "report.html"
    file.write_text(report_page.page(queue.report(Question(Period(), "session")), when, queue.now))
    check(in_all_ways("report", file.as_uri()))


def test_it_can_be_used_with_the_keyboard_alone(web: Web) -> None:
    web.wait_for("There were no tasks in this time.")
    (found,) = look_at([{"url": web.url, "width": 390, "keys": ["Tab", "Tab", "Tab"]}])
    assert found["focus"] == "30 days"
    (found,) = look_at([{"url": web.url, "width": 390, "keys": ["Tab", "Tab", "Tab", "Enter"]}])
    assert found["address"] == f"{web.url}?since=30d"
    (found,) = look_at([{"url": web.url, "width": 390, "keys": [*["Tab"] * 5, "2", "d", "Enter"]}])
    assert found["address"] == f"{web.url}?since=2d&until=&refresh=60"


def test_a_browser_is_let_in_with_the_token_as_password(tmp_path: Path) -> None:
    token = tmp_path / "page-token"
    token.write_text("s3cret")
    with served(configured(tmp_path), "--token-file", token) as web:
        found = look_at([{"url": web.url, "width": 1280, "password": each} for each in ("s3cret", "wrong")])
    assert [each["status"] for each in found] == [200, 401]
