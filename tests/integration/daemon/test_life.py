"""The real daemon from start to end: what it says, how it stops, what it refuses, what survives."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.control.schema import ApiStatus
from agent.queue.cursor import Ledger
from tests.support.accounts import ledger as expected
from tests.support.api_server import Answer, ApiServer
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.edge import line
from tests.support.json_log import logged, wait_logged
from tests.support.waiting import HUNG_AFTER, eventually

JSON_LOG = {"log": {"format": "json"}}
NOWHERE = "http://127.0.0.1:9"
QUEUE_LOCKED, SOCKET_TAKEN, CONFIG_WRONG = 5, 6, 78


def emit(daemon: Daemon, count: int) -> None:
    """Send events and return when they are durable."""
    with daemon.connect() as client:
        client.send(line() * count)
        client.wait_settled(count)


def run_to_its_end(daemon: Daemon) -> tuple[int, str]:
    """Start a daemon that cannot run; return its exit code and what it says."""
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(daemon.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG_AFTER, stdin=subprocess.DEVNULL)
    return done.returncode, done.stderr


@pytest.fixture
def daemon(tmp_path: Path, api_server: ApiServer) -> Iterator[Daemon]:
    """A running daemon with a healthy API."""
    api_server.token = TOKEN
    with Daemon(tmp_path / "d", api_server.url, JSON_LOG) as running:
        yield running


# Life


def test_once_ready_it_takes_events_and_answers_on_the_control_socket(daemon: Daemon, api_server: ApiServer) -> None:
    emit(daemon, 3)
    api_server.wait_for(lambda: len(api_server.accepted_events()) == 3)
    assert daemon.wait_destination(lambda default: default.ledger.delivered == 3).state == "running"
    report = daemon.report()
    assert (report.pid, report.rejected) == (daemon.pid, 0)
    assert daemon.request("GET", "/healthz").status_code == 200
    metrics = daemon.request("GET", "/metrics")
    samples = {s.name: s.value for f in text_string_to_metric_families(metrics.text) for s in f.samples}
    assert samples["artifacts_agent_events_delivered_total"] == 3
    assert daemon.request("GET", "/nothing").status_code == 404


def test_the_control_socket_is_for_the_owner_alone(daemon: Daemon) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (daemon.stream, daemon.datagram, daemon.control)}
    assert modes == {"s.sock": 0o660, "d.sock": 0o660, "c.sock": 0o600}


def test_sigterm_delivers_the_rest_and_leaves_nothing_behind(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "d", api_server.url, {"batch": {"max_delay": "1h"}}) as daemon:
        emit(daemon, 5)
        daemon.send_lines(line() * 10 + line()[:-1])
        daemon.send_datagram(line())
        assert api_server.posts() == []
        assert daemon.terminate() == 0
        assert len(api_server.accepted_events()) == 17
        assert [path.exists() for path in (daemon.stream, daemon.datagram, daemon.control)] == [False] * 3


def test_events_written_in_the_moment_of_sigterm_are_kept(tmp_path: Path) -> None:
    """Whatever a write returned success for is in the queue after the restart, even with no time to drain."""
    sections = {"shutdown": {"deadline": "0s"}}
    with Daemon(tmp_path / "d", NOWHERE, sections) as daemon:
        written, stopped = [0] * 4, threading.Event()

        def flood(index: int) -> None:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(daemon.stream))
                while not stopped.is_set():
                    try:
                        written[index] += client.send(line())
                    except OSError:
                        return

        threads = [threading.Thread(target=flood, args=(index,)) for index in range(len(written))]
        for thread in threads:
            thread.start()
        daemon.wait_destination(lambda default: default.ledger.queued > 1000)
        assert daemon.terminate() == 0
        stopped.set()
        for thread in threads:
            thread.join()
        daemon.start()
        # A last piece that ends within a line is a line, and rejected; it is no event.
        assert daemon.destination().ledger.queued == sum(each // len(line()) for each in written)


@pytest.mark.parametrize("api", ["gone", "hanging"])
def test_with_the_api_down_it_ends_at_the_deadline_and_a_restart_delivers(
    tmp_path: Path, api_server: ApiServer, api: str
) -> None:
    api_server.default = Answer(mode="hang")
    url, sections = NOWHERE if api == "gone" else api_server.url, {"shutdown": {"deadline": "500ms"}}
    with Daemon(tmp_path / "d", url, {**sections, "api": {"timeout": "1h"}}) as daemon:
        emit(daemon, 20)
        if api == "hanging":
            api_server.wait_for_posts(1)
        started = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - started >= 0.4  # and not an hour, as a request may take
        api_server.default = Answer()
        daemon.configure(api_server.url, {})
        daemon.start()
        daemon.wait_destination(lambda default: default.ledger.delivered == 20)
        assert len(api_server.accepted_events()) == 20


def test_another_account_for_what_waits_is_said(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "http://127.0.0.1:9", {"log": {"format": "json"}})
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:10", "http://127.0.0.1:10"):
        daemon.configure(url, {"log": {"format": "json"}})
        with daemon:
            pass
    said = [(each["was"], each["now"]) for each in logged(daemon) if each["event"] == "account_changed"]
    assert said == [("http://127.0.0.1:9", "http://127.0.0.1:10")]


def test_a_second_sigterm_hastens_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE, {"shutdown": {"deadline": "1h"}, **JSON_LOG}) as daemon:
        emit(daemon, 20)
        daemon.signal(signal.SIGTERM)
        wait_logged(daemon, "stopping")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        stopped = wait_logged(daemon, "stopped")[-1]
        assert stopped["ledger"] == expected(20, queued=20)


@pytest.mark.parametrize("times", [1, 3], ids=["a second SIGTERM", "a fourth SIGTERM"])
def test_a_later_sigterm_ends_requests_that_are_under_way(times: int, tmp_path: Path, api_server: ApiServer) -> None:
    api_server.routes[("GET", "/hang")] = Answer(mode="hang")
    sections: Sections = {
        "shutdown": {"deadline": "1h"},
        "http": {"socket": str(tmp_path / "h")},
        "front": {"enabled": True},
    }
    with Daemon(tmp_path / "d", api_server.url, {**sections, **JSON_LOG}) as daemon:
        emit(daemon, 2)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "h"))
            client.sendall(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
            eventually(lambda: [each.path for each in api_server.requests], lambda paths: "/hang" in paths)
            daemon.send_lines(line() * 3)
            daemon.signal(signal.SIGTERM)
            wait_logged(daemon, "stopping")
            for _ in range(times):
                daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert wait_logged(daemon, "stopped")[-1]["ledger"]["accepted"] == 5


def test_two_signals_at_once_end_it_in_order(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE, {"shutdown": {"deadline": "1h"}}) as daemon:
        emit(daemon, 20)
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0
        assert daemon.start().destination().ledger.queued == 20


def test_a_kill_while_it_drains_costs_no_event(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.default = Answer(mode="hang")
    with Daemon(tmp_path / "d", api_server.url, {"shutdown": {"deadline": "1h"}, **JSON_LOG}) as daemon:
        emit(daemon, 20)
        daemon.signal(signal.SIGTERM)
        wait_logged(daemon, "stopping")
        api_server.wait_for_posts(1)
        daemon.kill()
        api_server.default = Answer()
        daemon.start()
        daemon.wait_destination(lambda default: default.ledger == Ledger(20, 20, 0, {}, 0))
        assert len(api_server.accepted_events()) == 20


def test_what_comes_while_it_is_stopped_is_taken_when_it_goes_on(tmp_path: Path, api_server: ApiServer) -> None:
    """A request that is under way meanwhile has timed out then, and is made again."""
    api_server.default = Answer(mode="hang")
    with Daemon(tmp_path / "d", api_server.url, {"api": {"timeout": "200ms"}}) as daemon:
        emit(daemon, 20)
        api_server.wait_for_posts(1)
        daemon.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
        for _ in range(10):
            daemon.send_lines(line() * 10)
            daemon.send_datagram(line())
        api_server.default = Answer()
        daemon.signal(signal.SIGCONT)
        daemon.wait_destination(lambda default: default.ledger == Ledger(130, 130, 0, {}, 0))
        assert len(api_server.accepted_events()) == 130


def test_what_a_killed_daemon_had_not_read_is_gone_and_was_not_acknowledged(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE) as daemon:
        emit(daemon, 1)
        with daemon.connect() as client:
            daemon.signal(signal.SIGSTOP)
            os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
            client.send(line() * 5)
            daemon.send_lines(line() * 5)
            daemon.kill()
            with pytest.raises(ConnectionResetError):
                client.answer()
        daemon.start()
        assert daemon.destination().ledger == Ledger(1, 0, 0, {}, 1)


def test_a_flush_may_wait_while_the_daemon_drains(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE, {"shutdown": {"deadline": "1h"}, **JSON_LOG}) as daemon:
        emit(daemon, 1)
        daemon.signal(signal.SIGTERM)
        wait_logged(daemon, "stopping")
        assert daemon.request("POST", "/flush?deadline=0.2").status_code == 504
        assert daemon.request("GET", "/healthz").status_code == 200
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert {each["event"] for each in logged(daemon)} & {"cannot_accept", "request_failed"} == set()


# Others


def test_a_second_daemon_on_the_same_queue_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    other = Daemon(tmp_path / "e", NOWHERE, {"queue": {"directory": str(daemon.queue)}})
    code, said = run_to_its_end(other)
    assert code == QUEUE_LOCKED
    assert re.fullmatch(r"artifacts-agent: .*another daemon uses this queue: stop it.*\n", said)
    emit(daemon, 1)


def test_a_second_daemon_on_any_of_the_same_sockets_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    for key in ("stream", "datagram", "control"):
        path: Path = getattr(daemon, key)
        other = Daemon(tmp_path / key, NOWHERE, {"listen": {key: str(path)}})
        code, said = run_to_its_end(other)
        assert code == SOCKET_TAKEN
        assert re.fullmatch(rf"artifacts-agent: {path}: another process listens there: stop it.*\n", said)
        assert [each.exists() for each in (other.stream, other.datagram, other.control)] == [False] * 3
    emit(daemon, 1)
    daemon.send_datagram(line())
    daemon.wait_destination(lambda default: default.ledger.accepted == 2)


def test_after_a_kill_the_sockets_are_replaced_and_the_queue_goes_on(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "d", NOWHERE) as daemon:
        emit(daemon, 7)
        daemon.kill()
        assert daemon.stream.exists()
        daemon.configure(api_server.url, {})
        daemon.start()
        emit(daemon, 1)
        daemon.wait_destination(lambda default: default.ledger.delivered == 8)


@pytest.mark.parametrize(
    ("sections", "code", "says"),
    [
        ({"listen": {"group": "nobody-has-this"}}, SOCKET_TAKEN, "there is no group 'nobody-has-this'"),
        ({"listen": {"stream": "x" * 200}}, CONFIG_WRONG, "use a shorter one"),
        ({"queue": {"directory": "/proc/nothing/here"}}, 7, "the queue directory cannot be used"),
        ({"api": {"token_file": "no-such-token"}}, CONFIG_WRONG, "cannot read the token file"),
        ({"api": {"tokenfile": "x"}}, CONFIG_WRONG, "the nearest is api.token_file"),
    ],
)
def test_a_failed_start_is_one_line_and_an_exit_code(
    tmp_path: Path, sections: dict[str, dict[str, object]], code: int, says: str
) -> None:
    exit_code, said = run_to_its_end(Daemon(tmp_path / "d", NOWHERE, sections))
    assert exit_code == code
    assert said.startswith("artifacts-agent: ")
    assert said.count("\n") == 1
    assert says in said


# Reload


def test_sighup_takes_a_new_token_and_names_what_needs_a_restart(daemon: Daemon, api_server: ApiServer) -> None:
    api_server.token = "another-token"
    daemon.token_file.write_text("another-token")
    changes: Sections = {
        "queue": {"max_bytes": "2GiB"},
        "listen": {"max_connections": 7},
        "batch": {"max_events": 3},
        **JSON_LOG,
    }
    daemon.configure(api_server.url, changes)
    daemon.signal(signal.SIGHUP)
    reloaded = wait_logged(daemon, "reloaded")[0]
    assert reloaded["changed"] == ["batch.max_events", "token"]
    restart = {each["key"] for each in wait_logged(daemon, "restart_needed", 2)}
    assert restart == {"queue.max_bytes", "listen.max_connections"}
    emit(daemon, 7)
    api_server.wait_for(lambda: len(api_server.accepted_events()) == 7)
    assert max(len(request.events) for request in api_server.posts()) == 3


def test_a_wrong_configuration_is_refused_loudly_and_the_old_one_stays(daemon: Daemon, api_server: ApiServer) -> None:
    good = daemon.config.read_text()
    for wrong, says in ((f"{good}\n[batch\n", "not TOML"), (good.replace("max_delay", "max_dealy"), "batch.max_delay")):
        before = len([each for each in logged(daemon) if each["event"] == "reload_refused"])
        daemon.config.write_text(wrong)
        daemon.signal(signal.SIGHUP)
        refused = wait_logged(daemon, "reload_refused", before + 1)[-1]
        assert refused["level"] == "error"
        assert says in refused["error"]
    daemon.config.write_text(good)
    daemon.token_file.write_text("two\nlines")
    daemon.signal(signal.SIGHUP)
    assert "several lines" in wait_logged(daemon, "token_refused")[-1]["error"]
    emit(daemon, 2)
    api_server.wait_for(lambda: len(api_server.accepted_events()) == 2)


@pytest.mark.parametrize("front", [False, True])
def test_a_server_that_cannot_be_spoken_to_is_refused_as_a_whole(
    tmp_path: Path, api_server: ApiServer, *, front: bool
) -> None:
    sections: Sections = {**JSON_LOG, "http": {"socket": str(tmp_path / "h")}, "front": {"enabled": front}}
    daemon = Daemon(tmp_path / "d", api_server.url, sections)
    daemon.env["SSL_CERT_FILE"] = "/no/such/file"
    with daemon:
        daemon.configure("https://api.invalid", {**sections, "batch": {"max_events": 3}})
        daemon.signal(signal.SIGHUP)
        assert "certificates cannot be read" in wait_logged(daemon, "reload_refused")[0]["error"]
        assert daemon.report().api == ApiStatus(api_server.url)
        emit(daemon, 7)
        api_server.wait_for(lambda: len(api_server.accepted_events()) == 7)
        assert len(api_server.posts()) == 1


def test_a_new_token_file_ends_a_pause_even_while_the_configuration_is_being_edited(
    daemon: Daemon, api_server: ApiServer
) -> None:
    api_server.token = "the-next-token"
    emit(daemon, 4)
    paused = daemon.wait_destination(lambda default: default.state == "paused")
    assert "401" in (paused.reason or "")
    daemon.config.write_text("half a file [")
    daemon.token_file.write_text("the-next-token")
    daemon.wait_destination(lambda default: default.ledger.delivered == 4)
    assert len(api_server.accepted_events()) == 4


def test_a_token_that_was_changed_while_the_daemon_was_down_ends_a_pause(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.token = "the-next-token"
    with Daemon(tmp_path / "d", api_server.url) as daemon:
        emit(daemon, 4)
        daemon.wait_destination(lambda default: default.state == "paused")
        assert daemon.terminate() == 0
        daemon.token_file.write_text("the-next-token")
        daemon.start()
        daemon.wait_destination(lambda default: default.ledger.delivered == 4)


def test_a_new_copy_of_the_same_credential_does_not_end_a_pause(tmp_path: Path, api_server: ApiServer) -> None:
    """As systemd makes one at each start."""
    api_server.token = "another-token"
    with Daemon(tmp_path / "d", api_server.url, {"api": {"token_file": ""}}) as daemon:
        (daemon.directory / "token").write_text("old-token")
        daemon.terminate()
        daemon.env["CREDENTIALS_DIRECTORY"] = str(daemon.directory)
        daemon.start()
        emit(daemon, 4)
        daemon.wait_destination(lambda default: default.state == "paused")
        assert daemon.terminate() == 0
        posts = len(api_server.posts())
        (daemon.directory / "token").write_text("old-token")
        daemon.start()
        assert daemon.destination().state == "paused"
        assert len(api_server.posts()) == posts


def test_a_daemon_without_a_token_says_so(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE, {"api": {"token_file": ""}, **JSON_LOG}) as daemon:
        assert wait_logged(daemon, "no_token")[0]["level"] == "warning"


def test_a_daemon_whose_standard_error_is_closed_works_all_the_same(tmp_path: Path, api_server: ApiServer) -> None:
    daemon = Daemon(tmp_path / "d", api_server.url)
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(daemon.config)]
    shell = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    process = subprocess.Popen(shell, stdin=subprocess.DEVNULL)
    try:
        eventually(lambda: daemon.stream.exists() or process.poll() is not None, bool)
        emit(daemon, 3)
        api_server.wait_for_accepted(3)
        process.terminate()
        assert process.wait(HUNG_AFTER) == 0
    finally:
        process.kill()
        process.wait()
    assert len(api_server.accepted_events()) == 3


# Limits


def test_when_few_files_may_be_open_the_limit_on_connections_makes_way(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", NOWHERE, JSON_LOG)
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(daemon.config)]
    shell = ["/bin/sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", *command]
    with (daemon.directory / "stderr").open("wb") as stderr, ExitStack() as clients:
        process = subprocess.Popen(shell, stderr=stderr, stdin=subprocess.DEVNULL)
        clients.callback(process.wait)
        clients.callback(process.kill)
        lowered = wait_logged(daemon, "max_connections_lowered")[0]
        assert (lowered["max_connections"], lowered["wanted"]) == (64, 1024)
        wait_logged(daemon, "started")
        for _ in range(200):
            clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(daemon.stream))
        emit(daemon, 1)
        assert 0 < daemon.report().connections <= 64
