"""What the worker may count on, whatever it delivers from: a queue on disk, a stream of an engine and the fake behave alike."""

import errno
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import anyio
import pytest

from agent.delivery.backlog import Backlog
from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.disk_backlog import DiskBacklog
from agent.delivery.transport import Kind, Verdict
from agent.events import Block, Context, decode_events, encode_events
from agent.fleet import message
from agent.fleet.accounting import FleetLedger
from agent.fleet.backlog import StreamBacklog
from agent.fleet.following import LedgerFollower
from agent.fleet.names import DEAD, LEDGER, dead_subject, events_subject, ledger_subject
from agent.fleet.records import decode_record
from agent.fleet.shared import SharedTurns
from agent.fleet.writing import FleetWriter
from agent.queue.committer import Committer
from agent.queue.cursor import Outcome, Pause, Span
from agent.queue.dead_letters import DeadLetters, decode_dead_letter
from agent.queue.ownership import Exclusive, Inline
from agent.queue.store import Limits
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.crash_model import LoseAll
from tests.support.fault_filesystem import FaultFilesystem, no_errors
from tests.support.memory_backlog import Kept, MemoryBacklog
from tests.support.memory_engine import ACK_WAIT, MemoryBroker, MemoryEngine
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import DIRECTORY, EPOCH, PLAIN, batch_of, dead_letters, event, events, inline, numbered

pytestmark = pytest.mark.anyio

DELAY = 2.0
TEAM = "web"
SUBJECT = events_subject(TEAM, "linux")
REFUSED = Verdict(Kind.REJECTED, "400 Bad Request: no", 400)
PAUSE = Pause("blocked", "402 Payment Required", EPOCH, EPOCH + 300, 2)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class World(Protocol):
    """A backlog, and the storage behind it."""

    @property
    def backlog(self) -> Backlog:
        """What is tested."""

    async def add(self, *names: str, context: Context = PLAIN, session: str = "s") -> None:
        """Let events wait; they are durable on return."""

    def refuse(self) -> None:
        """Let storage refuse what it is given."""

    def heal(self) -> None:
        """Let storage take it again."""

    async def crash(self) -> None:
        """Lose all that is not durable, and open the backlog again as another process does."""

    def outcomes(self) -> dict[str, int]:
        """Return how many events came to which end, and how many are `queued`."""

    def letters(self) -> list[Kept]:
        """Return the dead letters that are durable."""


class InMemory:
    """The fake."""

    def __init__(self) -> None:
        self.backlog = MemoryBacklog(max_delay=DELAY)

    async def add(self, *names: str, context: Context = PLAIN, session: str = "s") -> None:
        self.backlog.add(*names, context=context, session=session)

    def refuse(self) -> None:
        self.backlog.refuse()

    def heal(self) -> None:
        self.backlog.heal()

    async def crash(self) -> None:
        self.backlog = MemoryBacklog(self.backlog.durable, DELAY)

    def outcomes(self) -> dict[str, int]:
        counts = Counter(map(str, self.backlog.durable.outcomes.values()))
        return dict(counts) | {"queued": len(self.backlog.durable.unsettled())}

    def letters(self) -> list[Kept]:
        return self.backlog.durable.dead_letters


