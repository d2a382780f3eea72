"""Scripted work for a whole pipeline: each workload goes through one part of what a pipeline does in its life."""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from agent.delivery.batching import BatchOptions
from agent.delivery.policy import DeliverySettings
from agent.delivery.transport import Kind, Verdict
from agent.events import Context
from agent.queue.store import Limits
from tests.support.crash_model import RandomChooser
from tests.support.fake_transport import LOST
from tests.support.fault_filesystem import failing, no_errors
from tests.support.lives import Life, Script, Setup
from tests.support.pipelines import DIRECTORY
from tests.support.witness import Bounds

TRANSIENT = Verdict(Kind.TRANSIENT, "503 Service Unavailable", 503)
CUT_OFF = Verdict(Kind.CUT_OFF, "the connection broke")
TOO_LARGE = Verdict(Kind.TOO_LARGE, "413 Payload Too Large", 413)
BLOCKED = Verdict(Kind.BLOCKED, "402 Payment Required", 402)
SLOW, FAST = Context("GITHUB_ACTIONS", 0), Context("GITHUB_ACTIONS", 1)


@dataclass(frozen=True)
class Workload:
    """A script, and how the pipeline is configured for it."""

    script: Script
    setup: Setup = Setup()  # noqa: RUF009 - frozen

    @property
    def name(self) -> str:
        """The script's name."""
        return self.script.__name__


def slower(context: Context) -> Callable[[Context], Awaitable[None]]:
    """Return the delay of an API that takes its time for one context, so that its batches settle out of order."""

    async def delay(of: Context) -> None:
        await anyio.sleep(3.0 if of == context else 0.1)

    return delay


async def deliver_out_of_order(life: Life) -> None:
    """Append in three contexts, roll segments, deliver the younger batches first, delete."""
    life.start()
    life.transport.before = slower(SLOW)
    for _ in range(3):
        await life.submit(2, SLOW)
        await life.submit(3, FAST)
        life.send(1)
    await life.pipeline.flush()
    await life.submit(2)
    await life.pipeline.flush()
    await life.host.stop(1.0)


async def deliver_one_by_one(life: Life) -> None:
    """Deliver a backlog with one request at a time, while nothing else happens."""
    life.start()
    await life.pause()
    for _ in range(3):
        await life.submit(6)
    await life.resume()
    await life.pipeline.flush()
    await life.submit(1)
    await life.pipeline.flush()


async def meet_a_difficult_api(life: Life) -> None:
    """Lose answers, back off, split batches, leave one for ever without an answer, reload."""
    life.start()
    life.transport.script([LOST, TRANSIENT, CUT_OFF, TOO_LARGE])
    await life.submit(4)
    await life.submit(4)
    await life.pipeline.flush()
    life.transport.hold()
    await life.submit(3)
    await anyio.sleep(5.0)
    life.reload()
    await life.submit(2)
    await life.pipeline.flush()


async def keep_dead_letters(life: Life) -> None:
    """Bisect batches down to the events that the API refuses, more of them than the dead-letter log may keep."""
    life.start()
    for _ in range(3):
        await life.submit(4)
    await life.pipeline.flush()
    await life.submit(2)
    await life.pipeline.flush()
    await life.host.stop(1.0)


async def pause_and_resume(life: Life) -> None:
    """Pause as an operator, restart, reload, resume; be blocked by the API, probe, go on."""
    life.start()
    await life.submit(2)
    await life.pause()
    await life.submit(2)
    await life.host.stop(1.0)
    life.start()
    life.reload()
    await life.submit(1)
    await life.resume()
    await life.pipeline.flush()
    life.witness.pauses(durably=None)
    life.transport.script([BLOCKED])
    await life.submit(3)
    await anyio.sleep(5.0)
    life.witness.pauses(durably=True)
    await life.submit(2)
    life.witness.pauses(durably=None)
    await life.pipeline.flush()


async def overflow(life: Life) -> None:
    """Fill the queue to its limit and beyond, and deliver what was kept."""
    life.start()
    await life.submit(2)
    await life.pipeline.flush()
    await life.pause()
    for _ in range(11):
        await life.submit(2)
    life.send(2)
    await life.submit(3)
    await life.resume()
    await life.pipeline.flush()


async def overflow_with_the_newest(life: Life) -> None:
    """Fill the queue to its limit and beyond, where what comes last is refused."""
    await overflow(life)


