"""One soak: everything set up, faults until the time is over, everything healed, and the evidence for the oracle.

It knows the order. It must never know what a fault does, or what the evidence means.
"""

import random
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from tests.soak.clients import client
from tests.soak.disk import Disk, SmallDisk, best_disk
from tests.soak.events import identify
from tests.soak.faults import (
    Fault,
    deck,
    freeze_the_disk,
    limit_the_file_size,
    lose_the_disk,
    name_of,
    skipped,
    stop_and_continue,
)
from tests.soak.oracle import Bounds, Evidence, Handed, Letter, judge
from tests.soak.server import Record, read_record, soak_server
from tests.soak.world import CONCURRENCY, MAX_EVENTS, SEGMENT_BYTES, Clock, Happened, World
from tests.support.accounts import Ledger, flushed, ledger_of
from tests.support.daemon import Daemon
from tests.support.dead_letters import read_dead_letters
from tests.support.process import Child
from tests.support.senders import Report, report_of
from tests.support.skewed_agent import SKEW_FILE

# An event takes more than 80 bytes there. One file more holds what was not delivered.
BOUNDS = Bounds(MAX_EVENTS, CONCURRENCY, segment_events=SEGMENT_BYTES // 80, new_files=21, last_files=10)
HEAL_SECONDS = 300.0
MOST_OF_AN_ERROR = 2000  # it may have the daemon's whole log
_PROBLEM = re.compile(r"Traceback|request_failed|events_corrupt|dead_letter_lost")
_REASONS = {limit_the_file_size: "disk_full", lose_the_disk: "disk_error", freeze_the_disk: "stalled"}


class Kind(NamedTuple):
    """A client of the soak; rates are in events a second."""

    name: str
    window: int
    rate: float


KINDS = (
    Kind("durable", 1, 60),
    Kind("durable", 16, 250),
    Kind("durable", 40, 250),
    Kind("durable", 100, 250),
    Kind("careless", 10, 60),
)


@dataclass
class Soak:
    """What came of it. `problems` is empty if everything held; `evidence` is there if it got that far."""

    seconds: float
    seed: int
    disk: str = ""
    skipped: list[str] = field(default_factory=list)
    happened: Happened = field(default_factory=Happened)
    record: Record = field(default_factory=Record)
    evidence: Evidence | None = None
    problems: list[str] = field(default_factory=list)


Enough = Callable[[World], bool]


def soak(
    seconds: float, seed: int, directory: Path, only: Collection[str] = (), enough: Enough = lambda _: True
) -> Soak:
    """Do it, below a directory that must not exist yet; what broke in the middle is a problem like any other.

    `only` names the faults that there are to be, if not all. It takes longer than `seconds` until there was `enough`.
    """
    result = Soak(seconds, seed)
    directory.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            disk = stack.enter_context(best_disk(directory))
            _run(result, disk, directory, stack, only, enough)
    except (AssertionError, OSError, httpx.HTTPError) as error:
        result.problems.append(f"{type(error).__name__}: {error}"[:MOST_OF_AN_ERROR])
    else:
        assert result.evidence is not None
        result.problems += judge(result.evidence)
    return result


def _run(result: Soak, disk: Disk, directory: Path, stack: ExitStack, only: Collection[str], enough: Enough) -> None:
    record = directory / "record"
    record.mkdir()
    server, url = stack.enter_context(soak_server(result.seed, record))
    progress = [directory / f"acked-{number}" for number in range(len(KINDS))]
    clock = Clock(directory / "skew")
    clock.set(0.0)
    daemon = Daemon(directory / "agent", url)
    daemon.module, daemon.env = "tests.support.skewed_agent", {SKEW_FILE: str(clock.path)}
    stack.callback(daemon.kill)
    world = World(daemon, url, disk, clock, random.Random(result.seed), progress, result.happened)
    result.disk, result.skipped = f"{disk.name} {disk.missing}".strip(), skipped(world)
    world.configure()
    world.start()
    clients = [_start(stack, world, number) for number in range(len(KINDS))]
    end = time.monotonic() + result.seconds
    _do_faults(world, deck(world, only), lambda: time.monotonic() >= end and enough(world))
    reports, ledger, discarded = _heal(world, server, clients)
    assert server.stop(HEAL_SECONDS) == 0, "the server failed:\n" + "".join(server.lines)
    result.record, taken = read_record(record)
    result.evidence = _evidence(world, reports, result.record, taken, ledger, discarded)


def _start(stack: ExitStack, world: World, number: int) -> Child:
    kind, daemon = KINDS[number], world.daemon
    paths = [daemon.stream] if kind.name == "durable" else [daemon.stream, daemon.datagram]
    running = client(
        kind.name, *paths, number=number, window=kind.window, rate=kind.rate, progress=world.progress[number]
    )
    return stack.enter_context(running)


def _do_faults(world: World, faults: Iterator[Fault], done: Callable[[], bool]) -> None:
    while not done():
        world.idle(0.2, 1.8)
        fault = next(faults)
        world.note(f"-- {name_of(fault)}")
        fault(world)
        world.happened.faults[name_of(fault)] += 1


def _heal(world: World, server: Child, clients: Sequence[Child]) -> tuple[list[Report], Ledger, int]:
    """Let the server be well, the clients have their last acks, and the queue be emptied."""
    server.process.send_signal(signal.SIGUSR1)
    world.control("resume")
    for each in clients:
        each.process.terminate()
    reports = [report_of(each, HEAL_SECONDS) for each in clients]
    assert flushed(world.daemon, HEAL_SECONDS), f"not flushed within {HEAL_SECONDS} s: {world.daemon.status()}"
    status = world.daemon.status()
    world.terminate()
    return reports, ledger_of(status), status["destinations"]["default"]["dead_letters_discarded"]


def _evidence(
    world: World,
    reports: Sequence[Report],
    record: Record,
    taken: Mapping[int, bytes],
    ledger: Ledger,
    discarded: int,
) -> Evidence:
    happened, faults = world.happened, world.happened.faults
    letters = read_dead_letters(world.disk.path / "queue")
    return Evidence(
        bounds=BOUNDS,
        ledger=ledger,
        clients=[_handed(number, report, taken) for number, report in enumerate(reports)],
        letters=[Letter(letter.seq, identify(msgspec.to_builtins(letter.event))) for letter in letters],
        letters_discarded=discarded,
        taken_events=record.taken_events,
        unanswered=record.unanswered,
        interruptions=happened.kills.total() + happened.ends + faults[name_of(stop_and_continue)],
        disk_losses=faults[name_of(lose_the_disk)],
        checkpoints_failed=any(faults[name_of(each)] for each in (lose_the_disk, limit_the_file_size)),
        drop_reasons=frozenset(_reasons(world)),
        invented=record.invented,
        violations=record.violations,
        log_problems=[line for line in world.daemon.stderr_text().splitlines() if _PROBLEM.search(line)],
        peak_rss=happened.peak_rss,
        most_new_files=happened.most_new_files,
        last_new_files=happened.last_new_files,
    )


def _handed(number: int, report: Report, taken: Mapping[int, bytes]) -> Handed:
    durable = KINDS[number].name == "durable"
    counts = (report.sent, report.acked, report.resent, report.dropped)
    return Handed(number, durable, *counts, taken=taken.get(number, b""))


def _reasons(world: World) -> Iterator[str]:
    """Yield the reasons for drops that this disk and the faults explain."""
    if isinstance(world.disk, SmallDisk):
        yield "disk_full"
    for fault, reason in _REASONS.items():
        if world.happened.faults[name_of(fault)]:
            yield reason
