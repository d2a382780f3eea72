"""The metrics on a port and a socket of their own: three requests, whoever asks and however often."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.control.scrape import MAX_CONNECTIONS
from tests.support.api_server import ApiServer, error
from tests.support.daemon import Daemon
from tests.support.waiting import HUNG_AFTER, eventually

EVENT = b'{"sessionId":"s","source":"%b","event":"%b","hash":"h","duration":%d}\n'


class Served(NamedTuple):
    daemon: Daemon
    url: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=HUNG_AFTER)

    def samples(self) -> Mapping[str, float]:
        """Every sample of /metrics, named with its labels as in the text; at most a second old."""
        families = text_string_to_metric_families(self.get("/metrics").raise_for_status().text)
        return {
            "/".join([each.name, *each.labels.values()]): each.value for family in families for each in family.samples
        }


@pytest.fixture
def served(tmp_path: Path, api_server: ApiServer) -> Iterator[Served]:
    sections = {"metrics": {"listen": "127.0.0.1:0", "socket": str(tmp_path / "m.sock")}}
    with Daemon(tmp_path / "d", api_server.url, sections) as daemon:
        found = daemon.report().metrics
        assert found is not None
        assert found.socket == str(tmp_path / "m.sock")
        yield Served(daemon, f"http://{found.listen}")


def test_it_says_how_the_cache_was_used_and_how_delivery_fares(served: Served, api_server: ApiServer) -> None:
    api_server.script([error(503, "unavailable", "later")])
    uses = [(b"LOCAL", b"MISS", 0), (b"REMOTE", b"HIT", 1500), (b"LOCAL", b"HIT", 500), (b"REMOTE", b"MISS", 7)]
    with served.daemon.connect({"ci": "GITHUB_ACTIONS"}) as client:
        client.send(b"".join(EVENT % use for use in uses))
        client.wait_settled(4)
    with served.daemon.connect({"ci": "my own"}) as client:
        client.send(EVENT % uses[1])
        client.wait_settled(1)
    served.daemon.wait_destination(lambda default: default.ledger.delivered == 5)
    name = "artifacts_agent_event_delay_seconds_count/default"
    samples = eventually(served.samples, lambda found: found[name] == 5)
    events = {name: value for name, value in samples.items() if "cache_events" in name and value}
    assert events == {
        **{
            f"artifacts_agent_cache_events_total/GITHUB_ACTIONS/{event.decode()}/{source.decode()}": 1
            for source, event, _ in uses
        },
        "artifacts_agent_cache_events_total/other/HIT/REMOTE": 1,
    }
    assert samples["artifacts_agent_cache_time_saved_seconds_total/GITHUB_ACTIONS/REMOTE"] == 1.5
    assert samples["artifacts_agent_cache_time_saved_seconds_total/GITHUB_ACTIONS/LOCAL"] == 0.5
    assert samples["artifacts_agent_cache_time_saved_seconds_total/other/REMOTE"] == 1.5
    assert samples["artifacts_agent_responses_total/default/503"] == 1
    requests = served.daemon.destination().requests
    assert samples["artifacts_agent_request_duration_seconds_count/default"] == requests
    assert samples["artifacts_agent_request_duration_seconds_bucket/default/+Inf"] == requests
    assert samples["artifacts_agent_last_delivery_timestamp_seconds/default"] > 1e9
    assert samples["process_open_fds"] > 3


def test_it_answers_three_requests_and_no_others(served: Served, tmp_path: Path) -> None:
    transport = httpx.HTTPTransport(uds=str(tmp_path / "m.sock"))
    with httpx.Client(transport=transport, base_url="http://agent", timeout=HUNG_AFTER) as client:
        for ask in (served.get, client.get):
            assert [ask(path).status_code for path in ("/metrics", "/healthz", "/readyz")] == [200] * 3
            assert [ask(path).status_code for path in ("/", "/status", "/queue", "/dead-letters")] == [404] * 4
    for path in ("/metrics", "/pause", "/queue/purge", "/flush"):
        answer = httpx.post(f"{served.url}{path}", content=b"x" * 100_000, timeout=HUNG_AFTER)
        assert answer.status_code == (405 if path == "/metrics" else 404)
    assert served.daemon.destination().state == "running"


def test_a_crowd_on_the_port_leaves_the_socket_free(served: Served, tmp_path: Path) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with ExitStack() as crowd:
        for _ in range(2 * MAX_CONNECTIONS):
            idle = crowd.enter_context(socket.create_connection((host, int(port)), HUNG_AFTER))
            idle.sendall(b"GET /healthz HTTP/1.1\r\n")
        transport = httpx.HTTPTransport(uds=str(tmp_path / "m.sock"))
        with httpx.Client(transport=transport, base_url="http://agent", timeout=HUNG_AFTER) as client:
            assert client.get("/metrics").status_code == 200
        found = served.daemon.report().metrics
        assert found is not None
        assert found.connections <= MAX_CONNECTIONS + 1


def test_readiness_says_why_nothing_is_delivered(served: Served) -> None:
    served.daemon.request("POST", "/pause").raise_for_status()
    answer = eventually(lambda: served.get("/readyz"), lambda found: found.status_code == 503)
    assert answer.json()["problems"][0]["kind"] == "paused"
    assert served.get("/healthz").status_code == 200


def test_it_is_off_unless_it_is_asked_for(tmp_path: Path, api_server: ApiServer) -> None:
    with Daemon(tmp_path / "d", api_server.url) as daemon:
        assert daemon.report().metrics is None