class OnDisk:
    """The queue on a disk in memory, which is committed as a pipeline does it."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._fs = FaultFilesystem()
        self._tasks = tasks
        self._open()

    def _open(self) -> None:
        runtime = Runtime(inline, lambda: EPOCH + anyio.current_time(), lambda: 0.5)
        # A segment for each record: what is settled is synced when a segment can be deleted.
        limits = Limits(segment_bytes=1)
        queue = OpenQueue(self._fs, DIRECTORY, limits)
        self._store, writer = queue.store, Exclusive(queue.writer, lambda writer: writer.quarantined, inline)
        self._committer = Committer(self._store, writer, wall_clock=runtime.wall_clock)
        letters = Inline(DeadLetters.beside(self._fs, DIRECTORY, limits))
        self.backlog = DiskBacklog(
            self._store, writer, self._committer, letters, BatchOptions(max_delay=DELAY), runtime
        )
        self._tasks.start_soon(self._commit, self._committer, self.backlog)

    async def _commit(self, committer: Committer, backlog: DiskBacklog) -> None:
        while await committer.commit_next() is not None:
            backlog.changed.notify_all()

    async def add(self, *names: str, context: Context = PLAIN, session: str = "s") -> None:
        lines = encode_events([event(name, session) for name in names])
        committed = await self._committer.submit(Block(context, len(names), lines)).wait()
        assert committed.refused is None

    def refuse(self) -> None:
        self._fs.errors = _full

    def heal(self) -> None:
        self._fs.errors = no_errors

    async def crash(self) -> None:
        await self._committer.request().wait()
        self._committer.close()
        self._fs.kill()
        self._open()

    def outcomes(self) -> dict[str, int]:
        ledger = self._store.cursor.ledger()
        counts = {"delivered": ledger.delivered, "dead_lettered": ledger.dead_lettered, **ledger.dropped}
        return {name: count for name, count in counts.items() if count} | {"queued": ledger.queued}

    def letters(self) -> list[Kept]:
        after = self._fs.twin()
        after.errors = no_errors
        after.crash(LoseAll())
        return [Kept(letter.event.hash, letter.status, letter.message) for letter in dead_letters(after)]


class InStream:
    """The stream of an engine in memory, as a relay delivers from it."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._broker = MemoryBroker()
        self._lives = 0
        self._next = 1

    async def open(self) -> None:
        """Begin to fetch, as a relay that starts."""
        self._lives += 1
        engine, relay = MemoryEngine(self._broker), f"r{self._lives}"
        runtime = Runtime(inline, lambda: EPOCH + anyio.current_time(), lambda: 0.5)
        self._follower = LedgerFollower(engine, TEAM)
        self._turns = SharedTurns(engine, TEAM, relay, None)
        writer = FleetWriter(engine, TEAM, relay)
        self.backlog = StreamBacklog(writer, self._follower, self._turns, BatchOptions(max_delay=DELAY), runtime)
        await self._follower.load()
        await self._turns.load()
        self._lifes = [anyio.CancelScope() for _ in range(3)]
        for life, task in zip(self._lifes, (self._follower.run, self._turns.run, self.backlog.run), strict=True):
            self._tasks.start_soon(self._run, task, life)
        await self._follower.catch_up()
        await self._fetched()

    async def _run(self, task: Callable[[], Awaitable[None]], life: anyio.CancelScope) -> None:
        with life:
            await task()

    async def _fetched(self) -> None:
        """Return when the backlog has all that waits."""
        while self.backlog.held_events < self.outcomes()["queued"]:
            await self.backlog.changed.wait()
        await anyio.sleep(0.01)  # of virtual time, in which the ledger is asked about what is held

    async def add(self, *names: str, context: Context = PLAIN, session: str = "s") -> None:
        lines = encode_events([event(name, session) for name in names])
        batch = Batch(context, lines, (Span(self._next, self._next + len(names)),))
        self._next += len(names)
        await MemoryEngine(self._broker).publish(SUBJECT, lines, message.encode(batch, "q"))
        await self._fetched()

    def refuse(self) -> None:
        self._broker.denied = {ledger_subject(TEAM), dead_subject(TEAM)}

    def heal(self) -> None:
        self._broker.denied = set()

    async def crash(self) -> None:
        await self._turns.write()
        for life in self._lifes:
            life.cancel()
        await anyio.sleep(ACK_WAIT)
        await self.open()

    def outcomes(self) -> dict[str, int]:
        ledger = FleetLedger()
        for each in self._broker.streams[LEDGER].messages.values():
            ledger.apply(decode_record(each.body), each.seq)
        counts = {str(name): count for name, count in ledger.sums.items() if count}
        return counts | {"queued": self._next - 1 - sum(counts.values())}

    def letters(self) -> list[Kept]:
        letters = map(decode_dead_letter, self._broker.bodies(DEAD))
        return [Kept(letter.event.hash, letter.status, letter.message) for letter in letters]


def _full(operation: str, path: Path) -> OSError | None:
    return OSError(errno.ENOSPC, "full", str(path)) if operation in {"pwrite", "create"} else None


@pytest.fixture(params=["memory", "disk", "stream"])
def implementation(request: pytest.FixtureRequest) -> str:
    """Each implementation in turn."""
    name: str = request.param
    return name


@asynccontextmanager
async def opened(implementation: str) -> AsyncIterator[World]:
    """Yield an empty backlog."""
    async with anyio.create_task_group() as tasks:
        if implementation == "stream":
            stream = InStream(tasks)
            await stream.open()
            yield stream
        else:
            yield InMemory() if implementation == "memory" else OnDisk(tasks)
        tasks.cancel_scope.cancel()


async def take(
    backlog: Backlog, max_events: int = 100, *, max_bytes: int = 1 << 20, at_once: bool = True
) -> Batch | None:
    """Take the next batch, as soon as there is one without waiting."""
    while True:
        batch = await backlog.next_batch(Size(max_events, max_bytes), at_once=at_once)
        if batch is not None or backlog.due_at > anyio.current_time():
            return batch


async def take_all(backlog: Backlog, max_events: int = 100, *, max_bytes: int = 1 << 20) -> list[Batch]:
    """Take all there is."""
    found = []
    while (batch := await take(backlog, max_events, max_bytes=max_bytes)) is not None:
        found.append(batch)
    return found


