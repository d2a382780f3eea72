"""Every benchmark, one after the other: `python -m tests.benchmarks [--events N] [--rounds N] [--json FILE] …`.

`--events` caps what each measures with. A benchmark alone: `python -m tests.benchmarks.throughput`, and so on.
"""

import sys

from tests.benchmarks import (
    backlog,
    client_cost,
    destinations,
    fleet,
    front,
    history,
    idle,
    ingest,
    page,
    scale,
    short_lived,
    startup,
    throughput,
    top,
    turbo,
)
from tests.benchmarks.harness import main

BENCHMARKS = [
    module.BENCHMARK
    for module in (
        throughput,
        ingest,
        short_lived,
        client_cost,
        startup,
        backlog,
        idle,
        history,
        destinations,
        fleet,
        front,
        page,
        scale,
        top,
        turbo,
    )
]

if __name__ == "__main__":
    sys.exit(main(*BENCHMARKS))
