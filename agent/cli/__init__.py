"""The command line: arguments, output and exit codes."""

import sys
import time


def seconds_in_queue(schedstat: str) -> float:
    """Return how long a process has run or has waited for a processor, from what its `/proc/PID/schedstat` holds.

    It is its age without the time it has slept: a process that has become this program may have been another one before, a shell
    say, that was in no hurry (https://docs.kernel.org/scheduler/sched-stats.html#proc-pid-schedstat).
    """
    running, waiting, _ = schedstat.split()
    return (int(running) + int(waiting)) / 1e9


def _started() -> float:
    """Return when this program started, on the steady clock; where that is hidden, now.

    Of many that start at once each waits for the others long before its first line runs.
    """
    now = time.monotonic()
    try:
        with open("/proc/self/schedstat") as file:  # noqa: PTH123 - pathlib takes milliseconds
            return now - seconds_in_queue(file.read())
    except (OSError, ValueError):
        return now


STARTED = _started()  # what is imported from here on can take long on a busy machine


def main() -> int:
    """Run the command that `sys.argv` names; return its exit code."""
    from agent.cli import first_process

    first_process.prepare(sys.argv)
    from agent.cli.main import main as run

    return run()
