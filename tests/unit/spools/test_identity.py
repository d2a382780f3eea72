"""A spool's files: what is read of them is bounded, and the list of adopted spools neither grows for ever nor loses one."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.queue.cursor import Ledger
from agent.queue.filesystem import OsFilesystem
from agent.spools import identity as spool
from agent.spools.identity import MAX_LINES, Account, Adopted, AdoptedList, Settled, add, read_adopted

FS = OsFilesystem()
ACCOUNT = Account("https://api.example")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The agent's own spool, beside those that it adopts."""
    return made(tmp_path / "spools", "home")


def made(parent: Path, name: str) -> Path:
    directory = parent / name
    directory.mkdir(parents=True)
    spool.identify(FS, directory, ACCOUNT, name)
    return directory


def ledger(count: int) -> Ledger:
    return Ledger(count, count, 0, {}, 0)


def adopted(home: Path, name: str, count: int = 1) -> dict[str, Adopted]:
    return {name: Adopted(name, str(home.parent / name), ledger(count))}


def many(home: Path, count: int, prefix: str = "s") -> dict[str, Adopted]:
    return {name: line for number in range(count) for name, line in adopted(home, f"{prefix}{number}").items()}


def total(lines: AdoptedList) -> tuple[int, int]:
    """How many spools a list is of, and how many events they had accepted."""
    found = lines.lines.values()
    return sum(line.spools for line in found), add(line.ledger for line in found).accepted


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("identity.json", spool.read_identity),
        ("settled.json", spool.read_settled),
        ("adopted.ndjson", spool.read_adopted),
    ],
)
def test_a_giant_file_in_a_spool_is_refused_and_not_read(
    home: Path, name: str, read: Callable[[OsFilesystem, Path], object]
) -> None:
    (home / name).touch()
    os.truncate(home / name, 1 << 30)
    tracemalloc.start()
    with pytest.raises(StorageError, match=rf"{name}: is longer than [\d,]+ bytes: no agent has written it"):
        read(FS, home)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_list_of_adopted_spools_stays_short_and_counts_every_one(home: Path) -> None:
    found = AdoptedList(FS, home)
    found.record(many(home, MAX_LINES))
    assert len(found.lines) == MAX_LINES
    for number in range(3):
        found.record(many(home, MAX_LINES // 2 + 10, f"more{number}-"))
        assert len(found.lines) <= MAX_LINES
    spools = MAX_LINES + 3 * (MAX_LINES // 2 + 10)
    assert total(found) == (spools, spools)
    assert total(AdoptedList(FS, home)) == (spools, spools)


def test_what_a_spool_that_is_still_there_may_be_counted_by_is_not_folded(home: Path) -> None:
    """One that stays, with what it had adopted; one that was moved; one whose counting is left to an adopted agent."""
    stays = made(home.parent, "stays")
    AdoptedList(FS, stays).record(adopted(home, "of-stays"))
    spool.settle(FS, made(home.parent, "moved"), Settled("moved", "gone", ledger(1)))
    found = AdoptedList(FS, home)
    found.record(
        {name: line for each in ("stays", "of-stays", "moved", "gone") for name, line in adopted(home, each).items()}
    )
    found.record(many(home, MAX_LINES))
    assert len(found.lines) < MAX_LINES
    assert {"stays", "of-stays", "moved", "gone"} <= found.lines.keys()
    before = total(found)
    found.record({**read_adopted(FS, stays), **adopted(home, "stays")})
    assert total(found) == before


def test_an_agent_that_has_been_adopted_itself_folds_nothing_of_what_its_heir_has_line_by_line(home: Path) -> None:
    spool.settle(FS, home, Settled("home", "heir", ledger(1)))
    found = AdoptedList(FS, home)
    found.record(many(home, MAX_LINES + 1))
    assert len(found.lines) == MAX_LINES + 1


def test_an_heir_counts_a_folded_list_once(home: Path, tmp_path: Path) -> None:
    found = AdoptedList(FS, home)
    found.record(many(home, MAX_LINES + 1))
    heir = AdoptedList(FS, made(tmp_path / "elsewhere", "heir"))
    for _ in range(2):
        heir.record(read_adopted(FS, home))
        assert total(heir) == (MAX_LINES + 1, MAX_LINES + 1)


def inside(home: Path, name: str) -> Path:
    """Make a spool beside the agent's own with a further destination in it; return that one's directory."""
    return made(made(home.parent, name) / spool.DESTINATIONS, "web")


def test_further_destinations_of_a_spool_are_found_but_not_through_links(home: Path) -> None:
    inner = inside(home, "job")
    (home.parent / "link").symlink_to(inner.parents[1])
    (made(home.parent, "linked") / spool.DESTINATIONS).symlink_to(inner.parent)
    (home.parent / "file").touch()
    names = ["file", "home", "job", "job/destinations/web", "link", "linked"]
    assert spool.spools_in(FS, home.parent) == [home.parent / name for name in names]
    assert spool.linked(FS, home.parent, home.parent / "linked") == home.parent / "linked" / spool.DESTINATIONS


def test_a_spool_stays_until_no_further_destination_is_left_in_it(home: Path) -> None:
    inner = inside(home, "job")
    outer = inner.parents[1]
    spool.settle(FS, outer, Settled("job", "home", ledger(0)))
    assert spool.kept_in(FS, outer) == "destinations/web"
    spool.settle(FS, inner, Settled("web", "home", ledger(0)))
    assert spool.kept_in(FS, inner) is None
    spool.remove(FS, inner)
    assert spool.kept_in(FS, outer) is None
    spool.remove(FS, outer)
    assert spool.spools_in(FS, home.parent) == [home]


def test_what_a_further_destination_that_is_still_there_may_be_counted_by_is_not_folded(home: Path) -> None:
    inner = inside(home, "job")
    spool.settle(FS, inner, Settled("web", "s1", ledger(1)))
    assert spool.waiting_for(FS, home) is None
    found = AdoptedList(FS, home)
    found.record({**many(home, MAX_LINES + 1), "web": Adopted("web", str(inner), ledger(1))})
    assert len(found.lines) < MAX_LINES
    assert {"s1", "web"} <= found.lines.keys()
    assert "s2" not in found.lines
    spool.settle(FS, inner, Settled("web", "home", ledger(1)))
    assert spool.waiting_for(FS, home) == inner
