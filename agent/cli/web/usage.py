"""What the page knows of usage: reports out of `usage.sqlite3`, and a fold in another process now and then.

A fold may take a minute and 200 MiB, once in a while: another process gives them back. It is `report`, whose output says what
it could not count. Reports are read meanwhile, of what was folded before.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskGroup

from agent.cli.views.web_page import Counted, Folding, draw
from agent.cli.web.remembered import RememberedByKey
from agent.errors import StorageError
from agent.escaping import printable
from agent.usage.counting import HOUR_SECONDS
from agent.usage.report import Period, Question, Unknown, report, timeline
from agent.usage.store import FILE_NAME, DamagedError, UnwritableError, UsageStore

FOLD_SECONDS = 30.0
"""The least time between two folds."""
UNWATCHED_SECONDS = 600.0
"""The time between two folds while nobody looks at the page: what leaves the history meanwhile is lost to reports."""
FRESH_SECONDS = 60.0
PATIENCE_SECONDS = 0.8
MAX_PERIODS = 32
"""Of how many times reports are remembered."""
MAX_PROBLEM = 1000
READERS = 2


class _Answer(msgspec.Struct):
    """What of the output of a fold is of interest."""

    unknown: Unknown


class Usage:
    """Reports on a queue directory. `fold_command` folds into it what is new, and prints a report as JSON."""

    def __init__(
        self,
        directory: Path,
        fold_command: Sequence[str],
        tasks: TaskGroup,
        now: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._command = fold_command
        self._now = now
        self._limiter = anyio.CapacityLimiter(READERS)
        self._known = RememberedByKey(self._find, FRESH_SECONDS, MAX_PERIODS, tasks)
        self._unknown: Unknown | None = None
        self._wanted = anyio.Event()
        self._log = structlog.get_logger("agent.web")
        self.folding = Folding()

    async def fold_regularly(self) -> None:
        """Fold until cancelled: soon after somebody has asked, and now and then in any case."""
        while True:
            await self._fold()
            await anyio.sleep(FOLD_SECONDS)
            with anyio.move_on_after(UNWATCHED_SECONDS - FOLD_SECONDS):
                await self._wanted.wait()
            self._wanted = anyio.Event()

    async def get(self, period: Period) -> Counted | str | None:
        """Return what is known of a time, or why nothing is; None if that is not known soon. Raises BusyError."""
        self._wanted.set()
        return await self._known.get(period, PATIENCE_SECONDS)

    async def _find(self, period: Period) -> Counted | str:
        return await anyio.to_thread.run_sync(self._read, period, limiter=self._limiter, abandon_on_cancel=True)

    def _read(self, period: Period) -> Counted | str:
        """Look into the file; in a thread."""
        if not (self._directory / FILE_NAME).exists():
            return "Nothing has been counted yet."
        try:
            with closing(UsageStore.open(self._directory)) as store:
                found = report(store, Question(period))
                when = timeline(store, period, int(self._now() // HOUR_SECONDS))
        except (DamagedError, UnwritableError, StorageError) as error:
            return f"{error}: there is no report until that is mended; if the file is damaged, it is made anew soon"
        unknown = found.unknown
        if self._unknown is not None:
            unknown = msgspec.structs.replace(self._unknown, deleted=unknown.deleted, damaged=unknown.damaged)
        return draw(msgspec.structs.replace(found, unknown=unknown), when)

    async def _fold(self) -> None:
        try:
            done = await anyio.run_process(self._command, check=False, stdin=subprocess.DEVNULL)
        except OSError as error:
            self._fail(f"{sys.executable} cannot be run: {error.strerror}")
            return
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            self._fail(printable(said)[:MAX_PROBLEM] or f"the count ended with {done.returncode}")
            return
        self._unknown = msgspec.json.decode(done.stdout, type=_Answer).unknown
        self.folding = Folding(self._now())
        self._known.renew()

    def _fail(self, problem: str) -> None:
        if problem != self.folding.problem:
            self._log.warning("fold_failed", problem=problem)
        self.folding = self.folding._replace(problem=problem)
