"""Of a queue's numbers each stands for one event alone, as far as a fleet knows them."""

from pathlib import Path

from agent.queue.cursor import Ledger
from agent.spools.identity import Account, Numbering, identify, read_identity
from agent.spools.numbering import ledger_since, numbering_of, place
from tests.support.fault_filesystem import FaultFilesystem

HOME = Path("/spool")
LEDGER = Ledger(10, 3, 1, {"expired": 2}, 4, 1, 0)
EMPTY = Ledger(0, 0, 0, {}, 0)


def spool() -> FaultFilesystem:
    fs = FaultFilesystem()
    fs.make_directory(HOME)
    identify(fs, HOME, Account("nats://a/web/ci"), "own")
    return fs


def test_an_id_stays_with_the_queue_on_the_same_boot() -> None:
    fs = spool()
    first = numbering_of(fs, HOME, "boot host", LEDGER, "n1", is_new=True)
    assert first == Numbering("n1", "boot host", LEDGER)
    identify(fs, HOME, Account("https://api.example"), "other")  # forwarding was off in between
    assert numbering_of(fs, HOME, "boot host", EMPTY, "n2", is_new=False) == first
    found = read_identity(fs, HOME)
    assert found is not None
    assert (found.id, found.numbering) == ("own", first)


def test_a_clone_another_boot_and_a_lost_cursor_have_another_id() -> None:
    fs = spool()
    numbering_of(fs, HOME, "boot host", EMPTY, "n1", is_new=True)
    for place_now, is_new, new_id in (
        ("boot clone", False, "n2"),
        ("boot-2 clone", False, "n3"),
        ("boot-2 clone", True, "n4"),
    ):
        assert numbering_of(fs, HOME, place_now, LEDGER, new_id, is_new=is_new) == Numbering(new_id, place_now, LEDGER)


def test_where_it_cannot_be_written_the_id_is_of_this_process_alone() -> None:
    fs = FaultFilesystem()
    fs.make_directory(HOME)
    assert numbering_of(fs, HOME, "boot host", EMPTY, "n1", is_new=False).id == "n1"
    assert numbering_of(fs, HOME, "boot host", EMPTY, "n2", is_new=False).id == "n2"


def test_this_place_is_the_same_twice() -> None:
    assert place() == place()
    assert len(place().split(" ")) == 2


def test_where_the_boot_is_hidden_each_start_has_another_id(tmp_path: Path) -> None:
    hidden, fs = place(tmp_path / "boot_id"), spool()
    assert numbering_of(fs, HOME, hidden, EMPTY, "n1", is_new=False).id == "n1"
    assert numbering_of(fs, HOME, hidden, EMPTY, "n2", is_new=False).id == "n2"


def test_a_ledger_since_then_adds_up() -> None:
    now = Ledger(15, 3, 2, {"expired": 2, "purged": 1}, 2, 2, 5)
    since = ledger_since(now, LEDGER)
    assert since == Ledger(9, 0, 1, {"purged": 1}, 2, 1, 5)
    assert since.accepted == since.delivered + since.forwarded + since.dead_lettered + 1 + since.queued
