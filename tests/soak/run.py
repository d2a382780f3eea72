"""One soak: everything set up, faults until the time is over, everything healed, and the evidence for the oracle.

It knows the order. It must never know what a fault does, or what the evidence means.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.soak import oracle
from tests.soak.cast import DEFAULT, Account, Sending, account_of, clients_of
from tests.soak.clients import client
from tests.soak.destinations import Destinations
from tests.soak.disk import SIZE, Disk, SmallDisk, best_disk
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
from tests.support.accounts import flushed
from tests.support.daemon import Daemon
from tests.support.dead_letters import read_dead_letters
from tests.support.process import Child
from tests.support.senders import Report, report_of
from tests.support.skewed_agent import SKEW_FILE

# An event takes more than 80 bytes there. One file more holds what was not delivered.
BOUNDS = Bounds(MAX_EVENTS, CONCURRENCY, segment_events=SEGMENT_BYTES // 80, new_files=21, last_files=10)
# Of each destination besides DEFAULT: they may come and go with reloads.
FILES, RSS, DISK_BYTES = 10, 4 * 1024, 6 * 1024**2
OWN_DISK_BYTES = 1536 * 1024
HEAL_SECONDS = 300.0
MOST_OF_AN_ERROR = 2000  # it may have the daemon's whole log
_PROBLEM = re.compile(r"Traceback|request_failed|events_corrupt|dead_letter_lost")
_REASONS = {limit_the_file_size: "disk_full", lose_the_disk: "disk_error", freeze_the_disk: "stalled"}


@dataclass
class Soak:
    """What came of it. `problems` is empty if everything held; `evidence` is there if it got that far."""

    seconds: float
    seed: int
    destinations: int = 0
    disk: str = ""
    skipped: list[str] = field(default_factory=list)
    happened: Happened = field(default_factory=Happened)
    record: Record = field(default_factory=Record)
    evidence: Evidence | None = None
    problems: list[str] = field(default_factory=list)


Status = Mapping[str, Any]
Enough = Callable[[World], bool]


def soak(
    seconds: float,
    seed: int,
    directory: Path,
    only: Collection[str] = (),
    enough: Enough = lambda _: True,
    destinations: int = 0,
) -> Soak:
    """Do it, below a directory that must not exist yet; what broke in the middle is a problem like any other.

    `only` names the faults that there are to be, if not all. It takes longer than `seconds` until there was `enough`. There are
    so many `destinations` besides DEFAULT.
    """
    result = Soak(seconds, seed, destinations)
    directory.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            disk = stack.enter_context(best_disk(directory, SIZE + destinations * DISK_BYTES))
            _run(result, disk, directory, stack, only, enough)
    except (AssertionError, OSError, httpx.HTTPError) as error:
        result.problems += _in_words(error)
    else:
        assert result.evidence is not None
        result.problems += judge(result.evidence)
    return result


def _in_words(error: BaseException) -> Iterator[str]:
    """Say what broke, and what had before, which clearing up may have hidden."""
    yield f"{type(error).__name__}: {error}"[:MOST_OF_AN_ERROR]
    if error.__context__ is not None:
        yield from _in_words(error.__context__)


def _run(result: Soak, disk: Disk, directory: Path, stack: ExitStack, only: Collection[str], enough: Enough) -> None:
    record = directory / "record"
    record.mkdir()
    server, url = stack.enter_context(soak_server(result.seed, record))
    clients = clients_of(result.destinations)
    progress = [(directory / f"acked-{number}", each) for number, each in enumerate(clients)]
    accounts = [each.account for each in clients if each.account is not None]
    clock = Clock(directory / "skew")
    clock.set(0.0)
    daemon = Daemon(directory / "agent", url)
    daemon.module, daemon.env = "tests.support.skewed_agent", {SKEW_FILE: str(clock.path)}
    destinations = Destinations(accounts, directory / "tokens")
    world = World(daemon, url, disk, clock, random.Random(result.seed), progress, destinations, result.happened)
    result.disk, result.skipped = f"{disk.name} {disk.missing}".strip(), skipped(world)
    if only and name_of(lose_the_disk) not in only:  # which takes away what is mounted on it, too
        _give_disks_of_their_own(world, accounts, stack)
    stack.callback(daemon.kill)
    world.configure()
    world.start()
    running = [_start(stack, world, number) for number in range(len(clients))]
    end = time.monotonic() + result.seconds
    _do_faults(world, deck(world, only), lambda: time.monotonic() >= end and enough(world))
    reports, status = _heal(world, server, running)
    assert server.stop(HEAL_SECONDS) == 0, "the server failed:\n" + "".join(server.lines)
    result.record, taken = read_record(record)
    result.evidence = _evidence(world, reports, result.record, taken, status)


def _give_disks_of_their_own(world: World, accounts: Sequence[Account], stack: ExitStack) -> None:
    """Mount disks that are soon full in the place of some destinations' directories, where the machine allows it."""
    for account in accounts:
        if account.own_disk and isinstance(world.disk, SmallDisk):
            disk = SmallDisk(world.directory_of(account.name), size=OWN_DISK_BYTES)
            disk.mount()
            stack.callback(disk.unmount)
    os.sync()


