"""The page of `web`: how long a request takes, and what it costs, if what it shows is read anew, and if it is remembered.

    python -m tests.benchmarks.page [--events 10000000] [--rounds 10] [--json FILE]

The events are those of builds over 30 days, 250 a build, counted already. Each round asks for another time.
"""

import sys
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

from tests.benchmarks import usage
from tests.benchmarks.harness import Benchmark, Size, main
from tests.benchmarks.report import AGENT, Figures, Report, Sample
from tests.support.usage import write_usage
from tests.support.web import configured, served

A_BUILD = 250
LAST = 720  # hours: all of the 30 days


def run(size: Size) -> Report:
    """Ask for each time twice."""
    samples = []
    with size.fresh() as directory:
        config = configured(directory)
        write_usage(directory / "queue", size.events, builds=max(1, size.events // A_BUILD), now=time.time())
        with served(config) as web:
            web.wait_for("last counted")
            pid, connection = web.process.process.pid, HTTPConnection(urlsplit(web.url).netloc)
            for index in range(size.rounds):
                target = f"/?since={LAST - index}h"
                samples += [
                    Sample(case, AGENT, _shown(pid, connection, target)) for case in ("read anew", "remembered")
                ]
            connection.close()
            memory = usage.memory(pid)
    samples.append(Sample("memory", AGENT, {"RSS MiB": memory.rss, "most MiB": memory.peak}))
    return Report("page", samples, size.facts())


def _shown(pid: int, connection: HTTPConnection, target: str) -> Figures:
    """Ask until the page has a report."""
    begin, cpu, page = time.perf_counter(), usage.cpu_seconds(pid), b""
    while b"<svg" not in page:
        connection.request("GET", target)
        page = connection.getresponse().read()
    seconds, cpu = time.perf_counter() - begin, usage.cpu_seconds(pid) - cpu
    return {"ms": 1e3 * seconds, "CPU ms": 1e3 * cpu, "KiB": len(page) / 1024}


BENCHMARK = Benchmark("page", run, rounds=10)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
