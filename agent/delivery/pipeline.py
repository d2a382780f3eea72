"""One destination, whole: its queue, its delivery worker and its ledger, from opening to drain."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from agent.delivery import policy
from agent.delivery.disk_backlog import DiskBacklog
from agent.delivery.measures import Measures
from agent.delivery.opening import DeliveryConfig, QueueFiles, Source, open_files
from agent.delivery.pipeline_status import PipelineStatus
from agent.delivery.recent_jobs import RecentJobs
from agent.delivery.refusals import Refusals
from agent.delivery.storage_health import StorageHealth
from agent.delivery.worker import Worker
from agent.errors import StorageError
from agent.events import Block, session_prefix
from agent.queue.barrier import Barrier, SessionBarrier, WholeBarrier
from agent.queue.committer import NO_ANSWER, STALL_SECONDS, Committer, Submission
from agent.queue.cursor import Cursor, Ledger, Outcome
from agent.queue.dead_letters import DeadLetters
from agent.queue.filesystem import Filesystem
from agent.queue.ownership import Exclusive
from agent.queue.reader import oldest_enqueued_at
from agent.queue.search import Search
from agent.queue.shares import NOBODY, UNNAMED, SharedDisk
from agent.queue.snapshot import LogSnapshot, snapshot_of
from agent.queue.store import Committed, Limits, Store
from agent.queue.writer import Writer
from agent.runtime import Broadcast, Errand, Runtime

T = TypeVar("T")
B = TypeVar("B", bound=Barrier)

HOUSEKEEPING_SECONDS = 30.0
THOROUGH_ROUNDS = 120  # of so many times that house is kept it is once also where nothing waits
SYNC_SECONDS = 1.0
ANSWER_SECONDS = 1.0  # so long a status waits for the disk


class Pipeline:
    """The way of an event from a validated line to the API. Open it, `run` it, `submit` to it, `drain` and `close` it."""

    def __init__(
        self,
        fs: Filesystem,
        directory: Path,
        limits: Limits,
        delivery: DeliveryConfig,
        runtime: Runtime,
        disk: SharedDisk | None = None,
        files: QueueFiles | None = None,
        ask_for_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Open the queue in `directory`, unless its `files` are open; it may share a `disk` with others. Raises StorageError.

        When the disk is full it asks `ask_for_room`, and tries once more if that says so.
        """
        self._runtime = runtime
        self._limits = limits
        self.fs = fs
        writer, dead_letters = files or open_files(fs, directory, limits)
        self.store = Store(fs, directory, limits, writer.recovered, disk)
        self.writer = Exclusive(writer, lambda writer: writer.quarantined, runtime.run_blocking)
        self.dead_letters = Exclusive(dead_letters, lambda dead_letters: dead_letters.counts, runtime.run_blocking)
        self._committer = Committer(self.store, self.writer, wall_clock=runtime.wall_clock, ask_for_room=ask_for_room)
        self._backlog = DiskBacklog(
            self.store, self.writer, self._committer, self.dead_letters, delivery.options, runtime
        )
        self._source = Source(directory, self.ledger, runtime.run_blocking, is_new=writer.recovered.is_new)
        self._worker = Worker(self._backlog, delivery.connect(self._source), delivery.settings, runtime)
        self._health = StorageHealth(self.ledger())
        self._refusals = Refusals()
        self.jobs = RecentJobs()
        self._tasks: TaskGroup | None = None
        self._read_oldest = Errand(self._oldest_enqueued_at)
        self._check_sync = Errand(self._sync)

    # Intake

    async def wait_for_capacity(self) -> bool:
        """Wait until more may be submitted; False if the disk does not answer, so that events should be shed."""
        return await self._committer.wait_for_capacity()

    @property
    def is_full(self) -> bool:
        """Whether `wait_for_capacity` would wait, or return False."""
        return self._committer.is_full

    @property
    def should_drop(self) -> bool:
        """Whether there is no room, and waiting for it is no use because the disk does not answer."""
        return self._committer.should_drop

    def submit(self, *blocks: Block, owner: int = UNNAMED, weight: int = 1) -> Submission:
        """Queue an owner's events, all or none; what is returned can be waited for, and says why they were dropped."""
        return self._committer.submit(*blocks, owner=owner, weight=weight)

    def shed(self, count: int) -> None:
        """Drop events that there was no room for, and count them."""
        self.store.cursor.shed(count, Outcome.STALLED)
        self._health.note_shed(count, self.ledger())

    def limit(self, count: int) -> None:
        """Drop events that are more than their sender may send, and count them."""
        self.store.cursor.shed(count, Outcome.RATE_LIMITED)

    # Control

    def ledger(self) -> Ledger:
        """Return the counts of promise 3, which hold at every moment."""
        return self.store.cursor.ledger()

    def delivery_state(self) -> tuple[str, str | None]:
        """Return what `status` says of delivery, and the reason for it, without reading the queue."""
        found = policy.describe(self._worker.state, anyio.current_time())
        return found.name, found.reason

    @property
    def measures(self) -> Measures:
        """What was measured of requests and deliveries since the start."""
        return self._worker.measures

    @property
    def changed(self) -> Broadcast:
        """Notified when something may have changed of what can be asked here."""
        return self._backlog.changed

    @property
    def storage_error(self) -> str | None:
        """Why the queue cannot be written or read, or a dead letter not be kept."""
        errands = (self._read_oldest, self._check_sync)
        stalled = self._committer.stalled or any(each.is_overdue(STALL_SECONDS) for each in errands)
        return (NO_ANSWER if stalled else None) or self._health.error or self._backlog.storage_error

    def trouble(self) -> str | None:
        """Return why nothing is sent now; None if delivery is running."""
        found = policy.describe(self._worker.state, anyio.current_time())
        return None if found.name == "running" else f"{found.name.replace('_', ' ')}: {found.reason}"

    def held_up(self) -> str | None:
        """Return why nothing is sent now, and for how long; None if delivery is running."""
        now, trouble = anyio.current_time(), self.trouble()
        until = policy.describe(self._worker.state, now).until
        if trouble is None or until is None:
            return trouble
        return f"{trouble}; the next attempt is in {max(until - now, 0):.3g} s"

    async def status(self) -> PipelineStatus:
        """Return how the pipeline is doing; reads the queue for the age of its oldest event, if that can be read in time."""
        oldest = None
        if self.store.cursor.queued and not self._read_oldest.is_overdue(ANSWER_SECONDS):
            with anyio.move_on_after(ANSWER_SECONDS):
                oldest = await self._read_oldest.run(self._tasks)
        if not self.store.cursor.queued:  # it was settled while it was read
            oldest = None
        now, steady = self._runtime.wall_clock(), anyio.current_time()
        state, pause = policy.describe(self._worker.state, steady), self.store.cursor.pause
        since = None if state.since is None else now + state.since - steady
        since = pause.since if pause is not None else since
        view, copies, dead_letters = self.store.view, self.writer.published, self.dead_letters.published
        storage_error = self.storage_error
        return PipelineStatus(
            state=state.name,
            reason=state.reason or storage_error,
            until=None if state.until is None else now + state.until - steady,
            since=since,
            ledger=self.ledger(),
            oldest_event_at=oldest,
            last_delivery_at=self._worker.measures.last_delivery_at,
            last_answer_at=self._worker.measures.last_answer_at,
            last_answer=self._worker.measures.last_answer,
            requests=self._worker.requests,
            queue_bytes=view.size,
            queue_limit=self.store.max_bytes,
            segments=len(view.segments),
            quarantined=copies.kept,
            quarantine_lost=copies.lost,
            dead_letters=dead_letters.held,
            dead_letters_discarded=dead_letters.discarded,
            storage_error=storage_error,
            batch_limit=self._worker.batch_limit,
            over_quota=self._refusals.over_quota,
        )

    async def commit_once(self) -> Committed:
        """Go through the write path once, and return when it has answered."""
        return await self._committer.request().wait()

    async def healthy(self) -> bool:
        """Go through the write path once, to the disk itself; False if events could not be persisted now."""
        committed = await self.commit_once()
        if self._limits.sync == "commit":  # there was nothing to sync, and an error of the disk may show only there
            await self._check_sync.run(self._tasks)
        return committed.checkpoint_error is None and self._health.error is None and not self._backlog.stalled

    def pause(self) -> None:
        """Stop delivering until `resume`; the queue goes on."""
        self._worker.pause()

    def resume(self) -> float | None:
        """Deliver again, whatever the reason for a pause was; see `Worker.resume`."""
        return self._worker.resume()

    @property
    def paused_since(self) -> float | None:
        """Since when delivery has been paused by something other than an operator, in seconds since the epoch."""
        pause = self.store.cursor.pause
        return pause.since if pause is not None and pause.reason != policy.Reason.OPERATOR else None

    def reconfigure(self, delivery: DeliveryConfig) -> None:
        """Deliver with new settings from now on; see `Worker.reconfigure`."""
        self._backlog.reconfigure(delivery.options)
        self._worker.reconfigure(delivery.connect(self._source), delivery.settings)

    # Flushes

    async def flush(self, *, until_paused: bool = False) -> None:
        """Return when everything submitted before the call has left the queue; `until_paused`: or when delivery is paused."""
        await self.commit_once()
        with self.barrier() as barrier:
            await self._worker.flush(barrier, give_up=lambda state: until_paused and state.paused is not None)

    @contextmanager
    def barrier(self) -> Iterator[Barrier]:
        """Follow, for the time of the block, what becomes of the events that are accepted at its beginning."""
        with _watching(self.store.cursor, WholeBarrier(self.store.cursor)) as barrier:
            yield barrier

    @contextmanager
    def session(self, session: str) -> Iterator[Search]:
        """Follow, for the time of the block, what becomes of the events of one session that are accepted at its beginning.

        They are known when the search that this gives has been performed, by `search`.
        """
        cursor, barrier = self.store.cursor, SessionBarrier(self.store.cursor)
        search = Search(barrier, session_prefix(session), snapshot_of(self.fs, self.store), self.store.undelivered)
        self.store.readers.add(search)
        try:
            with _watching(cursor, search.barrier):
                yield search
        finally:
            self.store.readers.discard(search)

    async def search(self, search: Search) -> None:
        """Find the session's events in the queue and its history. Raises StorageError for a shortage."""
        await self._look_through(search, search.queue.log)
        await self._look_through(search, await self._runtime.run_blocking(search.history))
        await self._runtime.run_blocking(search.end)
        self.store.readers.discard(search)
        self._committer.request()  # what had to stay for the search can go
        self._backlog.changed.notify_all()

    async def _look_through(self, search: Search, log: LogSnapshot) -> None:
        for index in range(len(log.view.segments)):
            await self._runtime.run_blocking(partial(search.look_into, log, index))

    async def passed(self, barrier: Barrier, latest: Callable[[], float]) -> None:
        """Return when what a barrier follows has left the queue, or when nothing of it can be sent up to a time.

        That is when nothing is under way, and a pause or the delay after a failure goes on beyond `latest`, on the steady clock.
        """
        await self._worker.flush(barrier, give_up=lambda state: policy.next_attempt(state) > latest())

    # Maintenance: see `agent.queue.maintenance.handle.QueueHandle`

    async def run_blocking(self, call: Callable[[], T]) -> T:
        """Run a blocking call without blocking the event loop."""
        return await self._runtime.run_blocking(call)

    def wall_clock(self) -> float:
        """Return the time in seconds since the epoch."""
        return self._runtime.wall_clock()

    async def checkpoint(self, *, reclaim: bool = False) -> Committed:
        """Write what the cursor says, and with `reclaim` delete all that is settled. Raises StorageError if it is not written."""
        committed = await self._committer.request(reclaim=reclaim).wait()
        if committed.checkpoint_error is not None:
            raise StorageError(committed.checkpoint_error)
        return committed

    async def put_back(self, block: Block) -> Outcome | None:
        """Queue events of dead letters; return when they are committed, or why they are not. It pushes nothing out."""
        if not await self.wait_for_capacity():
            return Outcome.STALLED
        return (await self._committer.submit(block, owner=NOBODY, retried=True).wait()).refused

    async def purge(self, seconds: float) -> int | None:
        """Settle all that is queued as purged; see `Worker.purge`."""
        return await self._worker.purge(seconds)

    # Life

    async def run(self) -> None:
        """Run until `drain` has ended it. An error that is not handled here stops the daemon."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            if self._limits.sync == "interval":
                tasks.start_soon(self._keep_syncing)
            tasks.start_soon(self._note_stalls)
            tasks.start_soon(self._worker.run)
            try:
                while (committed := await self._committer.commit_next()) is not None:
                    self._health.note_commit(committed, self.ledger())
                    if committed.refusals:
                        self._refusals.note(committed.refusals)
                    self._backlog.changed.notify_all()
            finally:
                self._tasks = None
            tasks.cancel_scope.cancel()

    async def drain(self, seconds: float) -> None:
        """Commit what is pending, deliver what can be delivered within `seconds`, and end `run`; a pause ends it at once."""
        try:
            with anyio.move_on_after(seconds):
                await self.flush(until_paused=True)
        finally:
            self._committer.close()

    async def stop_after_inflight(self, seconds: float) -> None:
        """Begin no more requests, and end `run` when those under way have been answered, or after `seconds`."""
        try:
            with anyio.move_on_after(seconds):
                await self._worker.stop_after_inflight()
        finally:
            self._committer.close()

    async def close(self) -> None:
        """Close the files and the transport. Raises StorageError if the cursor could not be made durable."""
        try:
            await self._worker.aclose()
        finally:
            try:
                await self.dead_letters.run(DeadLetters.close)
            finally:
                self.store.close()
                await self.writer.run(partial(Writer.close, plan=self.store.checkpoint()))

    def keep_house(self, *, thoroughly: bool) -> None:
        """Ask for a commit, where there is something for it to do, or `thoroughly`: see the function of this name."""
        if thoroughly or self.ledger().queued or self.storage_error is not None:
            self._committer.request()

    async def _note_stalls(self) -> None:
        """Say of a commit, or of the read that follows it, that it takes long."""
        while True:
            await self._committer.begun.wait()
            await anyio.sleep(STALL_SECONDS)
            while self._committer.is_committing or self._backlog.is_reading:
                if self._committer.stalled:
                    self._health.note_stall(f"{self.store.directory}: {NO_ANSWER}", self.ledger())
                if self._backlog.stalled:
                    self._backlog.note_stall()
                self._backlog.changed.notify_all()
                await anyio.sleep(STALL_SECONDS)

    async def _oldest_enqueued_at(self) -> float | None:
        read = partial(oldest_enqueued_at, self.store.reader(), self.store.view)
        return await self._runtime.run_blocking(read)

    async def _keep_syncing(self) -> None:
        while True:
            await anyio.sleep(SYNC_SECONDS)
            await self._sync()

    async def _sync(self) -> None:
        """Make everything durable, or say that it is not; a commit makes new files in the place of those that failed."""
        error = None
        try:
            await self.writer.run(Writer.sync)
        except StorageError as failure:
            error = str(failure)
            self._committer.request()
        self._health.note_sync(error, self.ledger())


async def keep_house(pipelines: Callable[[], Iterable[Pipeline]]) -> None:
    """Let expired events of running pipelines go even when nothing else happens, and now and then what is old of the history."""
    for number in count(1):
        await anyio.sleep(HOUSEKEEPING_SECONDS)
        for pipeline in pipelines():
            pipeline.keep_house(thoroughly=number % THOROUGH_ROUNDS == 0)


@contextmanager
def _watching(cursor: Cursor, barrier: B) -> Iterator[B]:
    cursor.watchers.append(barrier)
    try:
        yield barrier
    finally:
        cursor.watchers.remove(barrier)
