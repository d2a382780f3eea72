"""What the image's HEALTHCHECK runs, outside of an image: its exit code is the container's health."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from tests.support.daemon import Daemon
from tests.support.documents import ROOT
from tests.support.waiting import HUNG_AFTER

SCRIPT = ROOT / "systemd/image/healthcheck"


def ask(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run it as the image does, with these variables alone."""
    command = [sys.executable, "-IS", str(SCRIPT), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=HUNG_AFTER)


def test_an_engine_can_execute_it() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/opt/artifacts-agent/bin/python3 -IS\n")


def test_it_is_healthy_while_no_api_answers(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d", "http://127.0.0.1:9") as daemon:
        done = ask(ARTIFACTS_AGENT_LISTEN_CONTROL=str(daemon.control))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_asks_another_socket_and_question_if_it_is_told(tmp_path: Path) -> None:
    """As of a relay, which has no control socket."""
    with Daemon(tmp_path / "d", "http://127.0.0.1:9") as daemon:
        assert ask(str(daemon.control), "/readyz", RUNTIME_DIRECTORY="/nowhere").returncode == 0
        done = ask(str(daemon.control), "/steady", RUNTIME_DIRECTORY="/nowhere")
    assert (done.returncode, done.stderr) == (1, f"{daemon.control} answers to /steady: HTTP/1.1 404 Not Found\n")


def test_it_is_not_healthy_where_there_is_no_daemon(tmp_path: Path) -> None:
    done = ask(RUNTIME_DIRECTORY=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"nobody answers at {tmp_path}/control.sock: [Errno 2] No such file or directory\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"healthy":false}', "HTTP/1.1 503 Service Unavailable"),
        (b"", "nothing"),
    ],
)
def test_it_is_not_healthy_where_the_daemon_says_so_or_says_nothing(tmp_path: Path, answer: bytes, said: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        server = Thread(target=serve)
        server.start()
        done = ask(RUNTIME_DIRECTORY=str(tmp_path))
        server.join(HUNG_AFTER)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/control.sock answers to /healthz: {said}\n")
