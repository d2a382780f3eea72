"""A whole pipeline on a disk that fails at each call in turn: it stays up, keeps what it acked, and recovers by itself."""

import errno
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest

from agent.delivery.batching import BatchOptions
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.events import Context
from agent.queue.cursor import Outcome
from agent.queue.record import MARKER
from agent.queue.store import Limits
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, reject
from tests.support.fault_filesystem import RandomChooser, failing, no_errors
from tests.support.fault_runs import CODES, Fault, FaultRun, Work
from tests.support.pipelines import host, submit

BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required", 402)
OTHER = Context("GITHUB_ACTIONS", 1)

# Every code at every call takes minutes: by default the codes take turns.
EVERY_CODE = os.environ.get("EVERY_ERROR_CODE") == "1"


async def roll_and_deliver(run: FaultRun) -> None:
    """Write several segments, deliver them, delete them, and again."""
    for _ in range(2):
        await run.submit(5)
        await run.submit(2, context=OTHER)
        await run.submit(6)
        await run.deliver()
    await run.submit(3)
    await run.deliver()


async def dead_letter(run: FaultRun) -> None:
    """Let the API refuse some events, one by one."""
    run.transport.rule = reject("bad0", "bad7", "bad8")
    await run.submit(3, "bad")
    await run.submit(4)
    await run.deliver()
    await run.submit(3, "bad")
    await run.deliver()
    await run.submit(2)


async def pause_and_resume(run: FaultRun) -> None:
    """Be blocked, probe, be paused by an operator, and go on."""
    run.transport.rule = lambda _context, _events: BLOCKED
    await run.submit(4)
    await run.sleep(5.0)
    await run.submit(4)
    run.transport.rule = lambda _context, _events: ACCEPTED
    await run.sleep(60.0)
    run.pipeline.pause()
    await run.submit(4)
    await run.sleep(3.0)
    run.pipeline.resume()
    await run.deliver()


async def expire(run: FaultRun) -> None:
    """Let events wait for too long, some of them in segments that nothing reads any more."""
    run.pipeline.pause()
    for _ in range(3):
        await run.submit(4)
        await run.sleep(40.0)
    await run.sleep(60.0)
    run.pipeline.resume()
    await run.submit(3)
    await run.deliver()


async def overflow(run: FaultRun) -> None:
    """Fill the queue beyond its limit while nothing is delivered."""
    run.pipeline.pause()
    for _ in range(5):
        await run.submit(6)
    run.pipeline.resume()
    await run.deliver()
    await run.submit(3)


async def fill_the_disk(run: FaultRun) -> None:
    """Fill a disk that has nothing but the queue on it; what is there gets delivered, and then there is room again."""
    run.host.fs.capacity = run.host.fs.used + 1000
    for _ in range(2):
        run.transport.hold()
        refused = len(run.refused)
        while len(run.refused) == refused:
            await run.submit(6)
        run.transport.release()
        await run.deliver()
        await run.submit(1)


SMALL = Limits(segment_bytes=400)
WORK = [
    Work(roll_and_deliver, SMALL),
    Work(dead_letter, Limits(segment_bytes=800), DeliverySettings(max_events=4, concurrency=1)),
    Work(pause_and_resume, SMALL, DeliverySettings(max_events=4, probe_interval=10.0, max_probe_interval=10.0)),
    Work(
        expire,
        Limits(segment_bytes=200, max_age=100.0),
        options=BatchOptions(max_age=100.0),
        losses=frozenset({Outcome.EXPIRED}),
    ),
    Work(overflow, Limits(segment_bytes=300, max_bytes=900), losses=frozenset({Outcome.OVERFLOW})),
]


FULL = Work(fill_the_disk, Limits())
LAZY = [replace(WORK[0], limits=replace(SMALL, sync=sync)) for sync in ("interval", "off")]
EVERY_WORK = pytest.mark.parametrize("work", WORK, ids=[work.name for work in WORK])
EVERY_WORK_AND_A_FULL_DISK = pytest.mark.parametrize("work", [*WORK, FULL], ids=[work.name for work in [*WORK, FULL]])


async def play(
    work: Work, fault: Fault | None = None, seed: int = 0, after: Callable[[FaultRun], Awaitable[None]] | None = None
) -> FaultRun:
    """Do the work under the fault, and hold the pipeline to its account."""
    async with host() as h:
        run = FaultRun(h, work, fault, RandomChooser(seed) if seed % 2 else None)
        run.begin()
        await work.script(run)
        if after is not None:
            await after(run)
        await run.check_end(more_losses=losses_by(fault))
    return run


def losses_by(fault: Fault | None) -> set[Outcome]:
    """Return what a disk that goes on saying that the bytes are gone may cost, by name."""
    return {Outcome.CORRUPT} if fault is not None and fault.lasting and fault.code == errno.EIO else set()


def points(work: Work) -> list[tuple[int, int]]:
    """Return every call that the healthy work makes and that can fail, by its number, with a code to fail with."""
    patient = Fault(1 << 60, errno.EIO)
    play_now(work, patient)
    return [
        (n, code) for n in range((1 << 60) - patient.n) for code in (CODES if EVERY_CODE else [CODES[n % len(CODES)]])
    ]


