"""Group commit on both backends: one write for everyone who waits, refusals told and counted, a slow disk felt and survived."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from agent.events import Block, Context
from agent.queue.committer import MAX_PENDING_BYTES, STALL_SECONDS, Committer, Submission
from agent.queue.cursor import Outcome, Span
from agent.queue.filesystem import OsFilesystem
from agent.queue.ownership import Exclusive
from agent.queue.record import Frame, decode_record
from agent.queue.shares import UNNAMED
from agent.queue.store import Committed, Limits
from agent.runtime import RunBlocking, run_in_thread
from tests.support.fault_filesystem import FaultFilesystem, failing, no_errors
from tests.support.open_queue import OpenQueue
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

T = TypeVar("T")
ROOT = Path("/queue")
FULL = Block(Context(), 1, bytes(MAX_PENDING_BYTES // 4))


def block(text: str, count: int = 1) -> Block:
    """Return a block whose text nobody looks into."""
    return Block(Context(), count, text.encode())


class Gate:
    """A RunBlocking that runs inline, and only while it is open; `entered` counts those that came."""

    def __init__(self) -> None:
        self._open = anyio.Event()
        self._open.set()
        self.entered = 0

    def shut(self) -> None:
        """Let the next call wait."""
        self._open = anyio.Event()

    def open(self) -> None:
        """Let all calls run."""
        self._open.set()

    async def __call__(self, call: Callable[[], T], /) -> T:
        self.entered += 1
        await self._open.wait()
        return call()


class Setting:
    """A committer over a fault filesystem, and what became of its commits."""

    def __init__(
        self,
        limits: Limits | None = None,
        run_blocking: RunBlocking | None = None,
        ask_for_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.disk = FaultFilesystem()
        queue = OpenQueue(self.disk, ROOT, limits or Limits())
        self.store = queue.store
        self.gate = Gate()
        self.commits: list[Committed] = []
        self.now = 1000.0
        writer = Exclusive(queue.writer, lambda writer: writer.quarantined, run_blocking or self.gate)
        self.committer = Committer(self.store, writer, wall_clock=lambda: self.now, ask_for_room=ask_for_room)

    async def run(self) -> None:
        """Commit until the committer is closed."""
        while (committed := await self.committer.commit_next()) is not None:
            self.commits.append(committed)

    def writes(self) -> int:
        """Return how many writes to segments there were, headers apart."""
        writes = [call.path for call in self.disk.log if call.operation == "pwrite" and call.path.suffix == ".seg"]
        return len(writes) - len(set(writes))


@asynccontextmanager
async def running(setting: Setting) -> AsyncIterator[Committer]:
    """Run the committer; at the end close it and wait for it."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(setting.run)
        yield setting.committer
        setting.gate.open()
        setting.committer.close()


async def settled(condition: Callable[[], bool]) -> None:
    """Let the other tasks run until it is so."""
    with anyio.fail_after(HUNG_AFTER):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def outcome(waiting: Awaitable[Committed]) -> Committed:
    with anyio.fail_after(HUNG_AFTER):
        return await waiting


