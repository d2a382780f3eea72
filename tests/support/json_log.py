"""What a real daemon has logged as JSON."""

import json
from typing import Any

from tests.support.daemon import Daemon
from tests.support.waiting import eventually


def logged(daemon: Daemon) -> list[dict[str, Any]]:
    """Return every whole line so far; each has to parse."""
    whole, _, _ = daemon.stderr_text().rpartition("\n")
    return [json.loads(text) for text in whole.splitlines()]


def wait_logged(daemon: Daemon, event: str, count: int = 1) -> list[dict[str, Any]]:
    """Return the lines of this event once there are `count` of them."""
    return eventually(
        lambda: [each for each in logged(daemon) if each["event"] == event], lambda found: len(found) >= count
    )
