"""The adopter dies before and after every call that it makes to the disk: each spool is delivered and counted exactly once.

One life adopts a spool with queued events, with another destination's inside of it, one that was adopting another agent's, and
one with a dead letter. It is run once to know its calls; then once for each call that changes something (every second one, unless
nightly), up to there: the process dies before or after it, as by a kill or a power cut. The next life goes on, of the same agent
or of another one. What the lists say then, and what the API has, is the account.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.delivery.opening import DeliveryConfig
from agent.events import Context, decode_events, encode_events
from agent.queue.cursor import Ledger
from agent.queue.lock import LOCK
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.store import Limits
from agent.rules import DEFAULT
from agent.spools import identity
from agent.spools.adoption import Adoption, AdoptionPolicy, AdoptionReport
from agent.spools.identity import Account, Adopted, AdoptedList, add, read_adopted
from agent.usage.reading import KeptEvents
from tests.support import profiles, virtual_time
from tests.support.crash_model import Chooser, KeepAll, LoseAll, RandomChooser
from tests.support.fake_transport import FakeTransport, reject
from tests.support.fault_filesystem import MUTATING, Call, Crash, FaultFilesystem, When
from tests.support.fault_runs import CODES, UNFAILING
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import EPOCH, Host, events, host, numbered

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quiet")]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """One backend, with a clock that jumps."""
    return virtual_time.backend("asyncio")


PARENT, HOME, OTHER = Path("/spools"), Path("/queue"), Path("/other")
ACCOUNT, WEBS = Account("https://api"), Account("https://api", slug="web")
STEP = 1 if profiles.is_nightly() else 2
LIMITS = Limits(segment_bytes=600, history_bytes=1 << 20)
PLAIN, HEIR, REFUSED = (PARENT / name for name in ("1-plain", "2-heir", "3-refused"))
INNER = PLAIN / identity.DESTINATIONS / "web"
NAMES = {PLAIN: numbered(9, "p"), INNER: numbered(6, "i"), HEIR: numbered(5, "h"), REFUSED: numbered(4, "r")}
EARLIER = Adopted("id-of-an-earlier-spool", "/spools/0", Ledger(7, 7, 0, {}, 0))
TOTAL = Ledger(31, 30, 1, {}, 0)
DELIVERED = {name for names in NAMES.values() for name in names} - {"r2"}
# What reports can count: the spool that stays keeps its last segment, which is its only one.
REPORTED = sorted(NAMES[PLAIN] + NAMES[INNER] + NAMES[HEIR])


def leave(fs: FaultFilesystem, directory: Path) -> None:
    """Leave a spool as a killed agent does."""
    fs.write_bytes(directory / LOCK, b"")
    identity.identify(fs, directory, WEBS if directory == INNER else ACCOUNT, f"id-of-{directory.name}")
    queue = OpenQueue(fs, directory / identity.DESTINATION, LIMITS)
    names = NAMES[directory]
    for start in range(0, len(names), 3):
        some = events(*names[start : start + 3])
        entry = Entry(len(some), encode_record(Record(EPOCH, Context(), encode_events(some))))
        queue.commit([entry], EPOCH)


def disk() -> FaultFilesystem:
    fs = FaultFilesystem()
    for directory in NAMES:
        leave(fs, directory)
    AdoptedList(fs, HEIR).record({EARLIER.id: EARLIER})
    for home in (HOME, OTHER):
        fs.make_directory(home)
        identity.identify(fs, home, ACCOUNT, f"id-of{home}")
    fs.crash(KeepAll())
    return fs


class Lives:
    """One adopter after another, each on the disk that the one before has left."""

    def __init__(self, owner: Host, fs: FaultFilesystem) -> None:
        self.fs = fs
        self.transports: list[FakeTransport] = []
        self._owner = owner
        self._pipeline = owner.pipeline

    async def live(self, home: Path = HOME) -> AdoptionReport:
        """Adopt until nothing is left to do."""

        def delivery() -> DeliveryConfig:
            self.transports.append(FakeTransport(reject("r2")))
            self._owner.transport = self.transports[-1]
            return self._owner.delivery

        policies = {account: AdoptionPolicy(DEFAULT, delivery, max_open=1) for account in (ACCOUNT, WEBS)}
        owners = {DEFAULT: self._pipeline}
        adoption = Adoption(self.fs, PARENT, home, LIMITS, policies, self._owner.runtime, owners)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(adoption.run)
            await anyio.sleep(120)
            adoption.stop(0)
        return adoption.report()

    @property
    def taken(self) -> list[str]:
        return [name for each in self.transports for name in each.taken]


async def die_at(lives: Lives, index: int, when: When, chooser: Chooser | None) -> bool:
    """Live up to that call, and die; tell whether it was made."""
    lives.fs.crash_at(index, when)
    died = False
    try:
        await lives.live()
    except* Crash:
        died = True
    if chooser is None:
        lives.fs.kill()
    else:
        lives.fs.crash(chooser)
    return died


def ways(place: int) -> tuple[When, Chooser | None]:
    """Return how the adopter dies at a call, in turn."""
    every: list[tuple[When, Chooser | None]] = [
        ("before", None),
        ("after", LoseAll()),
        ("after", RandomChooser(place)),
        ("before", RandomChooser(place)),
    ]
    return every[place % len(every)]


async def calls(owner: Host) -> list[Call]:
    lives = Lives(owner, disk())
    before = lives.fs.calls
    assert (await lives.live()).ledger == TOTAL
    assert sorted(lives.taken) == sorted(DELIVERED)
    return [call for call in lives.fs.log if call.index >= before and call.operation in MUTATING]


def left_of(fs: FaultFilesystem) -> set[Path]:
    """Return the spools of which files are there."""
    return {PARENT / path.relative_to(PARENT).parts[0] for path in fs.paths() if PARENT in path.parents}


def reported(fs: FaultFilesystem, *homes: Path) -> list[str]:
    """Return the hashes in the histories of these agents, as often as they are there."""
    found: list[str] = []
    for home in homes:
        for piece in KeptEvents.read(fs, home / identity.DESTINATION).pieces({}):
            assert (piece.lost, piece.problem) == (0, None)
            found += [event.hash for record in piece.records for event in decode_events(record.lines)]
    return sorted(found)


async def test_wherever_the_adopter_dies_it_goes_on_later_and_counts_each_spool_once(report: list[str]) -> None:
    async with host() as owner:
        owner.open()
        points = await calls(owner)
        for place, call in enumerate(points[::STEP]):
            lives = Lives(owner, disk())
            assert await die_at(lives, call.index, *ways(place)), call
            found = await lives.live()
            assert (found.ledger, found.under_way) == (TOTAL, ()), call
            assert [path for path, _ in found.left] == [REFUSED], (call, found.left)
            assert set(lives.taken) == DELIVERED, call
            assert left_of(lives.fs) == {REFUSED}, call
            assert reported(lives.fs, HOME) == REPORTED, call
    report.append(f"{'adoption':26} {len(points):4} calls that change something, a death at each {STEP}.")
    assert len(points) > 80


async def test_wherever_the_adopter_dies_another_agent_delivers_the_rest_and_both_count_each_spool_once() -> None:
    """What the first has marked is its own to count, and it does when it is back."""
    async with host() as owner:
        owner.open()
        waited = 0
        for place, call in enumerate((await calls(owner))[::STEP]):
            lives = Lives(owner, disk())
            assert await die_at(lives, call.index, *ways(place)), call
            await lives.live(OTHER)
            assert set(lives.taken) == DELIVERED, call
            waited += left_of(lives.fs) != {REFUSED}
            await lives.live()
            lists = [read_adopted(lives.fs, home) for home in (HOME, OTHER)]
            assert lists[0].keys().isdisjoint(lists[1]), call
            assert add(line.ledger for each in lists for line in each.values()) == TOTAL, call
            assert left_of(lives.fs) == {REFUSED}, call
            assert reported(lives.fs, HOME, OTHER) == REPORTED, call
        assert waited > 3


async def test_whatever_fails_once_every_spool_is_delivered_and_counted_once() -> None:
    async with host() as owner:
        owner.open()
        lives = Lives(owner, disk())
        first = lives.fs.calls
        await lives.live()
        last, struck = lives.fs.calls, 0
        for index in range(first, last, 4 * STEP):
            lives = Lives(owner, disk())
            operation = call_at(lives.fs, index, CODES[index % len(CODES)])
            found = await lives.live()
            if operation() in UNFAILING:
                continue
            struck += 1
            assert (found.ledger, found.under_way) == (TOTAL, ()), lives.fs.log[index]
            assert set(lives.taken) == DELIVERED, lives.fs.log[index]
            assert left_of(lives.fs) == {REFUSED}, lives.fs.log[index]
    assert struck > 40


def call_at(fs: FaultFilesystem, index: int, code: int) -> Callable[[], str]:
    """Let that call fail, if it is one that can; return what tells which it was."""

    def rule(operation: str, path: Path) -> OSError | None:
        fails = fs.calls - 1 == index and operation not in UNFAILING
        return OSError(code, os.strerror(code), str(path)) if fails else None

    fs.errors = rule
    return lambda: fs.log[index].operation
