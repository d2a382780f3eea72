"""Real recorded events from real client processes, through the real daemon, into real servers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.support.accounts import assert_contexts, delivery_of, flushed, ledger, ledger_of, received, recorded
from tests.support.api_server import Answer, ApiServer, error
from tests.support.capture import CapturingServer
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.recordings import Recorded
from tests.support.senders import Report, acked_so_far, report_of, save, sender
from tests.support.turborepo import TurborepoServer
from tests.support.waiting import eventually

MAX_EVENTS, CONCURRENCY = 100, 2
SECTIONS: Sections = {"api": {"slug": "acme"}, "batch": {"max_events": MAX_EVENTS, "concurrency": CONCURRENCY}}


@pytest.fixture
def capturing() -> Iterator[ApiServer]:
    """The capturing server, which checks the token and the schema."""
    with ApiServer(token=TOKEN) as server:
        yield server
    assert server.violations == []


def test_recorded_events_reach_turborepo_remote_cache_through_a_kill(
    tmp_path: Path, turborepo_remote_cache: TurborepoServer, recorded_requests: list[Recorded]
) -> None:
    assert turborepo_remote_cache.token == TOKEN
    everything_arrives_through_a_kill(tmp_path, turborepo_remote_cache.captured, recorded_requests)


def test_recorded_events_reach_a_capturing_server_through_a_kill(
    tmp_path: Path, capturing: ApiServer, recorded_requests: list[Recorded]
) -> None:
    capturing.default = Answer(delay=0.01)  # so that there is something in flight, and a backlog, when the kill comes
    everything_arrives_through_a_kill(tmp_path, capturing, recorded_requests)


def everything_arrives_through_a_kill(directory: Path, server: CapturingServer, requests: Sequence[Recorded]) -> None:
    """Send a part without acks and no kill, the rest with acks and a kill in the middle: nothing is missing.

    What a client without acks has written is lost by nature if the daemon is killed before it has read it; so the ledger
    has to show that all of it was taken before the kill.
    """
    without_acks, with_acks = requests[::2], requests[1::2]
    with Daemon(directory / "agent", server.url, SECTIONS) as daemon:
        sent = send_without_acks(daemon, without_acks, directory)
        assert sent == events_of(without_acks)
        taken = daemon.wait_status(lambda status: ledger_of(status)["accepted"] >= sent)
        assert (ledger_of(taken)["accepted"], taken["rejected"]) == (sent, 0)

        reports = send_durably_through_a_kill(daemon, with_acks, directory)
        acked, resent = sum(report.acked for report in reports), sum(report.resent for report in reports)
        assert acked == events_of(with_acks)
        assert min(report.connections for report in reports) >= 2, "a sender was done before the kill"

        assert flushed(daemon)
        status = daemon.status()
        accepted = ledger_of(status)["accepted"]
        assert sent + acked <= accepted <= sent + acked + resent
        assert ledger_of(status) == ledger(accepted, delivered=accepted)
        assert (delivery_of(status), status["rejected"]) == (("running", None), 0)
        assert daemon.terminate() == 0

    arrived = received(server.accepted())
    assert arrived.keys() == recorded(requests).keys()
    assert_contexts(server.accepted(), requests)
    assert {tuple(request.query.items()) for request in server.posts()} == {(("slug", "acme"),)}
    repeats = arrived.total() - accepted
    assert 0 <= repeats <= CONCURRENCY * MAX_EVENTS, "more came twice than was in flight at the kill"


def send_without_acks(daemon: Daemon, requests: Sequence[Recorded], directory: Path) -> int:
    """Run two clients and two senders of datagrams at once; return how many events they have sent."""
    jobs = [("client", daemon.stream), ("datagram", daemon.datagram)] * 2
    with ExitStack() as stack:
        children = []
        for n, (kind, path) in enumerate(jobs):
            recording = save(directory / f"{kind}-{n}", requests[n :: len(jobs)])
            children.append(stack.enter_context(sender(kind, path, recording=recording)))
        return sum(report_of(child).sent for child in children)


def send_durably_through_a_kill(daemon: Daemon, requests: Sequence[Recorded], directory: Path) -> list[Report]:
    """Run three senders, kill the daemon when each has had some acks, start it again, and return their reports."""
    with ExitStack() as stack:
        children, all_progress = [], []
        for n in range(3):
            recording, progress = save(directory / f"durable-{n}", requests[n::3]), directory / f"progress-{n}"
            child = sender("durable", daemon.stream, recording=recording, window=4, breaks=1, progress=progress)
            children.append(stack.enter_context(child))
            all_progress.append(progress)
        for progress in all_progress:
            eventually(partial(acked_so_far, progress), lambda acked: acked >= 50)
        daemon.kill()
        daemon.start()
        return [report_of(child) for child in children]


def events_of(requests: Sequence[Recorded]) -> int:
    """Count the events of recorded requests."""
    return sum(len(request.events) for request in requests)


def test_a_pause_survives_a_kill_and_costs_no_request(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.default = error(402, "payment_required", "The plan's limit was reached")
    line = b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h","duration":5}\n'
    paused = ("paused", "blocked: 402 Payment Required: The plan's limit was reached")
    with Daemon(tmp_path, api_server.url) as daemon:
        with daemon.connect() as client:
            client.send(line)
            assert client.wait_settled(1)["durable"] == 1
        before = daemon.wait_status(lambda status: delivery_of(status)[0] == "paused")
        assert (delivery_of(before), len(api_server.posts())) == (paused, 1)
        # Goes through the write path once: from here on the pause is in the cursor's file.
        assert daemon.request("GET", "/healthz").status_code == 200
        daemon.kill()

        daemon.start()
        after = daemon.status()
        assert delivery_of(after) == paused
        assert after["destinations"]["default"]["since"] == before["destinations"]["default"]["since"]
        assert not flushed(daemon, deadline=0.3)
        assert (delivery_of(daemon.status()), ledger_of(daemon.status())) == (paused, ledger(1, queued=1))
        assert len(api_server.requests) == 1

        api_server.default = Answer()
        assert daemon.request("POST", "/resume").status_code == 200
        assert flushed(daemon)
        assert (delivery_of(daemon.status()), ledger_of(daemon.status())) == (("running", None), ledger(1, delivered=1))
    assert api_server.accepted_bodies() == [b"[" + line.strip() + b"]"]
    assert len(api_server.requests) == 2
