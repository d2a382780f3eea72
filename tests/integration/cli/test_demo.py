"""The demo as people run it: a process of its own, on a pipe and on a terminal, to its end and interrupted."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgspec
import pytest

from agent.demo import recording, report, scenario
from agent.demo.api import ApiState, DemoApi
from agent.demo.report import Evidence
from agent.events import Context, Event, encode_events
from agent.http.server import serve
from agent.queue.cursor import Ledger
from agent.queue.dead_letters import DeadLetter
from tests.support.process import Child
from tests.support.recordings import Recorded
from tests.support.waiting import HUNG_AFTER, eventually

DEMO = [sys.executable, "-c", "import sys; from agent.demo import run_demo; sys.exit(run_demo(fast=True))"]
SENT = 299
EQUATION = f"accepted {SENT} = delivered {SENT - 1} + dead_lettered 1 + dropped 0 + queued 0"
TOKEN = "a-token"


@pytest.fixture
def home() -> Iterator[Path]:
    """The only directory in which a demo that is started here may leave anything; short, or the demo would not use it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as directory:
        yield Path(directory)


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(home), "TERM": "xterm-256color", **more}


def processes_in(directory: Path, module: str = "") -> list[int]:
    """The processes whose command line names a path below the directory, and the module."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if os.fsencode(directory) in line and module.encode() in line:
            found.append(int(process.name))
    return found


@contextmanager
def demo(home: Path) -> Iterator[Child]:
    with subprocess.Popen(
        DEMO,
        env=environment(home),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        child = Child(process)
        try:
            yield child
        finally:
            child.stop()


# To its end


def test_every_event_is_accounted_for_and_no_control_character_reaches_a_pipe(home: Path) -> None:
    hostile = {
        "ARTIFACTS_AGENT_API_URL": "http://127.0.0.1:9",
        "TURBO_TEAM": "another-team",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "FORCE_COLOR": "1",
    }
    done = subprocess.run(
        DEMO, env=environment(home, **hostile), stdin=subprocess.DEVNULL, capture_output=True, timeout=HUNG_AFTER
    )
    output = done.stdout.decode()
    assert done.returncode == 0, output + done.stderr.decode()
    assert done.stderr == b""
    assert "".join(c for c in output if not c.isprintable()).strip("\n") == ""
    lines = [line.strip() for line in output.splitlines()]
    assert EQUATION in lines
    assert f"Sent by the builds: {SENT}. Recorded by the API: {SENT - 1}, each exactly once." in lines
    for said in (
        "backing_off: 503 Service Unavailable: Down for maintenance",
        "paused: blocked: 402 Payment Required: The account is missing a payment",
        "Back, and still paused: 116 events waiting, 0 lost.",
        f"Dead letter: LOCAL MISS {scenario.POISON}",
        f"the API: 400 Bad Request: The hash {scenario.POISON} is not valid",
    ):
        assert said in lines
    assert [line[:5] for line in lines if re.match(r"\[\d/6\]", line)] == [f"[{n}/6]" for n in range(1, 7)]
    assert list(home.iterdir()) == []


def test_a_terminal_of_80_columns_shows_the_panel_and_is_left_as_it_was(home: Path) -> None:
    output, code = run_on_terminal(home, columns=80)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    assert code == 0, plain
    assert "╭─ artifacts-agent ─" in plain
    assert "dead_lettered" in plain
    assert EQUATION in plain
    assert max(map(len, re.split(r"[\r\n]+", plain))) <= 80
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0, "the cursor stays hidden"


def run_on_terminal(home: Path, columns: int) -> tuple[str, int]:
    """Run the demo on a terminal of its own; return everything it wrote, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    env = {name: value for name, value in environment(home).items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with subprocess.Popen(DEMO, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        output = b"".join(iter(lambda: _read(ours), b""))
        os.close(ours)
    return output.decode(), process.returncode


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # EIO: nobody has the other end any more
        return b""


# Not to its end


@pytest.mark.parametrize(("line", "number"), [(r"^\[1/6\]", signal.SIGTERM), (r"^\[2/6\]", signal.SIGINT)])
def test_an_interrupted_demo_leaves_no_process_and_no_file(home: Path, line: str, number: signal.Signals) -> None:
    with demo(home) as child:
        child.wait_for_line(line)
        child.process.send_signal(number)
        assert child.process.wait(HUNG_AFTER) == 128 + number
        eventually(lambda: child.lines[-1], lambda last: last.strip().startswith("Interrupted"))
        assert "Traceback" not in "".join(child.lines)
    assert processes_in(home) == []
    assert list(home.iterdir()) == []


def test_a_demo_that_cannot_go_on_says_why_in_a_line_and_exits_with_1(home: Path) -> None:
    with demo(home) as child:
        daemons = eventually(lambda: processes_in(home, "agent.cli"), lambda found: len(found) == 1)
        os.kill(daemons[0], signal.SIGKILL)
        assert child.process.wait(HUNG_AFTER) == 1
        eventually(lambda: child.lines[-1], lambda last: last.strip().startswith("The demo failed: "))
        assert "Traceback" not in "".join(child.lines)
    assert processes_in(home) == []
    assert list(home.iterdir()) == []


def test_a_disk_that_takes_nothing_is_named(home: Path) -> None:
    on_full_disk = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *DEMO]
    quiet = environment(home, PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(on_full_disk, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, timeout=HUNG_AFTER)
    assert done.returncode == 1
    assert re.fullmatch(rb" +The demo failed: [^\n]*No usable temporary directory[^\n]*\n", done.stdout)
    assert list(home.iterdir()) == []


def test_lines_that_nobody_reads_are_no_error() -> None:
    code = "from agent.demo.view import PlainView; [PlainView().say('line') for _ in range(3)]"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaints = process.stderr.read()
    assert (process.returncode, complaints) == (0, b"")


# The recording


def test_the_shipped_recording_holds_what_turbo_sent(recorded_requests: list[Recorded]) -> None:
    sent = {json.dumps(event) for request in recorded_requests for event in request.events}
    runs = recording.load()
    events = [event for run in runs.values() for event in run.events]
    assert len(events) == len(set(events)) == SENT
    assert {json.dumps(msgspec.to_builtins(event)) for event in events} <= sent
    headers = {request.case: request.headers.get("x-artifact-client-ci") for request in recorded_requests}
    assert {run.name: run.ci for run in runs.values()} == {run.name: headers[run.case] for run in runs.values()}


def test_each_run_is_played_once_and_one_event_is_poison() -> None:
    runs = recording.load()
    played = [*scenario.ALL_IS_WELL, *scenario.IN_THE_OUTAGE, *scenario.WHILE_BLOCKED, *scenario.WITH_POISON]
    assert sorted(played) == sorted(runs)
    assert [e.hash for name in scenario.WITH_POISON for e in runs[name].events].count(scenario.POISON) == 1


# The API

HIT = Event("00000000-0000-4000-8000-000000000000", "LOCAL", "HIT", "aa", 5)
EVENTS = "/v8/artifacts/events"
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (msgspec.json.encode([HIT]), AUTHORIZED, 200, None),
        (msgspec.json.encode([HIT]), {}, 401, "not authorized"),
        (msgspec.json.encode([HIT]), {"authorization": "Bearer wrong"}, 401, "not authorized"),
        (msgspec.json.encode(HIT), AUTHORIZED, 400, "Expected `array`"),
        (msgspec.json.encode([{**msgspec.to_builtins(HIT), "x": 1}]), AUTHORIZED, 400, "unknown field `x`"),
        (msgspec.json.encode([{"hash": "aa"}]), AUTHORIZED, 400, "missing required field"),
        (b"[", AUTHORIZED, 400, "truncated"),
        (msgspec.json.encode([HIT]), {**AUTHORIZED, "x-artifact-client-ci": "x" * 51}, 400, "50 characters"),
        (msgspec.json.encode([HIT]), {**AUTHORIZED, "x-artifact-client-interactive": "2"}, 400, "0 or 1"),
    ],
)
async def test_the_api_records_what_is_valid_and_answers_errors_in_the_api_s_shape(
    body: bytes, headers: dict[str, str], status: int, message: str | None
) -> None:
    api = DemoApi(TOKEN)
    answer = await ask(api, lambda client: client.post(EVENTS, content=body, headers=headers))
    assert answer.status_code == status
    assert api.recorded == (Counter([HIT]) if status == 200 else Counter())
    assert (api.accepted, api.refused) == ((1, 0) if status == 200 else (0, 1))
    if message is not None:
        assert message in answer.json()["error"]["message"]
        assert answer.json()["error"]["code"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("state", "status", "retry_after", "account"),
    [
        (ApiState.HEALTHY, 200, None, "enabled"),
        (ApiState.DOWN, 503, "3", None),
        (ApiState.BLOCKED, 402, None, "paused"),
    ],
)
async def test_the_api_s_state_decides(
    state: ApiState, status: int, retry_after: str | None, account: str | None
) -> None:
    api = DemoApi(TOKEN, retry_after=3)
    api.state = state
    answer = await ask(api, lambda client: client.post(EVENTS, json=[msgspec.to_builtins(HIT)], headers=AUTHORIZED))
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == retry_after
    assert api.recorded.total() == (1 if status == 200 else 0)
    answer = await ask(api, lambda client: client.get("/v8/artifacts/status", headers=AUTHORIZED))
    assert answer.json().get("status") == account


