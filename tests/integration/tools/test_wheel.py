"""The client as a user gets it: from the wheel, in an environment that has nothing else, under the user's own type checker."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.client_programs import ROOT, events_in, listening, read_connection

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


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it and none of its dependencies."""
    directory = tmp_path_factory.mktemp("wheel")
    python = directory / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    commands: list[list[str | Path]] = [
        [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, ROOT],
        [sys.executable, "-m", "venv", "--without-pip", directory / "venv"],
        [*pip, "--python", python, "install", "--no-index", "--no-deps", "--find-links", directory, "artifacts-agent"],
    ]
    for command in commands:
        subprocess.run(command, check=True)
    return python


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
