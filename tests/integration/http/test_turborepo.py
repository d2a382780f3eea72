"""The real turborepo-remote-cache as the API: its way of saying no is understood."""

import signal
from pathlib import Path

from tests.support.accounts import assert_contexts, delivery_of, flushed, ledger, ledger_of, received, recorded
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.recordings import Recorded
from tests.support.turborepo import TurborepoServer, turborepo_server

BODY_LIMIT = 8_000


def send(daemon: Daemon, requests: list[Recorded]) -> int:
    """Send every recorded event on one connection with acks; return how many that was."""
    count = sum(len(request.events) for request in requests)
    with daemon.connect() as client:
        client.send(b"".join(request.lines for request in requests))
        assert client.wait_settled(count) == {"durable": count, "rejected": 0}
    return count


def without_ci(requests: list[Recorded]) -> list[Recorded]:
    """Return the requests that name no CI system."""
    return [request for request in requests if not request.headers]


def test_a_wrong_token_pauses_delivery_until_the_right_one_is_in_its_file(
    tmp_path: Path, turborepo_remote_cache: TurborepoServer, recorded_requests: list[Recorded]
) -> None:
    server, requests = turborepo_remote_cache, without_ci(recorded_requests)[:5]
    with Daemon(tmp_path / "agent", server.url, token="not-the-token") as daemon:
        count = send(daemon, requests)
        status = daemon.wait_status(lambda status: delivery_of(status)[0] == "paused")
        assert str(delivery_of(status)[1]).startswith("blocked: 401 Unauthorized: ")
        assert ledger_of(status) == ledger(count, queued=count)
        assert [request.status for request in server.captured.posts()] == [401]

        daemon.token_file.write_text(TOKEN)
        daemon.signal(signal.SIGHUP)
        daemon.wait_status(lambda status: delivery_of(status)[0] != "paused")
        assert flushed(daemon)
        assert ledger_of(daemon.status()) == ledger(count, delivered=count)
    assert received(server.captured.accepted()).keys() == recorded(requests).keys()


def test_a_missing_token_costs_no_events(
    tmp_path: Path, turborepo_remote_cache: TurborepoServer, recorded_requests: list[Recorded]
) -> None:
    """The server answers 400 for it, as for a bad event."""
    requests = without_ci(recorded_requests)[:10]
    sections: Sections = {"api": {"token_file": None}, "pause": {"rejections_in_a_row": 3}}
    with Daemon(tmp_path / "agent", turborepo_remote_cache.url, sections) as daemon:
        count = send(daemon, requests)
        status = daemon.wait_status(lambda status: delivery_of(status)[0] == "paused")
        assert str(delivery_of(status)[1]).startswith(
            "rejections: 3 events in a row were rejected, the last one with: 400"
        )
        assert ledger_of(status) == ledger(count, queued=count)
    assert turborepo_remote_cache.captured.accepted() == []


def test_batches_shrink_until_they_fit_the_servers_limit(tmp_path: Path, recorded_requests: list[Recorded]) -> None:
    requests = without_ci(recorded_requests)
    with (
        turborepo_server(tmp_path / "storage", body_limit=BODY_LIMIT) as server,
        Daemon(tmp_path / "agent", server.url) as daemon,
    ):
        count = send(daemon, requests)
        assert flushed(daemon)
        assert ledger_of(daemon.status()) == ledger(count, delivered=count)
    accepted = server.captured.accepted()
    assert received(accepted).keys() == recorded(requests).keys()
    assert_contexts(accepted, requests)
    assert max(len(request.body) for request in accepted) <= BODY_LIMIT
    refused = [request for request in server.captured.posts() if not request.accepted]
    assert {request.status for request in refused} == {413}
    assert len(refused) < len(accepted), "the smaller size was not remembered"
