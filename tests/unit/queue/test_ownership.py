"""Who may touch what: blocking calls have turns, and a wrong thread fails at once."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from agent.errors import StorageError
from agent.queue.cursor import Outcome, Span
from agent.queue.filesystem import OsFilesystem
from agent.queue.ownership import Exclusive, Inline, WrongThreadError
from agent.queue.store import Committed, Limits
from agent.queue.writer import Writer
from agent.runtime import run_in_thread
from tests.support.fault_filesystem import Crash, FaultFilesystem
from tests.support.open_queue import OpenQueue
from tests.support.queue_files import entry

T = TypeVar("T")
ROOT = Path("/queue")


class SlowToReturn(FaultFilesystem):
    """A disk whose sync of the cursor takes its time to say that it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self.synced = threading.Event()
        self.go_on = threading.Event()

    def perform(
        self, operation: str, path: Path, action: Callable[[], T], spoil: Callable[[], None] = lambda: None
    ) -> T:
        result = super().perform(operation, path, action, spoil)
        if self.slow and (operation, path) == ("sync", ROOT / "cursor"):
            self.slow = False
            self.synced.set()
            assert self.go_on.wait(10)
        return result


class Torn:
    """Of every write a crash leaves a part."""

    def choose(self, n: int) -> int:
        return n // 2


def in_a_thread(call: Callable[[], object]) -> BaseException | None:
    """Make a call in another thread; return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except WrongThreadError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.parametrize(
    "touch",
    [
        lambda queue: queue.store.cursor,
        lambda queue: queue.store.view,
        lambda queue: queue.store.plan((), 0.0),
        lambda queue: queue.store.apply(queue.store.plan((), 0.0), queue.writer.commit(queue.store.plan((), 0.0), 0.0)),
        lambda queue: queue.store.admit((), 0.0),
        lambda queue: queue.store.reader(),
    ],
)
def test_the_state_of_a_queue_fails_in_another_thread(touch: Callable[[OpenQueue], object]) -> None:
    queue = OpenQueue(FaultFilesystem(), ROOT, Limits())
    touch(queue)
    assert isinstance(in_a_thread(lambda: touch(queue)), WrongThreadError)


def test_a_second_thread_in_the_writer_fails_at_once_and_does_no_harm() -> None:
    disk = SlowToReturn()
    queue = OpenQueue(disk, ROOT, Limits(sync="interval"))
    queue.commit([entry("a", 9)])
    queue.cursor.settle([Span(1, 5)], Outcome.DELIVERED)
    queue.commit()
    disk.slow = True
    syncing = threading.Thread(target=queue.writer.sync)
    syncing.start()
    assert disk.synced.wait(10)
    queue.cursor.settle([Span(5, 7)], Outcome.DELIVERED)
    with pytest.raises(WrongThreadError, match=r"Writer\.commit: another call is under way"):
        queue.commit()
    disk.go_on.set()
    syncing.join()
    disk.crash_at(disk.calls, "after")
    with pytest.raises(Crash):
        queue.commit()
    disk.crash(Torn())
    assert OpenQueue(disk, ROOT, Limits()).cursor.ledger().delivered == 4, "the next checkpoint spares the durable one"


def test_an_entry_can_be_made_again_after_an_error(tmp_path: Path) -> None:
    writer = Writer(OsFilesystem(), tmp_path, Limits())
    (tmp_path / "cursor").unlink()
    (tmp_path / "cursor").mkdir()
    for _ in range(2):
        with pytest.raises(StorageError):
            writer.slots()


@pytest.mark.anyio
async def test_calls_have_their_turns_in_the_order_in_which_they_came() -> None:
    done: list[int] = []
    exclusive = Exclusive(done, tuple, run_in_thread)
    in_it, go_on = threading.Event(), threading.Event()

    def first(done: list[int]) -> None:
        in_it.set()
        assert go_on.wait(10)
        done.append(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exclusive.run, first)
        while not in_it.is_set():
            await anyio.lowlevel.checkpoint()
        for number in range(1, 10):
            tasks.start_soon(exclusive.run, lambda done, number=number: done.append(number))
            await anyio.lowlevel.checkpoint()
        assert (done, exclusive.published) == ([], ())
        go_on.set()
    assert exclusive.published == tuple(range(10))


@pytest.mark.anyio
async def test_a_call_that_fails_gives_its_turn_back_and_publishes_what_it_did() -> None:
    done: list[int] = []
    exclusive = Exclusive(done, tuple, run_in_thread)

    def fail(done: list[int]) -> None:
        done.append(1)
        raise StorageError("no")

    with pytest.raises(StorageError):
        await exclusive.run(fail)
    assert exclusive.published == (1,)
    assert await exclusive.run(len) == 1


@pytest.mark.anyio
async def test_commits_and_syncs_that_come_together_are_all_made(tmp_path: Path) -> None:
    queue = OpenQueue(OsFilesystem(), tmp_path, Limits(sync="interval", segment_bytes=2000))
    writer = Exclusive(queue.writer, lambda writer: writer.quarantined, run_in_thread)

    async def keep_syncing() -> None:
        while True:
            await writer.run(Writer.sync)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_syncing)
        for _ in range(300):
            plan = queue.store.plan([entry("x" * 200)], 0.0)
            committed = await writer.run(partial(Writer.commit, plan=plan, now=0.0))
            queue.store.apply(plan, committed)
            assert committed == Committed(queue.view)
        tasks.cancel_scope.cancel()
    queue.close()
    assert OpenQueue(OsFilesystem(), tmp_path, Limits()).cursor.queued == 300


def test_without_an_event_loop_a_call_is_made_at_once() -> None:
    call = Inline([1, 2]).run(len)
    with pytest.raises(StopIteration) as end:
        call.send(None)
    assert end.value.value == 2
