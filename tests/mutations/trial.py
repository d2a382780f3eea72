"""Tries a mutation: in a copy of the tree, until the first test fails.

It knows copies, processes and which tests are likely to notice. It must never know how mutations are made, and it never writes
into the tree that it was given.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.mutations.finder import Mutation

COPIED = ("agent", "tests", "systemd", "pyproject.toml", "config.example.toml", "README.md")
IGNORED = shutil.ignore_patterns("__pycache__", "node_modules", ".hypothesis")
TEST_SECONDS = 40
TIME_LIMIT = "the time limit"

# All that is quick and near the disk; the likeliest and quickest first.
TESTS = (
    "tests/unit/queue/test_history.py",
    "tests/unit/queue/test_log.py",
    "tests/unit/queue/test_store.py",
    "tests/unit/queue/test_undelivered.py",
    "tests/unit/queue/test_cursor_file.py",
    "tests/unit/queue/test_atomic.py",
    "tests/unit/queue/test_quarantine.py",
    "tests/unit/queue/test_record.py",
    "tests/unit/queue/test_segment.py",
    "tests/unit/queue/test_cursor.py",
    "tests/unit/queue/test_dead_letters.py",
    "tests/unit/queue/test_reader.py",
    "tests/contract/queue/test_filesystem.py",
    "tests/unit/delivery/test_worker_storage.py",
    "tests/unit/delivery/test_pipeline.py",
    "tests/unit/queue/test_committer.py",
    "tests/unit/delivery/test_worker.py",
    "tests/contract/queue/test_log_rot.py",
    "tests/contract/queue/test_log_crashes.py",
    "tests/contract/queue/test_log_model.py",
    "tests/contract/queue/test_maintenance_crashes.py",
    "tests/contract/delivery/test_pipeline_errors.py",
    "tests/unit/queue/test_maintenance.py",
    "tests/unit/cli/test_export.py",
    "tests/integration/queue/test_short_writes.py",
    "tests/integration/ingest/test_sockets.py",
    "tests/integration/ingest/test_stream.py",
)

# What to begin with, by the mutated file.
FIRST = {
    "agent/queue/cursor_file.py": ("tests/unit/queue/test_cursor_file.py",),
    "agent/queue/cursor.py": ("tests/unit/queue/test_cursor.py",),
    "agent/fleet/accounting.py": ("tests/unit/fleet/test_accounting.py",),
    "agent/fleet/held.py": ("tests/unit/fleet/test_held.py",),
    "agent/fleet/backlog.py": (
        "tests/unit/fleet/test_holding.py",
        "tests/unit/fleet/test_shared.py",
        "tests/unit/fleet/test_relay.py",
        "tests/contract/delivery/test_backlog.py",
    ),
    "agent/fleet/fetching.py": ("tests/unit/fleet/test_holding.py", "tests/unit/fleet/test_relay.py"),
    "agent/fleet/relay_transport.py": ("tests/unit/fleet/test_relay.py",),
    "agent/fleet/shared.py": ("tests/unit/fleet/test_shared.py", "tests/unit/fleet/test_relay.py"),
    "agent/fleet/shared_lease.py": ("tests/unit/fleet/test_shared.py",),
    "agent/fleet/shared_pause.py": ("tests/unit/fleet/test_shared.py", "tests/unit/fleet/test_relay.py"),
    "agent/fleet/shared_rate.py": ("tests/unit/fleet/test_shared.py", "tests/unit/fleet/test_relay.py"),
    "agent/fleet/dead.py": ("tests/unit/fleet/test_dead.py", "tests/unit/fleet/test_relay.py"),
    "agent/queue/record.py": ("tests/unit/queue/test_record.py",),
    "agent/queue/segment.py": ("tests/unit/queue/test_segment.py",),
    "agent/queue/quarantine.py": ("tests/unit/queue/test_quarantine.py",),
    "agent/queue/filesystem.py": (
        "tests/contract/queue/test_filesystem.py",
        "tests/integration/queue/test_short_writes.py",
    ),
    "agent/queue/store.py": ("tests/unit/queue/test_store.py",),
    "agent/queue/writer.py": ("tests/unit/queue/test_store.py", "tests/unit/queue/test_ownership.py"),
    "agent/queue/atomic.py": ("tests/unit/queue/test_atomic.py",),
    "agent/queue/committer.py": ("tests/unit/queue/test_committer.py",),
    "agent/queue/maintenance/repair.py": ("tests/contract/queue/test_maintenance_crashes.py",),
    "agent/queue/maintenance/retry.py": ("tests/contract/queue/test_maintenance_crashes.py",),
    "agent/cli/queue/export.py": ("tests/unit/cli/test_export.py",),
    "agent/delivery/pipeline.py": (
        "tests/unit/delivery/test_pipeline.py",
        "tests/unit/delivery/test_worker_storage.py",
    ),
    "agent/delivery/worker.py": ("tests/unit/delivery/test_worker_storage.py", "tests/unit/delivery/test_pipeline.py"),
    "agent/ingest/sockets.py": ("tests/integration/ingest/test_sockets.py",),
    "agent/ingest/intake.py": ("tests/unit/ingest/test_intake.py", "tests/integration/ingest/test_stream.py"),
}


class Trial(NamedTuple):
    """What became of a mutation: `caught_by` is the test that failed (None: it survived), `timed_out` if it hung."""

    mutation: Mutation
    caught_by: str | None
    timed_out: bool
    seconds: float


class _Fate(NamedTuple):
    caught_by: str | None
    timed_out: bool


class BrokenTrialError(Exception):
    """The tests could not be run, so that they prove nothing."""


def likely_tests(path: str) -> list[str]:
    """Return every test file that is run against a mutation of that file, the likeliest to notice first."""
    return list(dict.fromkeys([*FIRST.get(path, ()), *TESTS]))


@dataclass(frozen=True)
class Tree:
    """A copy of the project that may be mutated; it is not more than one trial's at a time."""

    root: Path

    @classmethod
    def copy(cls, source: Path, target: Path) -> "Tree":
        """Copy what the tests need."""
        target.mkdir(parents=True)
        for name in COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, target / name, ignore=IGNORED)
            else:
                shutil.copy(source / name, target / name)
        return cls(target)

    def check(self) -> float:
        """Run everything without a mutation, and return how many seconds that takes.

        Raises BrokenTrialError: where tests fail anyhow, failures say nothing.
        """
        began = time.monotonic()
        code, output = self._run(["tests/mutations/test_copy.py", *TESTS], None)
        if code != 0:
            raise BrokenTrialError(f"without any mutation the tests do not pass:\n{output}")
        return time.monotonic() - began

    def attempt(self, mutation: Mutation, limit: float) -> Trial:
        """Mutate, run the tests for at most `limit` seconds each time, and mend."""
        file = self.root / mutation.path
        healthy, began = file.read_text(), time.monotonic()
        self._put(file, mutation.source)
        try:
            fate = self._fate(mutation, limit)
        finally:
            self._put(file, healthy)
        return Trial(mutation, fate.caught_by, fate.timed_out, time.monotonic() - began)

    def _fate(self, mutation: Mutation, limit: float) -> _Fate:
        """Look for a test that fails, and fails again alone: on a busy machine one may fail for another reason."""
        tests, doubtful = likely_tests(mutation.path), list[str]()
        while True:
            fate = _judge(mutation, *self._run([*tests, *(f"--deselect={test}" for test in doubtful)], limit))
            if fate.caught_by is None or fate.caught_by == TIME_LIMIT or self._run([fate.caught_by], limit)[0] != 0:
                return fate
            doubtful.append(fate.caught_by)

    def _put(self, file: Path, source: str) -> None:
        """Write a module, and forget what was compiled: its size and second may be the same."""
        file.write_text(source)
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)

    def _run(self, arguments: list[str], limit: float | None) -> tuple[int | None, str]:
        """Return pytest's exit code, None if it was stopped at the limit, and its output."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        process = subprocess.Popen(
            [*command, f"--timeout={TEST_SECONDS}", "--tb=short", *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output
        return process.returncode, output


def _judge(mutation: Mutation, code: int | None, output: str) -> _Fate:
    """Tell a survivor from one that was caught. Raises BrokenTrialError if the tests did not even run."""
    if code is None:
        return _Fate(TIME_LIMIT, timed_out=True)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", output, re.MULTILINE)
    if code not in {0, 1} or (code == 1) != (failed is not None):
        raise BrokenTrialError(f"{mutation.path}:{mutation.line}: {mutation.name}: pytest ended with {code}:\n{output}")
    if failed is None:
        return _Fate(None, timed_out=False)
    return _Fate(failed[1], timed_out="Timeout (>" in (failed[2] or ""))
