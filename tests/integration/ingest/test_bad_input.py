"""Bad input to the real daemon: the line is rejected and counted, the sender told, a line logged, and nothing else changes."""

import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import ledger
from tests.support.api_server import ApiServer
from tests.support.daemon import Daemon
from tests.support.edge import ACKS, line, line_of
from tests.support.json_log import logged, wait_logged
from tests.support.waiting import HUNG_AFTER

MIB = 1 << 20
GOOD = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "h", "duration": 7}


def changed(**changes: object) -> bytes:
    """Return the good event with changes; None takes a key away."""
    event = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return json.dumps(event).encode()


BAD_LINES = {
    "no JSON": b"nonsense",
    "half an object": line()[:30],
    "a number": b"7",
    "null": b"null",
    "a string": b'"event"',
    "an empty object": b"{}",
    "an array within an array": b"[[" + line()[:-1] + b"]]",
    "a bad event in an array": b"[" + line()[:-1] + b",{}]",
    "two events in a line": line()[:-1] * 2,
    "a number for a string": changed(hash=7),
    "a string for a number": changed(duration="7"),
    "true for a number": changed(duration=True),
    "null for a number": changed(duration=None)[:-1] + b',"duration":null}',
    "an unknown value": changed(source="ELSEWHERE"),
    "an unknown key": changed(extra=1),
    "a missing key": changed(sessionId=None),
    "a key twice": changed()[:-1] + b',"hash":"other"}',
    "NaN": changed(duration=float("nan")),
    "infinity": changed(duration=float("inf")),
    "a number of 400 digits": changed(duration=None)[:-1] + b',"duration":' + b"9" * 400 + b"}",
    "a lone surrogate": changed(duration=None)[:-1] + b',"\\ud800":1}',
    "nesting": b"[" * 60_000,
    "nested objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "bytes that are no UTF-8": changed().replace(b'"h"', b'"\xff\xfe"'),
    "binary": bytes(byte for byte in range(256) if byte != 10),
    "zeros": b"\0" * 5000,
    "an unknown setting": b'{"context":{"colour":"red"}}',
    "a setting of the wrong type": b'{"context":{"interactive":"yes"}}',
    "a CI of 51 characters": json.dumps({"context": {"ci": "x" * 51}}).encode(),
    "a CI with a header in it": json.dumps({"context": {"ci": "x\r\nAuthorization: y"}}).encode(),
    "a line of 64 KiB and a byte": b"x" * (64 * 1024 + 1),
    "a line of 10 MB": b"x" * 10_000_000,
    "an event of 10 MB": changed(hash="x" * 10_000_000),
}


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, api: ApiServer) -> Iterator[Daemon]:
    """One daemon for all of it: nothing here may change how it does."""
    with Daemon(tmp_path_factory.mktemp("bad") / "d", api.url, {"log": {"format": "json"}}) as running:
        yield running


def resident(daemon: Daemon) -> int:
    """The bytes of memory that the daemon has."""
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(next(row for row in text.splitlines() if row.startswith("VmRSS")).split()[1]) * 1024


def delivered(daemon: Daemon, count: int) -> dict[str, Any]:
    """Return the status once `count` events are delivered; the ledger has to be exact then."""
    status = daemon.wait_status(lambda found: found["destinations"]["default"]["ledger"]["delivered"] >= count)
    exact = ledger(count, delivered=count)
    assert status["destinations"]["default"]["ledger"] == exact
    return status


@contextmanager
def unharmed(daemon: Daemon, rejected: int, accepted: int = 0) -> Iterator[None]:
    """Afterwards so many more lines are rejected or accepted, good events flow as before, and the ledger is exact."""
    before = daemon.status()
    yield
    with daemon.connect() as client:
        client.send(line() * 3)
        assert client.wait_settled(3) == {"durable": 3, "rejected": 0}
    accepted += before["destinations"]["default"]["ledger"]["accepted"]
    status = delivered(daemon, accepted + 3)
    assert status["rejected"] == before["rejected"] + rejected
    assert status["pid"] == before["pid"]


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_costs_that_line_only_and_its_sender_is_told(daemon: Daemon, bad: bytes) -> None:
    with unharmed(daemon, rejected=2):
        daemon.send_lines(bad + b"\n")
        with daemon.connect() as client:
            client.send(b"\n" + bad + b"\n")
            answer = client.wait_settled(1)
            assert (answer["durable"], answer["rejected"]) == (0, 1)
            (error,) = answer["errors"]
            assert error["line"] == 3
            assert 0 < len(error["reason"]) <= 200


