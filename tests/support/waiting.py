"""The one place that polls: another process's state, which nothing here can be notified of."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

HUNG_AFTER: Final = 120.0
"""Seconds after which whatever a test waits for hangs. What does not hang may take long: the machine may be busy."""


def eventually(probe: Callable[[], T], accept: Callable[[T], bool], timeout: float = HUNG_AFTER) -> T:
    """Return the first value of `probe` that `accept` takes; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not accept(value := probe()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not so within {timeout} s; the last value: {value!r}")
        time.sleep(0.01)
    return value
