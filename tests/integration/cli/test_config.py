"""`config schema`: what it prints is the schema, and the engine of editors, taplo, takes it and marks what is wrong."""

import json
import re
import subprocess
from pathlib import Path

from agent.config.file_schema import file_schema
from tests.support.command import run_command
from tests.support.documents import ROOT, blocks, read, section
from tests.support.tools import missing, require_tool
from tests.support.waiting import HUNG_AFTER

TAPLO = ROOT / "tests/npm/node_modules/@taplo/cli/dist/cli.js"
MISTAKES = {
    "max_event = 1": "'max_event' was unexpected",
    "max_events = 0": "0 is less than the minimum of 1",
    'max_bytes = "lots"': '"lots" does not match',
    'concurrency = "many"': '"many" is not of type "integer"',
}


def marked(directory: Path, text: str) -> list[str]:
    """Follow the document beside a configuration with that text; return what taplo says is wrong with it."""
    node = require_tool("node", "apt-get install nodejs")
    if not TAPLO.exists():
        missing("@taplo/cli", "npm install --prefix tests/npm")
    (directory / "config.toml").write_text(text)
    (_, edit) = blocks(section(read("agent/OPERATIONS.md"), "Configuration"), "sh")[0].splitlines()
    (directory / "artifacts-agent.schema.json").write_text(run_command("config", "schema").stdout)
    subprocess.run(["sh", "-c", edit], cwd=directory, check=True)
    command: list[str | Path] = [node, TAPLO, "check", "--colors=never", "config.toml"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=HUNG_AFTER)
    assert (done.returncode == 0) == ("error: " not in done.stderr), done.stderr
    return re.findall(r"^error: (.*)$", done.stderr, re.MULTILINE)


def test_it_prints_the_schema() -> None:
    done = run_command("config", "schema")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, file_schema(), "")


def test_taplo_finds_nothing_wrong_with_the_example(tmp_path: Path) -> None:
    uncommented = re.sub(r"^# +(\w+ = |\[)", r"\1", read("config.example.toml"), flags=re.MULTILINE)
    assert marked(tmp_path, uncommented) == []


def test_taplo_marks_what_is_wrong(tmp_path: Path) -> None:
    said = marked(tmp_path, "\n".join(["[batch]", *MISTAKES]) + "\n")
    assert {reason for reason in MISTAKES.values() if any(reason in each for each in said)} == {*MISTAKES.values()}
