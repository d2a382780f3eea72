"""Whose events were refused: named in the log now and then, and counted for the status."""

from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from agent.delivery.refusals import LOG_INTERVAL, MAX_OWNERS, OverQuota, Refusals
from agent.queue.cursor import Outcome
from agent.queue.shares import UNNAMED
from agent.queue.store import Refusal
from tests.support import virtual_time

pytestmark = pytest.mark.anyio
QUOTA = Outcome.QUOTA


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """A clock that jumps."""
    return virtual_time.backend("asyncio")


async def test_who_is_refused_is_named_once_in_a_while_and_counted() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for _ in range(3):
            refusals.note([Refusal(65534, QUOTA, 2, 100, 500, 400), Refusal(UNNAMED, QUOTA, 1, 7, 500, 400)])
            refusals.note([Refusal(0, Outcome.OVERFLOW, 1, 50, 0, 400)])
        await anyio.sleep(LOG_INTERVAL)
        refusals.note([Refusal(65534, QUOTA, 2, 100, 500, 400)])
    assert refusals.over_quota == [OverQuota(65534, 8, 400), OverQuota(None, 3, 21)]
    facts = {"events": 2, "bytes": 100, "held_bytes": 500, "share_bytes": 400, "log_level": "warning"}
    assert logs[0] == {"event": "events_refused", "reason": "quota", "uid": 65534, **facts, "suppressed": 0}
    assert [(each.get("uid"), each.get("peer"), each["reason"], each["suppressed"]) for each in logs[1:]] == [
        (None, "tcp", "quota", 0),
        (0, None, "overflow", 0),
        (65534, None, "quota", 2),
    ]


async def test_of_so_many_owners_the_counts_are_kept() -> None:
    refusals = Refusals()
    for owner in [*range(MAX_OWNERS + 5), 0]:
        refusals.note([Refusal(owner, QUOTA, 1, 10, 0, 0)])
    assert len(refusals.over_quota) == MAX_OWNERS
    assert refusals.over_quota[0] == OverQuota(0, 2, 20)
