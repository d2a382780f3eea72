"""The real `turbo` (npm), unmodified, run on a monorepo against an API: what it did, what it made, how long it stayed.

It knows turbo's command line, its environment and its summary of a run. It must never know what answers at the API's address.
"""

import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.monorepo import Monorepo
from tests.support.tools import missing

HINT = "npm install --prefix tests/npm"
RELEASES = (1, 2)
TOKEN = "a-token-of-the-tests"
TEAM = "acme"
_HOME = Path(__file__).parents[1] / "npm/node_modules"
_PROGRAMS = {1: "turbo-linux-{}/bin/turbo", 2: "@turbo/linux-{}/bin/turbo"}
_OPTIONS = {1: ("--no-daemon",), 2: ()}  # turbo 1 leaves a daemon behind
_MACHINES = {"x86_64": "64", "aarch64": "arm64"}
_QUIET = {"TURBO_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1", "TURBO_GLOBAL_WARNING_DISABLED": "1"}
_LONGEST_SECONDS = 240.0


class Task(NamedTuple):
    """What became of one task. `cache` is MISS, or where the hit came from: LOCAL or REMOTE."""

    hash: str
    cache: str
    exit_code: int


@dataclass(frozen=True)
class Run:
    """A run of turbo that is over. `began` and `ended` are times of the wall clock, in seconds."""

    code: int
    output: str
    summary: Mapping[str, Any]
    began: float
    ended: float

    @property
    def tasks(self) -> dict[str, Task]:
        """What became of each task."""
        return {task["taskId"]: _task(task) for task in self.summary["tasks"]}

    @property
    def lines(self) -> list[str]:
        """What it printed, in no order, without times and paths: tasks run at once, and so do their lines."""
        return sorted(line for line in self.output.splitlines() if not line.strip().startswith(("Time:", "Summary:")))

    @property
    def seconds(self) -> float:
        """How long the process was there."""
        return self.ended - self.began

    @property
    def seconds_at_exit(self) -> float:
        """How long it was still there after its last task had ended (turbo counts that in milliseconds)."""
        last: int = max(task["execution"]["endTime"] for task in self.summary["tasks"])
        return self.ended - last / 1000


def program(release: int = 2) -> Path | None:
    """Return turbo's own binary of a release, if it is installed."""
    found = _HOME / _PROGRAMS[release].format(_MACHINES.get(platform.machine(), "unknown"))
    return found if found.exists() else None


def command(monorepo: Monorepo) -> list[str | Path]:
    """Return what builds everything, wherever it is called; ends the test where turbo is not installed."""
    turbo = program(monorepo.release) or missing(f"turbo {monorepo.release}", HINT)
    options = ("--summarize", "--no-update-notifier", *_OPTIONS[monorepo.release])
    return [turbo, "run", "build", *options, "--cwd", monorepo.root]


def environment(monorepo: Monorepo, api: str | None) -> dict[str, str]:
    """Return the whole environment of a build; without an API there is no remote cache."""
    account = {"TURBO_API": api, "TURBO_TOKEN": TOKEN, "TURBO_TEAM": TEAM} if api else {}
    return {"PATH": monorepo.path, "HOME": str(monorepo.root)} | _QUIET | account


@contextmanager
def running(
    monorepo: Monorepo,
    api: str | None,
    env: Mapping[str, str] | None = None,
    within: Sequence[str | Path] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Run a build of everything; turbo is killed if it is still there when the block is left, but not the tasks that run.

    Without an API there is no remote cache, and there are no events. `within` is a command that runs turbo's, and is the process.
    """
    with subprocess.Popen(
        [*within, *command(monorepo)],
        env=environment(monorepo, api) | dict(env or {}),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(
    monorepo: Monorepo,
    api: str | None,
    env: Mapping[str, str] | None = None,
    within: Sequence[str | Path] = (),
) -> Run:
    """Build everything, and return when that is done."""
    before = _summaries(monorepo)
    began = time.time()
    with running(monorepo, api, env, within) as process:
        output, _ = process.communicate(timeout=_LONGEST_SECONDS)
        ended = time.time()
    (written,) = _summaries(monorepo) - before
    return Run(process.returncode, output, json.loads(written.read_bytes()), began, ended)


def _summaries(monorepo: Monorepo) -> set[Path]:
    return set((monorepo.root / ".turbo/runs").glob("*.json"))


def _task(task: Mapping[str, Any]) -> Task:
    cache = task["cache"]
    return Task(task["hash"], cache.get("source", cache["status"]), task["execution"]["exitCode"])
