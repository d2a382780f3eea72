"""Takes away, one at a time, every call and every order that keeps events safe on disk, and reports which test noticed.

    python -m tests.mutations [--list] [--only PATTERN] [--jobs N] [--json FILE]

The exit code is 1 if a mutation survives that has no reason to (`EXCEPTIONS` in tests.mutations.orders), 2 if the tests cannot
tell, else 0. Nothing is changed in this tree: each mutation is made in a copy.
"""

import argparse
import json
import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations.accounts import ACCOUNTS
from tests.mutations.finder import Mutation, find_in_tree
from tests.mutations.fleets import FLEETS
from tests.mutations.orders import EXCEPTIONS, ORDERS
from tests.mutations.rewriting import StaleOrderError, mutations
from tests.mutations.trial import BrokenTrialError, Tree, Trial

ROOT = Path(__file__).parents[2]
LIMIT_FACTOR = 4.0  # a mutation may take so many times what all tests take without one; then it counts as caught


def main() -> int:
    """Try the mutations, print a table; return 1 if one survived without an excuse."""
    options = _options()
    wanted = [each for each in every_mutation(ROOT) if re.search(options.only, f"{each.path} {each.name}")]
    if options.list:
        _say(*(_place(each) for each in wanted))
        return 0
    began, trials = time.monotonic(), []
    for trial in try_all(wanted, options.jobs):
        trials.append(trial)
        _say(_row(trial))
    unexcused = [trial for trial in trials if trial.caught_by is None and trial.mutation.name not in EXCEPTIONS]
    caught = sum(trial.caught_by is not None for trial in trials)
    _say(f"{caught} of {len(trials)} mutations were caught, in {time.monotonic() - began:.0f} s")
    if options.json is not None:
        options.json.write_text(json.dumps([_facts(trial) for trial in trials], indent=1) + "\n")
    return 1 if unexcused else 0


def every_mutation(root: Path) -> list[Mutation]:
    """Return all that is found in the tree and all that is listed. Raises StaleOrderError."""
    return [*find_in_tree(root), *mutations(root, (*ORDERS, *ACCOUNTS, *FLEETS))]


def try_all(wanted: Sequence[Mutation], jobs: int) -> Iterator[Trial]:
    """Yield each trial, in order; `jobs` copies of the tree are at work at a time. Raises BrokenTrialError."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as directory, ThreadPoolExecutor(jobs) as workers:
        trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for number in range(jobs):
            trees.put(Tree.copy(ROOT, Path(directory, str(number))))

        def attempt(mutation: Mutation) -> Trial:
            tree = trees.get()
            try:
                return tree.attempt(mutation, limit)
            finally:
                trees.put(tree)

        first = trees.get()
        limit = LIMIT_FACTOR * first.check()
        trees.put(first)
        yield from workers.map(attempt, wanted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=main.__doc__)
    parser.add_argument("--list", action="store_true", help="say what there is, and try nothing")
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression over path and name")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many to try at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    return parser.parse_args()


def _place(mutation: Mutation) -> str:
    return f"{mutation.path}:{mutation.line}  {mutation.name}"


def _row(trial: Trial) -> str:
    excuse = EXCEPTIONS.get(trial.mutation.name)
    fate = trial.caught_by or (f"survives: {excuse}" if excuse else "SURVIVED")
    return f"{_place(trial.mutation)}\n    {'hung in ' if trial.timed_out else ''}{fate}  ({trial.seconds:.1f} s)"


def _facts(trial: Trial) -> dict[str, object]:
    mutation, excuse = trial.mutation, EXCEPTIONS.get(trial.mutation.name)
    return {
        "mutation": mutation.name,
        "path": mutation.path,
        "line": mutation.line,
        "caught_by": trial.caught_by,
        "timed_out": trial.timed_out,
        "seconds": round(trial.seconds, 2),
        "excuse": excuse if trial.caught_by is None else None,
    }


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}{os.linesep}" for line in lines)
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BrokenTrialError, StaleOrderError) as error:
        _say(str(error))
        sys.exit(2)