def _start(stack: ExitStack, world: World, number: int) -> Child:
    (progress, sending), daemon = world.progress[number], world.daemon
    paths = [daemon.stream] if sending.kind == "durable" else [daemon.stream, daemon.datagram]
    running = client(sending.kind, *paths, number=number, window=sending.window, rate=sending.rate, progress=progress)
    return stack.enter_context(running)


def _do_faults(world: World, faults: Iterator[Fault], done: Callable[[], bool]) -> None:
    while not done():
        world.idle(0.2, 1.8)
        fault = next(faults)
        world.note(f"-- {name_of(fault)}")
        fault(world)
        world.happened.faults[name_of(fault)] += 1


def _heal(world: World, server: Child, clients: Sequence[Child]) -> tuple[list[Report], Status]:
    """Let the server be well, all destinations be there, the clients have their last acks, and the queues be emptied."""
    server.process.send_signal(signal.SIGUSR1)
    world.destinations.bring_all_back()
    world.configure()
    world.reload()
    world.control("resume")
    for each in clients:
        each.process.terminate()
    reports = [report_of(each, HEAL_SECONDS) for each in clients]
    assert flushed(world.daemon, HEAL_SECONDS), f"not flushed within {HEAL_SECONDS} s: {world.daemon.status()}"
    status = world.daemon.status()["destinations"]
    world.terminate()
    return reports, status


def _evidence(
    world: World, reports: Sequence[Report], record: Record, taken: Mapping[int, bytes], status: Status
) -> Evidence:
    happened, faults = world.happened, world.happened.faults
    clients: dict[str, list[Handed]] = {}
    for number, report in enumerate(reports):
        handed = _handed(number, world.progress[number][1], report, taken)
        clients.setdefault(account_of(number), []).append(handed)
    names = {DEFAULT: {DEFAULT}} | {account.name: ever for account, ever in world.destinations.ever.items()}
    reasons = {account.name: account.reasons for account in world.destinations.accounts}
    extra = 2 * len(world.destinations.accounts)
    return Evidence(
        bounds=replace(
            BOUNDS,
            peak_rss=BOUNDS.peak_rss + extra * RSS,
            new_files=BOUNDS.new_files + extra * FILES,
            last_files=BOUNDS.last_files + extra * FILES,
        ),
        accounts=[
            oracle.Account(
                name,
                ledgers={each: status[each]["ledger"] for each in sorted(ever)},
                clients=clients[name],
                letters=[letter for each in sorted(ever) for letter in _letters(world, each)],
                letters_discarded=sum(status[each]["dead_letters_discarded"] for each in ever),
                taken_events=record.taken_events.get(name, 0),
                unanswered=record.unanswered(name),
                drop_reasons=frozenset(_reasons(world)) | reasons.get(name, frozenset()),
            )
            for name, ever in names.items()
        ],
        interruptions=happened.kills.total() + happened.ends + faults[name_of(stop_and_continue)],
        disk_losses=faults[name_of(lose_the_disk)],
        checkpoints_failed=any(faults[name_of(each)] for each in (lose_the_disk, limit_the_file_size)),
        invented=record.invented,
        violations=record.violations,
        log_problems=[line for line in world.daemon.stderr_text().splitlines() if _PROBLEM.search(line)],
        peak_rss=happened.peak_rss,
        most_new_files=happened.most_new_files,
        last_new_files=happened.last_new_files,
    )


def _letters(world: World, destination: str) -> list[Letter]:
    queue = world.queue if destination == DEFAULT else world.directory_of(destination)
    return [
        Letter(letter.seq, identify(msgspec.to_builtins(letter.event)), destination)
        for letter in read_dead_letters(queue)
    ]


def _handed(number: int, sending: Sending, report: Report, taken: Mapping[int, bytes]) -> Handed:
    counts = (report.sent, report.acked, report.resent, report.dropped)
    return Handed(number, sending.kind == "durable", *counts, taken=taken.get(number, b""), asked=report.asked)


def _reasons(world: World) -> Iterator[str]:
    """Yield the reasons for drops that this disk and the faults explain."""
    if isinstance(world.disk, SmallDisk):
        yield "disk_full"
    for fault, reason in _REASONS.items():
        if world.happened.faults[name_of(fault)]:
            yield reason