def names(*batches: Batch | None) -> list[list[str]]:
    """Return the events' hashes, by batch."""
    return [[event.hash for event in decode_events(batch.lines)] for batch in batches if batch is not None]


async def test_events_come_once_and_in_order_with_their_numbers(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(5))
        await world.add(*numbered(2, "later"))
        (batch,) = await take_all(world.backlog)
        assert names(batch) == [[*numbered(5), *numbered(2, "later")]]
        assert [seq for span in batch.spans for seq in range(*span)] == list(range(1, 8))


async def test_events_of_different_jobs_share_a_batch_and_the_api_is_not_told_of_them(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add("a", context=Context("A", 1, "one"))
        await world.add("b", context=Context("A", 1, "two"))
        await world.add("c", context=Context("A", 1))
        (batch,) = await take_all(world.backlog)
        assert (batch.context, batch.event_count) == (Context("A", 1), 3)


async def test_a_batch_has_one_context_and_at_most_so_many_events(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(5, "a"), context=Context("A"))
        await world.add(*numbered(3, "b"), context=Context("B", 1))
        found = await take_all(world.backlog, 3)
        assert all(batch.event_count <= 3 for batch in found)
        assert sorted((batch.context.ci, *names(batch)[0]) for batch in found) == [
            ("A", "a0", "a1", "a2"),
            ("A", "a3", "a4"),
            ("B", "b0", "b1", "b2"),
        ]


async def test_a_batch_that_is_not_full_waits_for_its_timer_unless_it_is_wanted_at_once(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(5))
        assert names(await take(world.backlog, 3, at_once=False)) == [["h0", "h1", "h2"]]
        assert await take(world.backlog, 3, at_once=False) is None
        assert world.backlog.due_at == pytest.approx(anyio.current_time() + DELAY)
        await anyio.sleep_until(world.backlog.due_at)
        assert names(await take(world.backlog, 3, at_once=False)) == [["h3", "h4"]]
        await world.add("more")
        assert names(await take(world.backlog, at_once=True)) == [["more"]]


async def test_an_empty_backlog_says_that_nothing_is_known_to_wait_and_tells_when_there_is_more(
    implementation: str,
) -> None:
    async with opened(implementation) as world:
        assert await take(world.backlog) is None
        assert world.backlog.due_at == float("inf")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.backlog.changed.wait)
            await anyio.wait_all_tasks_blocked()
            await world.add("h0")
        assert names(await take(world.backlog)) == [["h0"]]


async def test_what_is_put_back_is_next_the_oldest_first_and_in_the_same_parts(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(9))
        first, second = await take(world.backlog, 3), await take(world.backlog, 3)
        assert first is not None
        assert second is not None
        world.backlog.put_back(*second.split())
        world.backlog.put_back(first)
        expected = [["h0", "h1", "h2"], ["h3", "h4"], ["h5"], ["h6", "h7", "h8"]]
        assert names(*await take_all(world.backlog)) == expected


async def test_a_smaller_limit_splits_what_was_put_back(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(10))
        whole = await take(world.backlog)
        assert whole is not None
        world.backlog.put_back(whole)
        found = await take_all(world.backlog, 3)
        assert all(batch.event_count <= 3 for batch in found)
        assert [*chain.from_iterable(names(*found))] == numbered(10)


@pytest.mark.parametrize("put_back", [False, True])
async def test_no_batch_is_larger_than_the_limit_in_bytes_except_one_event(implementation: str, put_back: bool) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(4), "x" * 1000, *numbered(5, "y"))
        if put_back:
            whole = await take(world.backlog)
            assert whole is not None
            world.backlog.put_back(whole)
        most = batch_of(events(*numbered(3))).size.bytes
        found = await take_all(world.backlog, max_bytes=most)
        assert [*chain.from_iterable(names(*found))] == [*numbered(4), "x" * 1000, *numbered(5, "y")]
        assert all(batch.size.bytes <= most or batch.event_count == 1 for batch in found)
        assert max(batch.event_count for batch in found) == 3


async def test_a_limit_holds_for_the_next_batch_alone(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(60))
        limits = (40, 1, 2, 1, 9, 3, 4)
        found = [await take(world.backlog, max_events) for max_events in limits]
        assert [batch.event_count for batch in found if batch is not None] == [*limits]
        assert [*chain.from_iterable(names(*found))] == numbered(60)


async def test_what_fills_a_limit_that_was_lowered_waits_for_no_timer(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(5))
        assert await take(world.backlog, at_once=False) is None
        assert names(await take(world.backlog, 3, at_once=False)) == [["h0", "h1", "h2"]]


