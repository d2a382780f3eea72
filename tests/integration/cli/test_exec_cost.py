"""What `exec` costs a build: nothing at the end that the agent has no use for."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from agent.cli.job.started import INTAKE_ENDED, StartedAgent
from tests.support.waiting import HUNG_AFTER

PLAYS_AN_AGENT = """
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(sys.argv[1])
    notify.setblocking(False)
    notify.send(b"READY=1")
    try:
        while True:
            notify.send(b"STATUS=backing off")
    except BlockingIOError:
        print("full", flush=True)
    signal.sigwait({signal.SIGTERM})
    notify.send(sys.argv[2].encode())
    signal.sigwait({signal.SIGTERM})
"""


def test_a_jobs_agent_is_stopped_at_once_when_it_has_read_what_was_written(tmp_path: Path) -> None:
    """What it cannot deliver is not waited for; and what it has said before leaves room for that."""
    (tmp_path / "runtime").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "n"))
        play = [sys.executable, "-c", PLAYS_AN_AGENT, str(tmp_path / "n"), INTAKE_ENDED.decode()]
        process = subprocess.Popen(play, stdout=subprocess.PIPE)
        lifeline = os.open(os.devnull, os.O_RDONLY)
        agent = StartedAgent(tmp_path / "spool", tmp_path / "runtime", process, lifeline, notify)
        assert agent.wait_until_ready(time.monotonic() + HUNG_AFTER)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"full\n"
        assert agent.stop(0.0, reading_seconds=HUNG_AFTER)
    assert process.returncode == 0
