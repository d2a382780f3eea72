"""What `report` prints: everything that matters in each form, what is not known, and nothing that commands a reader."""

import csv
import hashlib
import io
import re
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from agent.cli.views import report as view
from agent.cli.views import report_files, report_page
from agent.cli.views.job import job_line, job_summary
from agent.cli.views.words import clock, percent
from agent.usage.counting import Totals
from agent.usage.reading import count_all
from agent.usage.report import By, Period, Question, Report, Timeline, Unknown, timeline
from tests.support.usage import NOW, CountedQueue, use

HOSTILE = "\x1b[2J<script>alert('1')</script>`|=@\u202e"


@pytest.fixture
def queue(tmp_path: Path) -> CountedQueue:
    """Three days of builds, of which the later ones found more."""
    queue = CountedQueue(tmp_path)
    for day in range(3):
        queue.now = NOW + day * 86_400.0
        hits = [use(f"s-{day}", "LOCAL", "HIT", f"h-{number}", duration=60_000) for number in range(day * 4)]
        misses = [use(f"s-{day}", "REMOTE", "MISS", f"h-{number}") for number in range(day * 4, 10)]
        queue.append(hits + misses, ci="GITHUB_ACTIONS" if day else None)
    queue.append([use("s-off", "LOCAL", "MISS", "h-1")])
    return queue


def shown(report: Report, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(view.screen(report))
    return capture.get()


def paged(report: Report, when: Timeline = Timeline("day", [], [])) -> str:  # noqa: B008 - it is frozen
    return report_page.page(report, when, NOW)


def unknown(report: Report, **what: object) -> Report:
    return msgspec.structs.replace(report, unknown=Unknown(**what))  # type: ignore[arg-type]


def test_the_screen_has_the_answers_of_a_first_look(queue: CountedQueue) -> None:
    text = shown(queue.report())
    for said in (
        "4 sessions · 31 events",
        "hit rate    39 %: 12 of 31 tasks",
        "12 local, 0 remote",
        "1: no answer from the remote cache, which was off or failing",
        "12m00s of task time: 12m00s by local hits, 0s by remote ones",
        "builds got shorter by less",
        "hit rate by hour: 0 % at first, 73 % at last",
        "GITHUB_ACTIONS",
    ):
        assert said in text
    assert text.index("s-0") < text.index("s-1") < text.index("s-2")
    assert re.search(r"h-9 +3 +0 +2025-06-17 15h\n", text)  # it is known by the hour
    assert "<td>2025-06-17 15h</td>" in paged(queue.report())


def test_the_screen_of_nothing_says_so(tmp_path: Path) -> None:
    text = shown(CountedQueue(tmp_path).report())
    assert "no tasks" in text
    assert "not known" not in text


def test_the_page_says_what_unanswered_tasks_mean_only_if_there_are_any(queue: CountedQueue) -> None:
    assert "the remote cache was off or failing" in paged(queue.report())
    answered = paged(queue.report(Question(Period(session="s-1"))))
    assert "was off or failing" not in answered
    assert "every task got an answer" in answered


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("day", ["2025-06-15", "2025-06-16", "2025-06-17"]),
        ("hour", ["2025-06-15 15:00", "2025-06-16 15:00", "2025-06-17 15:00"]),
        ("session", ["s-0", "s-1", "s-2", "s-off"]),
        ("ci", ["GITHUB_ACTIONS", "none"]),
    ],
)
def test_it_can_be_broken_down(queue: CountedQueue, by: By, names: list[str]) -> None:
    report = queue.report(Question(Period(), by))
    assert [view.part_name(by, each.name) for each in report.groups] == names
    assert sum(each.tasks for each in report.groups) == report.tasks == 31
    texts = (shown(report, 200), report_files.markdown(report), paged(report))
    assert all(name in text for name in names for text in texts)
    rows = list(csv.reader(io.StringIO(report_files.csv_text(report))))
    assert rows[0][:3] == [by, "events", "tasks"]
    assert len(rows) == 1 + len(names)


