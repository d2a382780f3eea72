"""What `exec` costs a build: little before its command starts, and nothing at the end that the agent has no use for."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from agent.cli import seconds_in_queue
from agent.cli.job.started import INTAKE_ENDED, StartedAgent
from tests.support.api_server import ApiServer
from tests.support.command import environment
from tests.support.daemon import TOKEN
from tests.support.waiting import HUNG_AFTER, eventually

# The start

PRINTS_ITS_MODULES = """
import sys
from agent.cli.job import command
def run(*_):
    print(*sys.modules)
    return 3
command.run = run
from agent.cli import main
sys.exit(main())
"""
HELD = """
import os, sys
if "agent.cli.job.process" in sys.orig_argv:
    open(os.environ["HELD_BY"]).read()
"""
HEAVY = {"anyio", "asyncio", "http.client", "httpx", "logging", "msgspec", "pydantic", "rich", "structlog", "uvloop"}
OWN = {"cli", "client", "config", "errors", "escaping", "ingest", "queue", "rules", "secret", "units"}


def test_exec_imports_only_what_it_needs_before_its_command_starts(tmp_path: Path, api_server: ApiServer) -> None:
    """Of many jobs that start at once each waits for the imports of all others. What asks an agent is for when there is one."""
    (tmp_path / "sitecustomize.py").write_text(HELD)
    held_by = tmp_path / "held"
    os.mkfifo(held_by)
    job = {
        "STATE_DIRECTORY": str(tmp_path / "state"),
        "RUNTIME_DIRECTORY": str(tmp_path),
        "TURBO_TOKEN": TOKEN,
        "TURBO_API": api_server.url,
        "PYTHONPATH": str(tmp_path),
        "HELD_BY": str(held_by),
    }
    command = [sys.executable, "-c", PRINTS_ITS_MODULES, "exec", "--", "true"]
    process = subprocess.Popen(command, env=environment(job), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        modules = {*process.stdout.readline().split()}
        held_by.write_text("")  # the agent may go on, which has not imported anything so far
    assert process.wait(HUNG_AFTER) == 3
    assert modules & HEAVY == set()
    assert {name.split(".")[1] for name in modules if name.startswith("agent.")} <= OWN
    spools = tmp_path / "state" / "spools"
    eventually(lambda: [*spools.iterdir()] == [] or "stopped" in next(spools.rglob("agent.log")).read_text(), bool)


TELLS_ITS_START = """
import time
from pathlib import Path
def queued():
    return Path("/proc/self/schedstat").read_text().strip()
before, began = queued(), time.monotonic()
time.sleep(0.5)
slept = time.monotonic()
from agent import cli
print(before, queued(), slept - began, time.monotonic() - slept, slept - cli.STARTED, sep="\\n")
"""
TICK_SECONDS = 0.02  # the kernel does not count continuously


def test_the_start_deadline_counts_from_the_start_of_the_process_without_what_it_has_slept() -> None:
    """A shell that waits for something and then becomes `exec` leaves it all of its time."""
    command = [sys.executable, "-c", TELLS_ITS_START]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HUNG_AFTER)
    before, after = map(seconds_in_queue, done.stdout.splitlines()[:2])
    slept, imported, counted = map(float, done.stdout.splitlines()[2:])
    assert before - imported <= counted <= after
    assert after - before <= slept - 0.5 + imported + TICK_SECONDS


# The end

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
