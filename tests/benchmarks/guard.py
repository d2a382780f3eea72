"""A guard of the speed: the daemon's CPU per event may not rise by more than a third, measured in floors.

    python -m tests.benchmarks.guard [--record]

The same events go through the real daemon (socket to API) and through the floor of the machine, in turn, and the guard takes
the median of the ratios of their CPU. CPU time and ratios within one run, because wall times say more of the machine, and of
who else uses it, than of the agent. The ratio that counts is in guard.json; `--record` writes it anew: do that with the change
that moves it on purpose, and say why.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import floor, load, usage
from tests.benchmarks.contenders import agent_daemon
from tests.benchmarks.sink import Sink, sink
from tests.support.daemon import Daemon

RECORD = Path(__file__).with_name("guard.json")
EVENTS, ROUNDS = 100_000, 5
TOLERANCE = 4 / 3


class Found(NamedTuple):
    """The median ratio of CPU per event, the daemon's to the floor's, and that of each round."""

    ratio: float
    rounds: tuple[float, ...]


def recorded() -> float:
    """Return the ratio that counts."""
    return float(json.loads(RECORD.read_text())["cpu_per_event_in_floors"])


def is_too_slow(ratio: float, before: float) -> bool:
    """Tell whether the cost per event has risen by more than a third."""
    return ratio > before * TOLERANCE


def measure(events: int = EVENTS, rounds: int = ROUNDS) -> Found:
    """Let one daemon and the floor work in turn; the first round only warms both up."""
    with tempfile.TemporaryDirectory(prefix="b-") as name, sink() as api:
        directory = Path(name)
        with agent_daemon(directory / "agent", api.url) as daemon:
            ratios = [_ratio(daemon, api, directory, events, number) for number in range(1, rounds + 2)]
    return Found(statistics.median(ratios[1:]), tuple(ratios[1:]))


def _ratio(daemon: Daemon, api: Sink, directory: Path, events: int, number: int) -> float:
    cpu = usage.cpu_seconds(daemon.pid)
    load.send("stream", daemon.stream, events)
    arrived = api.wait(number * events)
    cpu = usage.cpu_seconds(daemon.pid) - cpu
    assert arrived.events == number * events, f"{arrived.events} of {number * events} events arrived"
    return cpu / floor.run(events, directory / "floor").cpu


def main() -> int:
    """Measure and compare, or record; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guard", description=main.__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    found = measure()
    sys.stdout.write(f"CPU per event: {found.ratio:.2f} floors ({', '.join(f'{each:.2f}' for each in found.rounds)})\n")
    if parser.parse_args().record:
        RECORD.write_text(json.dumps({"cpu_per_event_in_floors": round(found.ratio, 2)}) + "\n")
        return 0
    sys.stdout.write(f"recorded: {recorded():.2f}; at most: {recorded() * TOLERANCE:.2f}\n")
    return int(is_too_slow(found.ratio, recorded()))


if __name__ == "__main__":
    sys.exit(main())
