"""Whose events were refused because the queue was full, or their share of it: for the log and the status."""

from collections.abc import Iterable
from typing import NamedTuple

import anyio
import structlog

from agent.queue.cursor import Outcome
from agent.queue.shares import UNNAMED
from agent.queue.store import Refusal
from agent.throttle import Throttle

LOG_INTERVAL = 10.0
# Of so many owners the counts are kept.
MAX_OWNERS = 64


class OverQuota(NamedTuple):
    """How much of an owner's was dropped as `quota` since the start; `uid` is None for all who are connected over TCP."""

    uid: int | None
    events: int
    bytes: int


class Refusals:
    """Takes note of refusals. Of each owner one is logged in LOG_INTERVAL seconds."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("agent.pipeline")
        self._throttle = Throttle(LOG_INTERVAL)
        self._over: dict[int, OverQuota] = {}

    @property
    def over_quota(self) -> list[OverQuota]:
        """Who has sent more than a share, most bytes first: MAX_OWNERS at most."""
        return sorted(self._over.values(), key=lambda each: each.bytes, reverse=True)

    def note(self, refusals: Iterable[Refusal]) -> None:
        """Take note of the refusals of one commit."""
        for each in refusals:
            uid = None if each.owner == UNNAMED else each.owner
            if each.reason is Outcome.QUOTA and (each.owner in self._over or len(self._over) < MAX_OWNERS):
                before = self._over.get(each.owner, OverQuota(uid, 0, 0))
                self._over[each.owner] = OverQuota(uid, before.events + each.events, before.bytes + each.bytes)
            who: dict[str, object] = {"peer": "tcp"} if uid is None else {"uid": uid}
            held_back = self._throttle.allow("events_refused", anyio.current_time(), reason=str(each.reason), **who)
            if held_back is not None:
                facts = {"events": each.events, "bytes": each.bytes, "held_bytes": each.held, "share_bytes": each.share}
                self._log.warning("events_refused", reason=str(each.reason), **who, **facts, suppressed=held_back)
