"""What builds got out of the cache during the last day, as far as it has been folded: at once, and without writing anything."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from agent.errors import StorageError
from agent.usage.counting import HOUR_SECONDS, Totals
from agent.usage.report import totals_since
from agent.usage.store import FILE_NAME, DamagedError, UnwritableError, UsageStore

DAY_SECONDS = 24 * HOUR_SECONDS
QUERY_SECONDS = 0.2
FEW_TASKS = 20
"""Fewer tasks that the local cache did not have prove nothing."""


class Day(NamedTuple):
    """The tasks of the last 24 hours, and of the hour in which these began; `folded_at` is in seconds since the epoch."""

    totals: Totals
    folded_at: float

    @property
    def asked_remote(self) -> int:
        """How many tasks the local cache did not have."""
        return self.totals.tasks - self.totals.local_hits

    @property
    def remote_is_silent(self) -> bool:
        """Whether the remote cache gave no answer to most of those."""
        return self.asked_remote >= FEW_TASKS and 2 * self.totals.unanswered > self.asked_remote


def last_day(directory: Path, now: float) -> Day | None:
    """Return what has been folded in a queue directory; None if nothing has. `now` is in seconds since the epoch.

    It takes QUERY_SECONDS at most. Raises StorageError if the file cannot be read.
    """
    path = directory / FILE_NAME
    try:
        store = UsageStore.read_only(directory, QUERY_SECONDS)
        if store is None:
            return None
        with contextlib.closing(store):
            totals = totals_since(store, int((now - DAY_SECONDS) // HOUR_SECONDS))
        return Day(totals, path.stat().st_mtime)
    except (DamagedError, UnwritableError) as error:
        raise StorageError(str(error)) from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
