"""The command as people and scripts use it: a process, against a real daemon and a real server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.accounts import delivery_of, ledger, ledger_of
from tests.support.api_server import Answer, ApiServer, error
from tests.support.command import COMMAND, Terminal, environment, problems, run_command
from tests.support.daemon import Daemon
from tests.support.tools import require_tool
from tests.support.users import NOBODY, as_user
from tests.support.waiting import HUNG_AFTER

SESSION = "11111111-2222-4333-8444-555555555555"
HANG = Answer(mode="hang")


def event(number: int, **more: object) -> dict[str, Any]:
    return {"sessionId": SESSION, "source": "LOCAL", "event": "HIT", "hash": f"{number:016x}", **more}


def lines(count: int) -> bytes:
    return b"".join(json.dumps(event(number)).encode() + b"\n" for number in range(count))


def queued(daemon: Daemon, count: int) -> None:
    """Send `count` events, and return when they are in the ledger."""
    daemon.send_lines(lines(count))
    daemon.wait_status(lambda status: ledger_of(status)["accepted"] == count)


@pytest.fixture
def daemon(tmp_path: Path, api_server: ApiServer) -> Iterator[Daemon]:
    with Daemon(tmp_path, api_server.url) as running:
        yield running


@pytest.fixture(scope="module")
def idle_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that nothing is sent to."""
    with Daemon(tmp_path_factory.mktemp("idle"), "http://127.0.0.1:1") as running:
        yield running


# status


