"""The package as a user gets it, from the wheel: the client alone, under the user's own type checker, and the command, beside
directories whose modules have the names of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.accounts import received
from tests.support.api_server import ApiServer
from tests.support.client_programs import ROOT, events_in, listening, read_connection
from tests.support.command import environment
from tests.support.daemon import TOKEN, Daemon
from tests.support.waiting import eventually

# --strict refuses an ignore that is not needed: each of these has to be an error, and nothing else may be one.
PROGRAM = """
from __future__ import annotations

from typing import TYPE_CHECKING

from agent.client import EventClient, emit

if TYPE_CHECKING:
    from agent.client import EventFields


def build(artifact: str, milliseconds: int) -> bool:
    sent: bool = emit("HIT", "LOCAL", artifact, duration=milliseconds)
    return sent


def report(client: EventClient, events: list[EventFields]) -> int:
    return client.emit_many(events) + sum(client.unsent_by_reason.values())


def mistakes() -> None:
    emit("HITS", "LOCAL", "ab")  # type: ignore[arg-type]
    emit("HIT", "DISK", "ab")  # type: ignore[arg-type]
    emit("HIT", "LOCAL", b"ab")  # type: ignore[arg-type]
    emit("HIT", "LOCAL", "ab", durations=1)  # type: ignore[call-arg]
    text: str = emit("HIT", "LOCAL", "ab")  # type: ignore[assignment]
    EventClient(interactive=2)  # type: ignore[arg-type]


build("first", 514)
with EventClient(session_id="s") as client:
    report(client, [{"event": "MISS", "source": "REMOTE", "hash": "second"}])
"""


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel in it."""
    directory = tmp_path_factory.mktemp("wheels")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory)]
    subprocess.run([*PIP, "wheel", *options, str(ROOT)], check=True)
    return directory


def install(wheels: Path, venv: Path) -> Path:
    """Make a fresh environment with the wheel in it and none of its dependencies; return its interpreter."""
    python = venv / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip_install(wheels, python=python)
    return python


def pip_install(wheels: Path, *, python: Path | str = sys.executable, target: Path | None = None) -> None:
    """Install the wheel alone, into an interpreter's environment or into a directory."""
    pip = [*PIP, "--python", str(python), "install", "--no-index", "--no-deps", "--find-links", str(wheels)]
    pip += ["--target", str(target)] if target else []
    subprocess.run([*pip, "artifacts-agent"], check=True)


@pytest.fixture(scope="module")
def python(wheels: Path) -> Path:
    """The interpreter of an environment that has the wheel alone."""
    return install(wheels, wheels / "venv")


@pytest.fixture(scope="module")
def command(wheels: Path) -> Path:
    """The installed command; its dependencies are those of this interpreter."""
    bin_ = install(wheels, wheels / "an environment").parent
    (packages,) = bin_.parent.glob("lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return bin_ / "artifacts-agent"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def test_a_users_program_is_checked_strictly_against_the_clients_types(python: Path, program: Path) -> None:
    mypy: list[str | Path] = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-executable",
        python,
        "--cache-dir",
        program.parent,
        program,
    ]
    checked = subprocess.run(mypy, cwd=program.parent, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "Success: no issues found in 1 source file\n")


def test_a_users_program_needs_nothing_but_the_wheel(python: Path, program: Path) -> None:
    assert sent_by(python, program) == ["first", "second"]


def test_a_users_program_needs_nothing_but_a_copy_of_the_directory(program: Path) -> None:
    shutil.copytree(ROOT / "agent/client", program.parent / "artifacts_client")
    program.write_text(program.read_text().replace("agent.client", "artifacts_client"))
    assert sent_by(Path(sys.executable), program) == ["first", "second"]


def sent_by(python: Path, program: Path) -> list[str]:
    """Run the program where nothing of this repository is found; return the hashes, of a connection after the other."""
    path = program.parent / "events.sock"
    with listening(path) as listener:
        env = {"ARTIFACTS_AGENT_SOCKET": str(path)}
        subprocess.run([python, "-W", "error", program], env=env, cwd=program.parent, check=True)
        return [event["hash"] for _ in range(2) for event in events_in(read_connection(listener))]


# The command

