"""`python -m tests.soak --seconds 1200 --seed 7`: real faults for a while, then a table; exit code 0 if every promise held.

As root it uses a file system of its own (a loop mount, or a tmpfs); what the machine does not allow is named as skipped.
If something did not hold, the directory with queue, logs and records stays.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak.cast import ACCOUNTS
from tests.soak.faults import TABLE, name_of
from tests.soak.run import Soak, soak
from tests.soak.summary import rows, table

TAIL = 40


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long there are faults (default: 60)")
    parser.add_argument("--seed", type=int, default=7, help="what chance begins with (default: 7)")
    parser.add_argument(
        "--destinations",
        type=int,
        default=len(ACCOUNTS),
        choices=range(len(ACCOUNTS) + 1),
        metavar="N",
        help=f"destinations beside default, from 0 to {len(ACCOUNTS)} (default: {len(ACCOUNTS)})",
    )
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    names = [name_of(fault) for fault in TABLE]
    parser.add_argument(
        "--only", action="append", default=[], choices=names, help="a fault that there is to be, not all"
    )
    parser.add_argument("--keep", action="store_true", help="keep the directory even if everything held")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is mounted and started has to go
    parent = Path(tempfile.mkdtemp(prefix="soak-"))
    result = soak(options.seconds, options.seed, parent / "run", options.only, destinations=options.destinations)
    numbers = rows(result)
    sys.stdout.write(table(numbers))
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")
    if not result.problems and not options.keep:
        shutil.rmtree(parent)
        return 0
    sys.stdout.write(report(result, parent / "run"))
    return 1 if result.problems else 0


def report(result: Soak, directory: Path) -> str:
    """Say what helps to understand a failure: the last faults, the end of the daemon's log, where the rest is."""
    log = (directory / "agent" / "stderr").read_text(errors="replace").splitlines()
    tails = {"The last faults": result.happened.log[-TAIL:], "The end of the daemon's log": log[-TAIL:]}
    text = "".join(f"\n{title}:\n" + "".join(f"  {line}\n" for line in lines) for title, lines in tails.items())
    return f"{text}\nEverything is in {directory}\n"


if __name__ == "__main__":
    sys.exit(main())
