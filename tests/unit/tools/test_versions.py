"""`python -m tests.versions`: which Pythons and which dependencies are tested, and that one that is missing is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.versions import PYPROJECT, ROOT, Run, chosen, find, lowest

KNOWN = ["3.11", "3.12", "3.13"]
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("pythons", "only_lowest", "expected"),
    [
        ([], False, [Run("3.11"), Run("3.12"), Run("3.13"), Run("3.11", lowest=True)]),
        (["3.13"], False, [Run("3.13")]),
        ([], True, [Run("3.11", lowest=True)]),
        (["3.12"], True, [Run("3.12"), Run("3.11", lowest=True)]),
    ],
)
def test_all_is_tested_unless_something_is_named(pythons: list[str], only_lowest: bool, expected: list[Run]) -> None:
    assert chosen(pythons, only_lowest, KNOWN) == expected


def test_every_requirement_with_a_lowest_version_has_it(tmp_path: Path) -> None:
    assert "click==8.4" in set(lowest(PYPROJECT))
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\nname = "a"\ndependencies = ["b<2"]\noptional-dependencies = {}\n')
    with pytest.raises(ValueError, match="no single lowest version: b<2"):
        list(lowest(pyproject))


def test_a_python_is_found_that_works_and_is_the_one_that_is_meant(tmp_path: Path) -> None:
    for name, script in {
        "broken": "exit 1",
        "another": "echo 3.1.4",
        "right": f'exec "{sys.executable}" "$@"',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"python{HERE}").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name / f"python{HERE}").chmod(0o755)
    path = os.pathsep.join(str(tmp_path / name) for name in ("nowhere", "broken", "another", "right"))
    found = find(HERE, {"PATH": path, "HOME": str(tmp_path)})
    assert found is not None
    assert (found.path, found.version) == (tmp_path / "right" / f"python{HERE}", sys.version.split()[0])


def test_pyenvs_versions_are_looked_at(tmp_path: Path) -> None:
    directory = tmp_path / f".pyenv/versions/{HERE}.99/bin"
    directory.mkdir(parents=True)
    (directory / f"python{HERE}").symlink_to(sys.executable)
    found = find(HERE, {"PATH": "", "HOME": str(tmp_path)})
    assert found is not None
    assert found.path == directory / f"python{HERE}"


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [([], 0, "not found, not tested"), (["--python", HERE], 1, "not found")]
)
def test_one_that_is_not_found_is_said_and_a_failure_if_it_was_named(
    arguments: list[str], code: int, said: str
) -> None:
    env = {"PATH": "/nowhere", "HOME": "/nowhere"}
    command = [sys.executable, "-m", "tests.versions", "--list", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert f"Python {HERE}: {said}\n" in done.stdout
