"""The HTTP listener over real sockets: the API's rules, durable before the answer, and clients that are slow or hostile."""

import contextlib
import gzip
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from agent.delivery.pipeline import Pipeline
from agent.errors import ListenError
from agent.events import MAX_LINE_BYTES, Context
from agent.http.api import EVENTS_PATH
from agent.http.connection import Timeouts
from agent.http.server import TIMEOUTS, Exchange
from agent.ingest import sockets
from agent.ingest.http_events import MAX_BODY_BYTES, AccessPolicy, Forward, HttpListener, Policies
from agent.ingest.intake import Intake
from agent.queue.record import Frame, record_in
from agent.queue.store import Limits
from agent.rules import NO_RULES, Rule, Rules
from agent.secret import Secret
from tests.support.edge import GatedHost
from tests.support.http_client import Answer, Client
from tests.support.open_queue import read_all
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio
TOKEN = "a-clients-token"
POLICY = {"default": AccessPolicy(Secret(TOKEN))}
EVENT = {"sessionId": "s", "source": "LOCAL", "event": "HIT", "hash": "h", "duration": 7}
CHUNKED = b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % EVENTS_PATH.encode()
SHORT = Timeouts(idle=0.2, head=0.2, body=0.3, stall=0.2, linger=0.2)
"""For tests that wait for their end."""


@dataclass
class Site:
    """A listener on both kinds of socket, and what is behind it. Nothing is delivered: what is kept stays queued."""

    host: GatedHost
    pipeline: Pipeline
    listener: HttpListener
    path: str
    port: int
    ended: anyio.Event

    def client(self) -> Client:
        """Connect to the Unix socket, which needs no token."""
        return Client(self.path)

    async def ask(self, request: bytes, address: str | int | None = None) -> Answer:
        """Send one request on a connection of its own."""
        with Client(address or self.path) as client:
            await client.send(request)
            return await client.answer(body=not request.startswith(b"HEAD"))

    @property
    def counts(self) -> tuple[int, int]:
        """How many events are accepted, and how many of them queued."""
        ledger = self.pipeline.ledger()
        return ledger.accepted, ledger.queued

    def queued(self) -> list[tuple[Context, list[dict[str, Any]]]]:
        """Read the queue: each record's context and events."""
        found = []
        for item in read_all(self.pipeline.store.reader(), self.pipeline.store.view):
            assert isinstance(item, Frame)
            record = record_in(item)
            assert record is not None
            found.append((record.context, [json.loads(line) for line in record.lines.splitlines()]))
        return found


@asynccontextmanager
async def site(
    directory: Path,
    *,
    policy: Policies = POLICY,
    max_connections: int = 64,
    timeouts: Timeouts = TIMEOUTS,
    forward: Forward | None = None,
    rules: Rules = NO_RULES,
    **limits: Any,
) -> AsyncIterator[Site]:
    """Yield a site whose listener has ended, with nothing left open, when the block has."""
    async with anyio.create_task_group() as tasks:
        host = GatedHost(tasks, limits=replace(Limits(), **limits))
        pipeline = host.start()
        pipeline.pause()
        bound = [sockets.bind(directory / "h.sock", sockets.STREAM, mode=0o600), sockets.bind_tcp("127.0.0.1:0")]
        port = bound[1].socket.getsockname()[1]
        listener = HttpListener(bound, Intake({"default": pipeline}, rules), policy, max_connections, forward, timeouts)
        made = Site(host, pipeline, listener, str(directory / "h.sock"), port, anyio.Event())

        async def serve() -> None:
            await listener.serve()
            made.ended.set()

        tasks.start_soon(serve)
        await anyio.wait_all_tasks_blocked()
        try:
            yield made
        finally:
            host.gate.open()
            await listener.close()
            with anyio.move_on_after(HUNG_AFTER, shield=True):
                await made.ended.wait()
            assert made.ended.is_set()
            assert listener.connections == 0
            tasks.cancel_scope.cancel()


