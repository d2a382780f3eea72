"""The servers that the other tests lean on really do what those tests believe."""

import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest

from tests.support.api_server import Answer, ApiServer, error
from tests.support.capture import EVENTS_PATH, STATUS_PATH
from tests.support.process import running
from tests.support.recordings import Recorded
from tests.support.turborepo import TurborepoServer, turborepo_server
from tests.support.waiting import HUNG_AFTER

EVENT = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "h1", "duration": 7}
GOOD = json.dumps([EVENT]).encode()
JSON = {"content-type": "application/json"}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A server whose violations are what is tested."""
    with ApiServer() as server:
        yield server
    assert not [thread for thread in threading.enumerate() if thread.name == "ApiServer"]


def post(
    url: str, body: bytes = GOOD, headers: dict[str, str] | None = None, path: str = EVENTS_PATH
) -> httpx.Response:
    """Send one batch on a connection of its own."""
    return httpx.post(f"{url}{path}", content=body, headers=JSON | (headers or {}), timeout=HUNG_AFTER)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}


def test_a_good_batch_is_accepted_and_kept_byte_for_byte(server: ApiServer) -> None:
    response = post(server.url, headers={"x-artifact-client-ci": "VERCEL"}, path=f"{EVENTS_PATH}?slug=acme")
    assert (response.status_code, response.content) == (200, b"{}")
    assert server.accepted_bodies() == [GOOD]
    assert server.accepted_events() == [EVENT]
    assert server.requests[0].query == {"slug": "acme"}
    assert server.requests[0].headers["x-artifact-client-ci"] == "VERCEL"
    assert server.violations == []


def test_a_script_is_answered_in_order_and_then_the_default(server: ApiServer) -> None:
    server.script([error(503, "unavailable", "later", {"Retry-After": "3"}), Answer(201, body=b"")])
    first, second, third = (post(server.url) for _ in range(3))
    assert (first.status_code, first.headers["retry-after"]) == (503, "3")
    assert (second.status_code, second.content, third.status_code) == (201, b"", 200)
    assert [request.accepted for request in server.requests] == [False, True, True]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("hang", httpx.ReadTimeout),
        ("reset", httpx.ReadError),
        ("reset_mid_answer", httpx.ReadError),
        ("cut", httpx.RemoteProtocolError),
    ],
)
def test_trouble_is_what_the_client_sees_and_is_not_accepted(
    server: ApiServer, mode: Any, expected: type[Exception]
) -> None:
    server.script([Answer(mode=mode)])
    with pytest.raises(expected), httpx.Client(timeout=httpx.Timeout(HUNG_AFTER, read=0.2)) as client:
        client.post(f"{server.url}{EVENTS_PATH}", content=GOOD, headers=JSON)
    server.wait_for(lambda: server.in_flight == 0)
    assert [request.status for request in server.requests] == [None]
    assert server.accepted_events() == []


def test_a_reset_in_mid_upload_leaves_part_of_the_body(server: ApiServer) -> None:
    server.script([Answer(mode="reset_mid_upload")])
    body = b"[" + b" " * 20_000_000 + GOOD[1:]
    with pytest.raises(httpx.TransportError):
        post(server.url, body)
    assert len(server.requests[0].body) < len(body)
    assert server.requests[0].status is None


def test_an_answer_may_be_late_or_slow(server: ApiServer) -> None:
    server.script([Answer(delay=0.05), Answer(delay=0.001, mode="drip")])
    assert [post(server.url).status_code for _ in range(2)] == [200, 200]


def test_an_answer_that_comes_after_the_client_left_accepts_nothing(server: ApiServer) -> None:
    server.script([Answer(delay=30)])
    with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=httpx.Timeout(HUNG_AFTER, read=0.1)) as client:
        client.post(f"{server.url}{EVENTS_PATH}", content=GOOD, headers=JSON)
    server.wait_for(lambda: server.in_flight == 0)
    assert server.accepted_events() == []


def test_rules_refuse_by_hash_size_and_token(server: ApiServer) -> None:
    server.reject_hashes.add("bad")
    server.max_events = 2
    server.token = "right"
    bad = json.dumps([EVENT, EVENT | {"hash": "bad"}]).encode()
    response = post(server.url, bad, bearer("right"))
    assert (response.status_code, response.json()["error"]["message"]) == (400, "Invalid event bad")
    assert post(server.url, json.dumps([EVENT] * 3).encode(), bearer("right")).status_code == 413
    assert post(server.url, headers=bearer("wrong")).status_code == 401
    assert post(server.url).status_code == 400
    assert post(server.url, headers=bearer("right")).status_code == 200
    assert server.violations == []
    assert server.accepted_events() == [EVENT]


@pytest.mark.parametrize(
    ("send", "violation"),
    [
        (lambda url: post(url, b"[]"), "non-empty array"),
        (lambda url: post(url, b"{"), "not JSON"),
        (lambda url: post(url, b'[{"source":"LOCAL","source":"LOCAL"}]'), "twice"),
        (lambda url: post(url, json.dumps([EVENT | {"more": 1}]).encode()), "unknown key 'more'"),
        (lambda url: post(url, json.dumps([EVENT | {"hash": 1}]).encode()), "hash is 1"),
        (lambda url: post(url, json.dumps([EVENT | {"duration": True}]).encode()), "duration is True"),
        (lambda url: post(url, json.dumps([EVENT | {"event": "hit"}]).encode()), "event is 'hit'"),
        (lambda url: post(url, b'[{"source":"LOCAL","event":"HIT","hash":"h"}]'), "sessionId is missing"),
        (lambda url: post(url, headers={"content-type": "text/plain"}), "content-type"),
        (lambda url: post(url, headers={"x-artifact-client-ci": "x" * 51}), "longer than 50"),
        (lambda url: post(url, headers={"x-artifact-client-interactive": "2"}), "interactive"),
        (lambda url: post(url, path=f"{EVENTS_PATH}?team=acme"), "query parameter 'team'"),
        (lambda url: post(url, path=f"{EVENTS_PATH}/"), "slash"),
    ],
)
def test_whatever_the_schema_forbids_is_answered_400_and_noted(
    server: ApiServer, send: Callable[[str], httpx.Response], violation: str
) -> None:
    assert send(server.url).status_code == 400
    assert len(server.violations) == 1
    assert violation in server.violations[0]


def test_the_status_endpoint_is_absent_until_configured(server: ApiServer) -> None:
    assert httpx.get(f"{server.url}{STATUS_PATH}").status_code == 404
    server.status = "over_limit"
    assert httpx.get(f"{server.url}{STATUS_PATH}").json() == {"status": "over_limit"}


def test_an_outage_ends_on_the_same_port() -> None:
    server = ApiServer()
    with server:
        url = server.url
    with pytest.raises(httpx.ConnectError):
        post(url)
    with server:
        assert post(url).status_code == 200


async def in_thread(function: Callable[[], None]) -> None:
    """Run something that blocks."""
    await anyio.to_thread.run_sync(function)


@pytest.mark.anyio
async def test_async_clients_of_either_backend_are_served(api_server: ApiServer) -> None:
    api_server.script(repeat(Answer(202), 2))
    async with httpx.AsyncClient() as client, anyio.create_task_group() as tasks:
        tasks.start_soon(in_thread, lambda: api_server.wait_for_accepted(2))
        for _ in range(2):
            await client.post(f"{api_server.url}{EVENTS_PATH}", content=GOOD, headers=JSON)
    assert len(api_server.accepted()) == 2


def test_waiting_for_what_never_happens_says_what_did(server: ApiServer) -> None:
    post(server.url)
    with pytest.raises(AssertionError, match="1 requests"):
        server.wait_for_posts(2, timeout=0.01)


def test_the_server_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    record = tmp_path / "accepted.ndjson"
    command: list[str | Path] = [sys.executable, "-m", "tests.support.api_server", "--record", record]
    with running(command, env={}) as child:
        url = child.wait_for_line(r"http://\S+")[0]
        assert post(url).status_code == 200
        child.process.send_signal(signal.SIGINT)
        assert child.process.wait(HUNG_AFTER) == 0
    assert [json.loads(line) for line in record.read_bytes().splitlines()] == [EVENT]


def test_the_real_server_accepts_every_recorded_batch(
    turborepo_remote_cache: TurborepoServer, recorded_requests: list[Recorded]
) -> None:
    server = turborepo_remote_cache
    with httpx.Client(base_url=server.url, headers=bearer(server.token)) as client:
        for request in recorded_requests:
            response = client.post(EVENTS_PATH, json=request.events, headers=request.headers, params=request.query)
            assert (response.status_code, response.content) == (200, b"{}")
    assert server.captured.accepted_events() == [event for request in recorded_requests for event in request.events]


def test_the_real_server_refuses_a_wrong_and_a_missing_token(turborepo_remote_cache: TurborepoServer) -> None:
    server = turborepo_remote_cache
    assert post(server.url, headers=bearer("wrong")).status_code == 401
    assert post(server.url).status_code == 400
    assert [request.status for request in server.captured.posts()] == [401, 400]
    assert server.captured.accepted_events() == []


def test_the_real_server_says_enabled_to_anybody(turborepo_remote_cache: TurborepoServer) -> None:
    response = httpx.get(f"{turborepo_remote_cache.url}{STATUS_PATH}", headers=bearer("wrong"))
    assert (response.status_code, response.json()["status"]) == (200, "enabled")


def test_the_real_server_refuses_a_body_past_its_limit(tmp_path: Path) -> None:
    with turborepo_server(tmp_path, body_limit=2000) as server:
        assert post(server.url, json.dumps([EVENT] * 100).encode(), bearer(server.token)).status_code == 413
        assert post(server.url, headers=bearer(server.token)).status_code == 200
        assert [request.status for request in server.captured.posts()] == [413, 200]
        assert any(re.search("too large", line) for line in server.process.lines)
