"""What a process has used so far, as the kernel says: CPU, memory, wake-ups. Of any process of the same user, by its id.

It knows /proc and clocks. It must never know what is measured with it.
"""

import time
from pathlib import Path
from typing import Literal, NamedTuple

MIB = 1024


class Memory(NamedTuple):
    """In MiB: resident, resident with shared pages divided among those who share them, and the most ever resident."""

    rss: float
    pss: float
    peak: float


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, user and system, of all its threads, those that ended included.

    The number of a process's clock is made as `clock_getcpuclockid` does it; /proc/PID/stat would count in 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int) -> Memory:
    """Return what a process occupies."""
    status, rollup = Path(f"/proc/{pid}/status"), Path(f"/proc/{pid}/smaps_rollup")
    return Memory(_number(status, "VmRSS") / MIB, _number(rollup, "Pss") / MIB, _number(status, "VmHWM") / MIB)


def wakeups(pid: int) -> int:
    """Return how often the threads that a process has now have gone to sleep of their own accord."""
    return sum(_number(each, "voluntary_ctxt_switches") for each in Path(f"/proc/{pid}/task").glob("*/status"))


def load_average() -> float:
    """Return how many processes ran or wanted to, over the last minute, on this machine."""
    return float(Path("/proc/loadavg").read_text().split()[0])


def _number(path: Path, name: Literal["VmRSS", "VmHWM", "Pss", "voluntary_ctxt_switches"]) -> int:
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
