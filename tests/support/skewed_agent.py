"""`python -m tests.support.skewed_agent`: the agent's command in a process whose wall clock is off by what a file says.

`SKEW_FILE` names a file that holds seconds as text; it is read at each look at the clock, so that a test can let it jump
while the process runs. Only `time.time` is touched, before anything of the agent is imported. Nothing but tests runs this.
"""

import os
import runpy
import time
from collections.abc import Callable

SKEW_FILE = "SKEW_FILE"
_SIZE = 32


def skewed(clock: Callable[[], float], descriptor: int) -> Callable[[], float]:
    """Return a clock that is ahead of `clock` by the number in an open file."""
    return lambda: clock() + float(os.pread(descriptor, _SIZE, 0))


if __name__ == "__main__":
    time.time = skewed(time.time, os.open(os.environ[SKEW_FILE], os.O_RDONLY | os.O_CLOEXEC))
    runpy.run_module("agent.cli", run_name="__main__", alter_sys=True)
