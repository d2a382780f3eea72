"""`python -m tests.fleet --seconds 300 --runners 900 --agents 20`: a fleet under faults; exit code 0 if its accounts hold.

Three real nats-servers, relays, real agents, and runners that forward by the agent's own code, in a few processes. While they
work, servers, relays and agents are killed at random, and the API fails in its own ways; with `--outage` all servers are gone for
a while. At the end every event that was forwarded has to be delivered, the accounts of every queue exact, what was delivered
twice no more than is in doubt, and no process may have ended by itself.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.fleet.overview import Overview
from tests.fleet.counting import CountingApi
from tests.fleet.faults import Fleet, Traffic


@contextmanager
def fleet(options: argparse.Namespace, directory: Path) -> Iterator[Fleet]:
    """Run a fleet."""
    with ExitStack() as stack:
        api = stack.enter_context(CountingApi())
        found = Fleet(options, directory, api)
        stack.callback(found.stop)
        found.start()
        yield found


def _lines(running: Fleet, found: Overview, traffic: Traffic) -> Iterator[str]:
    """Say what was seen."""
    options, seen, arrivals = running.options, running.seen, running.api.arrivals
    yield f"faults: {', '.join(f'{name} {count}' for name, count in sorted(seen.faults.items()))}"
    if (outage := seen.outage) is not None:
        used = ", ".join(f"{each:.2f}" for each in outage.relays)
        yield f"outage: {outage.seconds:.0f} s without a server; agents accepted {outage.accepted:,} events meanwhile"
        yield f"     processor seconds of the relays: {used}"
    counts = ", ".join(f"{name} {count:,}" for name, count in vars(found.counts).items())
    yield f"accounts of {options.runners} runners and {options.agents} agents: {counts}; in doubt {found.in_doubt:,}"
    yield f"API: {traffic.requests:,} requests for {traffic.messages:,} messages, {traffic.ratio:.1f} to one"
    well = seen.healthy
    yield f"     while it was well: {well.requests:,} for {well.messages:,}, {well.ratio:.1f} to one"
    yield f"     {arrivals.total:,} events taken, {arrivals.repeats:,} of them again"


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long there are faults (default: 60)")
    parser.add_argument("--outage", type=float, default=0.0, help="seconds of these without any server (default: 0)")
    parser.add_argument("--runners", type=int, default=100, help="runners without daemons (default: 100)")
    parser.add_argument("--agents", type=int, default=5, help="real agents (default: 5)")
    parser.add_argument("--relays", type=int, default=3, help="relays (default: 3)")
    parser.add_argument("--rate", type=float, default=2000.0, help="events a second of all runners (default: 2000)")
    parser.add_argument("--seed", type=int, default=7, help="what chance begins with (default: 7)")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="fleet-"))
    with fleet(options, directory) as running:
        running.work()
        ended_at = time.monotonic()
        found = running.finish()
        drained_at, traffic = time.monotonic(), running.traffic()
        problems = list(running.problems(found))
        lines = [
            *_lines(running, found, traffic),
            f"end: {drained_at - ended_at:.0f} s until all was settled, {time.monotonic() - drained_at:.0f} s to check it",
            f"     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB of memory for what came",
            *(f"PROBLEM: {each}" for each in problems),
        ]
    sys.stdout.write("\n".join(lines) + "\n")
    if problems:
        sys.stdout.write(f"Everything is in {directory}\n")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