PYTHONPATHS = [".", "", ":", "sub/..:other", "{}", "other::sub"]
EMIT = ("emit", "--strict", "--event", "HIT", "--source", "LOCAL", "--duration", "514", "--hash")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A working directory with modules named like the agent's, the standard library's and its dependencies'."""
    directory = tmp_path / "repository"
    for package in ("agent", "http", "click", "anyio", "sub", "other"):
        (directory / package).mkdir(parents=True)
        (directory / package / "__init__.py").write_text("raise SystemExit('the wrong module')")
    for module in ("queue", "json", "socket", "signal", "httpx", "msgspec"):
        (directory / f"{module}.py").write_text("raise SystemExit('the wrong module')")
    return directory


@pytest.mark.parametrize("pythonpath", PYTHONPATHS)
def test_emit_works_whatever_the_working_directory_and_pythonpath_hold(
    command: Path, repository: Path, pythonpath: str
) -> None:
    path = repository.parent / "events.sock"
    with listening(path) as listener:
        env = environment({"PYTHONPATH": pythonpath.format(repository), "ARTIFACTS_AGENT_SOCKET": str(path)})
        done = run_in(repository, env, command, *EMIT, "a")
        assert (done.returncode, done.stderr) == (0, "")
        assert [event["hash"] for event in events_in(read_connection(listener))] == ["a"]


@pytest.mark.parametrize("pythonpath", [".:", "{}"])
def test_exec_works_whatever_they_hold_and_the_command_has_its_own_pythonpath(
    command: Path, repository: Path, api_server: ApiServer, pythonpath: str
) -> None:
    env = job_environment(repository.parent, api_server) | {"PYTHONPATH": pythonpath.format(repository)}
    script = 'echo "<$PYTHONPATH>"; "$@" inner'
    done = run_in(
        repository, env, command, "exec", "--start-deadline", "60s", "--", "sh", "-c", script, "sh", command, *EMIT
    )
    usage = "artifacts-agent: cache: 1 of 1 task (100 %), 1s of task time saved\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"<{env['PYTHONPATH']}>\n", usage)
    assert hashes(api_server) == ["inner"]


def test_run_and_status_work_whatever_they_hold(command: Path, repository: Path, api_server: ApiServer) -> None:
    daemon = Daemon(repository.parent / "d", api_server.url)  # for its configuration
    env = environment({"PYTHONPATH": ".:", "ARTIFACTS_AGENT_CONFIG": str(daemon.config)})
    with subprocess.Popen([command, "run"], env=env, cwd=repository, stderr=subprocess.DEVNULL) as run:
        try:
            eventually(daemon.control.exists, bool)
            asked = run_in(repository, env, command, "status", "--json")
        finally:
            run.terminate()
        assert (run.wait(20), json.loads(asked.stdout)["pid"], asked.stderr) == (0, run.pid, "")


def test_demo_works_whatever_they_hold(command: Path, repository: Path) -> None:
    done = run_in(repository, environment({"PYTHONPATH": ".:"}), command, "demo", "--fast")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_an_installation_that_pythonpath_alone_finds_works(wheels: Path, repository: Path) -> None:
    """Its dependencies are found by PYTHONPATH, too."""
    target = repository.parent / "target"
    pip_install(wheels, target=target)
    bare = repository.parent / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    script = target / "bin/artifacts-agent"
    script.write_text(script.read_text().replace(sys.executable, str(bare / "bin/python")))
    path = os.pathsep.join(("sub", "../target", sysconfig.get_path("purelib"), "."))
    done = run_in(repository, environment({"PYTHONPATH": path}), script, "--version")
    assert (done.returncode, done.stderr) == (0, "")


def run_in(directory: Path, env: Mapping[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with `directory` as its working directory."""
    return subprocess.run(words, env=env, cwd=directory, capture_output=True, text=True, timeout=50)


def job_environment(directory: Path, server: ApiServer) -> dict[str, str]:
    """Return the environment of a job that has no agent yet."""
    config = directory / "config.toml"
    config.write_text(f'[listen]\ncontrol = "{directory / "c"}"\nstream = "{directory / "s"}"\ndatagram = ""\n')
    state = {"STATE_DIRECTORY": str(directory / "state"), "ARTIFACTS_AGENT_CONFIG": str(config)}
    return environment({**state, "TURBO_API": server.url, "TURBO_TOKEN": TOKEN})


def hashes(server: ApiServer) -> list[str]:
    """Return the hashes of the events that the server has accepted."""
    return [json.loads(event)["hash"] for event in received(server.accepted()).elements()]
