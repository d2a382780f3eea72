"""Unmodified clients of the API at the agent's own endpoint, over TCP and over the Unix socket: @vercel/sdk and curl."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import events_in, flushed, ledger_of
from tests.support.api_server import ApiServer
from tests.support.capture import EVENTS_PATH, Captured
from tests.support.curl import Answer, curl
from tests.support.daemon import TOKEN
from tests.support.front import Front, front
from tests.support.recordings import Recorded
from tests.support.tools import missing, require_tool

NPM = Path(__file__).parents[2] / "npm"
EVENT = {
    "sessionId": "6b1d8f7e-5a39-4c1b-9f62-0d6a1f2b3c4d",
    "source": "LOCAL",
    "event": "HIT",
    "hash": "12HKQaOmR5t5Uy6vdcQsNIiZgHGB",
}
WAYS = ("TCP", "Unix socket")

Outcome = Mapping[str, Any]


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """An API that checks the token and the schema."""
    with ApiServer(token=TOKEN) as server:
        yield server
    assert server.violations == []


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, api: ApiServer) -> Iterator[Front]:
    """An agent before it, the same for every test here: each looks at what came after it had begun."""
    with front(tmp_path_factory.mktemp("agent"), api.url) as running:
        yield running


@dataclass(frozen=True)
class Books:
    """What the agent has accepted, and the API, since the test began."""

    agent: Front
    api: ApiServer
    accepted_before: int
    requests_before: int

    def arrived(self) -> list[Captured]:
        """Let the agent deliver everything; return the requests that the API has accepted, which is all that was kept."""
        assert flushed(self.agent.daemon)
        arrived = [request for request in self.api.requests[self.requests_before :] if request.accepted]
        assert sum(len(request.events) for request in arrived) == _accepted(self.agent) - self.accepted_before
        return arrived

    def events(self) -> list[dict[str, Any]]:
        """Return the events of these requests."""
        return [event for request in self.arrived() for event in request.events]


@pytest.fixture
def books(agent: Front, api: ApiServer) -> Books:
    """The books of this test."""
    return Books(agent, api, _accepted(agent), len(api.requests))


def _accepted(agent: Front) -> int:
    accepted: int = ledger_of(agent.daemon.status())["accepted"]
    return accepted


@pytest.mark.parametrize(("way", "whole"), [("TCP", True), ("TCP", False), ("Unix socket", False)])
def test_what_vercel_sdk_records_arrives_as_it_was(
    agent: Front, books: Books, recorded_requests: list[Recorded], way: str, whole: bool
) -> None:
    """With the whole SDK as most use it, and with its standalone function."""
    requests = [_sdk_request(request) for request in recorded_requests if request.query.get("slug") == "acme"][:30]
    outcomes = _record(agent, way, requests, whole=whole)
    assert outcomes == [{"ok": True}] * len(requests)
    arrived = books.arrived()
    sent = sorted(_text(event) for request in requests for event in request["requestBody"])
    assert sorted(text for request in arrived for text in events_in(request)) == sent
    systems = {request.get("xArtifactClientCi") for request in requests}
    assert {request.headers.get("x-artifact-client-ci") for request in arrived} == systems


@pytest.mark.parametrize("way", WAYS)
def test_vercel_sdk_understands_why_a_request_was_refused(agent: Front, books: Books, way: str) -> None:
    good = {"slug": "acme", "requestBody": [EVENT]}
    refused, accepted = _record(agent, way, [good | {"xArtifactClientCi": "C" * 51}, good])
    assert (refused["ok"], refused["error"], refused["status"]) == (False, "SDKError", 400)
    problem = json.loads(refused["body"])["error"]
    assert problem["code"] == "bad_request"
    assert "x-artifact-client-ci" in problem["message"]
    assert accepted == {"ok": True}
    assert books.events() == [EVENT]


def test_vercel_sdk_is_told_that_its_token_is_wrong(agent: Front, books: Books) -> None:
    (outcome,) = _record(agent, "TCP", [{"slug": "acme", "requestBody": [EVENT]}], token="not-the-token")
    assert (outcome["ok"], outcome["error"], outcome["status"]) == (False, "SDKError", 401)
    assert json.loads(outcome["body"])["error"]["code"] == "unauthorized"
    assert books.events() == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options", [[], ["--header", "Transfer-Encoding: chunked"], ["--header", "Expect: 100-continue"]], ids=str
)
def test_what_curl_posts_is_answered_and_arrives(agent: Front, books: Books, way: str, options: Sequence[str]) -> None:
    answer = _post(
        agent, way, _body(EVENT, EVENT | {"event": "MISS"}), *options, "--header", "x-artifact-client-ci: GITLAB"
    )
    assert (answer.status, answer.body) == (200, "{}")
    assert ("< HTTP/1.1 100" in answer.talk) == ("Expect: 100-continue" in options)
    assert books.events() == [EVENT, EVENT | {"event": "MISS"}]
    assert [request.headers["x-artifact-client-ci"] for request in books.arrived()] == ["GITLAB"]


@pytest.mark.parametrize("way", WAYS)
def test_curl_sends_again_and_again_on_one_connection(agent: Front, books: Books, way: str) -> None:
    answer = _post(agent, way, _body(EVENT), f"{agent.url}{EVENTS_PATH}?slug=acme", f"{agent.url}{EVENTS_PATH}")
    assert (answer.statuses, answer.connections) == ([200] * 3, 1)
    assert books.events() == [EVENT] * 3


BAD_BODIES = {
    "no JSON": (b"nonsense", ""),
    "no array": (json.dumps(EVENT).encode(), "array"),
    "a key that is not known": (json.dumps([EVENT, EVENT | {"more": 1}]).encode(), "more"),
    "a value that is not known": (json.dumps([EVENT, EVENT | {"source": "MOON"}]).encode(), "[1].source"),
    "a key that is missing": (json.dumps([EVENT, EVENT, {**EVENT, "hash": None}]).encode(), "[2].hash"),
}


@pytest.mark.parametrize("way", WAYS)
def test_curl_is_told_what_is_wrong_with_a_body_and_nothing_of_it_is_kept(agent: Front, books: Books, way: str) -> None:
    for body, named in BAD_BODIES.values():
        answer = _post(agent, way, body)
        assert (answer.status, answer.error["code"]) == (400, "bad_request")
        assert named in answer.error["message"]
    assert books.events() == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "options", [[], ["--header", "Transfer-Encoding: chunked"]], ids=["with its length", "chunked"]
)
def test_curl_is_told_that_a_body_is_too_large(agent: Front, books: Books, way: str, options: Sequence[str]) -> None:
    answer = _post(agent, way, _body(*[EVENT] * 50_000), *options)
    assert answer.status == 413
    assert answer.error["message"]
    assert books.events() == []


def test_over_tcp_curl_needs_the_token_and_over_the_unix_socket_none(agent: Front, books: Books) -> None:
    for header in ("Authorization;", "Authorization: Bearer not-the-token", f"Authorization: Basic {TOKEN}"):
        answer = curl("--header", header, f"{agent.url}{EVENTS_PATH}", data=_body(EVENT))
        assert (answer.status, answer.error["code"]) == (401, "unauthorized")
        assert TOKEN not in answer.body
    answer = curl("--unix-socket", agent.socket, f"http://agent{EVENTS_PATH}", data=_body(EVENT))
    assert (answer.status, answer.body) == (200, "{}")
    assert books.events() == [EVENT]


@pytest.mark.parametrize("way", WAYS)
def test_curl_asks_what_may_be_sent(agent: Front, way: str) -> None:
    answer = curl(*_way(agent, way), "--request", "OPTIONS", f"{agent.url}{EVENTS_PATH}")
    assert answer.status in {200, 204}
    assert "POST" in next(line for line in answer.talk.splitlines() if line.lower().startswith("< allow:"))


def test_a_team_that_the_agent_does_not_deliver_to_is_refused(agent: Front, books: Books) -> None:
    answer = curl(*_way(agent, "TCP"), f"{agent.url}{EVENTS_PATH}?slug=other", data=_body(EVENT))
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert "slug" in answer.error["message"]


def _way(agent: Front, way: str) -> Sequence[str | Path]:
    """Return curl's options for a connection of that kind."""
    if way == "TCP":
        return ["--header", f"Authorization: Bearer {TOKEN}"]
    return ["--unix-socket", agent.socket]


