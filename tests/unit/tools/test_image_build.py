"""systemd/image/build before it builds: what it is asked, and what it says of a wrong command."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.tools import require_tool

SCRIPT = ROOT / "systemd/image/build"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--output DIR is missing: where to write the image"),
        (["--base"], "--base needs a value, or is no option: it takes --output DIR, --base BASE and --wheels DIR"),
        (["--bsae", "x"], "--bsae is no option: it takes --output DIR, --base BASE and --wheels DIR"),
        (["--output", "o", "--wheels", "/nowhere"], "--wheels: there is no directory /nowhere"),
        (["--output", "o"], "buildah is not installed: apt-get install buildah"),
    ],
)
def test_a_command_that_cannot_work_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "realpath"):
        (tools / name).symlink_to(require_tool(name, "apt-get install coreutils"))
    command = [str(tools / "bash"), str(SCRIPT), *arguments]
    done = subprocess.run(command, env={"PATH": str(tools)}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"build: {said}\n")
    assert not (tmp_path / "o").exists()


def test_it_is_free_of_shellcheck_warnings() -> None:
    assert os.access(SCRIPT, os.X_OK)
    shellcheck = require_tool("shellcheck", "apt-get install shellcheck")
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
