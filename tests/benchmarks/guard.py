"""A guard of the speed: the CPU that an event costs may not rise by more than a third, measured in floors.

    python -m tests.benchmarks.guard [--record]

The same events go through the agent's own way, in this process and one thread (framing, intake, queue on a real disk,
delivery, HTTP to a sink), and through the floor of the machine, in turn. Little of it depends on who is scheduled when, so the
ratio of their CPU holds on a busy machine too. Listeners and threads are not in it: the benchmarks measure those.

The ratio that counts is in guard.json; `--record` writes it anew: do that with the change that moves it on purpose.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel

from agent.delivery.http import Endpoint, HttpTransport
from agent.delivery.source import Seams
from agent.events import MAX_LINE_BYTES
from agent.framing.ndjson import LineFramer
from agent.intake import Conversation, Intake, Peer
from agent.pipeline import Delivery, Pipeline
from agent.queue.filesystem import OsFilesystem
from agent.queue.store import Limits
from tests.benchmarks import floor
from tests.benchmarks.load import blocks
from tests.benchmarks.sink import Sink, sink
from tests.support.pipelines import inline

RECORD = Path(__file__).with_name("guard.json")
EVENTS, ROUNDS = 50_000, 7
FLOORS = 2  # it is so quick that one would be over before its CPU time can be told
TOLERANCE = 4 / 3


class Found(NamedTuple):
    """The median ratio of CPU per event, the agent's to the floor's, and that of each round."""

    ratio: float
    rounds: Sequence[float]


def recorded() -> float:
    """Return the ratio that counts."""
    return float(json.loads(RECORD.read_text())["cpu_per_event_in_floors"])


def is_too_slow(ratio: float, before: float) -> bool:
    """Tell whether the cost per event has risen by more than a third."""
    return ratio > before * TOLERANCE


def measure(events: int = EVENTS, rounds: int = ROUNDS) -> Found:
    """Let agent and floor work in turn; the first round only warms both up."""
    data = b"".join(blocks(events))
    with tempfile.TemporaryDirectory(prefix="b-") as name, sink() as api:
        ratios = [_ratio(Path(name) / str(number), api, data, events) for number in range(rounds + 1)]
        arrived = api.wait(0).events
    assert arrived == events * len(ratios), f"{arrived} of {events * len(ratios)} events arrived"
    return Found(statistics.median(ratios[1:]), ratios[1:])


def _ratio(directory: Path, api: Sink, data: bytes, events: int) -> float:
    agent = anyio.run(_agent, directory, api, data, backend_options={"use_uvloop": True})
    return agent / (floor.run(FLOORS * events, directory / "floor").cpu / FLOORS)


async def _agent(directory: Path, api: Sink, data: bytes) -> float:
    """Return the CPU seconds from the lines to the requests."""
    transport = HttpTransport(Endpoint(api.url, None), wall_clock=time.time)
    seams = Seams(run_blocking=inline, wall_clock=time.time, random=lambda: 0.5)
    # Not synced: what the kernel does for that is not the agent's work, and differs from disk to disk.
    pipeline = Pipeline(OsFilesystem(), directory, Limits(sync="off"), Delivery(transport), seams)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        begin = time.process_time()
        await _feed(Intake(pipeline), data)
        await pipeline.flush()
        cpu = time.process_time() - begin
        await pipeline.drain(0)
    await pipeline.close()
    return cpu


async def _feed(intake: Intake, data: bytes) -> None:
    framer, conversation = LineFramer(MAX_LINE_BYTES), Conversation(Peer(0, 0))
    for start in range(0, len(data), MAX_LINE_BYTES):
        await intake.room()
        await intake.take(framer.feed(data[start : start + MAX_LINE_BYTES]), conversation)
        await anyio.lowlevel.checkpoint()


def main() -> int:
    """Measure and compare, or record; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guard", description=main.__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    record = parser.parse_args().record
    found = measure()
    sys.stdout.write(f"CPU per event: {found.ratio:.2f} floors ({', '.join(f'{each:.2f}' for each in found.rounds)})\n")
    if record:
        RECORD.write_text(json.dumps({"cpu_per_event_in_floors": round(found.ratio, 2)}) + "\n")
        return 0
    sys.stdout.write(f"recorded: {recorded():.2f}; at most: {recorded() * TOLERANCE:.2f}\n")
    return int(is_too_slow(found.ratio, recorded()))


if __name__ == "__main__":
    sys.exit(main())
