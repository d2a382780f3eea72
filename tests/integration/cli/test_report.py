"""`report` on the queue of a real daemon, while it runs and afterwards."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.api_server import ApiServer
from tests.support.command import COMMAND, environment, problems, run_command
from tests.support.daemon import Daemon
from tests.support.naive_usage import naive_count
from tests.support.recordings import Recorded
from tests.support.tools import require_root
from tests.support.users import NOBODY, as_user


@pytest.fixture
def daemon(tmp_path: Path, api_server: ApiServer) -> Iterator[Daemon]:
    """A daemon that delivers."""
    with Daemon(tmp_path, api_server.url) as daemon:
        yield daemon


def sent(daemon: Daemon, requests: list[Recorded]) -> list[dict[str, Any]]:
    """Send what was recorded, and wait until it is on disk."""
    with daemon.connect() as client:
        for request in requests:
            client.send(request.lines)
        client.wait_settled(sum(len(request.events) for request in requests))
    return [event for request in requests for event in request.events]


def asked(daemon: Daemon, *args: str) -> dict[str, Any]:
    done = run_command("report", "--format", "json", *args, "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def promised(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in naive_count([])}


def test_it_counts_while_the_daemon_runs_and_after_its_end(daemon: Daemon, recorded_requests: list[Recorded]) -> None:
    events = sent(daemon, recorded_requests[:30])
    assert promised(asked(daemon)) == naive_count(events)
    events += sent(daemon, recorded_requests[30:])
    assert promised(asked(daemon)) == naive_count(events)
    daemon.terminate()
    assert promised(asked(daemon)) == naive_count(events)
    session = events[0]["sessionId"]
    of_session = naive_count(event for event in events if event["sessionId"] == session)
    assert promised(asked(daemon, "--session", session)) == of_session


def test_below_a_rate_it_fails_but_not_without_tasks(daemon: Daemon, recorded_requests: list[Recorded]) -> None:
    options = ("report", "--config", daemon.config, "--fail-under", "75")
    assert run_command(*options).returncode == 0
    sent(daemon, recorded_requests)
    done = run_command(*options)
    assert done.returncode == 9
    assert problems(done.stderr) == ["the hit rate is 3.1 %, below 75 %"]
    assert run_command(*options[:-1], "3").returncode == 0


def test_status_shows_what_was_counted_of_the_last_day(daemon: Daemon, recorded_requests: list[Recorded]) -> None:
    def shown() -> str:
        done = run_command("status", "--config", daemon.config)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "last 24 h" not in shown()
    counted = naive_count(sent(daemon, recorded_requests))
    asked(daemon)
    hits = sum(counted["hits"].values())
    assert f"last 24 h  3 % hits: {hits} of {counted['tasks']:,} tasks, " in shown()
    (daemon.queue / "usage.sqlite3").write_bytes(b"x" * 5000)
    assert "last 24 h  not known: " in shown()
    assert (daemon.queue / "usage.sqlite3").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("form", ["text", "github", "html", "csv"])
def test_every_form_is_written(daemon: Daemon, recorded_requests: list[Recorded], form: str) -> None:
    sent(daemon, recorded_requests)
    done = run_command("report", "--format", form, "--by", "session", "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert recorded_requests[0].events[0]["sessionId"] in done.stdout


@pytest.mark.parametrize("time", ["", "7", "yesterday", "2026-13-01", "9999-12-31T23:59", "0001-01-01", "99999999d"])
def test_what_is_no_time_is_a_usage_error(time: str, tmp_path: Path) -> None:
    done = run_command("report", "--since", time, "--config", tmp_path / "none.toml")
    assert done.returncode == 2
    assert "is not a time" in done.stderr


@pytest.mark.parametrize("time", ["1w", "7D", "yesterday"])
def test_the_units_of_a_time_are_listed(time: str, tmp_path: Path) -> None:
    done = run_command("report", "--until", time, "--config", tmp_path / "none.toml")
    assert (done.returncode, "units are s, m, h and d" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "times",
    [
        ("--since", "1d", "--until", "2d"),
        ("--since", "1d", "--until", "1d"),
        ("--since", "2025-06-15", "--until", "2025-06-15"),
        ("--until", "8d"),
    ],
)
def test_a_period_that_ends_before_it_begins_is_a_usage_error(times: tuple[str, ...], tmp_path: Path) -> None:
    done = run_command("report", *times, "--config", tmp_path / "none.toml")
    assert (done.returncode, "the first has to be before the second" in done.stderr) == (2, True)


def test_a_session_of_which_nothing_is_known_is_said(daemon: Daemon, recorded_requests: list[Recorded]) -> None:
    session = sent(daemon, recorded_requests[:1])[0]["sessionId"]
    for form in ("text", "github", "html"):
        ask = ("report", "--format", form, "--config", daemon.config, "--session")
        assert "no event is known of session" not in run_command(*ask, session).stdout
        for unknown in (session[:3], f"{session[:8]}x", "nothing%"):
            said = f"no event is known of session {unknown}: is it its ID, or the first 4 characters at least?"
            assert said in run_command(*ask, unknown).stdout
    assert asked(daemon, "--session", session[:3])["sessions"] == 0


def test_a_session_is_known_by_its_beginning_if_no_other_one_begins_so(daemon: Daemon) -> None:
    names = ["0d9f-a", "0d9f-b", "0d9f-b-longer", "5f0c"]
    events = [{"sessionId": name, "source": "LOCAL", "event": "HIT", "hash": "h"} for name in names]
    with daemon.connect() as client:
        client.send(b"".join(json.dumps(event).encode() + b"\n" for event in events))
        client.wait_settled(len(events))
    for given, meant in (("0d9f-a", "0d9f-a"), ("0d9f-b", "0d9f-b"), ("0d9f-b-", "0d9f-b-longer"), ("5f0c", "5f0c")):
        assert asked(daemon, "--session", given)["session"] == meant
    done = run_command("report", "--session", "0d9f", "--config", daemon.config)
    assert done.returncode == 2
    assert "several sessions begin with '0d9f': " in done.stderr
    assert all(name in done.stderr for name in names[:3])


def test_a_date_is_utc(daemon: Daemon) -> None:
    found = asked(daemon, "--since", "2025-06-15", "--until", "2025-06-16T12:30+02:00")
    assert (found["since"], found["until"]) == ("2025-06-15T00:00:00.000Z", "2025-06-16T11:00:00.000Z")


def test_without_a_queue_it_says_so(tmp_path: Path) -> None:
    env = {"ARTIFACTS_AGENT_QUEUE_DIRECTORY": str(tmp_path / "nowhere"), "VERCEL_ARTIFACTS_TOKEN": "t"}
    done = run_command("report", env=env)
    assert done.returncode == 7
    assert "there is no queue here" in done.stderr


def test_root_leaves_files_of_the_owner_and_who_may_only_read_is_told(
    api_server: ApiServer, recorded_requests: list[Recorded]
) -> None:
    require_root()
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)  # pytest's are its user's alone
        with Daemon(Path(place), api_server.url) as daemon:
            events = sent(daemon, recorded_requests[:5])
            daemon.terminate()
            ask_as_others(daemon, daemon.queue, events)


def ask_as_others(daemon: Daemon, queue: Path, events: list[dict[str, Any]]) -> None:
    env = environment({"ARTIFACTS_AGENT_QUEUE_DIRECTORY": str(queue), "VERCEL_ARTIFACTS_TOKEN": "t"})
    command = [*as_user(NOBODY), *COMMAND, "report", "--format", "json"]
    found = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    assert promised(found) == naive_count(events)
    assert "cannot be written: Permission denied" in found["unknown"]["problems"][0]
    for path in (queue, *queue.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    assert promised(asked(daemon)) == naive_count(events)
    assert (queue / "usage.sqlite3").stat().st_uid == NOBODY


def test_another_user_is_told_whose_it_is(tmp_path: Path) -> None:
    require_root()
    tmp_path.chmod(0o700)
    script = (
        "import os, sys; from pathlib import Path; from agent.cli.queue.owner import as_owner; "
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY}); as_owner(Path(sys.argv[1])).__enter__()"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert "cannot be used: Permission denied: run it as the daemon's user, or as root" in done.stderr


LOOK = """
import os, sys
from pathlib import Path
from agent.config import directories
os.setresuid(*[int(sys.argv[2])] * 3)
directories.SYSTEM_STATE_DIRECTORY = Path(sys.argv[1], "lib")
directories.SYSTEM_RUNTIME_DIRECTORY = Path(sys.argv[1], "run")
print(directories.Directories.of_daemon({"HOME": sys.argv[1] + "/home"}, os.geteuid()).state)
"""


def test_without_a_daemon_of_the_system_a_user_looks_at_their_own_queue() -> None:
    require_root()
    with TemporaryDirectory() as place:
        system, own = Path(place, "lib"), Path(place, "home/.local/state/artifacts-agent")
        Path(place).chmod(0o755)

        def looked_at() -> Path:
            look = [sys.executable, "-c", LOOK, place, str(NOBODY)]
            return Path(subprocess.run(look, capture_output=True, text=True, check=True).stdout.strip())

        assert looked_at() == own
        system.mkdir(mode=0o700)
        assert looked_at() == own
        Path(place, "run").mkdir(mode=0o755)
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(str(Path(place, "run/control.sock")))
            assert looked_at() == system
        Path(place, "run/control.sock").unlink()
        system.chmod(0o755)
        assert looked_at() == system


def test_a_damaged_file_is_said_and_made_anew(
    daemon: Daemon, recorded_requests: list[Recorded], tmp_path: Path
) -> None:
    events = sent(daemon, recorded_requests)
    asked(daemon)
    path = daemon.queue / "usage.sqlite3"
    path.write_bytes(b"\xff" * 5000)
    found = asked(daemon)
    assert promised(found) == naive_count(events)
    assert "was put aside" in found["unknown"]["problems"][0]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_what_was_built_again_has_its_name_where_turbo_has_written_it(daemon: Daemon, tmp_path: Path) -> None:
    runs = tmp_path / "repository" / ".turbo" / "runs"
    runs.mkdir(parents=True)
    (runs / "run.json").write_text('{"tasks": [{"taskId": "web#build", "hash": "h"}]}')
    with daemon.connect() as client:
        for number in range(2):
            client.send(b'{"sessionId":"s%d","source":"REMOTE","event":"MISS","hash":"h"}\n' % number)
        client.wait_settled(2)
    ask = ("report", "--config", str(daemon.config))
    assert json.loads(run_command(*ask, "--format", "json").stdout)["missed_again"][0]["task"] is None
    for form in ("text", "json", "github", "html"):
        assert "web#build" in run_command(*ask, "--format", form, "--runs", str(runs)).stdout, form
    (runs / "other.json").write_text("{")
    assert "1 file of turbo's cannot be read" in run_command(*ask, "--runs", str(runs)).stdout
    above = subprocess.run(
        [*COMMAND, *ask], cwd=runs.parent, env=environment(), capture_output=True, text=True, check=True
    )
    assert "web#build" in above.stdout
    refused = run_command(*ask, "--runs", str(tmp_path / "nothing"))
    assert (refused.returncode, "does not exist" in refused.stderr) == (2, True)
