"""Group commit: everything that is waiting goes to the disk in one write and one sync, without a fixed delay.

A commit: the store admits and plans, the writer writes in a thread, the store applies what became of it.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from agent.events import Block
from agent.queue.cursor import Outcome
from agent.queue.grouping import Submitted, entries_of
from agent.queue.ownership import Owner
from agent.queue.shares import UNNAMED
from agent.queue.store import Admitted, Committed, Store
from agent.queue.writer import Writer
from agent.runtime import Broadcast, Wakeup

MAX_PENDING_BYTES = 4 * 1024 * 1024
STALL_SECONDS = 2.0
NO_ANSWER = "the disk does not answer"


class CommitGroup:
    """The blocks of one commit, as those who wait for it see them."""

    __slots__ = ("_committed", "_finished")

    def __init__(self) -> None:
        self._finished = Broadcast()
        self._committed: Committed | None = None

    def finish(self, committed: Committed) -> None:
        """Say what became of the commit."""
        self._committed = committed
        self._finished.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether `wait` returns at once."""
        return self._committed is not None

    async def wait(self) -> Committed:
        """Return when the commit is over: the blocks are durable, unless it says why they were refused."""
        while self._committed is None:
            await self._finished.wait()
        return self._committed


class Submission(Submitted):
    """What was submitted, as those who wait for it see it."""

    __slots__ = ("group", "refused")

    group: CommitGroup
    refused: Outcome | None

    async def wait(self) -> Committed:
        """Return when the commit is over: the blocks are durable, unless it says why they, all of them, were refused."""
        committed = await self.group.wait()
        return committed if self.refused is None else committed._replace(refused=self.refused)


NOTHING = Admitted[Submission](())


class Committer:
    """Commits what is submitted, one group after another, each when `commit_next` is called. `begun` is set when one begins."""

    def __init__(
        self,
        store: Store,
        writer: Owner[Writer],
        *,
        wall_clock: Callable[[], float],
        ask_for_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`ask_for_room` asks other users of the disk, and returns whether it is worth trying once more to write to it."""
        self._store = store
        self._writer = writer
        self._wall_clock = wall_clock
        self._ask_for_room = ask_for_room
        self._wakeup = Wakeup()
        self.begun = Wakeup()
        self._submitted: list[Submission] = []
        self._group = CommitGroup()
        self._requested = False
        self._reclaim = False
        self._pending_bytes = 0
        self._room = Broadcast()
        self._started_at: float | None = None
        self._closing = False

    def submit(self, *blocks: Block, owner: int = UNNAMED, weight: int = 1, retried: bool = False) -> Submission:
        """Add the owner's blocks to the next commit, all or none. Call `wait_for_capacity` before.

        What is returned is to be waited for, to know that they are durable; without blocks, that what was counted before is
        written. After the last commit they are refused, and not counted: nobody is to submit any then.
        """
        submission = Submission(blocks, owner, weight, retried=retried)
        submission.group, submission.refused = self.request(), None
        if submission.group.is_over:
            submission.refused = Outcome.STALLED
            return submission
        if not blocks:
            return submission
        self._submitted.append(submission)
        self._pending_bytes += submission.size
        return submission

    def request(self, *, reclaim: bool = False) -> CommitGroup:
        """Ask for a commit even if nothing is pending: it writes the cursor's checkpoint.

        With `reclaim` it deletes all that is settled, even the last segment. After the last commit it is over at once.
        """
        self._requested = True
        self._reclaim = self._reclaim or reclaim
        self._wakeup.set()
        return self._group

    async def wait_for_capacity(self) -> bool:
        """Wait until more may be submitted; False if the disk has not answered for STALL_SECONDS, so that it should be shed."""
        while self.is_full:
            if self.stalled:
                return False
            with anyio.move_on_after(STALL_SECONDS):
                await self._room.wait()
        return True

    @property
    def should_drop(self) -> bool:
        """Whether `wait_for_capacity` would return False at once."""
        return self.is_full and self.stalled

    @property
    def is_full(self) -> bool:
        """Whether so much is pending that more has to wait."""
        return self._pending_bytes >= MAX_PENDING_BYTES

    @property
    def is_committing(self) -> bool:
        """Whether a commit is under way."""
        return self._started_at is not None

    @property
    def stalled(self) -> bool:
        """Whether the commit that is under way has taken longer than STALL_SECONDS."""
        return self._started_at is not None and anyio.current_time() - self._started_at >= STALL_SECONDS

    async def commit_next(self) -> Committed | None:
        """Wait until a commit is asked for, make it, and return what became of it; None after the last one."""
        while not self._requested:
            if self._closing:
                self._group.finish(Committed(self._store.view))  # who asks from now on is not to wait for ever
                return None
            await self._wakeup.wait()
        return await self._commit()

    def close(self) -> None:
        """Let the commit of all that is pending be the last one."""
        self._closing = True
        self._wakeup.set()

    async def _commit(self) -> Committed:
        submitted, self._submitted = self._submitted, []
        group, self._group = self._group, CommitGroup()
        size, reclaim = self._pending_bytes, self._reclaim
        self._requested = self._reclaim = False
        now = self._wall_clock()
        admitted = self._store.admit(submitted, now) if submitted else NOTHING
        for submission, reason in admitted.refused:
            submission.refused = reason
        plan = self._store.plan(entries_of(admitted.accepted, now), now, reclaim=reclaim)
        self._started_at = anyio.current_time()
        self.begun.set()
        committed = await self._writer.run(partial(Writer.commit, plan=plan, now=now))
        full = committed.refused is Outcome.DISK_FULL
        if full and self._ask_for_room is not None and await self._ask_for_room():
            again = plan if committed.undelivered_error is not None else plan._replace(undelivered=())
            committed = await self._writer.run(partial(Writer.commit, plan=again, now=now))
        if admitted.refusals:
            committed = committed._replace(refusals=admitted.refusals)
        self._started_at = None
        self._store.apply(plan, committed)
        for submission in submitted:
            submission.blocks = ()  # who waits for it may do so for longer than they count as pending
        self._pending_bytes -= size
        self._room.notify_all()
        group.finish(committed)
        return committed
