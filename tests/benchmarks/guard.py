"""A guard of the speed: the CPU that an event costs may not rise by more than a third, measured in floors.

    python -m tests.benchmarks.guard [--record]

The same events go through the agent's own way, in this process and one thread (framing, intake, queue on a real disk,
delivery, HTTP to a sink), and through the floor of the machine, in turn. Little of it depends on who is scheduled when, so the
ratio of their CPU holds on a busy machine too. Listeners and threads are not in it: the benchmarks measure those.

What is too slow is measured again: a busy machine can disturb one measurement, a slower agent is slower in each.

Two parts are guarded: `whole`, up to the API, and `intake`, up to the queue, in which a slower decoder shows beside what HTTP
costs; each with 20 sessions in 1,000 events and with a session each. The ratios that count are in guard.json; `--record` writes
them anew: do that with the change that moves them on purpose.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel
import msgspec

from agent.daemon import logging as logs
from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.opening import DeliveryConfig
from agent.delivery.pipeline import Pipeline
from agent.events import MAX_LINE_BYTES
from agent.ingest.framing import LineFramer
from agent.ingest.intake import ClientState, Intake
from agent.peers import Peer
from agent.queue.filesystem import OsFilesystem
from agent.queue.store import Limits
from agent.runtime import Runtime
from tests.benchmarks import floor
from tests.benchmarks.load import EACH, SESSIONS, blocks
from tests.benchmarks.sink import Sink, sink
from tests.support.pipelines import inline

RECORD = Path(__file__).with_name("guard.json")
EVENTS, ROUNDS = 50_000, 5
ATTEMPTS = 3
FLOORS = 2  # it is so quick that one would be over before its CPU time can be told
TOLERANCE = 4 / 3
Ratios = dict[str, float]  # by the name of the part


class Part(NamedTuple):
    """How far events go, and how many sessions 1,000 of them are of."""

    to_the_api: bool
    sessions: int


PARTS = {
    "intake": Part(to_the_api=False, sessions=SESSIONS),
    "whole": Part(to_the_api=True, sessions=SESSIONS),
    "intake, a session each": Part(to_the_api=False, sessions=EACH),
    "whole, a session each": Part(to_the_api=True, sessions=EACH),
}
BATCH = 1_000  # as by default


def recorded() -> Ratios:
    """Return the ratios that count."""
    return msgspec.json.decode(RECORD.read_bytes(), type=Ratios)


def too_slow(found: Ratios, before: Ratios) -> list[str]:
    """Return the parts whose cost per event has risen by more than a third."""
    return [part for part, ratio in found.items() if ratio > before[part] * TOLERANCE]


def measure(events: int = EVENTS, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Let agent and floor work in turn; return the ratios of each round. One more, the first, only warms both up."""
    logs.configure("error", "json")  # by default structlog prints even what is for debugging
    ratios: dict[str, list[float]] = {name: [] for name in PARTS}
    with tempfile.TemporaryDirectory(prefix="b-") as directory, sink() as api:
        for number in range(rounds + 1):
            for name, part in PARTS.items():
                ratios[name].append(_ratio(Path(directory) / f"{name}-{number}", api, events, part))
        arrived = api.wait(0).events
    expected = events * (rounds + 1) * sum(part.to_the_api for part in PARTS.values())
    assert arrived == expected, f"{arrived} of {expected} events arrived"
    return {name: each[1:] for name, each in ratios.items()}


def _ratio(directory: Path, api: Sink, events: int, part: Part) -> float:
    """Return the agent's CPU per event, divided by the floor's."""
    data = b"".join(blocks(events, sessions=part.sessions))
    agent = anyio.run(_agent, directory, api, data, part, backend_options={"use_uvloop": True})
    batch = BATCH if part.to_the_api else None
    return agent / (floor.run(FLOORS * events, directory / "floor", batch, part.sessions).cpu / FLOORS)


async def _agent(directory: Path, api: Sink, data: bytes, part: Part) -> float:
    """Return the CPU seconds from the lines to the requests, or to the queue."""
    transport = HttpTransport(Endpoint(api.url, None), wall_clock=time.time)
    runtime = Runtime(run_blocking=inline, wall_clock=time.time, random=lambda: 0.5)
    # Not synced: what the kernel does for that is not the agent's work, and differs from disk to disk.
    pipeline = Pipeline(OsFilesystem(), directory, Limits(sync="off"), DeliveryConfig(lambda _: transport), runtime)
    if not part.to_the_api:
        pipeline.pause()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        begin = time.process_time()
        await _feed(Intake({"default": pipeline}), data)
        await (pipeline.flush() if part.to_the_api else pipeline.commit_once())
        cpu = time.process_time() - begin
        await pipeline.drain(0)
    await pipeline.close()
    return cpu


async def _feed(intake: Intake, data: bytes) -> None:
    framer, client = LineFramer(MAX_LINE_BYTES), ClientState(Peer(0, 0))
    for start in range(0, len(data), MAX_LINE_BYTES):
        await intake.wait_for_capacity()
        await intake.submit(framer.feed(data[start : start + MAX_LINE_BYTES]), client)
        await anyio.lowlevel.checkpoint()


def main() -> int:
    """Measure and compare, or record; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guard", description=main.__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    if parser.parse_args().record:
        RECORD.write_text(json.dumps(_medians(measure())) + "\n")
        return 0
    return int(not any(_is_quick_enough(measure(), recorded()) for _ in range(ATTEMPTS)))


def _is_quick_enough(rounds: dict[str, list[float]], before: Ratios) -> bool:
    """Say what was measured, and whether that is allowed."""
    found = _medians(rounds)
    for part, ratio in found.items():
        most, each = before[part] * TOLERANCE, ", ".join(f"{each:.2f}" for each in rounds[part])
        sys.stdout.write(f"{part}: CPU per event {ratio:.2f} floors ({each}); at most {most:.2f}\n")
    return not too_slow(found, before)


def _medians(rounds: dict[str, list[float]]) -> Ratios:
    return {part: round(statistics.median(each), 2) for part, each in rounds.items()}


if __name__ == "__main__":
    sys.exit(main())