def _post(agent: Front, way: str, body: bytes, *more: str) -> Answer:
    json_type = ("--header", "Content-Type: application/json")
    return curl(*_way(agent, way), *json_type, f"{agent.url}{EVENTS_PATH}?slug=acme", *more, data=body)


def _body(*events: Mapping[str, object]) -> bytes:
    return json.dumps(events).encode()


def _record(
    agent: Front, way: str, requests: Sequence[Mapping[str, object]], *, whole: bool = False, token: str = TOKEN
) -> list[Outcome]:
    """Let the SDK record these, in a process of its own; return what became of each."""
    node = require_tool("node", "apt-get install nodejs npm")
    if not (NPM / "node_modules/@vercel/sdk").exists():
        missing("@vercel/sdk", "npm install --prefix tests/npm")
    way_in = {"serverURL": agent.url, "socket": None if way == "TCP" else str(agent.socket)}
    job = {"whole": whole, "token": token, "requests": requests, **way_in}
    done = subprocess.run([node, NPM / "record_events.mjs"], input=json.dumps(job), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _sdk_request(request: Recorded) -> dict[str, Any]:
    ci = request.headers.get("x-artifact-client-ci")
    return {"slug": request.query["slug"], "requestBody": request.events} | ({"xArtifactClientCi": ci} if ci else {})


def _text(event: Mapping[str, object]) -> str:
    return json.dumps(event, separators=(",", ":"))
