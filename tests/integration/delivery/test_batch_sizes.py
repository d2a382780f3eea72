"""Batch sizes against a server over real sockets: what it refuses is learned, and forgotten again."""

from pathlib import Path

from agent.events import encode_events
from tests.support.accounts import flushed, ledger, ledger_of
from tests.support.api_server import ApiServer, error
from tests.support.daemon import Daemon, Sections
from tests.support.json_log import wait_logged
from tests.support.pipelines import events, numbered

SECTIONS: Sections = {"log": {"format": "json"}, "batch": {"max_delay": "100ms"}}
FULL = {"events": 1000, "bytes": 960 * 1024, "reason": None}


def accepted(daemon: Daemon, *names: str) -> None:
    """Let the daemon keep these events."""
    with daemon.connect() as conversation:
        conversation.send(encode_events(events(*names)))
        conversation.wait_settled(len(names))


def test_one_spurious_413_for_two_events_costs_a_handful_of_requests(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.script([error(413, "payload_too_large", "Try less")])
    with Daemon(tmp_path, api_server.url, SECTIONS) as daemon:
        assert daemon.status()["destinations"]["default"]["batch_limit"] == FULL
        assert daemon.request("POST", "/pause").status_code == 200
        accepted(daemon, "first", "second")
        assert daemon.request("POST", "/resume").status_code == 200
        (refused,) = wait_logged(daemon, "batches_too_large")
        assert (refused["max_events"], refused["error"]) == (1, "413 Request Entity Too Large: Try less")
        accepted(daemon, *numbered(4000))
        assert flushed(daemon)
        status = daemon.status()
        assert ledger_of(status) == ledger(4002, delivered=4002)
        assert status["destinations"]["default"]["batch_limit"] == FULL
    assert len(api_server.posts()) <= 25


def test_a_limit_of_the_server_is_kept_to_and_the_status_says_why(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.max_bytes = 20_000
    with Daemon(tmp_path, api_server.url, SECTIONS) as daemon:
        accepted(daemon, *numbered(4000))
        assert flushed(daemon)
        limit = daemon.status()["destinations"]["default"]["batch_limit"]
        assert limit["reason"] == "413 Request Entity Too Large: More than 20000 bytes"
        assert 10_000 <= limit["bytes"] <= 22_500
        assert ledger_of(daemon.status()) == ledger(4000, delivered=4000)
    assert sum(not request.accepted for request in api_server.posts()) <= 20