def test_status_prints_the_control_sockets_json(daemon: Daemon, api_server: ApiServer) -> None:
    daemon.send_lines(lines(3) + b"no event\n")
    api_server.wait_for_accepted(3)
    expected = daemon.wait_status(lambda status: ledger_of(status)["delivered"] == 3 and status["rejected"] == 1)
    done = run_command("status", "--json", "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert status["destinations"] == expected["destinations"]
    assert status["rejected"] == 1
    assert delivery_of(status) == ("running", None)
    assert ledger_of(status) == ledger(3, delivered=3)


def test_status_shows_people_a_block_in_the_servers_words_and_no_colours_in_a_pipe(
    daemon: Daemon, api_server: ApiServer
) -> None:
    api_server.default = error(402, "payment_required", "The team is over its [limit]")
    daemon.send_lines(lines(2))
    daemon.wait_status(lambda status: delivery_of(status)[0] == "paused")
    done = run_command("status", "--config", daemon.config, env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "paused: blocked: 402 Payment Required: The team is over its [limit]" in done.stdout
    assert re.search(r"for \d+ s; asks the server again in \d+ min", done.stdout)
    assert "2 accepted = 0 delivered + 0 dead-lettered + 0 dropped + 2 queued" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["colours", "NO_COLOR"])
def test_status_is_one_screen_on_a_terminal(idle_daemon: Daemon, env: dict[str, str], coloured: bool) -> None:
    with Terminal("status", "--config", idle_daemon.config, env=env) as terminal:
        assert terminal.finish() == 0
    assert len(terminal.output.splitlines()) <= 24
    assert "nothing waits" in terminal.output
    assert ("\x1b[1;32m" in terminal.output) is coloured


def test_status_prints_what_the_terminals_encoding_has(idle_daemon: Daemon) -> None:
    done = run_command("status", "--config", idle_daemon.config, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "delivering: nothing waits" in done.stdout


def test_status_in_a_pipe_neither_wraps_lines_nor_pads_them(daemon: Daemon, api_server: ApiServer) -> None:
    message = "over its limit " * 12
    api_server.default = error(402, "payment_required", message)
    queued(daemon, 1)
    daemon.wait_status(lambda status: delivery_of(status)[0] == "paused")
    done = run_command("status", "--config", daemon.config, env={"COLUMNS": "40"})
    assert f"paused: blocked: 402 Payment Required: {message.strip()}\n" in done.stdout
    assert "1 event, the oldest is" in done.stdout
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []


def test_status_check_has_an_exit_code_for_each_thing_that_keeps_events_from_being_delivered(
    daemon: Daemon, api_server: ApiServer
) -> None:
    ready = run_command("status", "--check", "--config", daemon.config)
    assert (ready.returncode, ready.stdout, ready.stderr) == (0, "ready\n", "")
    api_server.default = error(429, "rate_limited", "slowly", {"Retry-After": "3600"})
    daemon.send_lines(lines(1))
    daemon.wait_status(lambda status: delivery_of(status)[0] == "backing_off")
    waits = run_command("status", "--check", "--config", daemon.config)
    assert waits.returncode == 10
    assert waits.stdout.startswith("default: backing_off: 429 ")
    assert run_command("pause", "--config", daemon.config).returncode == 0
    paused = run_command("status", "--check", "--json", "--config", daemon.config)
    problem = {"destination": "default", "kind": "paused", "message": "operator: paused by an operator"}
    assert (paused.returncode, json.loads(paused.stdout)) == (9, {"ready": False, "problems": [problem]})
    daemon.kill()
    assert run_command("status", "--check", "--config", daemon.config).returncode == 4


# flush


def test_flush_ends_well_when_everything_written_before_has_left_the_queue(
    daemon: Daemon, api_server: ApiServer
) -> None:
    daemon.send_lines(lines(500))
    done = run_command("flush", "--deadline", "10", "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left the queue" in done.stdout
    assert len(api_server.accepted_events()) == 500
    as_json = run_command("flush", "--deadline", "10s", "--json", "--config", daemon.config)
    assert as_json.returncode == 0
    assert as_json.stdout == '{"delivered":500,"queued":0,"dead_lettered":0,"dropped":{}}\n'


def test_flush_says_when_the_deadline_passed_first_and_nothing_is_lost(daemon: Daemon, api_server: ApiServer) -> None:
    api_server.default = HANG
    queued(daemon, 7)
    for deadline in ("300ms", "0.3"):
        done = run_command("flush", "--deadline", deadline, "--json", "--config", daemon.config)
        assert done.returncode == 3
        assert json.loads(done.stdout) == {"delivered": 0, "queued": 7, "dead_lettered": 0, "dropped": {}}
        (problem,) = problems(done.stderr)
        assert problem.startswith("the deadline of 0.3 s passed with 7 events in the queue, where they stay")
    with Terminal("flush", "--deadline", "300ms", "--config", daemon.config) as terminal:
        assert terminal.finish() == 3
    assert "0/7 events" in terminal.text
    assert "artifacts-agent: the deadline of 0.3 s passed" in terminal.text
    assert ledger_of(daemon.status()) == ledger(7, queued=7)


def test_flush_shows_its_progress_on_a_terminal(daemon: Daemon, api_server: ApiServer) -> None:
    api_server.default = error(503, "unavailable", "Come back later")
    queued(daemon, 7)
    with Terminal("flush", "--config", daemon.config) as terminal:
        terminal.wait_for("0/7 events")
        api_server.default = Answer()
        assert terminal.finish() == 0
    assert "7/7 events" in terminal.text
    assert terminal.text.endswith("Everything that was sent before has left the queue: 7 events delivered.\r\n")
    assert terminal.output.count("\x1b[?25l") == terminal.output.count("\x1b[?25h") == 1  # the cursor is back
    assert ledger_of(daemon.status()) == ledger(7, delivered=7)


def test_flush_gives_up_on_a_daemon_that_is_stopped(daemon: Daemon) -> None:
    daemon.signal(signal.SIGSTOP)
    done = run_command("flush", "--deadline", "0", "--config", daemon.config)
    assert done.returncode == 3
    assert problems(done.stderr) == [
        "the deadline of 0 s passed, and the daemon does not answer: look at its process and its logs"
    ]


def test_ctrl_c_ends_a_flush_quietly(daemon: Daemon, api_server: ApiServer) -> None:
    api_server.default = HANG
    queued(daemon, 1)
    with Terminal("flush", "--deadline", "1h", "--config", daemon.config) as terminal:
        terminal.wait_for("0/1 events")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130
    assert "Traceback" not in terminal.output
    assert ledger_of(daemon.status()) == ledger(1, queued=1)


# pause and resume


def test_pause_holds_events_and_resume_lets_them_go(daemon: Daemon, api_server: ApiServer) -> None:
    done = run_command("pause", "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "artifacts-agent resume" in done.stdout
    queued(daemon, 4)
    assert delivery_of(daemon.status()) == ("paused", "operator: paused by an operator")
    assert api_server.posts() == []
    assert run_command("resume", "--config", daemon.config).returncode == 0
    api_server.wait_for_accepted(4)
    daemon.wait_status(lambda status: ledger_of(status) == ledger(4, delivered=4))


# emit


def test_emit_sends_one_event(daemon: Daemon, api_server: ApiServer) -> None:
    values = ("--event", "HIT", "--source", "REMOTE", "--hash", "115c7929ab9c479c", "--duration", "514")
    done = run_command("emit", *values, "--session-id", SESSION, "--socket", daemon.stream, env={"GITLAB_CI": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    api_server.wait_for_accepted(1)
    (request,) = api_server.accepted()
    expected = f'[{{"sessionId":"{SESSION}","source":"REMOTE","event":"HIT","hash":"115c7929ab9c479c","duration":514}}]'
    assert request.body.decode() == expected
    assert request.headers["x-artifact-client-ci"] == "GITLAB"
    assert request.headers["x-artifact-client-interactive"] == "0"


def test_emit_passes_lines_on_and_names_those_that_are_not_valid(daemon: Daemon, api_server: ApiServer) -> None:
    sent = [
        json.dumps(event(1, duration=514)),
        "no JSON",
        "",
        json.dumps({**event(2), "extra": 1}),
        json.dumps([event(3), event(4, duration=0.5)]),
        "x" * 70_000,
        '{"context": {"ci": "BUILDKITE", "interactive": 0}}',
        json.dumps(event(5)),
    ]
    done = run_command("emit", "-", "--socket", daemon.stream, stdin="\n".join(sent).encode())
    assert (done.returncode, done.stdout) == (0, "")
    assert [problem.partition(":")[0] for problem in problems(done.stderr)] == ["line 2", "line 4", "line 6"]
    assert "unknown field `extra`" in done.stderr
    api_server.wait_for_accepted(4)
    received = {json.dumps(each): request for request in api_server.accepted() for each in request.events}
    expected = [event(1, duration=514), event(3), event(4, duration=0.5), event(5)]
    assert received.keys() == {json.dumps(each) for each in expected}
    assert received[json.dumps(event(5))].headers["x-artifact-client-ci"] == "BUILDKITE"
    assert "x-artifact-client-ci" not in received[json.dumps(event(1, duration=514))].headers
    assert daemon.status()["rejected"] == 0


def test_emit_sends_a_line_when_it_is_written_and_not_at_the_end(daemon: Daemon, api_server: ApiServer) -> None:
    command = [*COMMAND, "emit", "-", "--socket", str(daemon.stream)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        process.stdin.write(lines(1))
        api_server.wait_for_accepted(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=HUNG_AFTER)
    assert (process.returncode, stderr.strip()) == (130, b"")


def test_emit_delivers_a_long_pipe_whole(daemon: Daemon) -> None:
    done = run_command("emit", "-", "--strict", "--socket", daemon.stream, stdin=lines(20_000))
    assert (done.returncode, done.stderr) == (0, "")
    status = daemon.wait_status(lambda status: ledger_of(status)["accepted"] >= 20_000)
    assert ledger_of(status)["accepted"] == 20_000
    assert status["rejected"] == 0


ONE_EVENT = ("emit", "--event", "MISS", "--source", "LOCAL", "--hash", "h")


@pytest.mark.parametrize("command", [ONE_EVENT, ("emit", "-")], ids=["one", "lines"])
def test_emit_never_fails_a_build_without_a_daemon_unless_it_is_told_to(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "absent.sock"
    done = run_command(*command, "--socket", path, stdin=lines(1))
    assert done.returncode == 0
    (problem,) = problems(done.stderr)
    assert problem.startswith(f"1 event was not sent: no daemon listens on {path}: start it")
    assert run_command(*command, "--socket", path, "--strict", stdin=lines(1)).returncode == 4


def test_emit_without_permission_for_the_socket_says_so_and_fails_only_if_it_is_told_to() -> None:
    """Root may do anything, so that the command gives it up when all is imported."""
    script = (
        "import os, sys\nfrom agent import client\nfrom agent.cli.commands import emit\nfrom agent.cli.main import main\n"
        "os.geteuid() or os.setuid(65534)\nsys.exit(main())"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listening:
        Path(directory).chmod(0o755)
        path = Path(directory, "s.sock")
        listening.bind(str(path))
        listening.listen()
        path.chmod(0)
        command = [sys.executable, "-c", script, *ONE_EVENT, "--socket", str(path)]
        env = {
            name: value for name, value in environment().items() if not name.startswith("COV")
        }  # it could not be written
        lenient, strict = (
            subprocess.run([*command, *more], env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
            for more in ([], ["--strict"])
        )
    assert (lenient.returncode, strict.returncode) == (0, 4)
    for done in (lenient, strict):
        (problem,) = problems(done.stderr)
        assert problem.startswith(f"1 event was not sent: {path}: Permission denied")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["--duration", ""], "--duration: '' is not a number of milliseconds, 0 or more"),
        (["--duration", "12ms"], "--duration: '12ms' is not a number of milliseconds, 0 or more"),
        (["--duration", "nan"], "--duration: 'nan' is not a number of milliseconds, 0 or more"),
        (["--duration", "-5"], "--duration: '-5' is not a number of milliseconds, 0 or more"),
        (["--hash", ""], "--hash: '' is not the hash of an artifact"),
        (["--event", "hit"], "--event: 'hit' is not one of 'HIT', 'MISS'"),
        (
            ["--source", "", "--hash", ""],
            "--source: '' is not one of 'LOCAL', 'REMOTE'; --hash: '' is not the hash of an artifact",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_emit_never_fails_a_build_for_a_value_that_it_computed_unless_it_is_told_to(
    tmp_path: Path, values: list[str], reason: str
) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        lenient, strict = (run_command(*ONE_EVENT, *values, "--socket", path, *more) for more in ([], ["--strict"]))
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert (lenient.returncode, lenient.stdout) == (0, "")
    assert problems(lenient.stderr) == [f"1 event was not sent: {reason}"]
    assert (strict.returncode, strict.stdout) == (2, "")
    assert reason.partition("; ")[0].partition(": ")[2] in strict.stderr


def test_emit_never_fails_a_build_for_want_of_its_standard_input_unless_it_is_told_to(tmp_path: Path) -> None:
    with (tmp_path / "write-only").open("wb") as stdin:
        lenient, strict = (
            subprocess.run(
                [*COMMAND, "emit", "-", *more],
                stdin=stdin,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=HUNG_AFTER,
            )
            for more in ([], ["--strict"])
        )
    assert (lenient.returncode, strict.returncode) == (0, 1)
    for done in (lenient, strict):
        assert problems(done.stderr) == ["standard input: cannot read: Bad file descriptor"]


def test_emit_makes_a_session_where_the_given_one_is_empty(daemon: Daemon, api_server: ApiServer) -> None:
    for _ in range(2):
        assert run_command(*ONE_EVENT, "--strict", "--session-id", "", "--socket", daemon.stream).returncode == 0
    api_server.wait_for_accepted(2)
    one, other = (event["sessionId"] for request in api_server.accepted() for event in request.events)
    assert UUID(one).version == UUID(other).version == 4
    assert one != other


def test_emit_that_is_turned_off_says_nothing() -> None:
    done = run_command(*ONE_EVENT, env={"ARTIFACTS_AGENT_SOCKET": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_emit_waits_only_so_long_for_a_daemon_that_hangs(tmp_path: Path) -> None:
    path, count = tmp_path / "s.sock", 20_000
    with socket.socket(socket.AF_UNIX) as never_accepting:
        never_accepting.bind(str(path))
        never_accepting.listen()
        send = partial(run_command, "emit", "-", "--socket", path, stdin=lines(count))
        with ThreadPoolExecutor() as pool:
            strict, lenient = pool.map(lambda options: send(*options), (["--strict"], []))
    assert (strict.returncode, lenient.returncode) == (1, 0)
    for done in (strict, lenient):
        (problem,) = problems(done.stderr)
        counted = re.match(r"([\d,]+) events were not sent: .*: the daemon does not read", problem)
        assert counted is not None, problem
        assert 0 < int(counted[1].replace(",", "")) < count


def test_emit_that_is_strict_waits_for_a_daemon_that_is_slow_as_long_as_it_takes_lines(tmp_path: Path) -> None:
    """In all it waits longer than for one that hangs."""
    path, count, pace = tmp_path / "s.sock", 16_000, threading.Event()
    taken: list[bytes] = []

    def take_slowly(listening: socket.socket) -> None:
        with listening.accept()[0] as connection:
            while data := connection.recv(4096):
                taken.append(data)
                pace.wait(0.01)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        taker = threading.Thread(target=take_slowly, args=(listening,))
        taker.start()
        done = run_command("emit", "-", "--strict", "--socket", path, stdin=lines(count))
        pace.set()
        taker.join()
    assert (done.returncode, done.stderr) == (0, "")
    assert b"".join(taken).count(b'"hash"') == count


def test_emit_is_strict_about_lines_that_are_not_valid(daemon: Daemon) -> None:
    done = run_command("emit", "-", "--strict", "--socket", daemon.stream, stdin=b"\n" + b"{}\n" * 15)
    assert done.returncode == 1
    assert len(named := problems(done.stderr)) == 11
    assert (named[0].partition(":")[0], named[-1]) == ("line 2", "and 5 more invalid lines")


@pytest.mark.parametrize(
    "args",
    [
        ["emit"],
        ["emit", "--event", "MAYBE", "--source", "LOCAL", "--hash", "h", "--strict"],
        ["emit", "--event", "HIT", "--source", "LOCAL"],
        ["emit", "--event", "", "--source", "LOCAL"],
        ["emit", "--event", "HIT", "--source", "LOCAL", "--hash", "h", "--duratoin", "514"],
        ["emit", "-", "--hash", "h"],
        ["flush", "--deadline", "soon"],
        ["flush", "--deadline", "2d"],
        ["flush", "--deadline", "-1"],
        ["nonsense"],
        ["status", "--token", "secret"],
        ["completion", "tcsh"],
        [],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_explained(args: list[str]) -> None:
    done = run_command(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: artifacts-agent" in done.stderr
    assert "Traceback" not in done.stderr


# reload


def test_reload_says_what_has_changed(daemon: Daemon, api_server: ApiServer) -> None:
    daemon.configure(api_server.url, {"batch": {"max_events": 7}, "queue": {"max_age": "1d"}})
    done = run_command("reload", "--config", daemon.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Reloaded: batch.max_events changed.",
        "A restart is needed for queue.max_age.",
    ]
    assert run_command("reload", "--config", daemon.config).stdout.startswith("Reloaded: nothing changed.")


def test_a_refused_reload_is_told_to_who_asked_for_it(daemon: Daemon) -> None:
    """The daemon is found although its configuration is wrong: only its control socket has to be known."""
    daemon.config.write_text(daemon.config.read_text() + "\n[log]\nlevel = 'loud'\n")
    done = run_command("reload", "--config", daemon.config)
    assert (done.returncode, done.stdout) == (78, "")
    (problem,) = problems(done.stderr)
    assert problem.startswith(f"{daemon.config}: log.level = 'loud': ")
    assert "reload_refused" in daemon.stderr_text()
    assert run_command("status", "--check", "--config", daemon.config).returncode == 0


# finding the daemon


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("status", "--check"), "ready\n"),
        (("flush", "--deadline", "60s"), "Everything that was sent before has left the queue"),
    ],
)
def test_the_daemon_of_the_system_is_found_with_nothing_but_its_mounted_directory(
    args: tuple[str, ...], said: str, daemon: Daemon
) -> None:
    """As by a probe in a container, or by sudo as the daemon's user: no configuration, no HOME, no XDG_RUNTIME_DIR."""
    nobody = as_user(NOBODY)
    unshare = require_tool("unshare", "apt-get install util-linux")
    (daemon.directory / "control.sock").symlink_to("c.sock")
    for path, mode in ((daemon.directory, 0o755), (daemon.control, 0o666)):
        path.chmod(mode)
    script = (
        'mount -t tmpfs none /run && mkdir /run/artifacts-agent && mount --bind "$0" /run/artifacts-agent && exec "$@"'
    )
    command = [unshare, "--mount", "sh", "-c", script, daemon.directory, *nobody, *COMMAND, *args]
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(said)


def test_where_no_daemon_is_found_all_places_are_named(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [*as_user(NOBODY), *COMMAND, "status"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert done.returncode == 4
    (problem,) = problems(done.stderr)
    assert problem.startswith("/run/artifacts-agent/control.sock: ")
    assert f"and there is none at {tmp_path}/artifacts-agent/control.sock: " in problem


# no daemon, or none to talk to

ASKING = ("status", "flush", "pause", "resume", "reload")


@pytest.mark.parametrize("command", ASKING)
def test_without_a_daemon_the_path_and_how_to_start_one_are_said(tmp_path: Path, command: str) -> None:
    done = run_command(command, env={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert (done.returncode, done.stdout) == (4, "")
    (problem,) = problems(done.stderr)
    assert problem.startswith(
        f"{tmp_path}/control.sock: no daemon answers there (No such file or directory): start it with"
    )


def test_a_socket_without_permission_is_said_to_be_that(tmp_path: Path) -> None:
    """Root may do anything, so that the command gives it up when all is imported."""
    script = (
        "import os, sys, pathlib\nfrom agent import config\nfrom agent.control import client as control_client\n"
        "from agent.cli.commands import delivery\n"
        "from agent.cli.main import main\ncontrol_client.ControlClient(pathlib.Path('/'))\n"
        "os.geteuid() or os.seteuid(65534)\nsys.argv[1:] = ['pause']\ncode = main()\n"
        "os.seteuid(os.getuid())\nsys.exit(code)"
    )
    closed = tmp_path / "closed"
    closed.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(closed / "control.sock"))
        listening.listen()
        closed.chmod(0)
        env = environment({"RUNTIME_DIRECTORY": str(closed)})
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=HUNG_AFTER
        )
        closed.chmod(0o700)
    assert done.returncode == 4
    (problem,) = problems(done.stderr)
    assert problem.startswith(f"{closed}/control.sock: this user may not ask the daemon (Permission denied)")


@contextmanager
def stranger(path: Path, answer: bytes) -> Iterator[None]:
    """Somebody else behind the control socket: says `answer` to one client, and hangs up."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"", 4, "the connection ended before the answer"),
        (b"220 mail.example ESMTP\r\n", 4, "the connection ended before the answer"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 1, "GET /status got 404"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 1, "GET /status got 200"),
    ],
    ids=["hangs up", "no HTTP", "404", "no JSON"],
)
def test_a_stranger_on_the_control_socket_is_one_clear_line(
    tmp_path: Path, answer: bytes, code: int, said: str
) -> None:
    path = tmp_path / "control.sock"
    with stranger(path, answer):
        done = run_command("status", env={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert done.returncode == code
    (problem,) = problems(done.stderr)
    assert problem.startswith(f"{path}: ")
    assert said in problem
