"""`web` as a process: what it shows of a real daemon, whom it answers, and what it says when something is wrong."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from agent.cli.web.server import MAX_CONNECTIONS
from tests.support.api_server import ApiServer
from tests.support.command import COMMAND, environment, problems, run_command
from tests.support.daemon import Daemon
from tests.support.process import running
from tests.support.recordings import Recorded
from tests.support.tools import require_root
from tests.support.users import NOBODY
from tests.support.waiting import HUNG_AFTER, eventually
from tests.support.web import Web, configured, served

TOKEN = "t0ken-of-the-page"


@pytest.fixture
def daemon(tmp_path: Path, api_server: ApiServer) -> Iterator[Daemon]:
    """A daemon that delivers."""
    with Daemon(tmp_path, api_server.url) as daemon:
        yield daemon


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """The page of an empty queue, without a daemon."""
    with served(configured(tmp_path)) as web:
        yield web


def send(daemon: Daemon, requests: list[Recorded]) -> int:
    """Send what was recorded, and wait until it is on disk; return how many events it is."""
    with daemon.connect() as client:
        for request in requests:
            client.send(request.lines)
        client.wait_settled(number := sum(len(request.events) for request in requests))
    return number


def test_it_shows_what_a_running_daemon_has_taken_and_how_it_is(
    daemon: Daemon, recorded_requests: list[Recorded]
) -> None:
    number = send(daemon, recorded_requests)
    daemon.wait_destination(lambda default: default.ledger.queued == 0)
    with served(daemon.config) as web:
        text = web.wait_for(f"{number:,} events", "Tasks by hour", "Worst builds")
        assert f"pid {daemon.pid}" in text
        assert f"{number:,} accepted = {number:,} delivered" in text
        session = recorded_requests[0].events[0]["sessionId"]
        assert f"session {session}" in web.wait_for("Tasks by hour", query=f"?session={session}")
        daemon.request("POST", "/pause").raise_for_status()
        web.wait_for('<dd class="bad">paused')
        daemon.kill()
        web.wait_for("no daemon answers there", f"{number:,} events")
        web.process.process.send_signal(signal.SIGINT)
        assert web.process.process.wait(HUNG_AFTER) == 0


def test_a_daemon_that_does_not_answer_holds_up_no_page(daemon: Daemon) -> None:
    with served(daemon.config) as web:
        daemon.signal(signal.SIGSTOP)
        assert "no answer within" in web.wait_for("no answer within")
        assert web.get().status_code == 200
        daemon.signal(signal.SIGCONT)
        web.wait_for(f"pid {daemon.pid}")


def test_without_any_events_it_says_so(web: Web) -> None:
    text = web.wait_for("There were no tasks in this time.")
    assert "<svg" not in text
    assert "no daemon answers there" in text


def test_it_may_be_kept_by_nobody_and_runs_nothing(web: Web) -> None:
    web.wait_for("There were no tasks")
    answer = web.get()
    headers = answer.headers
    assert answer.status_code == 200
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-\S+'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        headers["content-security-policy"],
    )
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert headers["refresh"] == "60"
    assert web.get("?refresh=300").headers["refresh"] == "300"
    assert "refresh" not in web.get("?refresh=off").headers
    assert "set-cookie" not in headers


def test_what_cannot_be_answered_is_refused_with_what_would_be_right(web: Web) -> None:
    asked = {
        "?since=yesterday": (400, "&#x27;yesterday&#x27; is not a time: write it like"),
        "?since=1d&until=2d": (400, "the first has to be before the second"),
        "?until=%ff%00": (400, "is not a time"),
        "?x=%3Cscript%3E": (400, "There is no parameter &#x27;x&#x27;"),
        "favicon.ico": (404, "There is no /favicon.ico, only /."),
        "status": (404, "There is no /status"),
    }
    for query, (status, said) in asked.items():
        answer = web.get(query)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert said in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = httpx.request(method, web.url, content=b"x" * 100_000, timeout=HUNG_AFTER)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    head = httpx.head(web.url, timeout=HUNG_AFTER)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 1000


def test_a_page_of_elsewhere_cannot_read_it_under_a_name_of_its_own(web: Web) -> None:
    assert web.get(Host="evil.example").status_code == 403
    assert web.get(Host="localhost:1").status_code == 200


def test_with_a_token_only_who_has_it_sees_the_page(tmp_path: Path) -> None:
    token = tmp_path / "page-token"
    token.write_text(f"{TOKEN}\n")
    with served(configured(tmp_path), "--token-file", token) as web:
        for refused in (web.get(), web.get(Authorization="Bearer no"), web.get("favicon.ico")):
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic ")
            assert "events" not in refused.text
        for auth in (httpx.BasicAuth("anybody", TOKEN), httpx.BasicAuth("", TOKEN)):
            assert httpx.get(web.url, auth=auth, headers={"Host": "x.example"}, timeout=HUNG_AFTER).status_code == 200
        assert web.get(Authorization=f"Bearer {TOKEN}").status_code == 200
        assert TOKEN not in "".join(web.process.lines)


def test_a_damaged_file_is_made_anew_and_that_is_said(daemon: Daemon, recorded_requests: list[Recorded]) -> None:
    number = send(daemon, recorded_requests[:20])
    run_command("report", "--config", daemon.config)
    path = daemon.queue / "usage.sqlite3"
    path.write_bytes(b"\xff" * 5000)
    with served(daemon.config) as web:
        web.wait_for(f"{number:,} events", "was put aside")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_file_that_cannot_be_read_is_said_and_the_page_stays(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with sqlite3.connect(tmp_path / "queue" / "usage.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with served(config) as web:
        web.wait_for("Not counted:", "was written by a later version", "no daemon answers there")
        assert "fold_failed" in "".join(web.process.lines)


def test_a_crowd_is_turned_away_and_the_page_goes_on(web: Web) -> None:
    host, port = web.url.removeprefix("http://").strip("/").split(":")
    with ExitStack() as crowd:
        for _ in range(2 * MAX_CONNECTIONS):
            idle = crowd.enter_context(socket.create_connection((host, int(port)), HUNG_AFTER))
            idle.sendall(b"GET / HTTP/1.1\r\n")
        eventually(lambda: statuses(web), lambda found: 200 in found)


def statuses(web: Web) -> list[int]:
    """Ask once; nothing comes back while all connections are in use."""
    try:
        return [web.get().status_code]
    except httpx.TransportError:
        return []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--listen", "0.0.0.0:0"], 2, "Others can reach 0.0.0.0:0: name a --token-file"),
        (["--listen", "[::]:0"], 2, "Others can reach [::]:0: name a --token-file"),
        (["--listen", "localhost:1"], 2, "'localhost:1' is no address: write it like \"127.0.0.1:9901\""),
        (["--listen", "127.0.0.1:65536"], 2, "is no address"),
        (["--listen", "::1:80"], 2, "is no address"),
        (["--listen", "9901"], 2, "is no address"),
        (["--listen", "203.0.113.1:0", "--token-file", "TOKEN"], 6, "203.0.113.1:0: the port cannot be opened"),
        (
            ["--token-file", "/etc/nowhere/typo"],
            78,
            "/etc/nowhere/typo: cannot read the token file: No such file or directory",
        ),
        (["--token-file", "EMPTY"], 78, "the token is empty"),
    ],
)
def test_what_it_cannot_start_with_is_one_clear_line(options: list[str], code: int, said: str, tmp_path: Path) -> None:
    files = {"TOKEN": tmp_path / "token", "EMPTY": tmp_path / "empty"}
    files["TOKEN"].write_text(TOKEN)
    files["EMPTY"].write_text("\n")
    given = [str(files.get(each, each)) for each in options]
    done = run_command("web", *given, "--config", configured(tmp_path))
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert code == 2 or len(problems(done.stderr)) == 1


def test_a_port_that_is_taken_is_said(web: Web, tmp_path: Path) -> None:
    address = web.url.removeprefix("http://").strip("/")
    done = run_command("web", "--listen", address, "--config", tmp_path / "config.toml")
    assert done.returncode == 6
    assert problems(done.stderr) == [
        f"{address}: the port cannot be opened: Address already in use: choose another one"
    ]


def test_without_a_queue_it_says_so(tmp_path: Path) -> None:
    env = {"ARTIFACTS_AGENT_QUEUE_DIRECTORY": str(tmp_path / "nowhere")}
    done = run_command("web", "--listen", "127.0.0.1:0", env=env)
    assert done.returncode == 7
    assert "there is no queue here" in done.stderr


def test_root_goes_on_as_the_owner_of_the_queue(tmp_path: Path) -> None:
    require_root()
    os.chown(tmp_path, NOBODY, NOBODY)
    script = (
        "import os, sys; from pathlib import Path; from agent.cli.queue.owner import become_owner; "
        "become_owner(Path(sys.argv[1])); print(os.getresuid(), os.getresgid(), os.getgroups())"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{(NOBODY,) * 3} {(NOBODY,) * 3} []\n"


def test_an_owner_who_cannot_run_the_agent_is_named(tmp_path: Path) -> None:
    require_root()
    config = configured(tmp_path)
    os.chown(tmp_path / "queue", NOBODY, NOBODY)
    with TemporaryDirectory() as place:  # nobody else may look into it
        python = Path(place) / "python"
        python.symlink_to(sys.executable)
        command: list[str | Path] = [python, "-m", "agent.cli", "web", "--listen", "127.0.0.1:0", "--config", config]
        env = environment({"PYTHONPATH": os.pathsep.join(sys.path)})
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER, check=False)
    assert done.returncode == 1
    assert problems(done.stderr)[0].startswith(f"{python}: cannot be run by the owner of {tmp_path / 'queue'}")


def test_it_ends_at_once_also_while_it_counts(tmp_path: Path) -> None:
    with running(
        [*COMMAND, "web", "--listen", "127.0.0.1:0", "--config", configured(tmp_path)], environment()
    ) as child:
        child.wait_for_line("The page is at")
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(HUNG_AFTER) == 0
