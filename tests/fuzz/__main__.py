"""Coverage-guided fuzzing of every target: `python -m tests.fuzz --seconds 60 [--target NAME]…`. Needs atheris.

Each target runs in a process of its own, from seeds that the agent's own encoders and the recordings give, with bounds on memory
and on the time for one input. A finding is printed as a bytes literal, ready for a regression test, and makes the exit code 1.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
MEMORY_MIB = 768
SECONDS_PER_INPUT = 5
_PROGRESS = re.compile(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+)", re.MULTILINE)
_HEADER = f"{'target':10} {'executions':>11} {'per second':>11} {'coverage':>9} {'features':>9} {'findings':>9}\n"


class Run(NamedTuple):
    """What came of fuzzing one target; `report` is the engine's whole output."""

    name: str
    executions: int
    seconds: float
    coverage: int
    features: int
    findings: list[tuple[str, bytes]]
    failed: bool
    report: str

    @property
    def row(self) -> str:
        """Its line of the table."""
        pace = self.executions / max(self.seconds, 1)
        return (
            f"{self.name:10} {self.executions:11,} {pace:11,.0f} {self.coverage:9,} {self.features:9,}"
            f" {len(self.findings) or '-':>9}\n"
        )


def fuzz(name: str, seconds: int, seed: int, corpus: Path | None = None) -> Run:
    """Fuzz one target for `seconds`. What it finds interesting is kept below `corpus`, if given, for the next run."""
    with tempfile.TemporaryDirectory(prefix="artifacts-agent-fuzz-") as directory:
        scratch = Path(directory)
        found, seeds = scratch / "found", _written_seeds(name, scratch / "seeds")
        kept = corpus / name if corpus is not None else scratch / "corpus"
        for each in (found, kept):
            each.mkdir(parents=True, exist_ok=True)
        engine = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.fuzz.engine",
                name,
                found,
                kept,
                seeds,
                *_options(name, seconds, seed, found),
            ],
            cwd=ROOT,
            env={"PATH": "", "TMPDIR": directory, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        findings = [(each.name.partition("-")[0], each.read_bytes()) for each in sorted(found.iterdir())]
    report = engine.stdout.decode(errors="replace")
    executions, coverage, features = map(int, [("0", "0", "0"), *_PROGRESS.findall(report)][-1])
    return Run(
        name, executions, seconds, coverage, features, findings, bool(findings) or engine.returncode != 0, report
    )


def _options(name: str, seconds: int, seed: int, found: Path) -> list[str]:
    return [
        f"-max_total_time={seconds}",
        f"-max_len={TARGETS[name].max_bytes}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-timeout={SECONDS_PER_INPUT}",
        f"-seed={seed}",
        f"-artifact_prefix={found}/",
    ]


def _written_seeds(name: str, directory: Path) -> Path:
    directory.mkdir()
    for number, seed in enumerate(TARGETS[name].seeds()):
        (directory / str(number)).write_bytes(seed)
    return directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, print a line for each target and then each finding; return 1 if there is one."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Coverage-guided fuzzing of hostile input."
    )
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0, a new one each time)")
    parser.add_argument(
        "--corpus", type=Path, help="a directory that keeps what was found interesting, for the next time"
    )
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is missing: pip install -e '.[dev]'")
    sys.stdout.write(_HEADER)
    one = partial(fuzz, seconds=options.seconds, seed=options.seed, corpus=options.corpus)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [_shown(run) for run in pool.map(one, options.target or TARGETS)]
    for run in runs:
        _explain(run)
    return int(any(run.failed for run in runs))


def _shown(run: Run) -> Run:
    sys.stdout.write(run.row)
    sys.stdout.flush()
    return run


def _last_words(report: str) -> str:
    """Return the traceback, or whatever is at the end."""
    return report[max(report.find("=== Uncaught"), 0) :].partition("MS: ")[0][-4000:]


def _explain(run: Run) -> None:
    if run.failed:
        sys.stdout.write(f"\n{run.name}: what the engine said at last\n{_last_words(run.report)}\n")
    for kind, data in run.findings:
        sys.stdout.write(f"{run.name}: {kind} on {data!r}\n")


if __name__ == "__main__":
    sys.exit(main())