class TestGroups:
    async def test_a_group_is_durable_when_its_wait_returns(self) -> None:
        setting = Setting()
        async with running(setting) as committer:
            committed = await outcome(committer.submit(block("a", 3)).wait())
            assert committed == Committed(setting.store.view)
            assert setting.store.cursor.queued == 3
        assert setting.commits[0] is committed

    async def test_what_is_on_disk_is_no_longer_held_in_memory(self) -> None:
        async with running(Setting()) as committer:
            submission = committer.submit(block("a"))
            assert (await outcome(submission.wait())).refused is None
            assert not submission.blocks

    async def test_many_that_wait_share_one_write(self) -> None:
        setting = Setting()
        groups = [setting.committer.submit(block(str(number))) for number in range(100)]
        async with running(setting):
            for group in groups:
                assert (await outcome(group.wait())).refused is None
        assert (len({each.group for each in groups}), setting.writes(), setting.store.cursor.queued) == (1, 1, 100)

    async def test_those_who_come_during_a_commit_share_the_next(self) -> None:
        setting = Setting()
        setting.gate.shut()
        async with running(setting) as committer:
            first = committer.submit(block("a"))
            await settled(lambda: setting.gate.entered == 1)
            later = [committer.submit(block("b")) for _ in range(10)]
            assert first.group not in [each.group for each in later]
            setting.gate.open()
            for group in (first, *later):
                await outcome(group.wait())
        assert (setting.writes(), setting.store.cursor.queued) == (2, 11)

    async def test_the_order_of_submission_is_the_order_in_the_queue(self) -> None:
        setting = Setting()
        async with running(setting) as committer:
            for text in "abcdef":
                committer.submit(block(text))
                await anyio.lowlevel.checkpoint()
        items = setting.store.reader().read(setting.store.view, 1000).items
        assert b"".join(decode_record(i.payload).lines for i in items if isinstance(i, Frame)) == b"abcdef"

    async def test_everyone_who_waits_for_a_group_is_told(self) -> None:
        setting = Setting()
        group, told = setting.committer.submit(block("a")), []

        async def wait(group: Submission) -> None:
            told.append(await group.wait())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(wait, group)
            async with running(setting):
                pass
        assert told == [Committed(setting.store.view)] * 5

    async def test_a_checkpoint_can_be_had_without_entries(self) -> None:
        setting = Setting()
        async with running(setting) as committer:
            await outcome(committer.submit(block("a", 2)).wait())
            setting.store.cursor.settle([Span(1, 2)], Outcome.DELIVERED)
            await outcome(committer.request().wait())
        setting.disk.kill()
        assert OpenQueue(setting.disk, ROOT, Limits()).cursor.ledger().delivered == 1
        assert setting.writes() == 1

    async def test_segments_know_the_wall_clocks_time(self) -> None:
        setting = Setting()
        async with running(setting) as committer:
            await outcome(committer.submit(block("a")).wait())
        assert setting.store.view.segments[0].created_at == 1000.0


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "reason"), [(errno.ENOSPC, Outcome.DISK_FULL), (errno.EIO, Outcome.DISK_ERROR)], ids=["full", "broken"]
    )
    async def test_a_refusal_is_told_to_all_and_counted(self, code: int, reason: Outcome) -> None:
        setting = Setting()
        setting.disk.errors = failing("create", code)
        group = setting.committer.submit(block("a", 3))
        setting.committer.submit(block("b", 2))
        async with running(setting):
            committed = await outcome(group.wait())
        assert committed.refused is reason
        assert committed.append_error is not None
        ledger = setting.store.cursor.ledger()
        assert (ledger.accepted, ledger.dropped, ledger.queued) == (5, {reason: 5}, 0)

    async def test_the_next_commit_succeeds_by_itself(self) -> None:
        setting = Setting()
        setting.disk.errors = failing("sync", errno.EIO)
        async with running(setting) as committer:
            assert (await outcome(committer.submit(block("a")).wait())).refused is Outcome.DISK_ERROR
            setting.disk.errors = no_errors
            assert (await outcome(committer.submit(block("b")).wait())).refused is None
        assert setting.store.cursor.ledger().dropped == {Outcome.DISK_ERROR: 1}

    @pytest.mark.parametrize("gives", [True, False])
    async def test_others_are_asked_for_room_before_a_full_disk_costs_events(self, gives: bool) -> None:
        asked = []

        async def ask() -> bool:
            asked.append(setting.store.cursor.ledger().dropped)
            if gives:
                setting.disk.errors = no_errors
            return gives

        setting = Setting(ask_for_room=ask)
        setting.disk.errors = failing("create", errno.ENOSPC)
        async with running(setting) as committer:
            refused = (await outcome(committer.submit(block("a", 3)).wait())).refused
        assert refused is (None if gives else Outcome.DISK_FULL)
        assert asked == [{}]
        ledger = setting.store.cursor.ledger()
        assert (ledger.queued, ledger.dropped) == ((3, {}) if gives else (0, {Outcome.DISK_FULL: 3}))

    async def test_a_wait_without_blocks_ends_when_what_was_counted_before_is_written(self) -> None:
        setting = Setting()
        async with running(setting) as committer:
            setting.store.cursor.shed(3, Outcome.RATE_LIMITED)
            assert (await outcome(committer.submit().wait())).refused is None
        queue = OpenQueue(setting.disk, ROOT, Limits())
        assert queue.store.cursor.ledger().dropped == {Outcome.RATE_LIMITED: 3}

    async def test_overflow_is_a_refusal_without_an_error(self) -> None:
        setting = Setting(Limits(max_bytes=100, overflow="drop-newest"))
        async with running(setting) as committer:
            committed = await outcome(committer.submit(block("x" * 200, 4)).wait())
        assert committed._replace(refusals=()) == Committed(setting.store.view, Outcome.OVERFLOW)
        assert [(each.owner, each.reason, each.events) for each in committed.refusals] == [
            (UNNAMED, Outcome.OVERFLOW, 4)
        ]
        assert setting.store.cursor.ledger().dropped == {Outcome.OVERFLOW: 4}

    async def test_a_failed_checkpoint_costs_no_events(self) -> None:
        setting = Setting()
        setting.disk.errors = failing("pwrite", errno.EIO, ROOT / "cursor")
        async with running(setting) as committer:
            committed = await outcome(committer.submit(block("a")).wait())
        assert committed.refused is None
        assert committed.checkpoint_error is not None