def play_now(*arguments: Any) -> FaultRun:
    """Play on asyncio, where the same work makes the same calls each time; trio shuffles its tasks."""
    return virtual_time.run("asyncio", partial(play, *arguments))


@EVERY_WORK_AND_A_FULL_DISK
def test_an_error_at_any_call_costs_at_most_what_was_not_acked_and_passes_by_itself(work: Work) -> None:
    runs = [play_now(work, Fault(n, code), n) for n, code in points(work)]
    assert len(runs) > 50
    assert all(run.struck for run in runs)
    assert sum(run.power_losses for run in runs) > len(runs)


@EVERY_WORK_AND_A_FULL_DISK
def test_a_disk_that_goes_on_failing_is_said_to_and_recovers_by_itself(work: Work) -> None:
    runs = [play_now(work, Fault(n, code, lasting=True), n, FaultRun.check_failing) for n, code in points(work)]
    assert len(runs) > 50
    assert all(run.struck for run in runs)


OPERATIONS = [
    *("create", "open", "pread", "pwrite", "truncate", "sync", "size", "rename", "unlink", "sync_directory", "names"),
    *("make_directory", "free_bytes"),
]


@EVERY_WORK
@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_the_disk_refuses_is_told_where_events_are_shed_or_held_up(work: Work, operation: str) -> None:
    for code in CODES:
        fault = Fault(0, code, lasting=True, among=lambda called, _path: called == operation)
        play_now(work, fault, 1, FaultRun.check_said)


@EVERY_WORK
@pytest.mark.parametrize("place", ["cursor", "segments", "dead-letters"])
def test_wherever_the_disk_fails_it_is_told_where_events_are_shed_or_held_up(work: Work, place: str) -> None:
    for code in CODES:
        fault = Fault(0, code, lasting=True, among=lambda _called, path: place in path.parts)
        play_now(work, fault, 1, FaultRun.check_said)


@pytest.mark.parametrize("work", LAZY, ids=[work.limits.sync for work in LAZY])
def test_a_lazy_queue_lives_through_an_error_at_any_call_as_well(work: Work) -> None:
    for n, code in points(work):
        assert play_now(work, Fault(n, code, lasting=n % 2 == 0), n).struck


@pytest.mark.parametrize("operation", ["pwrite", "sync"])
@pytest.mark.parametrize("sync", ["commit", "interval"])
def test_a_disk_that_takes_nothing_is_noticed_although_nothing_happens(operation: str, sync: Any) -> None:
    """The first event after a quiet night must not be the one that finds out."""

    async def main() -> None:
        async with host() as h:
            h.limits = Limits(sync=sync)
            pipeline = h.start()
            await submit(pipeline, ["h0"]).wait()
            await pipeline.flush()
            assert await pipeline.healthy()
            h.fs.errors = failing(operation, errno.EIO)
            await anyio.sleep(60.0)
            assert not await pipeline.healthy()
            assert "Input/output error" in str((await pipeline.status()).storage_error)
            h.fs.errors = no_errors
            await anyio.sleep(60.0)
            assert await pipeline.healthy()
            assert (await pipeline.status()).storage_error is None

    virtual_time.run("asyncio", main)


async def restart(run: FaultRun) -> None:
    """Stop in good order in the middle of the work, and start again, as often as it takes."""
    await run.submit(5)
    await run.deliver()
    run.transport.rule = reject("bad5")
    await run.submit(3, "bad")
    await run.deliver()
    run.pipeline.pause()
    await run.submit(6)
    await run.restart()
    run.pipeline.resume()
    await run.submit(2)
    await run.deliver()


async def be_killed(run: FaultRun, tail: bytes) -> None:
    """Die with events in the queue, and start again with something behind them that is none."""
    await run.submit(5)
    await run.deliver()
    run.pipeline.pause()
    await run.submit(4)
    await run.submit(4)
    await run.kill_and_spoil(tail)
    run.pipeline.resume()
    await run.submit(2)
    await run.deliver()


async def find_a_torn_write(run: FaultRun) -> None:
    """Be killed in the middle of a write."""
    await be_killed(run, MARKER)


async def find_garbage(run: FaultRun) -> None:
    """Find what nobody wrote, and put it into quarantine."""
    await be_killed(run, b"garbage")


RESTARTS = [Work(script, SMALL) for script in (restart, find_a_torn_write, find_garbage)]


@pytest.mark.parametrize("work", RESTARTS, ids=[work.name for work in RESTARTS])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_an_error_at_any_call_of_a_stop_and_a_start_ends_in_one_clear_line_or_in_a_running_agent(
    work: Work, *, lasting: bool
) -> None:
    runs = [play_now(work, Fault(n, code, lasting=lasting), n) for n, code in points(work)]
    assert all(run.struck for run in runs)
    errors = [str(error) for run in runs for error in run.storage_errors]
    assert len(errors) > (20 if lasting else 2)
    for error in errors:
        assert re.fullmatch(r"/queue/default[^\n]*: [^\n]+", error)
        assert any(os.strerror(code) in error for code in CODES) or "its last sync failed" in error


def test_a_disk_that_is_full_of_the_queue_takes_events_again_as_soon_as_they_are_delivered() -> None:
    run = play_now(FULL)
    assert set(run.refused.values()) == {Outcome.DISK_FULL}
    assert len(run.refused) == 12
    assert len(run.acked) > 16