@pytest.mark.parametrize("by", ["day", "hour", "session", "ci", "job"])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_on_a_terminal_of_any_width_a_build_is_a_line_and_no_figure_is_cut(
    queue: CountedQueue, by: By, width: int
) -> None:
    session, job = "01234567-89ab-cdef-0123-456789abcdef", "github/some-organisation/some-repository/ci.yml/build/17"
    build = [use(session, "REMOTE", "HIT", f"h-{number}", duration=14_000) for number in range(1000)]
    queue.append([*build, use(session, "REMOTE", "MISS", "m-1")], ci="GITHUB_ACTIONS", job=job)
    report = queue.report(Question(Period(), by))
    named = [msgspec.structs.replace(each, task="web#" + "b" * 100) for each in report.missed_again]
    lines = shown(msgspec.structs.replace(report, missed_again=named), width).splitlines()
    assert max(map(len, lines)) <= width
    assert any(re.search(r" 99 % +1,001\b", line) for line in lines)
    found = {cell for line in lines for cell in line.split()}
    assert not {each for each in found if re.search(r"\d,(?!\d{3}\b)|^\d+h\d$|^[\d,]+…$", each)}
    worst = lines[next(number for number, line in enumerate(lines) if line.startswith("worst builds")) :]
    assert sum(line.startswith("  012345") for line in worst) == 1
    assert any(re.match(r"  h-9 +3 +1\b", line) for line in worst)


def test_the_job_of_a_build_is_shown_where_there_is_room(queue: CountedQueue) -> None:
    assert " job" not in shown(queue.report(), 200)
    job = "github/some-organisation/some-repository/ci.yml/build/17"
    queue.append([use("s-job", "REMOTE", "MISS", "h")], job=job)
    assert job in shown(queue.report(), 200)
    assert re.search(r"  s-job .* none +github/some\S*…\S*build/17\n", shown(queue.report(), 120))
    assert "github" not in shown(queue.report(), 80)


def test_parts_beyond_a_screen_are_said(queue: CountedQueue) -> None:
    queue.append([use(f"t-{number}", "LOCAL", "HIT", "h") for number in range(view.MOST_PARTS)])
    assert "4 more before them: see --format csv" in shown(queue.report(Question(Period(), "session")))


