"""Every gate, in order, up to the first that fails: `python -m tests`. Its exit code is the failing gate's.

`python -m tests --fast` is for between two edits: lint, types, import contracts and the unit tests.
"""

import argparse
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
PURE = [
    "agent/cache_use.py",
    "agent/events.py",
    "agent/rules.py",
    "agent/ingest/framing.py",
    "agent/ingest/job_path.py",
    "agent/ingest/rate_limits.py",
    "agent/queue/record.py",
    "agent/queue/grouping.py",
    "agent/queue/segment.py",
    "agent/queue/cursor.py",
    "agent/queue/barrier.py",
    "agent/queue/shares.py",
    "agent/delivery/batch_size.py",
    "agent/delivery/batching.py",
    "agent/delivery/policy.py",
    "agent/delivery/transport.py",
    "agent/usage/counting.py",
    "agent/fleet/accounting.py",
    "agent/fleet/names.py",
    "agent/fleet/message.py",
    "agent/fleet/records.py",
    "agent/cli/top/samples.py",
]
_PURE = ",".join(PURE)
_PYTHON = [sys.executable, "-m"]
_PYTEST = [*_PYTHON, "pytest", "-n", "auto", "--dist", "worksteal"]  # a process that runs out of tests takes over some
CHECKS = [
    ("ruff check", [*_PYTHON, "ruff", "check"]),
    ("ruff format", [*_PYTHON, "ruff", "format", "--check"]),
    ("mypy", [*_PYTHON, "mypy"]),
    ("import contracts", [str(Path(sysconfig.get_path("scripts"), "lint-imports"))]),
]
FAST = [*CHECKS, ("unit tests", [*_PYTEST, "-q", "tests/unit"])]
GATES = [
    *CHECKS,
    ("pytest", [*_PYTEST, "--cov", "--cov-report="]),
    ("coverage of the pure modules", [*_PYTHON, "coverage", "report", "-m", "--fail-under=100", f"--include={_PURE}"]),
    ("coverage in total", [*_PYTHON, "coverage", "report"]),
]


def main() -> int:
    """Run the gates; return 0 or the exit code of the first that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests", description="Run every gate up to the first that fails.")
    parser.add_argument("--fast", action="store_true", help="only lint, types, import contracts and the unit tests")
    for name, command in FAST if parser.parse_args().fast else GATES:
        sys.stdout.write(f"\n== {name}\n")
        sys.stdout.flush()
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            sys.stdout.write(f"\n== {name}: failed ({code})\n")
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