@pytest.mark.anyio
async def test_poison_costs_the_batch_that_holds_it_and_an_unknown_path_is_not_found() -> None:
    api = DemoApi(TOKEN)
    api.poison = "bb"
    both = msgspec.json.encode([HIT, msgspec.structs.replace(HIT, hash="bb")])
    answer = await ask(api, lambda client: client.post(EVENTS, content=both, headers=AUTHORIZED))
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The hash bb is not valid")
    assert api.recorded == Counter()
    answer = await ask(api, lambda client: client.get("/v8/artifacts", headers=AUTHORIZED))
    assert answer.status_code == 404


async def ask(api: DemoApi, request: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]) -> httpx.Response:
    """Serve the API on a real socket for one request."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, listening, api.handle)
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                answer = await request(client)
            tasks.cancel_scope.cancel()
    return answer


# The proof

BAD = msgspec.structs.replace(HIT, hash="bad")
GOOD = Evidence(
    emitted=Counter([HIT, BAD]),
    poison=BAD,
    ledger=Ledger(2, 1, 1, {}, 0),
    recorded=Counter([HIT]),
    dead_letters=[DeadLetter(2, 0.0, 400, "400 Bad Request: no", Context(), encode_events([BAD]))],
    readings=9,
    unbalanced=0,
)


def test_good_evidence_has_no_problem() -> None:
    assert report.problems(GOOD) == []
    assert report.findings(GOOD)[0] == "accepted 2 = delivered 1 + dead_lettered 1 + dropped 0 + queued 0"


def test_a_repeated_event_is_told_and_is_no_problem() -> None:
    repeated = replace(GOOD, recorded=Counter([HIT, HIT]))
    assert report.problems(repeated) == []
    assert "Sent by the builds: 2. Recorded by the API: 2, of which 1 twice." in report.findings(repeated)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"recorded": Counter()}, "the API lacks 1 events"),
        ({"recorded": Counter([HIT, BAD])}, "the API has 1 events that it should not have"),
        ({"ledger": Ledger(3, 2, 1, {}, 0)}, "the builds sent 2 events and the agent accepted 3"),
        ({"ledger": Ledger(2, 1, 0, {"expired": 1}, 0)}, "the ledger should have delivered 1"),
        ({"ledger": Ledger(2, 1, 0, {}, 1)}, "the ledger should have delivered 1"),
        ({"unbalanced": 1}, "the ledger's equation did not hold in 1 of 9 readings"),
        ({"dead_letters": []}, "the dead letters should be the poison alone"),
    ],
)
def test_whatever_is_not_as_promised_is_a_problem(change: dict[str, Any], problem: str) -> None:
    problems = report.problems(replace(GOOD, **change))
    assert any(line.startswith(problem) for line in problems), problems


@pytest.mark.parametrize(
    ("ledger", "balanced"), [(Ledger(6, 1, 2, {"expired": 1}, 2), True), (Ledger(6, 1, 2, {"expired": 1}, 1), False)]
)
def test_the_equation_holds_or_does_not(ledger: Ledger, balanced: bool) -> None:
    assert report.balances(ledger) is balanced
