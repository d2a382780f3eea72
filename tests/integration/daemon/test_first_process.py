"""The daemon as the first process of a container, in a PID namespace of its own: signals while it starts, and orphans."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import COMMAND, environment
from tests.support.daemon import Daemon
from tests.support.tools import require_root, require_tool
from tests.support.waiting import HUNG_AFTER, eventually

NOWHERE = "http://127.0.0.1:9"
# Leaves a process behind that ends when nobody waits for it any more; says which one it was.
LEAVE_ORPHAN = "sh -c 'exec 0<&- 1>&- 2>&-; exec sleep 0.2' & echo $!"


@contextmanager
def started(daemon: Daemon) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a daemon as PID 1; yield who waits for it, and its pid as it is seen from here."""
    require_root()
    unshare = require_tool("unshare", "apt-get install util-linux")
    run = [*COMMAND, "run", "--config", str(daemon.config)]
    with (daemon.directory / "stderr").open("ab") as stderr:
        command = [str(unshare), "--pid", "--fork", "--mount-proc", "--kill-child", *run]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        (pid,) = eventually(lambda: children.read_text().split(), bool)
        yield process, int(pid)
    finally:
        process.kill()
        process.wait()


def has_handler(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


SLOW_TO_IMPORT = """
import agent.cli, signal, sys, types
slow = types.ModuleType("agent.cli.main")
slow.main = lambda: (print("click" in sys.modules, flush=True), signal.pause())
sys.modules["agent.cli.main"] = slow
sys.argv[1:] = ["run"]
sys.exit(agent.cli.main())
"""


def test_signals_are_taken_before_anything_slow_is_imported() -> None:
    require_root()
    unshare = require_tool("unshare", "apt-get install util-linux")
    command = [str(unshare), "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", SLOW_TO_IMPORT]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"False\n"
            (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(pid), signal.SIGTERM)
            assert process.wait(HUNG_AFTER) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_whenever_it_comes(tmp_path: Path, number: signal.Signals) -> None:
    daemon = Daemon(tmp_path / "d", NOWHERE)
    with started(daemon) as (process, pid):
        eventually(lambda: has_handler(pid, signal.SIGTERM), bool)
        os.kill(pid, number)
        assert process.wait(HUNG_AFTER) == 0


def test_once_it_is_up_sigterm_drains_it_as_ever(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "d", NOWHERE)
    with started(daemon) as (process, pid):
        eventually(daemon.control.exists, bool)
        daemon.wait_status(lambda status: status["pid"] == 1)
        os.kill(pid, signal.SIGTERM)
        assert process.wait(HUNG_AFTER) == 0
    assert "stopped" in daemon.stderr_text()


# Leaves orphans behind, and waits until no zombie is left; else it ends with their number.
LEAVE_ORPHANS = """
import os, pathlib, sys, time
for _ in range(3):
    if os.fork() == 0:
        os.fork()
        os._exit(0)
for _ in range(3):
    os.wait()
def zombies():
    stats = [path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return sum(stat.rpartition(")")[2].split()[0] == "Z" for stat in stats)
until = time.monotonic() + float(sys.argv[1])
while (left := zombies()) and time.monotonic() < until:
    os.sched_yield()
sys.exit(left)
"""


def test_exec_as_the_first_process_reaps_orphans_while_its_command_runs(tmp_path: Path) -> None:
    require_root()
    unshare = require_tool("unshare", "apt-get install util-linux")
    daemon = Daemon(tmp_path / "d", NOWHERE)
    variables = {
        "STATE_DIRECTORY": str(tmp_path / "state"),
        "TURBO_TOKEN": "secret",
        "ARTIFACTS_AGENT_CONFIG": str(daemon.config),
    }
    run = [*COMMAND, "exec", "--", sys.executable, "-c", LEAVE_ORPHANS, str(HUNG_AFTER / 2)]
    command = [str(unshare), "--pid", "--fork", "--mount-proc", "--kill-child", *run]
    done = subprocess.run(command, env=environment(variables), stderr=subprocess.PIPE, timeout=HUNG_AFTER)
    assert done.returncode == 0, done.stderr


def test_what_others_leave_behind_does_not_stay_as_a_zombie(tmp_path: Path) -> None:
    nsenter = require_tool("nsenter", "apt-get install util-linux")
    daemon = Daemon(tmp_path / "d", NOWHERE)
    with started(daemon) as (_, pid):
        eventually(daemon.control.exists, bool)
        inside = [str(nsenter), f"--target={pid}", "--pid", "--mount"]
        done = subprocess.run([*inside, "sh", "-c", LEAVE_ORPHAN], capture_output=True, text=True, timeout=HUNG_AFTER)
        orphan = done.stdout.strip()
        assert orphan.isdigit()
        gone = [*inside, "test", "!", "-e", f"/proc/{orphan}"]
        eventually(lambda: subprocess.run(gone, timeout=HUNG_AFTER).returncode, lambda code: code == 0)
