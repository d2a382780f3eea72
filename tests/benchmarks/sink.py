"""The API of the benchmarks as they see it: a process that counts (`sink_process`), and that can be waited for.

It knows how to start and ask it. It must never do its work.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.benchmarks.sink_process import Arrived
from tests.support.process import running

QUIET_SECONDS = 10
LONGEST_SECONDS = 1800.0


class Sink:
    """A running sink. `url` is the API's."""

    def __init__(self, url: str) -> None:
        self.url = url

    def wait(self, events: int, quiet: int = QUIET_SECONDS) -> Arrived:
        """Return when so many events have come since its start; or fewer, if nothing has come for `quiet` seconds."""
        query = {"events": events, "quiet": quiet}
        answer = httpx.get(f"{self.url}/wait", params=query, timeout=LONGEST_SECONDS, trust_env=False)
        return Arrived(**answer.raise_for_status().json())


@contextmanager
def sink() -> Iterator[Sink]:
    """Run a sink while the block lasts."""
    with running([sys.executable, "-m", "tests.benchmarks.sink_process"], env={}) as child:
        yield Sink(child.wait_for_line(r"http://\S+")[0])