@pytest.mark.parametrize("has_read", [False, True])
async def test_a_sample_is_the_newest_event_of_another_session_and_comes_once(
    implementation: str, has_read: bool
) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(3), session="a")
        await world.add("b0", "b1", session="b")
        await world.add("a3", "a4", session="a")
        first = await take(world.backlog, 1)
        assert first is not None
        if has_read:
            world.backlog.put_back(first)
            first = await take(world.backlog, 1)
            assert first is not None
        sample = await world.backlog.take_sample([first])
        assert sample is not None
        assert names(sample) == [["b1"]]
        await world.backlog.settle(sample, Outcome.DELIVERED)
        assert names(await world.backlog.take_sample([first])) == [["b0"]]
        assert [*chain.from_iterable(names(*await take_all(world.backlog)))] == ["h1", "h2", "a3", "a4"]
        world.backlog.rewind()
        left = [*chain.from_iterable(names(*await take_all(world.backlog)))]
        assert left == ["h0", "h1", "h2", "b0", "a3", "a4"]


async def test_a_sample_without_another_session_is_the_newest_event_that_was_not_refused(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(3))
        first = await take(world.backlog, 1)
        assert first is not None
        newest = await world.backlog.take_sample([first])
        assert newest is not None
        assert names(newest) == [["h2"]]
        second = await world.backlog.take_sample([first, newest])
        assert second is not None
        assert names(second) == [["h1"]]
        assert await world.backlog.take_sample([first, second, newest]) is None
        assert await take(world.backlog) is None


async def test_a_sample_that_is_put_back_comes_once_more(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(3))
        await world.add("b0", session="b")
        sample = await world.backlog.take_sample([])
        assert sample is not None
        world.backlog.put_back(sample)
        assert sorted(chain.from_iterable(names(*await take_all(world.backlog)))) == ["b0", *numbered(3)]


async def test_after_a_rewind_all_that_is_not_settled_comes_again(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(9))
        first, second = await take(world.backlog, 3), await take(world.backlog, 3)
        assert first is not None
        assert second is not None
        await world.backlog.settle(second, Outcome.DELIVERED)
        world.backlog.rewind()
        left = await take_all(world.backlog)
        assert [*chain.from_iterable(names(*left))] == ["h0", "h1", "h2", "h6", "h7", "h8"]


async def test_what_is_settled_is_counted_once_and_does_not_come_after_a_crash(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(3))
        await world.add(*numbered(3, "later"))
        batch = await take(world.backlog, 3)
        assert batch is not None
        await world.backlog.settle(batch, Outcome.DELIVERED)
        await world.backlog.settle(batch, Outcome.DEAD_LETTERED)
        assert world.outcomes() == {"delivered": 3, "queued": 3}
        await world.crash()
        assert world.outcomes() == {"delivered": 3, "queued": 3}
        assert names(*await take_all(world.backlog)) == [numbered(3, "later")]


async def test_settling_is_held_up_while_storage_refuses(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add("h0")
        batch = await take(world.backlog)
        assert batch is not None
        world.refuse()
        with anyio.move_on_after(60.0) as scope:
            await world.backlog.settle(batch, Outcome.DELIVERED)
        assert scope.cancelled_caught
        world.heal()
        await world.backlog.settle(batch, Outcome.DELIVERED)
        assert world.outcomes() == {"delivered": 1, "queued": 0}


async def test_a_dead_letter_is_durable_on_return_and_held_up_while_storage_refuses(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add("h0")
        batch = await take(world.backlog)
        assert batch is not None
        world.refuse()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.backlog.keep_dead_letter, batch, REFUSED)
            await anyio.sleep(60.0)
            assert world.letters() == []
            assert world.backlog.storage_error is not None
            world.heal()
        assert world.letters() == [Kept("h0", 400, "400 Bad Request: no")]
        assert world.backlog.storage_error is None
        assert world.outcomes() == {"queued": 1}


async def test_a_pause_is_remembered_across_a_crash_and_so_is_its_end(implementation: str) -> None:
    async with opened(implementation) as world:
        assert world.backlog.pause is None
        for pause in (PAUSE, None):
            world.backlog.remember(pause)
            assert world.backlog.pause == pause
            await world.crash()
            assert world.backlog.pause == pause


async def test_a_purge_settles_all_that_waits_and_nothing_of_it_comes_again(implementation: str) -> None:
    async with opened(implementation) as world:
        await world.add(*numbered(5))
        first = await take(world.backlog, 2)
        assert first is not None
        await world.backlog.settle(first, Outcome.DELIVERED)
        assert await world.backlog.purge() == 3
        assert await take(world.backlog) is None
        assert world.outcomes() == {"delivered": 2, "purged": 3, "queued": 0}
        await world.add("after")
        assert names(await take(world.backlog)) == [["after"]]
