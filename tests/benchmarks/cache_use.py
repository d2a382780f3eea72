"""What it costs to count what events say of the cache, beside validating them: `python -m tests.benchmarks.cache_use`."""

import sys
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from agent.cache_use import count_use
from agent.events import Event, Session, decode_events, decode_lines, encode_events

SESSION: Final = "5c9f3f7e-1111-4222-8333-444444444444"
SIZES, HITS = (1, 10, 100, 500), (0, 50, 100)
ROUNDS: Final = 5


class Cost(NamedTuple):
    """CPU seconds for an event."""

    counting: float
    validating: float


def measure(size: int, hits: int) -> Cost:
    """Return what blocks of `size` events cost, of which `hits` in a hundred are hits, in both sources."""
    lines = encode_events([_event(number, hits) for number in range(size)])
    events, times = decode_events(lines), max(2000 // size, 4)
    counting = _least(lambda: count_use(events), times)
    return Cost(counting / size, _least(lambda: decode_lines(lines, Session()), times) / size)


def _event(number: int, hits: int) -> Event:
    hit = number * 37 % 100 < hits
    source: Final = ("LOCAL", "REMOTE")
    return Event(SESSION, source[number % 2], "HIT" if hit else "MISS", f"{number:016x}", number if hit else 0)


def _least(call: Callable[[], object], times: int) -> float:
    """Return the CPU seconds of a call, in the quickest of a few rounds."""
    return min(_round(call, times) for _ in range(ROUNDS)) / times


def _round(call: Callable[[], object], times: int) -> float:
    begin = time.thread_time()
    for _ in range(times):
        call()
    return time.thread_time() - begin


def main() -> int:
    """Measure and print."""
    table = Table("events in a block", "hits", "counting, µs an event", "validating", box=None)
    for size in SIZES:
        for hits in HITS:
            cost = measure(size, hits)
            table.add_row(f"{size}", f"{hits} %", f"{cost.counting * 1e6:.3f}", f"{cost.validating * 1e6:.3f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