def post(events: object, headers: Mapping[str, str] | None = None, query: str = "") -> bytes:
    """Return a request as a client with a length sends it."""
    body = events if isinstance(events, bytes) else json.dumps(events).encode()
    fields = {"Host": "agent", "Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {EVENTS_PATH}{query} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


# What the API's rules say


async def test_events_are_durable_before_the_answer_which_is_the_apis(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as client:
            at.host.gate.close()
            await client.send(post([EVENT, {**EVENT, "hash": "i", "duration": 0.5}]))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            at.host.gate.open()
            answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"{}")
        assert answer.headers["content-type"] == "application/json"
        assert at.queued() == [(Context(), [EVENT, {**EVENT, "hash": "i", "duration": 0.5}])]
        assert at.listener.answered == {200: 1}


@pytest.mark.parametrize(
    ("headers", "context"),
    [
        ({}, Context()),
        ({"x-artifact-client-ci": "VERCEL"}, Context("VERCEL")),
        (
            {"X-Artifact-Client-CI": "GitHub Actions", "x-artifact-client-interactive": "0"},
            Context("GitHub Actions", 0),
        ),
        ({"x-artifact-client-interactive": "1", "x-artifact-client-ci": ""}, Context(None, 1)),
        ({"x-artifact-client-ci": "c" * 50}, Context("c" * 50)),
    ],
)
async def test_the_headers_become_the_events_context(tmp_path: Path, headers: dict[str, str], context: Context) -> None:
    async with site(tmp_path) as at:
        assert (await at.ask(post([EVENT], headers))).status == 200
        assert at.queued() == [(context, [EVENT])]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-artifact-client-ci": "c" * 51}, "x-artifact-client-ci: Expected `str` of length <= 50"),
        ({"x-artifact-client-ci": "caf\xe9"}, "x-artifact-client-ci: Expected `str` matching regex"),
        ({"x-artifact-client-interactive": "2"}, "x-artifact-client-interactive: Expected 0 or 1"),
        ({"x-artifact-client-interactive": "true"}, "x-artifact-client-interactive: Expected 0 or 1"),
    ],
)
async def test_a_header_against_the_apis_rules_is_named(tmp_path: Path, headers: dict[str, str], message: str) -> None:
    async with site(tmp_path) as at:
        answer = await at.ask(post([EVENT], headers))
        assert (answer.status, answer.error["code"]) == (400, "bad_request")
        assert answer.error["message"].startswith(message)
        assert at.counts == (0, 0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([EVENT, {**EVENT, "duration": "7"}], "Expected `int | float`, got `str` - at `$[1].duration`"),
        ([EVENT, EVENT, {"sessionId": "s"}], "Object missing required field `source` - at `$[2]`"),
        ([{**EVENT, "source": "local"}], "Invalid enum value 'local' - at `$[0].source`"),
        ([{**EVENT, "extra": 1}], "Object contains unknown field `extra` - at `$[0]`"),
        (EVENT, "Expected an array of events: Expected `array`, got `object`"),
        (b"", "Expected an array of events: Input data was truncated"),
        (b"[{]", "Expected an array of events: JSON is malformed: object keys must be strings (byte 2)"),
        (b'[{"sessionId":"\xff"}]', "Expected an array of events: JSON is malformed: a string is not UTF-8"),
        (
            json.dumps([EVENT, EVENT]).encode()[:-2] + b',"hash":"i"}]',
            "Object has the key `hash` twice - at `$[1]`",
        ),
        ([EVENT, {**EVENT, "hash": "h" * MAX_LINE_BYTES}], "Event is longer than 65,536 bytes - at `$[1]`"),
    ],
)
async def test_a_refusal_names_item_and_field_and_nothing_is_kept(tmp_path: Path, events: object, message: str) -> None:
    async with site(tmp_path) as at:
        with at.client() as client:
            await client.send(post(events))
            answer = await client.answer()
            assert (answer.status, answer.error) == (400, {"code": "bad_request", "message": message})
            assert at.counts == (0, 0)
            await client.send(post([EVENT]))
            assert (await client.answer()).status == 200
        assert at.counts == (1, 1)


