"""What operators do to a queue while it is at work: no event is counted twice, none is lost, and nobody waits for ever."""

import errno
from typing import Any

import anyio
import pytest

from agent.delivery.opening import DeliveryConfig
from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.errors import DeadlineError, StorageError
from agent.events import Context, encode_events
from agent.queue.cursor import Ledger
from agent.queue.dead_letters import DeadLetter, DeadLetters, dead_letters_in
from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter, dead_letter_page
from agent.queue.maintenance.purge import Purged, purge
from agent.queue.maintenance.retry import Retried, retry
from agent.queue.store import Limits
from tests.support import virtual_time
from tests.support.fake_transport import FakeTransport, reject
from tests.support.fault_filesystem import FaultFilesystem, failing, no_errors
from tests.support.pipelines import DIRECTORY, EPOCH, PLAIN, balanced, event, host, numbered, submit

pytestmark = pytest.mark.anyio

BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required: pay", 402)
TRANSIENT = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
EVERYTHING = DeadLetterFilter()
ONE_BY_ONE = DeliverySettings(max_events=1, concurrency=1, rejections_in_a_row=1000)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


def letters_of(pipeline: Pipeline) -> list[tuple[int, str]]:
    log, repeats = DeadLetters.beside(pipeline.fs, DIRECTORY, Limits()).read(lambda *found: found)
    return [(each.dead_letter.seq, each.dead_letter.event.hash) for each in dead_letters_in(log, repeats)]


# Purge


async def test_a_purge_waits_for_what_is_under_way_and_counts_only_what_was_not_delivered() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport, h.settings = transport, DeliverySettings(max_events=2, concurrency=1)
        pipeline = h.start()
        transport.hold()
        await submit(pipeline, numbered(5)).wait()
        await transport.wait_until(lambda t: t.in_flight == 1)
        async with anyio.create_task_group() as tasks:
            done: list[Purged] = []

            async def purge_it() -> None:
                done.append(await purge(pipeline, 60.0))

            tasks.start_soon(purge_it)
            await anyio.sleep(1)
            assert pipeline.ledger().queued == 5
            transport.release()
        assert [each.purged for each in done] == [3]
        assert pipeline.ledger() == Ledger(5, 2, 0, {"purged": 3}, 0)
        await submit(pipeline, ["after"]).wait()
        await pipeline.flush()
        assert transport.taken == ["h0", "h1", "after"]


async def test_a_purge_gives_up_at_its_deadline_and_does_nothing_later_either() -> None:
    async with host() as h:
        transport = FakeTransport()
        h.transport = transport
        pipeline = h.start()
        transport.hold()
        await submit(pipeline, numbered(3)).wait()
        await transport.wait_until(lambda t: t.in_flight == 1)
        with pytest.raises(DeadlineError, match="nothing was purged"):
            await purge(pipeline, 5.0)
        assert anyio.current_time() >= 5
        transport.release()
        await pipeline.flush()
        assert pipeline.ledger() == Ledger(3, 3, 0, {}, 0)


@pytest.mark.parametrize("state", ["paused", "blocked", "backing off", "a new configuration"])
async def test_a_purge_works_whatever_delivery_is_doing(state: str) -> None:
    async with host() as h:
        transport = FakeTransport(lambda _c, _e: BLOCKED if state == "blocked" else TRANSIENT)
        h.transport = transport
        pipeline = h.start()
        if state == "paused":
            pipeline.pause()
        await submit(pipeline, numbered(3)).wait()
        await anyio.sleep(30)
        if state == "a new configuration":
            pipeline.reconfigure(
                DeliveryConfig(lambda _: FakeTransport(lambda _c, _e: TRANSIENT), h.settings, h.options)
            )
        done = await purge(pipeline, 60.0)
        assert (done.purged, pipeline.ledger()) == (3, Ledger(3, 0, 0, {"purged": 3}, 0))
        assert len(h.fs.names(DIRECTORY / "segments")) == 1
        await h.kill()
        assert h.open().ledger() == Ledger(3, 0, 0, {"purged": 3}, 0)


async def test_a_purge_that_cannot_give_all_the_room_back_says_why() -> None:
    async with host() as h:
        pipeline = h.start()
        pipeline.pause()
        await submit(pipeline, numbered(3)).wait()
        h.fs.errors = failing("create", errno.ENOSPC)
        done = await purge(pipeline, 60.0)
        assert done.purged == 3
        assert "No space left on device" in str(done.problem)
        h.fs.errors = no_errors
        assert pipeline.ledger().queued == 0


# Retry


async def test_an_event_that_is_refused_again_is_a_letter_again_with_a_new_number_and_is_not_tried_for_ever() -> None:
    async with host() as h:
        transport = FakeTransport(reject("h1", "h3"))
        h.transport, h.settings = transport, ONE_BY_ONE
        pipeline = h.start()
        await submit(pipeline, numbered(4)).wait()
        await pipeline.flush()
        assert letters_of(pipeline) == [(2, "h1"), (4, "h3")]
        transport.rule = reject("h3")
        assert await retry(pipeline, EVERYTHING) == Retried(2, 0, None, None)
        await pipeline.flush()
        assert letters_of(pipeline) == [(6, "h3")]
        assert transport.taken == ["h0", "h2", "h1"]
        assert pipeline.ledger() == Ledger(6, 3, 3, {}, 0, 2)


