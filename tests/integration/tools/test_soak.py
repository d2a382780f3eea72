"""A short soak with every default run; the long one is `python -m tests.soak --seconds 1200`. And the parts that it leans on."""

import datetime as dt
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.soak.__main__ import report
from tests.soak.cast import ACCOUNTS, CLIENTS, token_of
from tests.soak.disk import LoopDisk, SmallDisk, best_disk
from tests.soak.events import POISON_EVERY, Id, ci_of, fields, line
from tests.soak.run import soak
from tests.soak.server import read_record, soak_server
from tests.soak.summary import rows, table
from tests.soak.world import Clock
from tests.support.api_server import ApiServer
from tests.support.capture import EVENTS_PATH
from tests.support.daemon import Daemon
from tests.support.senders import CI, Durable, Item, Report
from tests.support.skewed_agent import SKEW_FILE
from tests.support.tools import unavailable
from tests.support.waiting import HUNG_AFTER, eventually

SECONDS, SEED = 12, 20
DAY = 86400


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes some 20 s, and much longer on a machine that does other things
def test_real_faults_at_random_cost_no_acknowledged_event(tmp_path: Path) -> None:
    result = soak(
        SECONDS, SEED, tmp_path / "run", enough=lambda world: world.acked() > 1000 and world.happened.kills.total() > 0
    )
    assert result.problems == [], report(result, tmp_path / "run")
    numbers = rows(result)
    assert (numbers["lost"], numbers["invented"]) == (0, 0)
    assert numbers["SIGKILLs"] > 0
    assert numbers["events acknowledged"] > 1000
    assert "SIGKILLs" in table(numbers)


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes some 20 s, and much longer on a machine that does other things
def test_reloads_and_kills_cost_none_of_ten_destinations_an_acknowledged_event(tmp_path: Path) -> None:
    only = ("change destinations", "storm of reloads", "damage a directory", "kill at work")
    result = soak(
        0, SEED, tmp_path / "run", only, enough=lambda world: len(world.happened.faults) == len(only), destinations=10
    )
    assert result.problems == [], report(result, tmp_path / "run")
    numbers = rows(result)
    assert (numbers["lost"], numbers["invented"]) == (0, 0)
    assert set(numbers["faults"]) == {*only}
    assert "full-1" in table(numbers)


def test_the_server_takes_events_for_the_account_of_their_client_alone_and_with_its_token(tmp_path: Path) -> None:
    number = next(number for number, each in enumerate(CLIENTS) if each.account == ACCOUNTS[0])
    event, header = [fields(Id(number, 0))], {CI: str(ci_of(0))}
    with soak_server(1, tmp_path) as (server, url), httpx.Client(base_url=url, timeout=HUNG_AFTER) as client:
        blocked = client.post(f"{EVENTS_PATH}?slug={ACCOUNTS[0].name}", json=event, headers=header)
        server.process.send_signal(signal.SIGUSR1)
        with_token = header | {"authorization": f"Bearer {token_of(ACCOUNTS[0].name)}"}
        eventually(
            lambda: client.post(f"{EVENTS_PATH}?slug={ACCOUNTS[0].name}", json=event, headers=with_token).status_code,
            lambda status: status == 200,
        )
        client.post(EVENTS_PATH, json=event, headers=header)
        assert server.stop() == 0
    record, taken = read_record(tmp_path)
    assert blocked.status_code in {402, 403}
    assert (record.taken_events, taken) == ({ACCOUNTS[0].name: 1, "default": 1}, {number: bytes([1])})
    assert [each["event"] for each in record.invented] == event
    assert record.violations == [f"for {ACCOUNTS[0].name} with None"]


def test_an_event_counts_as_acknowledged_only_if_the_answers_can_mean_nothing_else(tmp_path: Path) -> None:
    """Of a window with a drop, what came durable before it is certain; the rest is sent again."""
    dropped: dict[str, object] = {"dropped": 1, "dropped_by_reason": {"disk_full": 1}}
    counts: list[dict[str, object]] = [
        {"durable": 1},
        {"durable": 1, **dropped},
        {"durable": 2, **dropped},
        {"durable": 4, **dropped},
    ]
    with answering(tmp_path / "s.sock", [{"rejected": 0, **each} for each in counts]) as lines:
        report = send_three(tmp_path / "s.sock")
    asked = {"": {"sent": 5, "durable": 4, "disk_full": 1}}
    assert report == Report(sent=3, acked=3, resent=2, connections=1, dropped=1, asked=asked)
    assert [lines[n] for n in (0, 1, 2, 1, 2)] == lines