async def test_an_empty_array_is_accepted(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        answer = await at.ask(post([]))
        assert (answer.status, answer.body) == (200, b"{}")
        assert at.counts == (0, 0)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?slug=ours", 200),
        ("?teamId=team_1&slug=ours", 200),
        ("?slug=", 200),
        ("?other=x", 200),
        ("?slug=theirs", 400),
        ("?teamId=team_2&slug=ours", 400),
    ],
)
async def test_a_request_for_another_team_is_refused(tmp_path: Path, query: str, status: int) -> None:
    async with site(tmp_path, policy={"default": AccessPolicy(None, "team_1", "ours")}) as at:
        answer = await at.ask(post([EVENT], query=query))
        assert answer.status == status
        assert at.counts == ((1, 1) if status == 200 else (0, 0))
        if status == 400:
            assert "delivers to another team" in answer.error["message"]


async def test_without_a_team_of_its_own_it_takes_what_names_any(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        assert (await at.ask(post([EVENT], query="?slug=theirs&teamId=team_2"))).status == 200


# Size


async def test_a_body_of_the_largest_size_is_kept_in_several_records(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        body = json.dumps([EVENT] * (MAX_BODY_BYTES // 90)).encode()
        body += b" " * (MAX_BODY_BYTES - len(body))
        assert (await at.ask(post(body))).status == 200
        assert at.counts == (MAX_BODY_BYTES // 90,) * 2
        kept = at.queued()
        assert sum(len(events) for _, events in kept) == MAX_BODY_BYTES // 90
        assert len(kept) > 1


async def test_a_body_that_is_declared_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as client:
            length = {"Content-Length": str(MAX_BODY_BYTES + 1), "Expect": "100-continue"}
            await client.send(post(b"", length))
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (413, "payload_too_large")
            assert await client.ended()


async def test_a_body_that_turns_out_too_large_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as client:
            await client.send(CHUNKED)
            for _ in range(MAX_BODY_BYTES // 65536 + 1):
                await client.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
            assert (await client.answer()).status == 413
            assert await client.ended()
        assert at.counts == (0, 0)


async def test_a_length_beside_chunks_does_not_count(tmp_path: Path) -> None:
    body = json.dumps([EVENT]).encode()
    async with site(tmp_path) as at:
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await at.ask(head % EVENTS_PATH.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert answer.status == 200
        assert at.counts == (1, 1)


async def test_large_and_chunked_bodies_that_drip_keep_no_other_waiting(tmp_path: Path) -> None:
    body = json.dumps([EVENT] * 1000).encode()
    async with site(tmp_path) as at:
        with contextlib.ExitStack() as dripping:
            for number in range(40):
                client = dripping.enter_context(at.client())
                await client.send(CHUNKED + b"5\r\n[    \r\n" if number % 2 else post(body)[:-1])
            assert (await at.ask(post(body))).status == 200
            assert (await at.ask(CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))).status == 200
            await at.listener.catch_up()
        assert at.counts == (2000, 2000)


# Packed


async def test_a_body_that_is_packed_with_gzip_is_taken(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        body = gzip.compress(json.dumps([EVENT] * 10_000).encode())
        assert (await at.ask(post(body, {"Content-Encoding": "gzip"}))).status == 200
        assert at.counts == (10_000, 10_000)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (gzip.compress(b" " * (MAX_BODY_BYTES + 1), mtime=0), "gzip", 413, "an unpacked body may have 4194304 bytes"),
        (gzip.compress(b" " * (100 * MAX_BODY_BYTES), mtime=0), "gzip", 413, "an unpacked body may have 4194304 bytes"),
        (gzip.compress(b"[]", mtime=0)[:-1], "gzip", 400, "The body is not gzip: it ends too early"),
        (gzip.compress(b"[]", mtime=0) + b"x", "gzip", 400, "The body is not gzip: it ends too early, or goes on"),
        (b"", "gzip", 400, "The body is not gzip: it ends too early"),
        (b"[]", "gzip", 400, "The body is not gzip: Error -3"),
        (b"[]", "br", 415, "Content-Encoding is 'br': the agent takes gzip, or none"),
        (b"[]", "gzip, gzip", 415, "Content-Encoding is 'gzip, gzip': the agent takes gzip, or none"),
    ],
)
async def test_what_is_packed_too_well_or_otherwise_is_refused(
    tmp_path: Path, body: bytes, encoding: str, status: int, message: str
) -> None:
    async with site(tmp_path) as at:
        answer = await at.ask(post(body, {"Content-Encoding": encoding}))
        assert answer.status == status
        assert answer.error["message"].startswith(message)
        assert answer.headers.get("accept-encoding") == ("gzip" if status == 415 else None)
        assert at.counts == (0, 0)


# What cannot be kept


async def test_events_that_do_not_fit_are_refused_and_counted(tmp_path: Path) -> None:
    async with site(tmp_path, max_bytes=1 << 18, segment_bytes=1 << 16, overflow="drop-newest") as at:
        answers = [await at.ask(post([EVENT] * 1000)) for _ in range(5)]
        kept = sum(answer.status == 200 for answer in answers)
        assert 0 < kept < 5
        answer = answers[-1]
        assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        assert "overflow" in answer.error["message"]
        assert int(answer.headers["retry-after"]) > 0
        ledger = at.pipeline.ledger()
        assert (ledger.accepted, ledger.queued, ledger.dropped) == (5000, 1000 * kept, {"overflow": 5000 - 1000 * kept})


async def test_a_full_disk_is_answered_with_503(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        at.host.fs.capacity = at.host.fs.used
        answer = await at.ask(post([EVENT]))
        assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
        assert at.pipeline.ledger().dropped == {"disk_full": 1}


# Who may send


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer caf\xe9", 401),
        ("Bearer", 401),
        (TOKEN, 401),
        (None, 401),
    ],
)
async def test_a_port_takes_only_the_token(tmp_path: Path, authorization: str | None, status: int) -> None:
    async with site(tmp_path) as at:
        headers = {"Authorization": authorization} if authorization is not None else {}
        answer = await at.ask(post([EVENT], headers), at.port)
        assert answer.status == status
        assert at.counts == ((1, 1) if status == 200 else (0, 0))
        if status == 401:
            assert answer.error["code"] == "unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in str(answer)


async def test_a_port_without_a_configured_token_refuses_every_request(tmp_path: Path) -> None:
    async with site(tmp_path, policy={"default": AccessPolicy()}) as at:
        assert (await at.ask(post([EVENT], {"Authorization": "Bearer None"}), at.port)).status == 401


async def test_a_new_token_counts_from_the_next_request_on(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with Client(at.port) as client:
            await client.send(post([EVENT], {"Authorization": f"Bearer {TOKEN}"}))
            assert (await client.answer()).status == 200
            at.listener.reconfigure({"default": AccessPolicy(Secret("another"))})
            await client.send(post([EVENT], {"Authorization": f"Bearer {TOKEN}"}))
            assert (await client.answer()).status == 401


async def test_a_missing_token_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with Client(at.port) as client:
            await client.send(post(b"", {"Content-Length": "1000000"}))
            assert (await client.answer()).status == 401
            assert await client.ended()


# Other requests


@pytest.mark.parametrize(
    ("request_line", "status", "allow"),
    [
        ("OPTIONS /v8/artifacts/events", 200, "POST, OPTIONS"),
        ("OPTIONS *", 200, "POST, OPTIONS"),
        ("GET /v8/artifacts/events", 405, "POST, OPTIONS"),
        ("HEAD /v8/artifacts/events", 405, "POST, OPTIONS"),
        ("GET /v8/artifacts/status", 404, None),
        ("POST /v8/artifacts/events/", 404, None),
        ("HEAD /", 404, None),
        ("OPTIONS /", 404, None),
    ],
)
async def test_other_requests_are_refused_with_the_allowed_methods(
    tmp_path: Path, request_line: str, status: int, allow: str | None
) -> None:
    async with site(tmp_path) as at:
        answer = await at.ask(f"{request_line} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (answer.status, answer.headers.get("allow")) == (status, allow)
        if status == 200:
            assert "Authorization" in answer.headers["access-control-allow-headers"]


async def test_a_preflight_needs_no_token(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        preflight = b"OPTIONS %b?slug=x HTTP/1.1\r\nHost: a\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        assert (await at.ask(preflight % EVENTS_PATH.encode(), at.port)).status == 200


# Ways to send


async def test_a_length_chunks_pipelining_and_asking_first_all_work_on_one_connection(tmp_path: Path) -> None:
    body = json.dumps([EVENT]).encode()
    start = b"POST %b HTTP/1.1\r\nHost: a\r\n" % EVENTS_PATH.encode()
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n%x;ext=1\r\n%b\r\n0\r\nTrailer: x\r\n\r\n"
    async with site(tmp_path) as at:
        with at.client() as client:
            await client.send(post(body) + chunked % (9, body[:9], len(body) - 9, body[9:]) + post(body))
            assert [(await client.answer()).status for _ in range(3)] == [200] * 3
            asking = post(b"", {"Content-Length": str(len(body)), "Expect": "100-continue"})
            await client.send(asking)
            assert (await client.head())[0] == 100
            await client.send(body)
            assert (await client.answer()).status == 200
        assert at.counts == (4, 4)


async def test_a_client_that_hangs_up_when_all_is_sent_has_its_events_kept(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as client:
            await client.send(post([EVENT]))
        await at.listener.catch_up()
        assert at.counts == (1, 1)


async def test_many_at_once_are_all_answered(tmp_path: Path) -> None:
    async with site(tmp_path) as at:

        async def send() -> None:
            with at.client() as client:
                for _ in range(5):
                    await client.send(post([EVENT]))
                    assert (await client.answer()).status == 200

        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(send)
        assert at.counts == (150, 150)


async def test_catch_up_waits_for_whole_requests_only(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as half, at.client() as whole, at.client() as silent:
            await half.send(post([EVENT])[:-1])
            await whole.send(post([EVENT]) * 2)
            with anyio.fail_after(HUNG_AFTER):
                await at.listener.catch_up()
            assert at.counts == (2, 2)
            await silent.send(post([EVENT]))
            await at.listener.catch_up()
            assert at.counts == (3, 3)


# The slow and the hostile


async def test_who_pipelines_requests_takes_turns_with_others(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as pipelining, at.client() as client:
            await pipelining.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
            await client.send(post([EVENT]))
            assert (await client.answer()).status == 200
            assert (await pipelining.more()).count(b"HTTP/1.1 404 Not Found\r\n") < 500


async def test_chunks_of_a_byte_take_turns_with_others(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as dripping, at.client() as client:
            await dripping.send(CHUNKED + b"1\r\n \r\n" * 10_000)
            await client.send(post([EVENT]))
            assert (await client.answer()).status == 200
            with pytest.raises(BlockingIOError):
                dripping.socket.recv(1)
            answer = await dripping.answer()
            message = "the body comes in chunks of less than 16 bytes: send larger ones"
            assert (answer.status, answer.error["message"]) == (400, message)


@pytest.mark.parametrize("method", [b"OPTIONS", b"POST", b"GET"])
async def test_a_stranger_is_answered_from_the_head_and_gets_nothing_from_the_api(
    tmp_path: Path, method: bytes
) -> None:
    forwarded: list[Exchange] = []

    async def forward(exchange: Exchange, _: str) -> None:
        forwarded.append(exchange)

    async with site(tmp_path, forward=forward) as at:
        with Client(at.port) as stranger:
            await stranger.send(method + b" /v8/artifacts/x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            answer = await stranger.answer()
            assert answer.status == (200 if method == b"OPTIONS" else 401)
            assert answer.headers["connection"] == "close"
            assert await stranger.ended()
        assert forwarded == []


async def test_strangers_make_room_for_who_has_the_token_and_take_none_from_the_unix_socket(tmp_path: Path) -> None:
    mine = post([EVENT], {"Authorization": f"Bearer {TOKEN}"})
    async with site(tmp_path, max_connections=2) as at:
        with Client(at.port) as kept, contextlib.ExitStack() as strangers:
            await kept.send(mine)
            assert (await kept.answer()).status == 200
            for _ in range(5):
                stranger = strangers.enter_context(Client(at.port))
                await stranger.send(b"GET / HTTP/1.1\r\n")
                await anyio.wait_all_tasks_blocked()
            assert (await at.ask(post([EVENT]))).status == 200
            await kept.send(mine)
            assert (await kept.answer()).status == 200


@pytest.mark.parametrize("over_tcp", [True, False])
async def test_requests_that_an_api_does_not_answer_leave_places_for_other_destinations(
    tmp_path: Path, *, over_tcp: bool
) -> None:
    hanging: list[Exchange] = []

    async def forward(exchange: Exchange, destination: str) -> None:
        assert destination == "web"
        hanging.append(exchange)
        await exchange.hung_up()

    policies = {"default": AccessPolicy(Secret(TOKEN)), "web": AccessPolicy(Secret("of-web"), api_token=Secret("api"))}
    rules = (Rule("web", slug=frozenset({"web"})),)
    async with site(tmp_path, policy=policies, max_connections=16, forward=forward, rules=Rules(rules)) as at:
        address = at.port if over_tcp else at.path
        with contextlib.ExitStack() as clients:
            answers = []
            for _ in range(24):
                client = clients.enter_context(Client(address))
                await client.send(
                    b"GET /v8/artifacts/x?slug=web HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer of-web\r\n\r\n"
                )
                before = len(hanging)
                await anyio.wait_all_tasks_blocked()
                if len(hanging) == before:
                    answers.append(await client.answer())
            assert len(hanging) == (11 if over_tcp else 8)
            assert {each.status for each in answers} == {503}
            assert "for the API of web" in answers[0].error["message"]
            mine = {"Authorization": f"Bearer {TOKEN}"}
            for _ in range(3):
                assert (await at.ask(post([EVENT], mine), address)).status == 200
        await anyio.wait_all_tasks_blocked()
        with Client(address) as client:  # the places are free again
            await client.send(
                b"GET /v8/artifacts/x?slug=web HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer of-web\r\n\r\n"
            )
            await anyio.wait_all_tasks_blocked()
            assert len(hanging) == (12 if over_tcp else 9)


async def test_a_process_that_holds_every_place_makes_room_for_another(tmp_path: Path) -> None:
    async with site(tmp_path, max_connections=2) as at:
        with capture_logs() as logged, at.client() as first, at.client() as second:
            for client in (first, second):
                await client.send(post([EVENT])[:-1])
            await anyio.wait_all_tasks_blocked()
            program = (
                f"import socket; s=socket.socket(1); s.connect({at.path!r}); s.sendall({post([EVENT])!r}); s.recv(99)"
            )
            await anyio.run_process([sys.executable, "-c", program])
        assert at.counts == (1, 1)
        (eviction,) = [each for each in logged if each["event"] == "connection_evicted"]
        assert (eviction["uid"], eviction["pid"]) == (os.getuid(), os.getpid())


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (post([EVENT])[:20], "the whole head of a request did not come within 0.2 s"),
        (post([EVENT])[:-1], "more of the body did not come within 0.2 s"),
    ],
)
async def test_a_request_that_does_not_go_on_costs_its_own_connection(
    tmp_path: Path, sent: bytes, message: str
) -> None:
    async with site(tmp_path, timeouts=SHORT) as at:
        with at.client() as slow, at.client() as client:
            await slow.send(sent)
            await client.send(post([EVENT]))
            assert (await client.answer()).status == 200
            answer = await slow.answer()
            assert (answer.status, answer.error) == (408, {"code": "request_timeout", "message": message})
            assert await slow.ended()
        assert at.counts == (1, 1)


async def test_a_dripping_body_times_out(tmp_path: Path) -> None:
    async with site(tmp_path, timeouts=SHORT) as at:
        with at.client() as slow:
            await slow.send(post(b"", {"Content-Length": "1000"}))
            async with anyio.create_task_group() as dripping:

                async def drip() -> None:
                    while True:
                        await slow.send(b" ")
                        await anyio.sleep(0.02)

                dripping.start_soon(drip)
                answer = await slow.answer()
                dripping.cancel_scope.cancel()
            assert (answer.status, answer.error["message"]) == (408, "the whole body did not come within 0.3 s")


async def test_a_body_that_is_passed_on_has_to_come_at_some_speed(tmp_path: Path) -> None:
    async def forward(exchange: Exchange, _: str) -> None:
        while await exchange.read():
            pass

    timeouts = SHORT._replace(stall=10.0, grace=0.2)
    async with site(tmp_path, timeouts=timeouts, forward=forward) as at:
        with capture_logs() as logged, at.client() as slow:
            await slow.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n12345")
            answer = await slow.answer()
            message = "a body of more than 1024 bytes/s did not come within 0.2 s"
            assert (answer.status, answer.error["message"]) == (408, message)
        (broken,) = [each for each in logged if each["event"] == "request_broken"]
        assert (broken["status"], broken["pid"]) == (408, os.getpid())


async def test_a_silent_client_times_out(tmp_path: Path) -> None:
    async with site(tmp_path, timeouts=SHORT) as at:
        with at.client() as silent:
            assert await silent.ended()


async def test_a_client_that_reads_no_answers_is_disconnected(tmp_path: Path) -> None:
    async with site(tmp_path, timeouts=SHORT) as at:
        with at.client() as client:
            refused = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nno!" % EVENTS_PATH.encode()
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                await client.send(refused * 100_000)
        assert at.counts == (0, 0)


async def test_too_many_connections_evict_the_idlest(tmp_path: Path) -> None:
    async with site(tmp_path, max_connections=2) as at:
        with at.client() as first, at.client() as second:
            for client in (second, first):
                await client.send(post([EVENT]))
                assert (await client.answer()).status == 200
            with at.client() as third:
                await third.send(post([EVENT]))
                assert (await third.answer()).status == 200
            assert await second.ended()
            await first.send(post([EVENT]))
            assert (await first.answer()).status == 200


# The end


async def test_a_request_in_progress_is_answered_at_shutdown_and_its_connection_closed(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as busy, at.client() as idle, Client(at.port) as late:
            at.host.gate.close()
            await busy.send(post([EVENT]))
            await anyio.wait_all_tasks_blocked()
            await at.listener.close()
            assert await idle.ended()
            assert await late.ended()
            with pytest.raises(OSError, match=r"refused|No such file"):
                at.client()
            at.host.gate.open()
            answer = await busy.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await busy.ended()
        assert at.counts == (1, 1)


async def test_a_request_that_came_before_shutdown_is_answered(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as client:
            await anyio.wait_all_tasks_blocked()
            client.socket.send(post([EVENT]))
            await at.listener.close()
            assert (await client.answer()).status == 200
        assert at.counts == (1, 1)


async def test_a_client_not_yet_accepted_is_answered_at_shutdown(tmp_path: Path) -> None:
    async with site(tmp_path) as at:
        with at.client() as local, Client(at.port) as remote:
            local.socket.send(post([EVENT]))
            remote.socket.send(post([EVENT], {"Authorization": f"Bearer {TOKEN}"}))
            await at.listener.close()
            assert (await local.answer()).status == 200
            assert (await remote.answer()).status == 200
        assert at.counts == (2, 2)


def test_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=f"{address}: the port cannot be opened: Address already in use"):
            sockets.bind_tcp(address)


def test_ipv6_loopback_address_is_reported_as_configured() -> None:
    bound = sockets.bind_tcp("[::1]:0")
    try:
        assert sockets.tcp_address(bound) == f"[::1]:{bound.socket.getsockname()[1]}"
    finally:
        bound.release()