async def test_letters_that_come_while_others_are_retried_stay() -> None:
    """Every page of a retry meets letters that its own events have become meanwhile."""
    names = numbered(510)
    async with host() as h:
        h.transport = FakeTransport(reject(*names))
        h.settings = DeliverySettings(max_events=1, rejections_in_a_row=10_000)
        pipeline = h.start()
        await submit(pipeline, names).wait()
        await pipeline.flush()
        done = await retry(pipeline, EVERYTHING)
        await pipeline.flush()
        assert done == Retried(510, 0, None, None)
        assert [name for _, name in letters_of(pipeline)] == names
        assert pipeline.ledger() == Ledger(1020, 0, 1020, {}, 0, 510)
        assert balanced(pipeline)


async def test_a_disk_that_refuses_a_retry_drops_nothing_and_keeps_the_letters() -> None:
    async with host() as h:
        h.transport = FakeTransport(reject("h0", "h1"))
        pipeline = h.start()
        await submit(pipeline, numbered(2)).wait()
        await pipeline.flush()
        h.fs.errors = lambda operation, path: (
            failing("pwrite", errno.EIO)(operation, path) if path.parent == DIRECTORY / "segments" else None
        )
        assert await retry(pipeline, EVERYTHING) == Retried(0, 2, "disk_error", None)
        assert pipeline.ledger() == Ledger(2, 0, 2, {}, 0)
        h.fs.errors = no_errors
        h.transport.rule = reject()
        assert (await retry(pipeline, EVERYTHING)).retried == 2
        await pipeline.flush()
        assert (pipeline.ledger(), letters_of(pipeline)) == (Ledger(4, 2, 2, {}, 0, 2), [])


async def test_a_retry_whose_letters_cannot_be_removed_says_that_another_one_would_repeat_them() -> None:
    async with host() as h:
        h.transport = FakeTransport(reject("h0"))
        pipeline = h.start()
        await submit(pipeline, numbered(1)).wait()
        await pipeline.flush()
        pipeline.pause()
        h.fs.errors = failing("unlink", errno.EPERM)
        done = await retry(pipeline, EVERYTHING)
        assert (done.retried, done.refused) == (1, None)
        assert "cannot delete old segments" in str(done.problem)
        assert pipeline.ledger().retried == 1


async def test_a_retry_of_letters_that_could_not_be_removed_queues_nothing_and_says_why() -> None:
    names = numbered(20)
    async with host() as h:
        h.limits, h.transport, h.settings = Limits(segment_bytes=8 * 400), FakeTransport(reject(*names)), ONE_BY_ONE
        pipeline = h.start()
        await submit(pipeline, names).wait()
        await pipeline.flush()
        pipeline.pause()
        first, *_, last = [path for path in h.fs.paths() if path.parent == DIRECTORY / "dead-letters"]
        h.fs.errors = failing("open", errno.EACCES, first)
        with pytest.raises(StorageError, match=rf"{first}: cannot be read: .*: no event was put back"):
            await retry(pipeline, EVERYTHING)
        assert (pipeline.ledger().retried, pipeline.ledger().queued) == (0, 0)
        h.fs.errors = failing("open", errno.EACCES, last)
        done = await retry(pipeline, EVERYTHING)
        assert (done.retried, done.unreadable, done.problem) == (int(last.stem) - 1, 21 - int(last.stem), None)
        h.fs.errors = no_errors
        assert [name for _, name in letters_of(pipeline)] == names[done.retried :]


async def test_events_are_durable_before_their_letters_go_whatever_the_queue_syncs() -> None:
    async with host() as h:
        h.limits, h.transport = Limits(sync="off"), FakeTransport(reject("h0"))
        pipeline = h.start()
        await submit(pipeline, numbered(1)).wait()
        await pipeline.flush()
        pipeline.pause()
        await pipeline.commit_once()
        before = h.fs.calls
        await retry(pipeline, EVERYTHING)
        calls = [(call.operation, call.path.parent.name) for call in h.fs.log[before:]]
        assert calls.index(("sync", "segments")) < calls.index(("unlink", "dead-letters"))
        last_sync = max(index for index, call in enumerate(calls) if call == ("sync", "segments"))
        last_write = max(index for index, call in enumerate(calls) if call == ("pwrite", "segments"))
        assert last_write < last_sync < calls.index(("unlink", "dead-letters"))


# Which letter is which


def letter(seq: int, name: str, at: float = EPOCH, context: Context = PLAIN) -> DeadLetter:
    return DeadLetter(seq, at, 400, "400 Bad Request: no", context, encode_events([event(name)]))


