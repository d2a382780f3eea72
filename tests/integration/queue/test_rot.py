"""Damage anywhere in a queue directory, with the real daemon: it starts, loses at most what was touched, and says so."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.queue.record import MARKER
from tests.support import profiles, rot
from tests.support.accounts import flushed, holds, ledger, ledger_of
from tests.support.api_server import ApiServer
from tests.support.daemon import Daemon, Sections
from tests.support.dead_letters import read_dead_letters
from tests.support.edge import line
from tests.support.json_log import logged, wait_logged
from tests.support.rot import Place, Rot

SECTIONS: Sections = {"queue": {"segment_bytes": "64KiB", "min_free_bytes": 0}, "log": {"format": "json"}}
RECORDS, EVENTS, PADDING = 140, 3, 1200
BAD = "bad-1"
MORE_SEEDS = range(3, 40 if profiles.is_nightly() else 3)


class Example(NamedTuple):
    """A queue that a daemon left: what was delivered or dead-lettered before, and what waits."""

    queue: Path
    settled: set[str]
    waiting: set[str]


def record_of(number: int) -> bytes:
    """Return the lines of one record."""
    return b"".join(line(f"r{number}-{index}", PADDING) for index in range(EVENTS))


def built(directory: Path, *, killed: bool) -> Example:
    """Let a daemon deliver two records, keep a dead letter, and then fill some segments while it is paused."""
    with ApiServer() as api, Daemon(directory, api.url, SECTIONS) as daemon:
        api.reject_hashes = {BAD}
        with daemon.connect() as client:
            client.send(record_of(0) + line(BAD) + record_of(1))
            client.wait_settled(2 * EVENTS + 1)
            assert flushed(daemon)
            daemon.request("POST", "/pause")
            for number in range(2, RECORDS):
                client.send(record_of(number))
                client.wait_settled(number * EVENTS + EVENTS + 1)
        if killed:
            daemon.kill()
        else:
            assert daemon.terminate() == 0
        assert api.violations == []
        settled = {event["hash"] for event in api.accepted_events()} | {BAD}
    everything = {f"r{number}-{index}" for number in range(RECORDS) for index in range(EVENTS)}
    return Example(daemon.queue, settled, everything - settled)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A queue whose daemon was stopped in good order."""
    return built(tmp_path_factory.mktemp("stopped"), killed=False)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A queue whose daemon was killed."""
    return built(tmp_path_factory.mktemp("killed"), killed=True)


@contextmanager
def restarted(tmp_path: Path, rotten: Rot, api: ApiServer) -> Iterator[Daemon]:
    """Start a daemon on a damaged queue, let it deliver everything it has and then one event more, and stop it."""
    sections = {**SECTIONS, "queue": {**SECTIONS["queue"], "directory": str(rotten.queue)}}
    daemon = Daemon(tmp_path / "agent", api.url, sections)
    with daemon:
        daemon.request("POST", "/resume")
        assert flushed(daemon), daemon.stderr_text()
        with daemon.connect() as client:
            client.send(line("new"))
            client.wait_settled(1)
        assert flushed(daemon)
        yield daemon
        assert daemon.terminate() == 0
    assert not [each for each in logged(daemon) if "exception" in each], daemon.stderr_text()


def hashes(places: set[Place]) -> set[str]:
    """Return the hashes of the events of these records."""
    return {each for place in places for each in place.hashes}


def check(daemon: Daemon, rotten: Rot, example: Example, api: ApiServer) -> dict[str, Any]:
    """Everything that was not touched has arrived once; the rest is counted, and the log says so. Returns the status."""
    arrived = [event["hash"] for event in api.accepted_events()]
    assert len({*arrived}) == len(arrived)
    missing = example.waiting - {*arrived}
    assert {*arrived} - {"new"} == example.waiting - missing
    assert missing <= hashes(rotten.touched)
    status = daemon.status()
    found = ledger_of(status)
    assert holds(found)
    assert found["queued"] == 0
    assert found["accepted"] == len(example.settled | example.waiting) + 1
    assert found["dropped"] == ({"corrupt": len(missing)} if missing else {})
    if missing:
        assert 0 < sum(each["events"] for each in wait_logged(daemon, "events_corrupt")) <= len(missing)
    assert status["destinations"]["default"]["storage_error"] is None
    assert daemon.request("GET", "/healthz").status_code == 200
    return status


def kept(rotten: Rot) -> list[bytes]:
    """Return what is in quarantine."""
    return [path.read_bytes() for path in (rotten.queue / "default" / "quarantine").glob("*.bin")]


@pytest.mark.parametrize(("name", "seed"), [("stopped", 1), ("killed", 2), *(("killed", seed) for seed in MORE_SEEDS)])
def test_changed_bytes_cost_their_records_which_are_kept_in_quarantine(
    request: pytest.FixtureRequest, tmp_path: Path, api_server: ApiServer, name: str, seed: int
) -> None:
    example: Example = request.getfixturevalue(name)
    rotten, chance = rot.copied(example.queue, tmp_path / "queue"), random.Random(seed)
    places = [place for place in rotten.places() if example.waiting.issuperset(place.hashes)]
    assert len({place.segment for place in places}) >= 4
    chosen = rot.far_apart(places, 12, chance)
    for place in {*chosen, places[-1]} - {places[-2]}:  # the last one of all has no frame after it
        rotten.change(place, chance)
    with restarted(tmp_path, rotten, api_server) as daemon:
        status = check(daemon, rotten, example, api_server)
        assert ledger_of(status)["dropped"] == {"corrupt": len(hashes(rotten.touched))}
        assert status["destinations"]["default"]["queue"]["quarantined"] >= len(rotten.touched) - 1
        assert all(any(damaged in data for data in kept(rotten)) for damaged in rotten.damaged)


def test_whatever_becomes_of_files_costs_no_record_of_another(
    tmp_path: Path, api_server: ApiServer, killed: Example
) -> None:
    rotten = rot.copied(killed.queue, tmp_path / "queue")
    names = sorted({place.segment for place in rotten.places()})
    assert len(names) >= 8
    rotten.truncate([place for place in rotten.places() if place.segment == names[1]][8], 100)
    rotten.append(names[2], random.Random(1).randbytes(3000))
    for name, put in zip(names[3:-1], [rot.directory, rot.link, rot.unix_socket, os.mkfifo], strict=False):
        rotten.replace(name, put)
    rotten.append(names[-1], MARKER * 100)
    for each in ("", "default", "default/segments", "default/dead-letters", "default/quarantine"):
        (rotten.queue / each).mkdir(exist_ok=True)
        rot.foreign(rotten.queue / each)
    (rotten.queue / "lock").write_bytes(b"4711\n" * 1000)
    (rotten.segments / names[2]).chmod(0o444)
    rotten.segments.chmod(0o755)
    before = Path("/etc/passwd").read_bytes()
    with restarted(tmp_path, rotten, api_server) as daemon:
        status = check(daemon, rotten, killed, api_server)
        assert ledger_of(status)["dropped"] == {"corrupt": len(hashes(rotten.touched))}
        assert any(rotten.damaged[0] in data for data in kept(rotten))
        assert status["destinations"]["default"]["queue"]["quarantine_lost"] == 0
        assert len([*rotten.segments.glob("*.unreadable")]) == 4
        assert len([*rotten.segments.glob("0*.seg")]) == 1
    assert Path("/etc/passwd").read_bytes() == before


@pytest.mark.parametrize("put", [rot.gone, *([rot.directory, rot.zeros, rot.junk] if MORE_SEEDS else [])])
def test_whatever_stands_in_the_place_of_the_first_and_the_last_segment_costs_these(
    tmp_path: Path, api_server: ApiServer, stopped: Example, put: Callable[[Path], None]
) -> None:
    rotten = rot.copied(stopped.queue, tmp_path / "queue")
    names = sorted({place.segment for place in rotten.places()})
    rotten.replace(names[0], put)
    rotten.replace(names[-1], put)
    with restarted(tmp_path, rotten, api_server) as daemon:
        check(daemon, rotten, stopped, api_server)


@pytest.mark.parametrize("put", [rot.directory, rot.junk, *([rot.gone, rot.link, os.mkfifo] if MORE_SEEDS else [])])
def test_a_lost_cursor_repeats_what_was_delivered_and_loses_nothing(
    tmp_path: Path, api_server: ApiServer, killed: Example, put: Callable[[Path], None]
) -> None:
    rotten = rot.copied(killed.queue, tmp_path / "queue")
    cursor = rotten.queue / "default" / "cursor"
    cursor.unlink()
    put(cursor)
    with restarted(tmp_path, rotten, api_server) as daemon:
        arrived = {event["hash"] for event in api_server.accepted_events()}
        assert killed.waiting | {"new"} <= arrived <= killed.waiting | killed.settled | {"new"}
        found = ledger_of(daemon.status())
        assert holds(found)
        assert (found["queued"], found["dropped"], found["delivered"]) == (0, {}, len(arrived))


def test_neither_rotten_dead_letters_nor_a_quarantine_in_the_way_hold_anything_up(
    tmp_path: Path, api_server: ApiServer, stopped: Example
) -> None:
    rotten = rot.copied(stopped.queue, tmp_path / "queue")
    rotten.change(rotten.places()[20], random.Random(1))
    rot.junk(rotten.queue / "default" / "quarantine")
    [letters] = (rotten.queue / "default" / "dead-letters").glob("*.seg")
    letters.write_bytes(letters.read_bytes()[:-5])
    api_server.reject_hashes = {"r7-1"}
    with restarted(tmp_path, rotten, api_server) as daemon:
        status = daemon.status()
        found = ledger_of(status)
        assert (holds(found), found["dead_lettered"], found["dropped"]) == (True, 2, {"corrupt": EVENTS})
        assert status["destinations"]["default"]["queue"]["quarantine_lost"] == 1
    assert [letter.event.hash for letter in read_dead_letters(rotten.queue)] == ["r7-1"]


@pytest.mark.parametrize("name", ["lock", "default/segments"])
def test_what_leaves_no_place_for_a_queue_is_named_in_one_line(tmp_path: Path, stopped: Example, name: str) -> None:
    rotten = rot.copied(stopped.queue, tmp_path / "queue")
    place = rotten.queue / name
    place.rename(tmp_path / "away")
    (rot.directory if name == "lock" else rot.junk)(place)
    url = json.loads((rotten.queue / "identity.json").read_text())["account"]["url"]  # another one is a line of its own
    daemon = Daemon(tmp_path / "agent", url, {"queue": {"directory": str(rotten.queue)}})
    with pytest.raises(AssertionError, match="not ready"):
        daemon.start()
    [said] = daemon.stderr_text().splitlines()
    assert said.startswith(f"artifacts-agent: {place}: ")


@pytest.mark.parametrize("deleted", ["segments", "."])
def test_what_is_deleted_under_a_running_daemon_costs_what_was_in_it_and_nothing_that_comes_after(
    tmp_path: Path, api_server: ApiServer, deleted: str
) -> None:
    """Somebody's cleaner: what is acknowledged after it is in files that have names, and survives a kill."""
    with Daemon(tmp_path / "agent", api_server.url, SECTIONS) as daemon:
        daemon.request("POST", "/pause")
        with daemon.connect() as client:
            client.send(record_of(0))
            client.wait_settled(EVENTS)
            shutil.rmtree(daemon.queue / "default" / deleted)
            client.send(record_of(1))
            client.wait_settled(2 * EVENTS)
        daemon.kill()
        daemon.start()
        daemon.request("POST", "/resume")
        assert flushed(daemon)
        assert ledger_of(daemon.status()) == ledger(2 * EVENTS, delivered=EVENTS) | {"dropped": {"corrupt": EVENTS}}
    assert [event["hash"] for event in api_server.accepted_events()] == [f"r1-{index}" for index in range(EVENTS)]
