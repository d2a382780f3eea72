"""`python -m tests.release`: the parts that are quick to build, what is in them, and that they depend on the commit alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from agent import __version__
from tests.release import PARTS, ROOT, Source, build_package, check_out
from tests.support.tools import require_tool
from tests.support.waiting import HUNG_AFTER

NAMES = {
    "SHA256SUMS",
    f"artifacts-agent-{__version__}.cdx.json",
    f"artifacts_agent-{__version__}-py3-none-any.whl",
    f"artifacts_agent-{__version__}.tar.gz",
}


def release(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    require_tool("git", "apt-get install git")
    command = [sys.executable, "-m", "tests.release", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_AFTER)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of the last commit, as far as that is quick."""
    output = tmp_path_factory.mktemp("release") / "output"
    done = release("--output", output, "--only", "wheel,sdist,sbom", "--draft")
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[1] for line in done.stdout.splitlines()[1:]} == NAMES
    return output


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The files of the last commit."""
    return check_out(tmp_path_factory.mktemp("commit") / "source")


def test_a_release_is_all_that_was_chosen_and_has_checksums(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == NAMES
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=built, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count(": OK\n") == len(NAMES) - 1


def test_the_wheel_has_the_agent_and_nothing_else(built: Path, source: Source) -> None:
    with zipfile.ZipFile(built / f"artifacts_agent-{__version__}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(source.tree)) for path in (source.tree / "agent").rglob("*") if path.is_file()}
    pictures = {name for name in expected if name.endswith((".png", ".svg"))}
    assert names == expected - pictures - {"agent/cli/launcher.py"} | {"artifacts_agent.py"}  # that is the launcher


def test_the_sdist_has_what_the_commit_has(built: Path, source: Source) -> None:
    with tarfile.open(built / f"artifacts_agent-{__version__}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    files = subprocess.run(["git", "ls-files"], cwd=source.tree, capture_output=True, text=True, check=True)
    expected = {*files.stdout.splitlines()}
    left_out = {".dockerignore", ".pre-commit-config.yaml"}
    assert (names - expected, expected - names) == ({"PKG-INFO"}, left_out)


def test_the_bill_of_materials_names_all_that_is_needed_to_run(built: Path) -> None:
    bill = json.loads((built / f"artifacts-agent-{__version__}.cdx.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", __version__)
    parts = {each["name"]: each for each in bill["components"]}
    assert {"anyio", "pydantic", "pydantic-core", "certifi"} <= parts.keys()  # the last two are needed by others
    assert not {"pytest", "trio"} & parts.keys()
    assert all(re.fullmatch(rf"pkg:pypi/{name}@[0-9][\w.]*", each["purl"]) for name, each in parts.items())
    references = [each["ref"] for each in bill["dependencies"]]
    assert len({*references}) == len(references) == len(parts) + 1
    assert {each for needs in bill["dependencies"] for each in needs["dependsOn"]} < {*references}


def test_another_directory_time_and_umask_make_the_same_bytes(built: Path, source: Source, tmp_path: Path) -> None:
    elsewhere = source._replace(tree=tmp_path / "another name")
    shutil.copytree(source.tree, elsewhere.tree, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".git"))
    for number, path in enumerate(sorted(elsewhere.tree.rglob("*"))):
        os.utime(path, (number * 1e6, number * 1e6))
        path.chmod(
            0o700 if path.is_dir() or os.access(source.tree / path.relative_to(elsewhere.tree), os.X_OK) else 0o600
        )
    for kind in ("wheel", "sdist"):
        again = build_package(elsewhere, kind, tmp_path / kind)
        assert again.read_bytes() == (built / again.name).read_bytes(), again.name


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--only", "wheel,rpm"], 2, f"no such parts: rpm; there are {', '.join(PARTS)}"),
        (["--output", ROOT], 2, "is not empty"),
    ],
)
def test_what_cannot_be_built_is_said(tmp_path: Path, arguments: list[str | Path], code: int, said: str) -> None:
    done = release("--output", tmp_path / "output", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
