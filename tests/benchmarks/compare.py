"""Two trees in one run: a benchmark measures this one and another one in turn, round by round, and prints them side by side.

    python -m tests.benchmarks.compare TREE BENCHMARK [--rounds 5] [--json FILE] [OPTION ...]

TREE is a checkout with a virtual environment in `.venv`; BENCHMARK is what follows `python -m tests.benchmarks.`, and OPTION any
of its own, such as `--case NAME`. Both trees are measured by this tree's benchmark: the other one lends its `agent` and its
Python. So what the tests import of `agent` has to be there too. Peers are measured with this tree alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.harness import positive
from tests.benchmarks.report import AGENT, Report, Sample

ROOT = Path(__file__).parents[2]


class Tree(NamedTuple):
    """Whose agent is measured: `root` has `agent` and `tests` in it, `python` runs them."""

    root: Path
    python: Path


def lend(tree: Path, root: Path) -> Tree:
    """Make `root`, an empty directory, a tree of that one's agent and of these tests. Raises ValueError if it lacks something."""
    python = tree / ".venv/bin/python"
    for path, hint in ((tree / "agent", "a checkout"), (python, "a checkout with a virtual environment")):
        if not path.exists():
            raise ValueError(f"{path} does not exist: give {hint}")
    (root / "agent").symlink_to(tree / "agent")
    (root / "tests").symlink_to(ROOT / "tests")
    return Tree(root, python)


def run(tree: Tree, benchmark: str, options: Sequence[str]) -> dict[str, Any]:
    """Measure one round; return what the benchmark writes as JSON. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        written = Path(name) / "json"
        words = ["-m", f"tests.benchmarks.{benchmark}", *options, "--rounds", "1", "--json", str(written)]
        subprocess.run([tree.python, *words], cwd=tree.root, stdout=subprocess.DEVNULL, check=True)
        (report,) = json.loads(written.read_text())
    found: dict[str, Any] = report
    return found


def compare(tree: Path, benchmark: str, rounds: int, options: Sequence[str]) -> Report:
    """Measure both trees in turn; the other one's agent is called as its directory. Raises ValueError, CalledProcessError."""
    samples: list[Sample] = []
    facts: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        other = lend(tree, Path(name))
        for _ in range(rounds):
            ours = run(Tree(ROOT, Path(sys.executable)), benchmark, options)
            theirs = run(other, benchmark, [*options, "--alone"])
            facts = ours["facts"]
            samples += [Sample(**sample) for sample in ours["samples"]]
            samples += [
                Sample(**{**sample, "subject": tree.name}) for sample in theirs["samples"] if sample["subject"] == AGENT
            ]
    return Report(benchmark, samples, {**facts, "rounds": rounds})


def main() -> int:
    """Compare and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", allow_abbrev=False)
    parser.add_argument("tree", type=Path, help="a checkout with a virtual environment in .venv")
    parser.add_argument("benchmark", choices=[benchmark.name for benchmark in BENCHMARKS])
    parser.add_argument("--rounds", type=positive, default=5, help="how often to measure each tree; by default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there, too")
    options, others = parser.parse_known_args()
    try:
        report = compare(options.tree.resolve(), options.benchmark, options.rounds, others)
    except ValueError as error:
        parser.error(str(error))
    except subprocess.CalledProcessError as error:
        return error.returncode
    sys.stdout.write(report.text())
    if options.json is not None:
        options.json.write_text(json.dumps([report.as_json()], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