def test_bad_datagrams_cost_themselves_only(daemon: Daemon) -> None:
    small = [bad for bad in BAD_LINES.values() if len(bad) < 100_000]
    with unharmed(daemon, rejected=len(small)):
        for bad in small:
            daemon.send_datagram(bad)
        assert daemon.request("POST", "/flush?deadline=100").status_code == 200


def test_a_flood_of_rubbish_fills_neither_the_log_nor_the_memory(daemon: Daemon) -> None:
    before, lines = resident(daemon), len(logged(daemon))
    with unharmed(daemon, rejected=600_000):
        for _ in range(30):
            daemon.send_lines(b"{}\n" * 20_000)
        assert daemon.request("POST", "/flush?deadline=100").status_code == 200
    assert resident(daemon) - before < 48 * MIB
    assert len(logged(daemon)) - lines < 5


def test_rejects_are_logged_with_the_reason_and_who_sent_them(tmp_path: Path, api: ApiServer) -> None:
    with Daemon(tmp_path / "d", api.url, {"log": {"format": "json"}}) as daemon:
        for _ in range(50):
            daemon.send_lines(b"nonsense\n")
        with daemon.connect() as client:
            client.send(b"nonsense\n")
            client.wait_settled(1)
        (complaint,) = wait_logged(daemon, "lines_rejected")
        assert (complaint["uid"], complaint["pid"], complaint["level"]) == (os.getuid(), os.getpid(), "warning")
        assert "malformed" in complaint["reason"]
        assert daemon.status()["rejected"] == 51


@contextmanager
def many_files() -> Iterator[int]:
    """Let this process open as many files as it may; yields how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_silent_connections_hold_nobody_up(daemon: Daemon) -> None:
    before = resident(daemon)
    with unharmed(daemon, rejected=0, accepted=1), many_files() as limit, ExitStack() as silent:
        for number in range(10_000):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(daemon.stream))
            if number + 200 < limit:
                silent.enter_context(client)
            else:
                client.close()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.stream))
            client.sendall(ACKS + line())
            client.settimeout(HUNG_AFTER)
            assert json.loads(client.recv(1000)) == {"durable": 1, "rejected": 0}
        status = daemon.status()
        assert status["connections"] <= 1025
        assert status["evicted"] > 8000
        assert resident(daemon) - before < 64 * MIB
        complaint = wait_logged(daemon, "connection_evicted")[-1]
        assert (complaint["uid"], complaint["pid"]) == (os.getuid(), os.getpid())
        assert "more than 1024 connections" in complaint["reason"]


def test_half_lines_of_a_thousand_clients_take_no_more_than_64_kib_each(daemon: Daemon) -> None:
    before = resident(daemon)
    with unharmed(daemon, rejected=1000), many_files(), ExitStack() as clients:
        for _ in range(1000):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(
                str(daemon.stream)
            )  # without a time limit it waits while the queue is short: others make it so
            client.settimeout(HUNG_AFTER)
            client.sendall(b"x" * (64 * 1024))
        daemon.wait_status(lambda status: status["connections"] >= 1000)
        assert resident(daemon) - before < (1000 * 64 * 1024) + 48 * MIB
        clients.close()
        daemon.wait_status(lambda status: status["connections"] == 0)


def test_rubbish_on_the_control_socket_ends_nothing(daemon: Daemon) -> None:
    with unharmed(daemon, rejected=0):
        for data in (b"", b"nonsense", line(), b"GET //[ HTTP/1.1\r\nHost: a\r\n\r\n", b"\0" * 100_000, b"GET /stat"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(daemon.control))
                client.settimeout(HUNG_AFTER)
                try:
                    client.sendall(data)
                except BrokenPipeError:
                    continue
        assert daemon.request("HEAD", "/status").status_code == 405


def test_a_queue_that_may_grow_no_more_is_unhealthy_and_recovers(tmp_path: Path, api: ApiServer) -> None:
    """RLIMIT_FSIZE lets every write beyond 64 KiB fail, as a full disk does."""
    with Daemon(tmp_path / "d", "http://127.0.0.1:9", {"log": {"format": "json"}}) as daemon:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
        with daemon.connect() as client:
            client.send(line_of(64 * 1024))
            dropped = {"dropped": 1, "dropped_by_reason": {"disk_full": 1}}
            assert client.answer() == {"durable": 0, "rejected": 0, **dropped}
        assert daemon.status()["destinations"]["default"]["storage_error"]
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with daemon.connect() as client:
            client.send(line())
            assert client.wait_settled(1)["durable"] == 1
        assert daemon.request("GET", "/healthz").status_code == 200
        found = daemon.status()["destinations"]["default"]["ledger"]
        assert found == ledger(2, queued=1) | {"dropped": {"disk_full": 1}}
        wait_logged(daemon, "storage_recovered")
