"""turbo 1 and 2 in every case alone, through the front and under `exec`: `python -m tests.turbo [--rounds N] [CASE …]`.

Beside busy loops, of which `--busy` says how many. Prints for each case how long builds take alone, and how much more the other
ways (medians), how many events arrived, and what is missing or not the same. Exit code 0: nothing is.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.support import turbo
from tests.turbo.comparison import BUSY_LOOPS, CASES, Outcome, busy_loops, differences, play
from tests.turbo.ways import WAYS


def main() -> int:
    """Play the rounds; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.turbo", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=BUSY_LOOPS)
    parser.add_argument("--release", type=int, action="append", choices=turbo.RELEASES)
    options = parser.parse_args()
    if unknown := {*options.cases} - {*CASES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    failed = 0
    with busy_loops(options.busy):
        for release in options.release or turbo.RELEASES:
            for case in options.cases or CASES:
                failed += _report(release, case, [_round(release, case) for _ in range(options.rounds)])
    sys.stdout.write(f"\n{f'{failed} outcomes differ' if failed else 'nothing is missing, and all is the same'}\n")
    return 1 if failed else 0


def _round(release: int, case: str) -> dict[str, Outcome]:
    outcomes = {}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as directory:
            outcomes[way] = play(case, way, release, Path(directory))
    return outcomes


def _report(release: int, case: str, rounds: Sequence[dict[str, Outcome]]) -> int:
    """Print a case; return how many outcomes differ."""
    sys.stdout.write(f"\nturbo {release}, {case}\n")
    failed = 0
    for way in WAYS:
        outcomes = [each[way] for each in rounds]
        seconds = [sum(outcome.seconds) for outcome in outcomes]
        ratios = [sum(each[way].seconds) / (sum(each["alone"].seconds) or 1.0) for each in rounds]
        arrived = [outcome.arrived for outcome in outcomes]
        times = f"{median(seconds):6.2f} s, {median(ratios):5.2f} times alone" if any(seconds) else ""
        sys.stdout.write(f"  {way:6} {times:22} events {min(arrived)} to {max(arrived)}\n")
        for each in rounds:
            problems = [differences(each["alone"], each[way])] if way != "alone" else []
            problems += [f"missing: {dict(each[way].missing)}"] if each[way].missing else []
            for problem in filter(None, problems):
                sys.stdout.write(f"         {problem}\n")
                failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