def test_a_period_is_of_whole_hours_and_a_session_of_all_times(queue: CountedQueue) -> None:
    hour = int(NOW // 3600)
    first = queue.report(Question(Period(since=hour, until=hour + 1)))
    assert (first.tasks, first.sessions) == (10, 1)
    assert view.period_of(first) == "2025-06-15 15:00 to 2025-06-15 16:00 UTC"
    assert view.period_of(queue.report(Question(Period(until=hour)))) == "until 2025-06-15 15:00 UTC"
    session = queue.report(Question(Period(session="s-1")))
    assert (session.tasks, session.hits.local, session.missed_again) == (10, 4, [])
    text = shown(session)
    assert "all that is known · session s-1" in text
    assert "worst builds" not in text


def test_what_is_not_known_is_said_in_every_form(queue: CountedQueue) -> None:
    report = unknown(
        queue.report(), deleted=1, damaged=2, dropped=3, adopted=4, history=False, problems=["usage.sqlite3: <full>"]
    )
    lines = list(view.not_known(report))
    assert len(lines) == 6
    assert all(line in shown(report, 200) for line in lines)
    assert report_files.markdown(report).count("Not known:") == paged(report).count("Not known:") == 6
    assert "<full>" not in paged(report) + report_files.markdown(report)


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(queue: CountedQueue) -> None:
    queue.append([use(HOSTILE, "REMOTE", "MISS", HOSTILE) for _ in range(2)], ci="<b>")
    queue.append([use("other", "REMOTE", "MISS", HOSTILE)], ci="<b>")
    when = queue.ask(lambda store: timeline(store, Period(), int(queue.now // 3600)))
    text = paged(queue.report(Question(Period(), "session")), when)
    page = Page(text)
    assert {"html", "svg", "table"} <= {tag for tag, _ in page.tags}
    assert not {"script", "link", "img", "iframe", "b"} & {tag for tag, _ in page.tags}
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href", "onclick", "onload"}
    assert "<script>alert('1')</script>" in page.text
    assert not {"\x1b", "\u202e"} & set(text)
    assert not {"style"} & {name for _, attributes in page.tags for name in attributes}
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_has_charts_by_hour_and_by_day(queue: CountedQueue) -> None:
    when = queue.ask(lambda store: timeline(store, Period(), int(queue.now // 3600)))
    page = Page(paged(queue.report(), when))
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 3
    for said in (
        "Tasks by hour, from 2025-06-15 15:00 to 2025-06-17 15:00 (UTC)",
        "2025-06-17 15:00: 11 tasks: 8 local hits, 2 misses, 1 unanswered",
        "2025-06-16: 40 % of 10 tasks",
        "2025-06-17: 8m00s of task time saved",
        "39 % over the whole time",
        "12m00s over the whole time",
    ):
        assert said in page.text
    assert page.text.count("As a table") == 2
    tables = [
        attributes.get("aria-label") for tag, attributes in page.tags if tag == "div" and "tabindex" in attributes
    ]
    assert tables[:2] == ["Tasks by hour", "Hit rate and task time saved by day"]


@pytest.mark.parametrize(
    ("saved", "unit"), [(0, "2 s"), (90_000, "90 s"), (150_000, "4 min"), (7_199_000, "200 min"), (7_200_000, "2 h")]
)
def test_the_scale_of_time_saved_has_a_unit_that_fits(saved: int, unit: str, tmp_path: Path) -> None:
    queue = CountedQueue(tmp_path)
    queue.append([use("s", "LOCAL", "HIT", "h", duration=saved)])
    when = queue.ask(lambda store: timeline(store, Period(), int(NOW // 3600)))
    assert f"<span>{unit}</span>" in paged(queue.report(), when)


def test_the_style_is_the_only_one_that_the_page_allows_itself(queue: CountedQueue) -> None:
    text = paged(queue.report())
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [attributes["content"] for _, attributes in Page(text).tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")


def test_hostile_names_command_no_terminal_summary_or_spreadsheet(queue: CountedQueue) -> None:
    queue.append([use(HOSTILE, "REMOTE", "MISS", "h")])
    queue.append([use("=1+1", "REMOTE", "MISS", "h")])
    report = queue.report(Question(Period(), "session"))
    summary, table, screen = report_files.markdown(report), report_files.csv_text(report), shown(report, 300)
    assert not {"\x1b", "\u202e"} & set(summary + table + screen)
    (line,) = [line for line in summary.splitlines() if "script" in line and line.count("|") > 8]
    assert re.search(r"`[^`]*<script>[^`]*'\\\|[^`]*`", line)
    names = [row[0] for row in csv.reader(io.StringIO(table))]
    assert "'=1+1" in names
    assert "=1+1" not in names


def test_a_job_is_one_line(queue: CountedQueue) -> None:
    total = count_all(queue.kept())
    line = "cache: 12 of 31 tasks (39 %), 12m00s of task time saved, 1 unanswered"
    assert job_line(total) == line
    assert line in report_files.markdown(queue.report())
    assert job_summary(total).startswith(f"**{line}**")
    assert job_line(Totals(local_hits=1)) == "cache: 1 of 1 task (100 %), 0s of task time saved"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.2, "<1s"), (45, "45s"), (662, "11m02s"), (7500, "2h05m"), (273_600, "3d04h"), (59.7, "1m00s")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(None, "none"), (0.0, "0 %"), (0.001, "1 %"), (0.923, "92 %"), (0.999, "99 %"), (1.0, "100 %")]
)
def test_a_share_is_all_or_nothing_only_if_it_is(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_bars_are_blank_where_there_was_nothing() -> None:
    assert view.bars([0.0, None, 0.5, 1.0]) == "▁ ▅█"
