"""Spools of agents that are gone: delivered once by the next agent, counted to the event, and removed."""

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agent.events import Context
from agent.queue.cursor import Ledger as Counts
from agent.queue.filesystem import OsFilesystem
from agent.queue.lock import lock_queue
from agent.queue.log import Entry
from agent.queue.record import Record, encode_record
from agent.queue.store import Limits
from agent.secret import Secret
from agent.spools import identity
from agent.spools.identity import Account, add
from tests.support.accounts import Ledger, flushed, ledger, ledger_of, received
from tests.support.api_server import Answer, ApiServer, error
from tests.support.command import run_command
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.open_queue import OpenQueue
from tests.support.senders import numbered
from tests.support.waiting import eventually

DOWN = error(503, "unavailable", "Down")


def lines(session: str, count: int) -> bytes:
    return b"".join(numbered(session, index) for index in range(count))


def texts(session: str, count: int) -> Counter[str]:
    return Counter(line.strip() for line in lines(session, count).decode().splitlines())


def kill_on_spool(spools: Path, name: str, count: int, url: str) -> None:
    """Run an agent on a spool, give it events, and kill it when they are durable."""
    queue = {"directory": str(spools / name)}
    with Daemon(spools.parent / f"work-{name}", url, {"queue": queue}) as daemon, daemon.connect() as client:
        client.send(lines(name, count))
        assert client.wait_settled(count)["durable"] == count


def leave_spool(spools: Path, name: str, count: int, url: str, slug: str | None = None, token: str = TOKEN) -> Path:
    """Leave what a killed agent leaves, without the time that one takes; return the spool."""
    fs, directory = OsFilesystem(), spools / name
    lock = lock_queue(fs, directory)
    identity.identify(fs, directory, Account(url, None, slug).with_token(Secret(token)), f"id-of-{name}")
    now = time.time()
    entry = Entry(count, encode_record(Record(now, Context(), lines(name, count))))
    OpenQueue(fs, directory / identity.DESTINATION, Limits()).commit([entry], now)
    lock.release()
    return directory


def adopter(tmp_path: Path, url: str, spools: Path, name: str = "adopter", sections: Sections | None = None) -> Daemon:
    sections = sections or {}
    return Daemon(tmp_path / name, url, {**sections, "queue": {"adopt": str(spools), **sections.get("queue", {})}})


