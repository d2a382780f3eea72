"""`flush` through the real command, daemon and server: exact counts while others go on sending, an exit code for each case."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import ledger_of
from tests.support.api_server import Answer, ApiServer, error
from tests.support.command import COMMAND, environment, problems, run_command
from tests.support.daemon import Daemon
from tests.support.waiting import HUNG_AFTER

HANG = Answer(mode="hang")
UNHURRIED = {"batch": {"max_delay": "1h"}}
DOWN = error(503, "unavailable", "Come back later")


def lines(session: str, *hashes: str) -> bytes:
    events = [{"sessionId": session, "source": "LOCAL", "event": "HIT", "hash": name} for name in hashes]
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def numbered(count: int, prefix: str = "h") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def report(delivered: int = 0, queued: int = 0, dead_lettered: int = 0, **dropped: int) -> dict[str, Any]:
    return {"delivered": delivered, "queued": queued, "dead_lettered": dead_lettered, "dropped": dropped}


def flush(daemon: Daemon, *args: str) -> tuple[int, dict[str, Any]]:
    """Return the exit code and the report."""
    done = run_command("flush", "--json", "--config", daemon.config, *args)
    assert done.stdout.count("\n") == 1
    answered: dict[str, Any] = json.loads(done.stdout)
    assert list(answered) == ["delivered", "queued", "dead_lettered", "dropped"]
    return done.returncode, answered


@pytest.fixture
def daemon(tmp_path: Path, api_server: ApiServer) -> Iterator[Daemon]:
    with Daemon(tmp_path, api_server.url) as running:
        yield running


@contextmanager
def others_sending(daemon: Daemon, session: str) -> Iterator[None]:
    """Other clients, which send one event after another for the time of the block."""
    over = threading.Event()

    def send() -> None:
        with daemon.connect() as client:
            sent = 0
            while not over.is_set():
                client.send(lines(session, *numbered(20, "noise")))
                client.wait_settled(sent := sent + 20)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def sent(daemon: Daemon, session: str, *hashes: str) -> None:
    """Send events, and return when they are durable."""
    with daemon.connect() as client:
        client.send(lines(session, *hashes))
        client.wait_settled(len(hashes))


def test_counts_are_exact_while_other_clients_keep_sending(daemon: Daemon, api_server: ApiServer) -> None:
    api_server.reject_hashes = {"h3", "h77", "h390"}
    with others_sending(daemon, "noise"):
        sent(daemon, 'mine "é"', *numbered(400))
        before = ledger_of(daemon.status())["accepted"]
        assert flush(daemon, "--session", 'mine "é"') == (8, report(397, 0, 3))
        code, whole = flush(daemon)
        after = ledger_of(daemon.status())["accepted"]
        assert (code, whole["queued"], whole["dead_lettered"], whole["dropped"]) == (0, 0, 3, {})
        assert before <= whole["delivered"] + 3 < after
        assert flush(daemon, "--session", 'mine "é"') == (8, report(397, 0, 3))
    code, whole = flush(daemon, "--session", "noise")
    assert (code, whole) == (0, report(ledger_of(daemon.status())["accepted"] - 400))


def said(daemon: Daemon, *args: str) -> tuple[int, str, list[str]]:
    """Return the exit code, and what a person is told on standard output and standard error."""
    done = run_command("flush", "--config", daemon.config, *args)
    return done.returncode, done.stdout, problems(done.stderr)


LOST = "not everything was delivered: 1 event delivered, 1 dead-lettered (see `artifacts-agent dead-letters`)"


def test_an_empty_session_is_no_session() -> None:
    done = run_command("flush", "--session", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the session is empty: is a variable not set?" in done.stderr


def test_each_case_has_its_exit_code_and_one_line(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url, UNHURRIED) as daemon:
        sent(daemon, "s", *numbered(3))
        all_left = "Everything that was sent before has left the queue: "
        assert said(daemon) == (0, f"{all_left}3 events delivered.\n", [])
        api_server.reject_hashes = {"bad"}
        sent(daemon, "s", "good", "bad")
        assert said(daemon) == (8, "", [LOST])
        assert said(daemon) == (0, f"{all_left}nothing was waiting.\n", []), "what was lost before the call is no news"
        api_server.default = HANG
        sent(daemon, "s", *numbered(2))
        left = "the deadline of 0.2 s passed with 2 events in the queue, where they stay: `artifacts-agent status` says why"
        assert said(daemon, "--deadline", "0.2") == (3, "", [left])
        daemon.kill()
        code, _, (problem,) = said(daemon)
        assert (code, "no daemon answers" in problem) == (4, True)


@pytest.mark.parametrize("args", [(), ("--session", "s")])
def test_a_flush_that_cannot_deliver_before_its_deadline_ends_at_once_and_says_why(
    args: tuple[str, ...], tmp_path: Path, api_server: ApiServer
) -> None:
    api_server.default = error(401, "unauthorized", "Who are you?")
    with Daemon(tmp_path, api_server.url, UNHURRIED) as daemon:
        sent(daemon, "s", *numbered(2))
        code, out, (problem,) = said(daemon, "--deadline", "4m", *args)  # the account is asked again after five minutes
        assert (code, out) == (3, "")
        assert problem.startswith(
            "nothing can be delivered before the deadline of 240 s, and 2 events stay in the queue: "
            "paused: blocked: 401 Unauthorized: Who are you?; the next attempt is in "
        )


def test_a_sessions_exit_code_goes_by_all_that_is_known_of_it(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url, UNHURRIED) as daemon:
        api_server.reject_hashes = {"bad"}
        sent(daemon, "one", *numbered(3))
        sent(daemon, "two", "good", "bad")
        assert daemon.request("POST", "/flush?deadline=100").status_code == 200
        delivered = "Everything of session 'one' has left the queue: 3 events delivered.\n"
        assert said(daemon, "--session", "one") == (0, delivered, [])
        assert said(daemon, "--session", "3")[:2] == (
            0,
            "Session '3' has no queued events, and none that the daemon remembers.\n",
        )
        api_server.default = DOWN
        sent(daemon, "two", *numbered(2))
        both = LOST.replace(", 1", ", 2 still queued, 1")
        assert said(daemon, "--session", "two", "--deadline", "200ms") == (8, "", [both])
        not_taken = "the deadline of 0 s passed before everything that was sent had been read from the sockets"
        assert said(daemon, "--session", "one", "--deadline", "0") == (3, "", [not_taken])


def test_a_session_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    done = run_command("flush", "--session", b"\xff".decode(errors="surrogateescape"))
    assert (done.returncode, "not UTF-8" in done.stderr) == (2, True)


def test_purged_events_are_named_by_reason(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.default = DOWN
    with Daemon(tmp_path, api_server.url, UNHURRIED) as daemon:
        sent(daemon, "s", *numbered(5))
        waiting = started(daemon, "--deadline", "20")
        assert run_command("queue", "purge", "--yes", "--config", daemon.config).returncode == 0
        out, err = waiting.communicate(timeout=HUNG_AFTER)
        assert (waiting.returncode, json.loads(out)) == (8, report(purged=5))
        assert problems(err.decode()) == ["not everything was delivered: 0 events delivered, 5 dropped as purged"]


def test_batches_of_many_contexts_do_not_wait_for_their_timers(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path, api_server.url, UNHURRIED) as daemon:
        for number in range(20):
            with daemon.connect({"ci": f"CI_{number}"}) as client:
                client.send(lines("s", *numbered(2)))
                client.wait_settled(2)
        assert api_server.requests == []
        assert flush(daemon, "--session", "s", "--deadline", "10") == (0, report(40))
        assert len(api_server.requests) == 20


def test_after_a_restart_it_is_known_what_became_of_a_session(daemon: Daemon, api_server: ApiServer) -> None:
    sent(daemon, "s", *numbered(3))
    assert flush(daemon, "--session", "s") == (0, report(3))
    api_server.default = HANG
    sent(daemon, "s", *numbered(4))
    daemon.kill()
    daemon.start()
    assert flush(daemon, "--session", "s", "--deadline", "0.1") == (3, report(3, queued=4))
    api_server.default = Answer()
    assert flush(daemon, "--session", "s") == (0, report(7))
    assert flush(daemon) == (0, report(7))


def test_a_daemon_that_is_killed_ends_a_flush(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.default = DOWN
    with Daemon(tmp_path, api_server.url, UNHURRIED) as daemon:
        sent(daemon, "s", *numbered(3))
        waiting = started(daemon, "--deadline", "1h")
        daemon.kill()
        _, err = waiting.communicate(timeout=HUNG_AFTER)
        assert waiting.returncode == 4
        assert "the daemon has stopped" in err.decode()
        api_server.default = Answer()
        daemon.start()
        assert flush(daemon) == (0, report(3))


def started(daemon: Daemon, *args: str) -> "subprocess.Popen[bytes]":
    """Start a flush of a daemon that sends nothing without one, and return when it is at work."""
    command = [*COMMAND, "flush", "--json", "--config", str(daemon.config), *args]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    daemon.wait_status(lambda status: status["destinations"]["default"]["requests"] > 0)
    return process
