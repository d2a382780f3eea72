"""What is said of a disk: the last trouble in the status, each trouble once a minute in the log, and its end."""

from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from agent.delivery.storage_health import LOG_INTERVAL, StorageHealth
from agent.queue.cursor import Ledger
from agent.queue.log import LogView
from agent.queue.store import Committed
from tests.support import virtual_time

pytestmark = pytest.mark.anyio

GOOD, EMPTY = Committed(LogView((), 1)), Ledger(0, 0, 0, {}, 0)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """A clock that jumps."""
    return virtual_time.backend("asyncio")


@pytest.mark.parametrize(
    "bad",
    [GOOD._replace(append_error="full"), GOOD._replace(checkpoint_error="full"), GOOD._replace(delete_error="full")],
)
async def test_a_trouble_is_logged_once_in_its_interval_and_so_is_its_end(bad: Committed) -> None:
    health = StorageHealth(EMPTY)
    with capture_logs() as logs:
        for _ in range(3):
            health.note_commit(bad, EMPTY)
        assert health.error == "full"
        await anyio.sleep(LOG_INTERVAL)
        health.note_commit(bad, EMPTY)
        for _ in range(2):
            health.note_commit(GOOD, EMPTY)
        assert health.error is None
    assert [(entry["event"], entry.get("suppressed")) for entry in logs] == [
        ("storage_failing", 0),
        ("storage_failing", 2),
        ("storage_recovered", None),
    ]


async def test_a_commit_that_works_does_not_hide_a_sync_that_failed() -> None:
    health = StorageHealth(EMPTY)
    health.note_sync("no", EMPTY)
    health.note_commit(GOOD, EMPTY)
    assert health.error == "no"
    health.note_sync(None, EMPTY)
    assert health.error is None


async def test_drops_are_logged_when_their_number_changes() -> None:
    dropped = Ledger(3, 0, 0, {"overflow": 3}, 0)
    health = StorageHealth(EMPTY)
    with capture_logs() as logs:
        health.note_commit(GOOD, EMPTY)
        health.note_commit(GOOD, dropped)
        health.note_commit(GOOD, dropped)
    assert [(entry["event"], entry["ledger_dropped"]) for entry in logs] == [("events_dropped", {"overflow": 3})]