class TestRoom:
    async def test_there_is_room_until_too_much_is_pending(self) -> None:
        setting = Setting()
        for _ in range(4):
            assert await setting.committer.wait_for_capacity()
            setting.committer.submit(FULL)
        with anyio.move_on_after(0.01) as scope:
            await setting.committer.wait_for_capacity()
        assert scope.cancelled_caught

    async def test_room_comes_with_the_next_commit(self) -> None:
        setting = Setting()
        setting.gate.shut()
        async with running(setting) as committer, anyio.create_task_group() as tasks:
            for _ in range(4):
                committer.submit(FULL)
            answers: list[bool] = []

            async def wait() -> None:
                answers.append(await committer.wait_for_capacity())

            for _ in range(3):
                tasks.start_soon(wait)
            await settled(lambda: setting.gate.entered == 1)
            assert answers == []
            setting.gate.open()
            await settled(lambda: len(answers) == 3)
            assert answers == [True] * 3

    async def test_a_disk_that_does_not_answer_is_said_to_have_stalled(self) -> None:
        setting = Setting()
        setting.gate.shut()
        async with running(setting) as committer:
            for _ in range(4):
                committer.submit(FULL)
            await settled(lambda: setting.gate.entered == 1)
            started = anyio.current_time()
            assert not committer.stalled
            assert not await committer.wait_for_capacity()
            assert committer.stalled
            assert STALL_SECONDS <= anyio.current_time() - started < 2 * STALL_SECONDS + 1
            assert not await committer.wait_for_capacity()
            setting.gate.open()
            await settled(lambda: not committer.stalled)
            assert await committer.wait_for_capacity()


class TestEnd:
    async def test_what_is_pending_is_committed(self) -> None:
        setting = Setting()
        setting.gate.shut()
        async with running(setting) as committer:
            committer.submit(block("a"))
            await settled(lambda: setting.gate.entered == 1)
            last = committer.submit(block("b"))
            committer.close()
            setting.gate.open()
        assert (await outcome(last.wait())).refused is None
        assert setting.store.cursor.queued == 2

    async def test_nothing_pending_ends_at_once(self) -> None:
        setting = Setting()
        async with running(setting):
            pass
        assert setting.commits == []

    async def test_closing_before_running_still_commits(self) -> None:
        setting = Setting()
        setting.committer.submit(block("a"))
        setting.committer.close()
        with anyio.fail_after(HUNG_AFTER):
            await setting.run()
        assert setting.store.cursor.queued == 1


async def test_a_real_disk_and_a_real_thread(tmp_path: Path) -> None:
    queue = OpenQueue(OsFilesystem(), tmp_path, Limits())
    writer = Exclusive(queue.writer, lambda writer: writer.quarantined, run_in_thread)
    real = Committer(queue.store, writer, wall_clock=lambda: 0.0)
    for number in range(20):
        group = real.submit(block(str(number)))
        assert await real.commit_next() is await outcome(group.wait())
    real.close()
    assert await real.commit_next() is None
    queue.close()
    assert OpenQueue(OsFilesystem(), tmp_path, Limits()).cursor.queued == 20
