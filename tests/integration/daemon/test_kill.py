"""SIGKILL under load, again and again: what was acknowledged arrives, nothing is made up, and the ledger holds."""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.accounts import Ledger, flushed, holds, ledger, ledger_of, received
from tests.support.api_server import Answer, ApiServer
from tests.support.daemon import Daemon, Sections
from tests.support.process import Child
from tests.support.senders import Report, acked_so_far, numbered, report_of, sender
from tests.support.waiting import eventually

ROUNDS = 20
SENDERS = 3
MAX_EVENTS, CONCURRENCY = 100, 3
SECTIONS: Sections = {
    "batch": {"max_events": MAX_EVENTS, "concurrency": CONCURRENCY},
    "queue": {"segment_bytes": "64KiB"},  # so that kills also hit the change of segments, and their deletion
}


@pytest.mark.slow
def test_no_acknowledged_event_is_lost_by_kills_at_random_moments(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.default = Answer(delay=0.005)  # so that there is always something in flight
    progress = [tmp_path / f"progress-{n}" for n in range(SENDERS)]
    with Daemon(tmp_path / "agent", api_server.url, SECTIONS) as daemon:
        with ExitStack() as stack:
            children = [start_sender(stack, daemon, path) for path in progress]
            ledgers = kill_and_restart(daemon, progress, random.Random(20))
            reports = [stop(child) for child in children]
        assert flushed(daemon)
        final = ledger_of(daemon.status())
        assert daemon.terminate() == 0

    assert all(holds(each) for each in ledgers), ledgers
    assert sum(report.connections for report in reports) >= ROUNDS
    assert [report.acked for report in reports] == [report.sent for report in reports]
    acked, resent = sum(report.acked for report in reports), sum(report.resent for report in reports)
    assert acked <= final["accepted"] <= acked + resent
    assert final == ledger(final["accepted"], delivered=final["accepted"])

    arrived = received(api_server.accepted())
    assert arrived.keys() == {line for n, report in enumerate(reports) for line in lines_of(n, report)}
    repeats = arrived.total() - final["accepted"]
    assert 0 <= repeats <= ROUNDS * CONCURRENCY * MAX_EVENTS, "more came twice than was in flight at the kills"


def start_sender(stack: ExitStack, daemon: Daemon, progress: Path) -> Child:
    """Start an endless sender; its file of progress also names its events."""
    options = {"window": 40, "progress": progress, "session": progress.name}
    return stack.enter_context(sender("endless", daemon.stream, **options))


def kill_and_restart(daemon: Daemon, progress: Sequence[Path], rng: random.Random) -> list[Ledger]:
    """Kill the daemon ROUNDS times, after a random number of acks each, or amidst its start-up; return a ledger of each round."""
    ledgers: list[Ledger] = []
    for _ in range(ROUNDS):
        target = total_acked(progress) + rng.randrange(2000)
        eventually(partial(total_acked, progress), target.__le__)
        daemon.kill()
        daemon.start()
        acked = total_acked(progress)
        ledgers.append(ledger_of(daemon.status()))
        assert ledgers[-1]["accepted"] >= acked, "the ledger has less than what was acknowledged"
    return ledgers


def total_acked(progress: Sequence[Path]) -> int:
    """Count what the senders have had acknowledged so far."""
    return sum(map(acked_so_far, progress))


def stop(child: Child) -> Report:
    """Let a sender have its last acks; return its report."""
    child.process.terminate()
    return report_of(child)


def lines_of(number: int, report: Report) -> list[str]:
    """Return what a sender has sent, each event once."""
    return [numbered(f"progress-{number}", index).decode().strip() for index in range(report.sent)]