def opened(fs: FaultFilesystem, *kept: DeadLetter) -> DeadLetters:
    log = DeadLetters.beside(fs, DIRECTORY, Limits(segment_bytes=8 * 400))
    for each in kept:
        log.append(each, EPOCH)
    return log


def shown(log: DeadLetters, selection: DeadLetterFilter = EVERYTHING) -> list[tuple[int, str, float]]:
    page = log.read(lambda snapshot, repeats: dead_letter_page(snapshot, repeats, selection, 0, 1000))
    return [(each.seq, each.event.hash, float(each.rejected_at[-4:-1])) for each in page.letters]


def test_of_a_letter_that_came_twice_the_last_one_counts_and_a_number_that_was_given_twice_means_two() -> None:
    log = opened(
        FaultFilesystem(), letter(1, "a"), letter(2, "b"), letter(1, "a", EPOCH + 0.5), letter(2, "of a later life")
    )
    assert shown(log) == [(2, "b", 0), (1, "a", 500), (2, "of a later life", 0)]
    assert shown(log, DeadLetterFilter(numbers=frozenset({2}))) == [(2, "b", 0), (2, "of a later life", 0)]
    assert log.remove(lambda each: each.dead_letter.seq == 1, EPOCH).removed == 1
    assert sorted(shown(log)) == [(2, "b", 0), (2, "of a later life", 0)]


def test_the_same_event_in_another_context_is_another_letter() -> None:
    log = opened(FaultFilesystem(), letter(1, "a"), letter(1, "a", context=Context("VERCEL", 0)))
    assert len(shown(log)) == 2


def test_letters_are_paged_in_their_order_whatever_the_size_of_the_page() -> None:
    log = opened(FaultFilesystem(), *(letter(number, f"h{number}") for number in range(23)))
    for size in (1, 5, 22, 23, 100):
        found: list[int] = []
        start: int | None = 0
        while start is not None:
            at = start
            page = log.read(lambda snapshot, repeats: dead_letter_page(snapshot, repeats, EVERYTHING, at, size))  # noqa: B023
            found += [each.seq for each in page.letters]
            start = page.next
        assert found == list(range(23))


def test_only_segments_up_to_the_last_letter_that_goes_are_written_again() -> None:
    fs = FaultFilesystem()
    log = opened(fs, *(letter(number, f"h{number}") for number in range(20)))
    last = [path for path in fs.paths() if path.parent.name == "dead-letters"][-1]
    before = fs.read_bytes(last)
    log.remove(lambda each: each.dead_letter.seq == 0, EPOCH)
    assert fs.read_bytes(last).startswith(before)
    assert sorted(seq for seq, _, _ in shown(log)) == list(range(1, 20))


def test_the_pages_of_letters_count_each_letter_that_cannot_be_read_once() -> None:
    fs = FaultFilesystem()
    log = opened(fs, *(letter(number, f"h{number}") for number in range(20)))
    files = [path for path in fs.paths() if path.parent.name == "dead-letters"]
    lost = int(files[2].stem) - int(files[1].stem)
    fs.errors = failing("open", errno.EACCES, files[1])
    fs.flip(files[0], fs.read_bytes(files[0]).index(b"h1"), 0)
    for size in (1, 3, 100):
        found, unreadable, start = list[int](), 0, 0
        while True:
            at = start
            page = log.read(lambda snapshot, repeats: dead_letter_page(snapshot, repeats, EVERYTHING, at, size))  # noqa: B023
            found += [each.seq for each in page.letters]
            unreadable += page.unreadable
            if page.next is None:
                break
            start = page.next
        assert (len(found), unreadable) == (19 - lost, 1 + lost)
        assert found == sorted(set(range(20)) - {1} - set(range(int(files[1].stem) - 1, int(files[2].stem) - 1)))


def test_a_purge_of_what_lies_before_a_file_that_cannot_be_read_says_how_many_are_left() -> None:
    fs = FaultFilesystem()
    log = opened(fs, *(letter(number, f"h{number}") for number in range(20)))
    last = [path for path in fs.paths() if path.parent.name == "dead-letters"][-1]
    lost = 21 - int(last.stem)
    fs.errors = failing("open", errno.EACCES, last)
    assert log.remove(lambda _: True, EPOCH) == (20 - lost, 0, lost)
    fs.errors = no_errors
    assert [seq for seq, _, _ in shown(log)] == list(range(20 - lost, 20))


def test_a_letter_file_that_cannot_be_read_is_not_deleted() -> None:
    fs = FaultFilesystem()
    log = opened(fs, *(letter(number, f"h{number}") for number in range(20)))
    first = next(path for path in fs.paths() if path.parent.name == "dead-letters")
    fs.errors = failing("open", errno.EACCES, first)
    with pytest.raises(StorageError, match="no letter was removed"):
        log.remove(lambda each: each.dead_letter.seq == 19, EPOCH)
    fs.errors = no_errors
    assert len(shown(log)) == 20