def test_the_clock_of_a_daemon_alone_jumps_back_and_forth(tmp_path: Path, api_server: ApiServer) -> None:
    clock = Clock(tmp_path / "skew")
    clock.set(-3 * DAY)
    daemon = Daemon(tmp_path / "agent", api_server.url)
    daemon.module, daemon.env = "tests.support.skewed_agent", {SKEW_FILE: str(clock.path)}
    with daemon:
        for number, days in enumerate((-3, 2, -1)):
            clock.set(days * DAY)
            daemon.send_lines(line(Id(0, number)))
            api_server.wait_for_accepted(number + 1)
            status = daemon.wait_status(lambda status: status["destinations"]["default"]["ledger"]["queued"] == 0)
            delivered_at = dt.datetime.fromisoformat(status["destinations"]["default"]["last_delivery_at"])
            off_by = delivered_at - dt.datetime.now(dt.UTC)
            assert abs(off_by - dt.timedelta(days=days)) < dt.timedelta(minutes=5)
        assert daemon.terminate() == 0


def test_the_server_counts_what_it_took_and_takes_no_poison(tmp_path: Path) -> None:
    events = [fields(Id(2, 0)), fields(Id(2, 1))]
    with soak_server(1, tmp_path) as (server, url), httpx.Client(base_url=url, timeout=HUNG_AFTER) as client:
        server.process.send_signal(signal.SIGUSR1)
        statuses = [
            client.post(EVENTS_PATH, json=events, headers={CI: str(ci_of(0))}).status_code,
            client.post(EVENTS_PATH, json=events[1:], headers={CI: str(ci_of(0))}).status_code,
            client.post(EVENTS_PATH, json=[fields(Id(2, POISON_EVERY // 2))]).status_code,
            client.post(EVENTS_PATH, json=events[:1], headers={CI: "ANOTHER"}).status_code,
        ]
        assert server.stop() == 0
    record, taken = read_record(tmp_path)
    assert statuses == [200, 200, 400, 200]
    assert (record.taken_events, record.unanswered("default"), taken) == ({"default": 4}, 0, {2: bytes([1, 2])})
    assert [each["event"] for each in record.invented] == events[:1]


def test_a_disk_fills_up_fails_and_recovers_and_nothing_stays_mounted(tmp_path: Path) -> None:
    with best_disk(tmp_path) as disk:
        if not isinstance(disk, SmallDisk):
            unavailable(f"needs mounts; run the tests as root, where mount is allowed: {disk.missing}")
        kept = disk.path / "kept"
        kept.write_bytes(b"kept")
        descriptor = os.open(kept, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.path / "more").write_bytes(b"more")
        disk.free()
        (disk.path / "more").write_bytes(b"more")
        if isinstance(disk, LoopDisk):
            disk.fail()
            with pytest.raises(OSError, match="Read-only"):
                (disk.path / "again").write_bytes(b"again")
            disk.mend()
        assert kept.read_bytes() == b"kept"
    assert not os.path.ismount(disk.path)


def test_a_disk_that_failed_can_be_written_again_even_if_another_mount_namespace_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    with best_disk(tmp_path) as disk:
        if not isinstance(disk, LoopDisk):
            unavailable(f"needs a loop mount; run the tests as root, where mount is allowed: {disk.missing}")
        elsewhere = ("unshare", "--mount", "--propagation", "private", "cat")
        with subprocess.Popen(elsewhere, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(b"there\n")
            other.stdin.flush()
            assert other.stdout.readline() == b"there\n"
            disk.fail()
            disk.mend()
            (disk.path / "file").write_bytes(b"it can be written")


def send_three(path: Path) -> Report:
    """Send three events in one window, to a daemon that may say that it dropped some."""
    items = [Item(None, line(Id(0, number))) for number in range(3)]
    return Durable(path, dict(enumerate(items)).get, window=3, may_drop=True).run()


@contextmanager
def answering(path: Path, answers: Sequence[Mapping[str, object]]) -> Iterator[list[bytes]]:
    """Serve one client with these answers, the first three after three events, the others after two; yields the events."""
    events: list[bytes] = []

    def serve() -> None:
        with listening.accept()[0] as client, client.makefile("rwb") as stream:
            stream.readline()  # the context
            for count, some in ((3, answers[:3]), (2, answers[3:])):
                events.extend(stream.readline() for _ in range(count))
                stream.write(b"".join(json.dumps(answer).encode() + b"\n" for answer in some))
                stream.flush()

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield events
        thread.join()
