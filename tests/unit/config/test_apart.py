"""What loading a configuration in a process of its own promises: the same answer, and nothing that stays of the way to it.

Each test forks a process that has one thread, as the daemon does; that of the tests may have several.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import environment
from tests.support.waiting import HUNG_AFTER

BEGIN = """
import os, resource, signal, sys
from functools import partial
from pathlib import Path
from agent.config import load
from agent.config.apart import LoadingApart
from agent.errors import ConfigError
here = os.getpid()
load = partial(load, Path(sys.argv[1]), {"HOME": "/home/ci", "XDG_RUNTIME_DIR": "/run/user/1000"}, euid=1000)
"""
LOADED = """
config = LoadingApart(load).result()
assert "pydantic" not in sys.modules
assert config == load()
print(config.batch.max_events)
"""
REFUSED = """
try:
    LoadingApart(load).result()
except ConfigError as error:
    print(error)
assert "pydantic" not in sys.modules
"""
WITHOUT_A_CHILD = """
def load():
    return "here" if os.getpid() == here else os._exit(1)
"""
NO_MORE_PROCESSES = """
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
os.geteuid() or os.setuid(65534)
try:
    os.fork()
except BlockingIOError:
    pass
else:
    raise AssertionError
def load():
    return "here"
"""
NO_MORE_FILES = """
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
def load():
    return "here"
"""
PRINT = "print(LoadingApart(load).result())"


def run(script: str, config: Path) -> str:
    command = [sys.executable, "-c", BEGIN + script, str(config)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def written(directory: Path, text: str) -> Path:
    path = directory / "agent.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("before", ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"], ids=["", "as PID 1"])
def test_a_configuration_is_the_same_and_pydantic_is_not_imported(tmp_path: Path, before: str) -> None:
    assert run(before + LOADED, written(tmp_path, "[batch]\nmax_events = 7\n")) == "7"


def test_problems_are_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, "[batch]\nmax_events = 0\n[log]\nlevels = 1\n")
    assert run(REFUSED, path).splitlines() == [
        f"{path}: log.levels: unknown key; the nearest is log.level",
        f"{path}: batch.max_events = 0: should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(
    "without",
    [WITHOUT_A_CHILD, NO_MORE_PROCESSES, NO_MORE_FILES],
    ids=["it is killed", "no process can start", "no file can be opened"],
)
def test_where_a_process_of_its_own_is_not_to_be_had_it_is_loaded_all_the_same(tmp_path: Path, without: str) -> None:
    assert run(without + PRINT, tmp_path) == "here"
