"""`devserver`: real clients send to it, and it prints what they sent."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.demo.devserver import EXAMPLE
from tests.support import turbo
from tests.support.command import COMMAND, environment, run_command
from tests.support.monorepo import Monorepo
from tests.support.process import Child
from tests.support.tools import missing

TOTAL_OF_ONE = "1 event in 1 request: 1 LOCAL HIT; 0.514 s saved"
HIT = {"sessionId": "s", "source": "REMOTE", "event": "HIT", "hash": "abc", "duration": 1500}
MISS = {"sessionId": "s", "source": "LOCAL", "event": "MISS", "hash": "abc", "duration": 0}


@pytest.fixture
def server() -> Iterator[Child]:
    with subprocess.Popen(
        [*COMMAND, "devserver"], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        child = Child(process)
        try:
            child.wait_for_line("Ctrl-C ends the server")
            yield child
        finally:
            child.stop()


def address_of(server: Child) -> tuple[str, str]:
    """Return the URL and the token that the server shows."""
    match = server.wait_for_line(r"The API is at (http://127\.0\.0\.1:\d+), and its token is (\S+)")
    return match[1], match[2]


def interrupt(server: Child) -> str:
    """Press Ctrl-C; return the last line."""
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0
    return server.wait_for_line(r"^Received .*")[0]


def test_the_curl_command_that_it_prints_sends_an_event_that_it_shows(server: Child) -> None:
    if shutil.which("curl") is None:
        missing("curl", "apt-get install curl")
    lines = server.lines
    start = next(number for number, line in enumerate(lines) if line.startswith("  curl "))
    done = subprocess.run(["sh", "-c", "".join(lines[start : start + 2])], capture_output=True, timeout=20)
    assert json.loads(done.stdout) == {}
    server.wait_for_line(rf"LOCAL +HIT +{EXAMPLE.hash} +duration 514 ms +session {EXAMPLE.session_id}")
    server.wait_for_line(f"total: {TOTAL_OF_ONE}")
    assert interrupt(server) == f"Received {TOTAL_OF_ONE}."


def test_a_build_of_turbo_works_and_its_events_are_shown(server: Child, tmp_path: Path) -> None:
    url, token = address_of(server)
    run = turbo.run(
        Monorepo(tmp_path / "m", 2), url, {"TURBO_TOKEN": token, "TURBO_TEAM": "dev", "GITHUB_ACTIONS": "1"}
    )
    assert run.code == 0, run.output
    assert "WARNING" not in run.output
    server.wait_for_line("ci GITHUB_ACTIONS, interactive not given, team dev")
    for task in run.tasks.values():
        for source in ("LOCAL", "REMOTE"):
            server.wait_for_line(rf"{source} +MISS +{task.hash} +duration 0 ms")
    assert re.search(
        r"^Received 4 events in \d requests?: 2 LOCAL MISS, 2 REMOTE MISS; 0\.000 s saved\.", interrupt(server)
    )


def test_totals_count_events_and_the_time_that_hits_saved(server: Child) -> None:
    url, token = address_of(server)
    headers = {"authorization": f"Bearer {token}"}
    for events in ([HIT, MISS], [HIT]):
        assert httpx.post(f"{url}/v8/artifacts/events", json=events, headers=headers).status_code == 200
    assert interrupt(server) == "Received 3 events in 2 requests: 1 LOCAL MISS, 2 REMOTE HIT; 3.000 s saved."


@pytest.mark.parametrize(
    ("token", "events", "reason"),
    [
        ("another", [HIT], "401 The request is not authorized"),
        (None, [{**HIT, "event": "hit"}], "400 Invalid enum value 'hit'"),
        (None, [{**HIT, "size": 1}], "400 Object contains unknown field `size`"),
    ],
)
def test_a_request_that_is_not_valid_is_refused_and_the_reason_is_shown(
    server: Child, token: str | None, events: list[object], reason: str
) -> None:
    url, right = address_of(server)
    headers = {"authorization": f"Bearer {token or right}"}
    answer = httpx.post(f"{url}/v8/artifacts/events", json=events, headers=headers)
    assert answer.status_code == int(reason[:3])
    server.wait_for_line(re.escape(f"POST /v8/artifacts/events: {reason}"))
    assert interrupt(server) == "Received 0 events in 0 requests; 1 request refused."


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("devserver", "--port", str(port))
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"artifacts-agent: 127.0.0.1:{port}: cannot listen: Address already in use: choose")


def test_it_ends_when_nobody_reads_its_output() -> None:
    with subprocess.Popen(
        [*COMMAND, "devserver"], env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().split()[4].rstrip(",")
        process.stdout.close()
        with contextlib.suppress(httpx.TransportError):  # it may end before it answers
            httpx.post(f"{url}/v8/artifacts/events", json=[])
        assert process.stderr.read() == ""
        assert process.wait(10) == 141
