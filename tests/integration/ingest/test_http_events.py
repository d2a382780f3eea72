"""Events over HTTP to the real daemon: what turbo sent, byte for byte and in its context, through kills, all in the ledger."""

import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from agent.events import Context
from agent.queue.filesystem import OsFilesystem
from agent.queue.record import record_in
from agent.queue.snapshot import LogSnapshot
from tests.support.accounts import assert_contexts, flushed, ledger, ledger_of, received, recorded
from tests.support.api_server import Answer, ApiServer
from tests.support.command import run_command
from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.recordings import Recorded
from tests.support.waiting import HUNG_AFTER

PATH = "/v8/artifacts/events"
EVENT = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "h", "duration": 7}


def on_socket(daemon: Daemon) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(daemon.directory / "h.sock"))
    return httpx.Client(base_url="http://agent", transport=transport, timeout=HUNG_AFTER)


def on_port(daemon: Daemon) -> httpx.Client:
    headers = {"authorization": f"Bearer {TOKEN}"}
    return httpx.Client(base_url=f"http://{daemon.status()['http']['listen']}", headers=headers, trust_env=False)


def agent(directory: Path, api_url: str, more: Sections | None = None) -> Daemon:
    """A daemon with a socket and a port for HTTP."""
    directory.mkdir()
    http = {"socket": str(directory / "h.sock"), "listen": "127.0.0.1:0", "token_file": str(directory / "token")}
    return Daemon(directory, api_url, {"http": http, **(more or {})})


def replay(client: httpx.Client, requests: Sequence[Recorded]) -> int:
    """Send what turbo sent as it sent it; return how many events that was."""
    for request in requests:
        body = b"[" + request.lines.removesuffix(b"\n").replace(b"\n", b",") + b"]"
        headers = {"content-type": "application/json", **request.headers}
        answer = client.post(PATH, params=request.query, headers=headers, content=body)
        assert (answer.status_code, answer.content) == (200, b"{}")
    return sum(len(request.events) for request in requests)


def test_what_turbo_sent_arrives_as_it_was_on_a_socket_and_on_a_port(
    tmp_path: Path, api_server: ApiServer, recorded_requests: list[Recorded]
) -> None:
    with agent(tmp_path / "agent", api_server.url) as daemon:
        with on_socket(daemon) as client:
            count = replay(client, recorded_requests[::2])
        with on_port(daemon) as client:
            count += replay(client, recorded_requests[1::2])
        assert flushed(daemon)
        status = daemon.status()
        assert ledger_of(status) == ledger(count, delivered=count)
        assert status["http"]["events"] == {"200": len(recorded_requests)}
    accepted = [request for request in api_server.requests if request.is_events]
    assert received(accepted).keys() == recorded(recorded_requests).keys()
    assert_contexts(accepted, recorded_requests)


def test_what_was_answered_with_200_outlives_a_kill(tmp_path: Path, api_server: ApiServer) -> None:
    api_server.default = Answer(503)
    with agent(tmp_path / "agent", api_server.url) as daemon:
        for number in range(3):
            with on_socket(daemon) as client:
                event = {**EVENT, "hash": f"h{number}"}
                assert client.post(PATH, json=[event]).status_code == 200
            daemon.kill()
            daemon.start()
        api_server.default = Answer()
        assert flushed(daemon)
        assert ledger_of(daemon.status()) == ledger(3, delivered=3)
    assert sorted(event["hash"] for event in api_server.accepted_events()) == [f"h{number}" for number in range(3)]


def test_a_flush_includes_a_request_whose_client_has_left(tmp_path: Path, api_server: ApiServer) -> None:
    """As turbo does, which waits 200 ms at exit."""
    with agent(tmp_path / "agent", api_server.url) as daemon:
        with on_port(daemon) as client:
            daemon.signal(signal.SIGSTOP)
            with pytest.raises(httpx.ReadTimeout):
                client.post(PATH, json=[EVENT], timeout=0.2)
        daemon.signal(signal.SIGCONT)
        assert flushed(daemon)
        assert ledger_of(daemon.status()) == ledger(1, delivered=1)


def test_check_names_the_clients_token_and_the_socket(tmp_path: Path, api_server: ApiServer) -> None:
    daemon = agent(tmp_path / "agent", api_server.url)
    result = run_command("check", "--config", daemon.config)
    assert f"clients' token: from {daemon.token_file}" in result.stdout
    assert f"HTTP socket: {daemon.directory / 'h.sock'}" in result.stdout
    daemon.token_file.write_text("two words")
    result = run_command("check", "--config", daemon.config)
    assert "problem  clients' token" in result.stdout
    assert "words" not in result.stdout


def test_check_reports_a_port_in_use_unless_the_daemon_has_it(tmp_path: Path, api_server: ApiServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        sections: Sections = {"http": {"listen": address}, "front": {"enabled": True}}
        daemon = Daemon(tmp_path / "agent", api_server.url, sections)
        result = run_command("check", "--config", daemon.config)
        assert f"problem  HTTP port: {address}: the port cannot be opened" in result.stdout
    with daemon:
        result = run_command("check", "--config", daemon.config)
    assert f"HTTP port: {address}\n" in result.stdout
    assert f"front: forwards all other requests to {api_server.url}" in result.stdout


def test_refused_requests_are_counted_and_logged(tmp_path: Path, api_server: ApiServer) -> None:
    """turbo, whose token or team is not the agent's, says nothing of it."""
    with agent(tmp_path / "agent", api_server.url) as daemon:
        with on_port(daemon) as client:
            for source in ("MOON", "MARS"):
                assert client.post(PATH, json=[EVENT | {"source": source}]).status_code == 400
            client.headers["authorization"] = "Bearer not-the-token"
            assert client.post(PATH, json=[EVENT]).status_code == 401
        assert daemon.status()["http"]["events"] == {"400": 2, "401": 1}
        result = run_command("status", "--config", daemon.config)
        assert "3 requests with events refused: see the log" in result.stdout
        log = daemon.stderr_text()
    assert log.count("request_refused") == 2
    assert "`$[0].source`" in log
    assert "not-the-token" not in log


def test_status_shows_where_http_listens(tmp_path: Path, api_server: ApiServer) -> None:
    with agent(tmp_path / "agent", api_server.url) as daemon:
        result = run_command("status", "--config", daemon.config)
        assert f"HTTP on {daemon.status()['http']['listen']}" in result.stdout
        assert f"HTTP on {daemon.directory / 'h.sock'}" in result.stdout


def test_the_job_in_an_address_stays_here(tmp_path: Path, api_server: ApiServer) -> None:
    with agent(tmp_path / "agent", api_server.url) as daemon, on_port(daemon) as client:
        label = "/artifacts-agent/job/build%20%2F7"
        assert client.post(f"{label}{PATH}?slug=s", json=[EVENT]).status_code == 200
        assert client.options(f"{label}{PATH}").headers["allow"] == "POST, OPTIONS"
        refused = client.post(f"/artifacts-agent/job/%C3%A9{PATH}", json=[EVENT])
        assert (refused.status_code, "job" in refused.json()["error"]["message"]) == (400, True)
        assert client.get(f"{label}/v8/else").status_code == 404
        assert flushed(daemon)
    (request,) = (each for each in api_server.requests if each.is_events)
    assert b"build" not in request.body
    assert "build" not in str(request.headers) + request.path
    log = LogSnapshot.read(OsFilesystem(), daemon.queue / "default" / "segments")
    records = [record_in(frame) for each in log.all_contents() for frame in each.frames]
    assert [record and record.context for record in records] == [Context(job="build /7")]
