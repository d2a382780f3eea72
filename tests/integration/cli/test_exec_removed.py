"""`exec` whose installation is removed under it: what it has not imported so far is not to be had any more."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.api_server import ApiServer
from tests.support.command import environment
from tests.support.daemon import TOKEN
from tests.support.documents import ROOT
from tests.support.waiting import HUNG_AFTER


def test_a_job_whose_agent_is_uninstalled_meanwhile_ends_as_its_command(api_server: ApiServer, tmp_path: Path) -> None:
    installed = tmp_path / "installed/agent"
    shutil.copytree(ROOT / "agent", installed, ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "config.toml"
    config.write_text(
        f'[api]\nurl = "{api_server.url}"\n[listen]\ncontrol = "{tmp_path / "c"}"\nstream = "{tmp_path / "s"}"\n'
    )
    env = environment({"STATE_DIRECTORY": str(tmp_path / "state"), "ARTIFACTS_AGENT_TOKEN": TOKEN})
    command = [
        sys.executable,
        "-P",
        "-m",
        "agent.cli",
        "exec",
        "--start-deadline",
        "60s",
        "--config",
        str(config),
        "--",
    ]
    done = subprocess.run(
        [*command, "sh", "-c", f"rm -r {installed}; exit 7"],
        env=env | {"PYTHONPATH": str(installed.parent)},
        capture_output=True,
        text=True,
        timeout=HUNG_AFTER,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (7, False), done.stderr
    assert "this installation of the agent was removed or replaced while the command ran" in done.stderr
