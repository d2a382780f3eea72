"""What the daemon does as the first process of a container, PID 1, which the kernel treats unlike any other.

A signal for which it has no handler is ignored, and children that other processes leave behind become its own.
"""

import os
from collections.abc import Sequence


def prepare(argv: Sequence[str]) -> None:
    """Let SIGTERM and SIGINT end `run` while it starts, and have orphans reaped; to be called before any slow import."""
    if os.getpid() != 1 or argv[1:2] != ["run"]:
        return
    import signal  # nothing else needs it so early

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)  # until the daemon takes them over: agent/daemon/signals.py
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # the kernel reaps then; the daemon starts no process that it would wait for


def _end(_number: int, _frame: object) -> None:
    os._exit(0)  # nothing was taken so far, and an exception might be caught by what is just being imported
