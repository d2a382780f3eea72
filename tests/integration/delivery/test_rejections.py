"""Events that a real server refuses, and what they cost the others."""

from pathlib import Path

from agent.events import encode_events
from tests.support.accounts import delivery_of, flushed, ledger, ledger_of
from tests.support.api_server import Answer, ApiServer, error
from tests.support.daemon import Daemon
from tests.support.pipelines import event, numbered


def test_sixty_bad_events_do_not_hold_up_five_hundred_good_ones(tmp_path: Path, api_server: ApiServer) -> None:
    bad, good = numbered(60, "bad"), numbered(500, "good")
    api_server.reject_hashes = {*bad}
    with Daemon(tmp_path, api_server.url) as daemon:
        assert daemon.request("POST", "/pause").status_code == 200
        with daemon.connect() as client:
            client.send(encode_events([event(name, "bad") for name in bad]))
            client.send(encode_events([event(name, "good") for name in good]))
            client.wait_settled(560)
        assert daemon.request("POST", "/resume").status_code == 200
        assert flushed(daemon)
        status = daemon.status()
        assert ledger_of(status) == ledger(560, delivered=500, dead_lettered=60)
        assert delivery_of(status) == ("running", None)
        assert "delivery_paused" not in daemon.stderr_text().rpartition("delivery_resumed")[2]


def test_a_server_that_refuses_every_third_request_by_accident_costs_few_events(
    tmp_path: Path, api_server: ApiServer
) -> None:
    accident = error(400, "bad_request", "Invalid request")
    api_server.script([accident, Answer(), Answer()] * 200)
    with Daemon(tmp_path, api_server.url, {"batch": {"max_events": 1}, "retry": {"initial_delay": "100ms"}}) as daemon:
        with daemon.connect() as client:
            client.send(encode_events([event(name) for name in numbered(200)]))
            client.wait_settled(200)
        assert flushed(daemon)
        found = ledger_of(daemon.status())
    assert found["delivered"] + found["dead_lettered"] == 200
    assert found["dead_lettered"] <= 10