async def expire(life: Life) -> None:
    """Let events grow too old, found by housekeeping and by the reader."""
    life.start()
    await life.pause()
    for _ in range(4):
        await life.submit(2)
    await anyio.sleep(900.0)
    await life.submit(2)
    await anyio.sleep(200.0)
    await life.submit(1)
    await life.resume()
    await life.pipeline.flush()


async def fill_the_disk(life: Life) -> None:
    """Meet a full disk in the middle of a frame, go on delivering, and find room again."""
    life.start()
    life.transport.hold()
    await life.submit(2)
    await life.submit(2)
    life.disk.capacity = life.disk.used + 200
    await life.submit(2)
    await life.submit(2)
    life.transport.release()
    await life.pipeline.flush()
    life.disk.capacity = None
    await life.submit(3)
    await life.pipeline.flush()


async def lose_power_and_recover(life: Life) -> None:
    """Die twice, by a power cut and by a kill, with work under way, and start on what is left."""
    life.start()
    life.transport.script([LOST])
    await life.submit(3)
    life.transport.hold()
    await life.submit(3)
    life.send(2)
    await life.host.kill(RandomChooser(3))
    life.witness.power_cuts += 1
    life.start()
    life.transport.hold()
    await life.submit(2)
    await anyio.sleep(5.0)
    await life.host.kill()
    life.start()
    await life.submit(1)
    await life.pipeline.flush()
    await life.host.stop(1.0)
    life.start()
    await life.submit(1)


async def fail_to_sync(life: Life) -> None:
    """Meet a sync of a segment that fails, of the cursor, and of a dead letter."""
    life.start()
    await life.submit(2)
    first = DIRECTORY / "segments" / "00000000000000000001.seg"
    life.disk.errors = failing("sync", errno.EIO, first)
    await life.submit(2)
    life.disk.errors = failing("sync", errno.EIO, DIRECTORY / "cursor")
    for _ in range(3):
        await life.submit(3)
    await anyio.sleep(5.0)
    life.disk.errors = no_errors
    await life.submit(2)
    await life.pipeline.flush()


async def rot(life: Life) -> None:
    """Find a record on the disk damaged, and keep its bytes apart."""
    life.start()
    await life.pause()
    await life.submit(2)
    rotten = await life.submit(2)
    life.witness.rotten |= set(rotten)
    await life.submit(2)
    path = DIRECTORY / "segments" / "00000000000000000001.seg"
    life.disk.flip(path, life.disk.read_bytes(path).index(rotten[1].encode()), 0)
    await life.resume()
    await life.pipeline.flush()
    await life.submit(1)


HISTORY = 1 << 20
SMALL = Limits(segment_bytes=600, history_bytes=HISTORY)
FEW_LETTERS = Limits(segment_bytes=600, max_bytes=4800, history_bytes=HISTORY)
TIGHT = Limits(segment_bytes=400, max_bytes=1600, history_bytes=HISTORY)
TIGHT_NEW = Limits(segment_bytes=400, max_bytes=1600, overflow="drop-newest", history_bytes=HISTORY)
SHORT_LIVED = Limits(segment_bytes=400, max_age=1000.0, history_bytes=HISTORY)
HEADROOM = Limits(segment_bytes=600, min_free_bytes=100, history_bytes=HISTORY)
ONE_BY_ONE = DeliverySettings(max_events=4, concurrency=1)
POISON = frozenset({"e0-0", "e0-2", "e4-1", "e4-2", "e8-0", "e8-3", "e12-1"})


WORKLOADS = [
    Workload(deliver_out_of_order),
    Workload(deliver_one_by_one, Setup(SMALL, ONE_BY_ONE)),
    Workload(meet_a_difficult_api),
    Workload(keep_dead_letters, Setup(FEW_LETTERS, bounds=Bounds(letters=4), poison=POISON)),
    Workload(pause_and_resume),
    Workload(overflow, Setup(TIGHT, bounds=Bounds(kept=8))),
    Workload(overflow_with_the_newest, Setup(TIGHT_NEW)),
    Workload(expire, Setup(SHORT_LIVED, options=BatchOptions(max_age=1000.0), bounds=Bounds(age=1000.0))),
    Workload(fill_the_disk, Setup(HEADROOM, ONE_BY_ONE)),
    Workload(lose_power_and_recover),
    Workload(fail_to_sync),
    Workload(rot),
]
