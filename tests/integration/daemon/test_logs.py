"""The log of the real daemon, and the throttle: one line for a change of state, none for an event, never a secret."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.throttle import Throttle
from tests.support.api_server import Answer, ApiServer, error
from tests.support.daemon import Daemon
from tests.support.edge import line
from tests.support.json_log import logged, wait_logged
from tests.support.waiting import HUNG_AFTER

NOWHERE = "http://127.0.0.1:9"
SECRET = "t0p-s3cret-of-the-tests"


def emit(daemon: Daemon, lines: bytes) -> None:
    """Send lines and return when they are settled."""
    with daemon.connect() as client:
        client.send(lines)
        client.wait_settled(lines.count(b"\n"))


def test_a_line_for_each_change_of_state_and_none_for_an_event(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "d", api_server.url, {"log": {"format": "json"}}) as daemon:
        api_server.script([Answer(503)] * 4)
        emit(daemon, line())
        daemon.wait_destination(lambda default: default.ledger.delivered == 1)
        for _ in range(20):
            emit(daemon, line() * 50)
        daemon.wait_destination(lambda default: default.ledger.delivered == 1001)
        assert daemon.terminate() == 0
        events = [each["event"] for each in logged(daemon)]
        assert events == ["started", "delivery_backing_off", "delivery_recovered", "stopping", "stopped"]
        assert all({"timestamp", "level"} <= each.keys() for each in logged(daemon))
        assert logged(daemon)[-1]["ledger"]["delivered"] == 1001


def test_the_log_for_people_has_a_line_an_event_and_no_colours_in_a_file(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE) as daemon:
        emit(daemon, b'{"\\u001b[2J\\nstarted":1}\n')
        assert daemon.terminate() == 0
        said = daemon.stderr_text()
        assert "\x1b" not in said
        events = [re.sub(r"^\S+ \[\w+ *\] (\w+) .*", r"\1", text) for text in said.splitlines()]
        assert events == ["started", "lines_rejected", "stopping", "stopped"]


def everything_said(daemon: Daemon) -> dict[str, bytes]:
    """All that the daemon shows of itself while it runs, and all that it wrote."""
    proc = Path("/proc") / str(daemon.pid)
    said = {name: daemon.request("GET", f"/{name}").content for name in ("status", "metrics", "healthz")}
    said |= {name: (proc / name).read_bytes() for name in ("cmdline", "comm")}
    written = [path for path in daemon.directory.rglob("*") if path.is_file() and path != daemon.token_file]
    return said | {str(path): path.read_bytes() for path in written}


def test_the_token_is_nowhere_to_be_read(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.token = SECRET
    api_server.reject_hashes = {"poison"}
    sections = {"log": {"format": "json", "level": "debug"}}
    with Daemon(tmp_path / "d", api_server.url, sections, token=SECRET) as daemon:
        emit(daemon, line("poison") + line() + b"nonsense\n")
        daemon.wait_destination(lambda default: default.ledger.dead_lettered == 1)
        api_server.script([error(401, "unauthorized", f"{SECRET} is not welcome")])
        emit(daemon, line())
        daemon.wait_destination(lambda default: default.state == "paused")
        daemon.token_file.write_text(f"{SECRET}\nwith a second line")
        daemon.signal(signal.SIGHUP)
        wait_logged(daemon, "token_refused")
        said = everything_said(daemon)
        assert any("dead-letters" in name for name in said)
        assert [name for name, content in said.items() if SECRET.encode() in content] == []


def test_the_first_bad_line_of_each_sender_is_logged_and_what_was_held_back_is_said_at_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", NOWHERE, {"log": {"format": "json"}}) as daemon:
        senders = [send_bad_lines(daemon, 3) for _ in range(2)]
        assert daemon.terminate() == 0
        first = [each["pid"] for each in logged(daemon) if each["event"] == "lines_rejected"]
        assert first == senders
        [said] = [each for each in logged(daemon) if each["event"] == "log_lines_held_back"]
        assert (said["of"], said["lines"], said["about"]) == ("lines_rejected", 4, 2)
        assert said["most"]["pid"] in senders
        assert logged(daemon)[-1]["event"] == "stopped"


BAD_LINES = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b'{"context":{"ack":"durable"}}\\n')
for _ in range(int(sys.argv[2])):
    client.sendall(b"bad\\n")
    client.recv(1000)
"""


def send_bad_lines(daemon: Daemon, count: int) -> int:
    """Send bad lines, one after the other, from a process of its own; return its pid."""
    with subprocess.Popen([sys.executable, "-c", BAD_LINES, str(daemon.stream), str(count)]) as sender:
        assert sender.wait(20) == 0
        return sender.pid


def test_a_token_file_that_others_can_read_is_a_warning_at_the_start_and_at_each_reload(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", NOWHERE, {"log": {"format": "json"}})
    daemon.token_file.chmod(0o644)
    with daemon:
        daemon.signal(signal.SIGHUP)
        found = wait_logged(daemon, "token_file_exposed", 2)
        assert [(each["path"], each["level"]) for each in found] == [(str(daemon.token_file), "warning")] * 2
        daemon.token_file.chmod(0o600)
        daemon.signal(signal.SIGHUP)
        wait_logged(daemon, "reloaded", 2)
        assert daemon.terminate() == 0
        assert len(wait_logged(daemon, "token_file_exposed", 2)) == 2


def test_a_reader_of_the_log_that_leaves_does_not_end_the_daemon(tmp_path: Path, api_server: ApiServer) -> None:
    daemon = Daemon(tmp_path / "d", api_server.url)
    command = [sys.executable, "-m", "agent.cli", "run", "--config", str(daemon.config)]
    reader, writer = os.pipe()
    with subprocess.Popen(command, stderr=writer, stdin=subprocess.DEVNULL) as process:
        try:
            os.close(writer)
            assert b"started" in os.read(reader, 1000)
            os.close(reader)
            emit(daemon, b"nonsense\n" + line())
            daemon.wait_destination(lambda default: default.ledger.delivered == 1)
            process.terminate()
            assert process.wait(HUNG_AFTER) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("times", "allowed"),
    [
        ([0.0], [0]),
        ([0.0, 1.0, 9.9, 10.0], [0, None, None, 2]),
        ([0.0, 100.0, 100.1, 111.0], [0, 0, None, 1]),
    ],
)
def test_the_throttle_lets_one_line_an_interval_through_and_counts_the_rest(
    times: list[float], allowed: list[int | None]
) -> None:
    throttle = Throttle(10.0)
    assert [throttle.allow("key", now) for now in times] == allowed
    assert throttle.allow("another key", times[-1]) == 0
