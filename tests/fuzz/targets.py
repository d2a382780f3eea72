"""Every target, by name: a function that asserts the agent's contract for any bytes, and the seeds that it grows from."""

from collections.abc import Callable
from typing import NamedTuple

from tests.fuzz import answers, control, disk, http, lines, settings


class Target(NamedTuple):
    """`check` raises AssertionError, or whatever the agent let through, where the contract does not hold."""

    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    max_bytes: int = 4096


TARGETS = {
    "framing": Target(lines.framing, lines.framing_seeds, 1024),
    "events": Target(lines.events, lines.event_seeds),
    "frame": Target(disk.frame, disk.frame_seeds),
    "scan": Target(disk.scan, disk.scan_seeds),
    "cursor": Target(disk.cursor, disk.cursor_seeds),
    "queue": Target(disk.queue, disk.queue_seeds),
    "config": Target(settings.toml, settings.toml_seeds, 6000),
    "token": Target(settings.token, settings.token_seeds, 10_000),
    "classify": Target(answers.classified, answers.classified_seeds),
    "answer": Target(answers.answered, answers.answered_seeds),
    "control": Target(control.control, control.control_seeds),
    "http": Target(http.http, http.http_seeds),
}