def wait(daemon: Daemon, predicate: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first status that the predicate takes; a busy machine takes its time."""
    return daemon.wait_status(predicate)


def adopted(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.status()["adopted"]
    return found


def finished(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status["adopted"]["finished"] == count and not status["adopted"]["under_way"]


def has_delivered(count: int, status: dict[str, Any]) -> bool:
    return bool(sum_of(status)["delivered"] >= count)


def over_all(daemon: Daemon) -> Ledger:
    """Return the sum of an agent's own ledger and those of the spools that it has adopted or is adopting."""
    return sum_of(daemon.status())


def sum_of(status: dict[str, Any]) -> Ledger:
    parts = [ledger_of(status), status["adopted"]["ledger"], *(e["ledger"] for e in status["adopted"]["under_way"])]
    total: Ledger = msgspec.to_builtins(add(msgspec.convert(part, Counts) for part in parts))
    return total


def test_what_killed_agents_left_is_delivered_counted_and_removed(tmp_path: Path, api_server: ApiServer) -> None:
    spools = tmp_path / "spools"
    api_server.default = DOWN
    kill_on_spool(spools, "job-0", 100, api_server.url)
    for index in range(1, 6):  # more than are open at one time
        leave_spool(spools, f"job-{index}", 100 + index, api_server.url)
    api_server.default = Answer()
    with adopter(tmp_path, api_server.url, spools) as daemon:
        daemon.send_lines(lines("own", 10))
        wait(daemon, finished(6))
        assert flushed(daemon)
        total = over_all(daemon)
        assert adopted(daemon)["ledger"] == ledger(615, delivered=615)
        assert daemon.terminate() == 0
    assert total == ledger(625, delivered=625)
    wanted = texts("own", 10)
    for index in range(6):
        wanted += texts(f"job-{index}", 100 + index)
    assert received(api_server.accepted()) == wanted
    assert list(spools.iterdir()) == []
    counted = [json.loads(line) for line in (daemon.queue / "adopted.ndjson").read_text().splitlines()]
    assert sorted(Path(line["directory"]).name for line in counted) == [f"job-{index}" for index in range(6)]

    with adopter(tmp_path, api_server.url, spools) as daemon:  # the sum survives a restart
        assert wait(daemon, finished(6))["adopted"]["ledger"] == ledger(615, delivered=615)
        screen = run_command("status", "--config", daemon.config).stdout
        assert "615 accepted = 615 delivered" in screen
        metrics = daemon.request("GET", "/metrics").text
        assert 'artifacts_agent_adopted_events_total{outcome="delivered"} 615.0' in metrics
        assert "artifacts_agent_adopted_spools_finished_total 6.0" in metrics


def test_kills_of_the_adopter_lose_nothing_and_count_nothing_twice(tmp_path: Path, api_server: ApiServer) -> None:
    spools = tmp_path / "spools"
    api_server.default = DOWN
    for index in range(4):
        leave_spool(spools, f"job-{index}", 300, api_server.url)
    api_server.default = Answer(delay=0.02)
    daemon = adopter(tmp_path, api_server.url, spools, sections={"batch": {"max_events": 20, "concurrency": 1}})
    with daemon:
        for stage in range(3):
            wait(daemon, partial(has_delivered, 300 * stage + 100))
            daemon.kill()
            daemon.start()
        wait(daemon, finished(4))
        total = over_all(daemon)
    assert total == ledger(1200, delivered=1200)
    arrived = received(api_server.accepted())
    assert arrived.keys() == {text for index in range(4) for text in texts(f"job-{index}", 300)}
    assert arrived.total() - 1200 <= 3 * 4 * 20, "more came twice than was in flight at the kills"
    assert list(spools.iterdir()) == []


def test_of_two_agents_on_one_parent_each_spool_has_one(tmp_path: Path, api_server: ApiServer) -> None:
    spools = tmp_path / "spools"
    api_server.default = DOWN
    for index in range(6):
        leave_spool(spools, f"job-{index}", 50, api_server.url)
    one, other = (adopter(tmp_path, api_server.url, spools, name) for name in ("one", "other"))
    with one:
        wait(one, lambda status: len(status["adopted"]["under_way"]) == 4)
        with other:
            wait(other, lambda status: len(status["adopted"]["under_way"]) == 2)
            api_server.default = Answer()
            wait(one, finished(4))
            wait(other, finished(2))
            assert add_up(over_all(one), over_all(other)) == ledger(300, delivered=300)
    assert received(api_server.accepted()) == sum((texts(f"job-{index}", 50) for index in range(6)), Counter())
    assert list(spools.iterdir()) == []


def add_up(one: Ledger, other: Ledger) -> Ledger:
    return {name: {} if name == "dropped" else one[name] + other[name] for name in one}


def tree(directory: Path) -> dict[str, bytes | str | None]:
    """Return what is below a directory: contents of files, targets of links."""
    found: dict[str, bytes | str | None] = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def test_what_is_not_a_spool_of_this_account_or_is_in_use_is_left_as_it_is_and_said_once(
    tmp_path: Path, api_server: ApiServer
) -> None:
    spools, elsewhere = tmp_path / "spools", tmp_path / "elsewhere"
    api_server.default = DOWN
    for name in ("good", "old", "linked", "damaged"):
        leave_spool(spools, name, 5, api_server.url)
    leave_spool(spools, "other-team", 5, api_server.url, "others")
    leave_spool(elsewhere, "outside", 5, api_server.url)
    (spools / "old" / "identity.json").unlink()
    (spools / "damaged" / "identity.json").write_bytes(b"{")
    shutil.rmtree(spools / "linked" / "default")
    (spools / "linked" / "default").symlink_to(elsewhere / "outside" / "default")
    (spools / "link").symlink_to(elsewhere / "outside")
    (spools / "foreign").mkdir()
    (spools / "foreign" / "precious").write_text("kept")
    (spools / "a-file").touch()
    (spools / "locked-link").mkdir()
    (spools / "locked-link" / "lock").symlink_to(tmp_path / "made-by-no-one")
    before = tree(spools) | tree(elsewhere)
    with (
        Daemon(tmp_path / "live", api_server.url, {"queue": {"directory": str(spools / "live")}}) as live,
        adopter(tmp_path, api_server.url, spools) as daemon,
    ):
        live.send_lines(lines("live", 3))
        wait(live, lambda status: ledger_of(status)["queued"] == 3)
        api_server.default = Answer()
        wait(daemon, finished(1))
        daemon.request("POST", "/resume")  # looks again
        left = {Path(each["directory"]).name: each["reason"] for each in adopted(daemon)["left"]}
        assert flushed(live)
        log = daemon.stderr_text()
    assert left.keys() == {"old", "linked", "damaged", "other-team", "foreign", "locked-link"}
    assert left["other-team"].startswith(f"its events are for {api_server.url}, team others, this agent's for")
    assert "no agent has made it" in left["foreign"]
    assert "default is no directory" in left["linked"]
    assert [log.count(f"{spools / name} ") for name in ("live", *left)] == [1] * 7, log
    assert received(api_server.accepted()) == texts("good", 5) + texts("live", 3)
    after = tree(spools) | tree(elsewhere)
    gone = {name for name in before if name.split("/")[0] == "good"}
    assert {name: after.get(name) for name in before if name not in gone} == {
        name: before[name] for name in before if name not in gone
    }
    assert not (spools / "good").exists()
    assert not (tmp_path / "made-by-no-one").exists()


def test_a_spool_with_dead_letters_stays_until_they_are_settled(tmp_path: Path, api_server: ApiServer) -> None:
    spools = tmp_path / "spools"
    api_server.default = DOWN
    job = leave_spool(spools, "job", 20, api_server.url)
    bad = f"{7:016x}"
    api_server.reject_hashes = {bad}
    api_server.default = Answer()
    with adopter(tmp_path, api_server.url, spools) as daemon:
        status = wait(daemon, finished(1))["adopted"]
        assert status["ledger"] == ledger(20, delivered=19, dead_lettered=1)
        daemon.request("POST", "/resume")
        left = wait(daemon, lambda status: bool(status["adopted"]["left"]))["adopted"]["left"]
        assert left == [
            {"directory": str(job), "reason": "it is delivered and counted, and stays because of 1 dead letter"}
        ]
        offline = {
            "ARTIFACTS_AGENT_QUEUE_DIRECTORY": str(job),
            "ARTIFACTS_AGENT_LISTEN_CONTROL": str(tmp_path / "no"),
        }
        shown = run_command("dead-letters", "ls", "--json", "--config", daemon.config, env=offline)
        assert json.loads(shown.stdout)["event"]["hash"] == bad
        api_server.reject_hashes = set()
        assert run_command("dead-letters", "retry", "--config", daemon.config, env=offline).returncode == 0
        daemon.request("POST", "/resume")
        wait(daemon, lambda status: status["adopted"]["ledger"]["accepted"] == 21)
        total = over_all(daemon)
        eventually(lambda: list(spools.iterdir()), lambda left: left == [])  # it is counted first
    assert total == ledger(21, delivered=20, dead_lettered=1, retried=1)
    assert received(api_server.accepted()) == texts("job", 20)


def test_a_stopped_adopter_leaves_the_rest_to_the_next_which_counts_all_of_it_once(
    tmp_path: Path, api_server: ApiServer
) -> None:
    """The first adopter is itself a spool of the same parent when it is gone: its list goes with it."""
    spools = tmp_path / "spools"
    api_server.default = DOWN
    for index in range(3):
        leave_spool(spools, f"job-{index}", 200, api_server.url)
    api_server.default = Answer(delay=0.05)
    slow: Sections = {
        "batch": {"max_events": 20, "concurrency": 1},
        "queue": {"directory": str(spools / "zz-first")},
        "shutdown": {"deadline": 0},
    }
    with adopter(tmp_path, api_server.url, spools, "first", slow) as first:
        first.send_lines(lines("first", 7))
        wait(first, partial(has_delivered, 100))
        assert first.terminate() == 0
    api_server.default = Answer()
    with adopter(tmp_path, api_server.url, spools, "second") as second:
        wait(second, finished(4))
        assert over_all(second) == ledger(607, delivered=607)
        second.kill()
        second.start()
        wait(second, finished(4))
        assert over_all(second) == ledger(607, delivered=607)
    wanted = {text for index in range(3) for text in texts(f"job-{index}", 200)} | texts("first", 7).keys()
    assert received(api_server.accepted()).keys() == wanted
    assert list(spools.iterdir()) == []


def test_a_blocked_account_holds_spools_too_and_so_does_an_operator(tmp_path: Path, api_server: ApiServer) -> None:
    spools = tmp_path / "spools"
    api_server.default = error(403, "forbidden", "Over the limit")
    leave_spool(spools, "job", 30, api_server.url)
    with adopter(tmp_path, api_server.url, spools) as daemon:
        (under_way,) = wait(
            daemon, lambda status: [each["state"] for each in status["adopted"]["under_way"]] == ["paused"]
        )["adopted"]["under_way"]
        assert "Over the limit" in under_way["reason"]
        daemon.request("POST", "/pause")
        api_server.default = Answer()
        daemon.kill()
        daemon.start()
        assert adopted(daemon)["under_way"] == []  # an operator's pause is one of spools, too
        daemon.request("POST", "/resume")
        wait(daemon, finished(1))
    assert received(api_server.accepted()) == texts("job", 30)


def test_after_a_reload_for_another_account_spools_are_left_to_an_agent_of_theirs(
    tmp_path: Path, api_server: ApiServer
) -> None:
    spools = tmp_path / "spools"
    api_server.default = DOWN
    leave_spool(spools, "job", 30, api_server.url)
    daemon = adopter(tmp_path, api_server.url, spools)
    with daemon, ApiServer() as elsewhere:
        wait(daemon, lambda status: len(status["adopted"]["under_way"]) == 1)
        daemon.configure(elsewhere.url, {"queue": {"adopt": str(spools)}})
        daemon.signal(signal.SIGHUP)
        status = wait(daemon, lambda status: bool(status["adopted"]["left"]))["adopted"]
        assert status["under_way"] == []
        assert elsewhere.accepted() == []
        api_server.default = Answer()
        daemon.configure(api_server.url, {"queue": {"adopt": str(spools)}})
        daemon.signal(signal.SIGHUP)
        wait(daemon, finished(1))
    assert received(api_server.accepted()) == texts("job", 30)


def test_a_report_counts_what_was_adopted_once_and_what_its_adopter_has_sent_itself(
    tmp_path: Path, api_server: ApiServer
) -> None:
    spools = tmp_path / "spools"
    leave_spool(spools, "one", 30, api_server.url)
    with adopter(tmp_path, api_server.url, spools) as daemon:
        wait(daemon, finished(1))
        leave_spool(spools, "two", 20, api_server.url)
        wait(daemon, finished(1))
        with daemon.connect() as client:
            client.send(lines("own", 10))
            client.wait_settled(10)
        daemon.request("POST", "/resume")  # it looks at once
        wait(daemon, finished(2))
        for _ in range(2):
            found = json.loads(run_command("report", "--config", str(daemon.config), "--format", "json").stdout)
            assert found["events"] == 60
            assert (found["unknown"]["adopted"], found["unknown"]["handed_over"]) == (0, 50)


WEB_TOKEN = "token-of-web"


def with_web(daemon: Daemon, web: ApiServer) -> Daemon:
    """Give an agent's configuration a further destination, with a token of its own."""
    web.token = WEB_TOKEN
    token = daemon.directory / "web-token"
    token.write_text(WEB_TOKEN)
    rules = '[[rules]]\nasks_for = "web"\ndestination = "web"\n'
    text = f'\n[destinations.web]\nurl = "{web.url}"\ntoken_file = "{token}"\n{rules}'
    daemon.config.write_text(daemon.config.read_text() + text)
    return daemon


def test_a_spool_of_several_destinations_goes_to_each_and_one_that_is_blocked_holds_up_no_other(
    tmp_path: Path, api_server: ApiServer
) -> None:
    spools = tmp_path / "spools"
    with ApiServer() as web:
        api_server.default = web.default = DOWN
        sections: Sections = {"queue": {"directory": str(spools / "a-job")}}
        with with_web(Daemon(tmp_path / "work", api_server.url, sections), web) as killed:
            for destination, count in (("default", 20), ("web", 30)):
                with killed.connect({"destination": destination}) as client:
                    client.send(lines(destination, count))
                    assert client.wait_settled(count)["durable"] == count
        inner = spools / "a-job" / "destinations" / "web"
        for index in range(5):
            leave_spool(spools, f"job-{index}", 10, api_server.url)
            leave_spool(spools, f"web-{index}", 10, web.url, token=WEB_TOKEN)
        api_server.default, web.default = Answer(), Answer(402)
        with with_web(adopter(tmp_path, api_server.url, spools), web) as daemon:
            wait(daemon, lambda status: status["adopted"]["finished"] == 6)
            status = wait(daemon, lambda status: len(status["adopted"]["under_way"]) == 4)["adopted"]
            assert {each["state"] for each in status["under_way"]} <= {"running", "paused"}
            assert status["ledger"] == ledger(70, delivered=70)
            assert web.accepted() == []
            assert sorted(path.name for path in spools.iterdir()) == ["a-job", *(f"web-{each}" for each in range(5))]
            assert inner.is_dir()
            web.default = Answer()
            resume = run_command("resume", "--destination", "web", "--config", daemon.config)
            assert resume.returncode == 0, resume.stderr
            wait(daemon, finished(12))
            assert over_all(daemon) == ledger(150, delivered=150)
        assert received(api_server.accepted()) == texts("default", 20) + Counter(
            text for index in range(5) for text in texts(f"job-{index}", 10)
        )
        wanted = texts("web", 30) + Counter(text for index in range(5) for text in texts(f"web-{index}", 10))
        assert received(web.accepted()) == wanted
        assert not web.violations
    assert list(spools.iterdir()) == []


def test_what_is_for_a_destination_that_is_paused_is_not_opened_while_others_are(
    tmp_path: Path, api_server: ApiServer
) -> None:
    spools = tmp_path / "spools"
    with ApiServer() as web, with_web(adopter(tmp_path, api_server.url, spools), web) as daemon:
        assert run_command("pause", "--destination", "web", "--config", daemon.config).returncode == 0
        for name, url, token in (("one", api_server.url, TOKEN), ("two", web.url, WEB_TOKEN)):
            leave_spool(spools, name, 10, url, token=token)
        daemon.request("POST", "/resume?destination=default")  # looks again
        assert wait(daemon, finished(1))["adopted"]["left"] == []
        assert [path.name for path in spools.iterdir()] == ["two"]
        daemon.request("POST", "/resume?destination=web")
        wait(daemon, finished(2))
        assert received(web.accepted()) == texts("two", 10)
    assert list(spools.iterdir()) == []


def test_without_a_team_a_spool_is_only_delivered_with_the_token_that_its_events_were_taken_with(
    tmp_path: Path, api_server: ApiServer
) -> None:
    spools = tmp_path / "spools"
    for name, token in (("ours", TOKEN), ("others", "token-of-another-account")):
        leave_spool(spools, name, 10, api_server.url, token=token)
    with adopter(tmp_path, api_server.url, spools) as daemon:
        status = wait(daemon, finished(1))
        ((left, reason),) = [(each["directory"], each["reason"]) for each in status["adopted"]["left"]]
        assert left == str(spools / "others")
        assert "another token" in reason
        assert "token-of-another-account" not in (spools / "others" / "identity.json").read_text()
    assert received(api_server.accepted()) == texts("ours", 10)
