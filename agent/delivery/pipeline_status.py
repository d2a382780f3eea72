"""How a pipeline is doing, as `status` shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.delivery import policy
from agent.delivery.refusals import OverQuota
from agent.queue.cursor import Ledger


@dataclass(frozen=True)
class PipelineStatus:
    """How a pipeline is doing. Times are in seconds since the epoch, sizes in bytes."""

    state: Literal["running", "backing_off", "paused"]
    reason: str | None
    until: float | None
    since: float | None
    ledger: Ledger
    oldest_event_at: float | None
    last_delivery_at: float | None
    last_answer_at: float | None
    last_answer: str | None
    requests: int
    queue_bytes: int
    queue_limit: int
    segments: int
    quarantined: int
    quarantine_lost: int
    dead_letters: int | None
    dead_letters_discarded: int
    storage_error: str | None
    batch_limit: policy.BatchLimit
    over_quota: Sequence[OverQuota]
