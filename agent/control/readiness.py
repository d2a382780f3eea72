"""Whether events can be delivered now: what `GET /readyz` answers, and `status --check` goes by."""

from collections.abc import Iterator

from agent.control.schema import NotReady
from agent.delivery.pipeline_status import PipelineStatus

LONG_BACKOFF_SECONDS = 60.0


def not_ready(destination: str, status: PipelineStatus | None, *, healthy: bool, now: float) -> Iterator[NotReady]:
    """Say what keeps events of a destination from being kept or delivered; nothing if they can be.

    `status` is None if it did not come in time, `healthy` what `Pipeline.healthy` said; `now` is in seconds since the epoch.
    Backing off counts from LONG_BACKOFF_SECONDS on, that have passed or are to pass before the next try.
    """
    if status is None or not healthy:
        error = "the disk does not answer" if status is None else status.storage_error or "events cannot be kept now"
        yield NotReady(destination, "storage", error)
    if status is None:
        return
    if status.state == "paused":
        yield NotReady(destination, "paused", status.reason or "")
    if status.state == "backing_off":
        passed = 0.0 if status.since is None else now - status.since
        to_come = 0.0 if status.until is None else status.until - now
        if max(passed, to_come) > LONG_BACKOFF_SECONDS:
            yield NotReady(destination, "backing_off", status.reason or "")
