"""The HTTP adapter over real sockets: what it sends, byte for byte, and what it makes of servers that misbehave."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import anyio
import anyio.to_thread
import httpx
import pytest

from agent.delivery.batching import Suspicion
from agent.delivery.http_transport import MAX_ANSWER_BYTES, Endpoint, HttpTransport
from agent.delivery.transport import Kind
from agent.errors import ConfigError
from agent.events import Context, Event
from tests.support.api_server import Answer, ApiServer, error
from tests.support.pipelines import batch_of, events
from tests.support.raw_server import End, RawServer
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

TOKEN = "tok_Secret-0123456789abcdef"
NOW = 1_750_000_000.0
PLAIN = Context()


@asynccontextmanager
async def connected(
    url: str,
    *,
    token: str | None = TOKEN,
    team_id: str | None = None,
    slug: str | None = None,
    seconds: float = 5.0,
) -> AsyncIterator[HttpTransport]:
    """Yield a transport to that URL and close it."""
    endpoint = Endpoint(url, token, team_id, slug, seconds)
    transport = HttpTransport(endpoint, wall_clock=lambda: NOW)
    try:
        yield transport
    finally:
        await transport.aclose()


async def test_a_request_is_what_the_contract_says_and_nothing_more(api_server: ApiServer) -> None:
    batch = [
        Event("s1", "LOCAL", "HIT", "h1", 7),
        Event("s1", "REMOTE", "MISS", "h2", 0),
        Event("s2", "REMOTE", "HIT", 'ü"\\', 1.5),
        Event("s2", "LOCAL", "MISS", "h4"),
        Event("s2", "LOCAL", "HIT", "h5", 2**53 + 1),
    ]
    async with connected(api_server.url, team_id="team_1", slug="a b&c") as transport:
        assert (await transport.send(batch_of(batch, Context("GITHUB_ACTIONS", 0)))).kind is Kind.ACCEPTED
    (request,) = api_server.requests
    assert (request.method, request.path) == ("POST", "/v8/artifacts/events")
    assert request.query == {"teamId": "team_1", "slug": "a b&c"}
    assert request.body.decode() == (
        '[{"sessionId":"s1","source":"LOCAL","event":"HIT","hash":"h1","duration":7},'
        '{"sessionId":"s1","source":"REMOTE","event":"MISS","hash":"h2","duration":0},'
        '{"sessionId":"s2","source":"REMOTE","event":"HIT","hash":"ü\\"\\\\","duration":1.5},'
        '{"sessionId":"s2","source":"LOCAL","event":"MISS","hash":"h4"},'
        '{"sessionId":"s2","source":"LOCAL","event":"HIT","hash":"h5","duration":9007199254740993}]'
    )
    expected = {
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "x-artifact-client-ci": "GITHUB_ACTIONS",
        "x-artifact-client-interactive": "0",
        "accept-encoding": "identity",
    }
    assert request.headers.items() >= expected.items()
    assert request.headers.keys() <= expected.keys() | {"host", "user-agent", "accept", "connection"}
    assert request.headers["user-agent"].startswith("artifacts-agent/")


@pytest.mark.parametrize(
    ("context", "headers"),
    [
        (Context(), {}),
        (Context("VERCEL"), {"x-artifact-client-ci": "VERCEL"}),
        (Context(None, 1), {"x-artifact-client-interactive": "1"}),
    ],
)
async def test_the_context_is_told_where_it_is_known(
    api_server: ApiServer, context: Context, headers: dict[str, str]
) -> None:
    async with connected(api_server.url, token=None) as transport:
        await transport.send(batch_of(events("h1"), context))
    sent = api_server.requests[0].headers
    assert {name: value for name, value in sent.items() if name.startswith("x-")} == headers
    assert "authorization" not in sent
    assert api_server.requests[0].query == {}


class CountingServer(ApiServer):
    """Counts its connections."""

    connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await super().serve(reader, writer)


async def test_a_connection_that_the_server_has_closed_meanwhile_costs_no_request() -> None:
    """As servers do with one that was idle for some seconds; used again, it would break."""

    def answer(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as request:
            headers = dict(
                line.lower().split(b": ") for line in iter(lambda: request.readline().strip(), b"") if b": " in line
            )
            request.read(int(headers[b"content-length"]))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(HUNG_AFTER)
        async with connected(f"http://127.0.0.1:{listening.getsockname()[1]}") as transport:
            for name in "abc":
                async with anyio.create_task_group() as tasks:  # at its end the server has closed
                    tasks.start_soon(anyio.to_thread.run_sync, answer, listening)
                    with anyio.fail_after(HUNG_AFTER):
                        verdict = await transport.send(batch_of(events(name)))
                assert verdict.kind is Kind.ACCEPTED, verdict


async def test_one_connection_serves_many_requests() -> None:
    with CountingServer() as server:
        async with connected(server.url) as transport:
            for number in range(5):
                assert (await transport.send(batch_of(events(f"h{number}")))).kind is Kind.ACCEPTED
        assert server.connections == 1
        assert len(server.accepted()) == 5


async def test_an_event_that_was_refused_before_goes_over_another_connection() -> None:
    with CountingServer() as server:
        suspect = replace(batch_of(events("a")), suspicion=Suspicion(1, 0))
        async with connected(server.url) as transport:
            for batch in (batch_of(events("a")), suspect, batch_of(events("b"))):
                assert (await transport.send(batch)).kind is Kind.ACCEPTED
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(mode="hang"), Kind.TRANSIENT),
        (Answer(mode="drip", delay=0.05, body=b"x" * 100_000), Kind.TRANSIENT),
        (Answer(mode="reset"), Kind.CUT_OFF),
        (Answer(mode="cut"), Kind.TRANSIENT),
        (Answer(mode="reset_mid_answer"), Kind.TRANSIENT),
        (Answer(mode="reset_mid_upload"), Kind.CUT_OFF),
    ],
)
async def test_an_answer_that_does_not_come_whole_counts_for_nothing(
    api_server: ApiServer, answer: Answer, kind: Kind
) -> None:
    api_server.script([answer])
    async with connected(api_server.url, seconds=0.3) as transport:
        verdict = await transport.send(batch_of(events(*(f"h{number}" * 100 for number in range(500)))))
        assert (verdict.kind, verdict.status) == (kind, None)
        assert (await transport.send(batch_of(events("after")))).kind is Kind.ACCEPTED


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked \r\n\r\n2\r\n{}\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2  \r\n{}\r\n0  \r\n\r\n", 1),
        (b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 2),
    ],
)
async def test_a_batch_that_is_accepted_in_an_odd_way_is_not_sent_again(answer: bytes, connections: int) -> None:
    with RawServer(answer) as server:
        async with connected(server.url) as transport:
            for name in ("a", "b"):
                assert (await transport.send(batch_of(events(name)))).kind is Kind.ACCEPTED
        assert server.accepted == connections


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "CR"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", "whitespace"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n{}", "Content-Length"),
        (b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "no HTTP/1.1"),
        (b"HTTP/1.1 199 No\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 204 No Content\r\n\r\n", "informational"),
        (b"HTTP/1.1 000 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "below 100"),
    ],
)
async def test_an_answer_that_cannot_be_understood_counts_for_nothing_and_says_why(answer: bytes, reason: str) -> None:
    with RawServer(answer) as server:
        async with connected(server.url) as transport:
            verdict = await transport.send(batch_of(events("a")))
    assert (verdict.kind, verdict.status) == (Kind.CUT_OFF, None)
    assert reason in verdict.message


async def test_a_refusal_is_understood_even_if_its_body_is_cut_off(api_server: ApiServer) -> None:
    api_server.script([Answer(status=413, body=b"x" * 100, mode="cut")])
    async with connected(api_server.url, seconds=5) as transport:
        verdict = await transport.send(batch_of(events("one", "two")))
    assert (verdict.kind, verdict.status) == (Kind.TOO_LARGE, 413)


async def test_a_server_that_is_not_there_is_transient() -> None:
    with ApiServer() as server:
        url = server.url
    async with connected(url) as transport:
        verdict = await transport.send(batch_of(events("h1")))
    assert verdict.kind is Kind.TRANSIENT
    assert verdict.message.startswith(f"cannot reach {url}: ")


class Silent(httpx.AsyncBaseTransport):
    """A connection that comes about or not, and answers nothing."""

    def __init__(self, *, connects: bool) -> None:
        self._connects = connects

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._connects:
            assert list(cast(httpx.SyncByteStream, request.stream))
        await anyio.sleep_forever()
        raise AssertionError


@pytest.mark.parametrize("connects", [True, False])
async def test_what_ran_out_of_time_was_sent_if_there_was_a_connection(*, connects: bool) -> None:
    transport = HttpTransport(
        Endpoint("http://127.0.0.1:1", TOKEN, timeout=0.05), wall_clock=lambda: NOW, transport=Silent(connects=connects)
    )
    verdict = await transport.send(batch_of(events("h1")))
    await transport.aclose()
    assert (verdict.kind, verdict.status, verdict.unsent) == (Kind.TRANSIENT, None, not connects)


@pytest.mark.parametrize("url", ["http://" + "a" * 70 + ".localhost:1", "http://a..b:1", "ftp://127.0.0.1:1"])
async def test_a_url_that_no_server_can_have_is_a_verdict_too(url: str) -> None:
    """Whose resolver refuses the name, and how, depends on the event loop."""
    async with connected(url) as transport:
        verdict = await transport.send(batch_of(events("h1")))
    assert verdict.kind in {Kind.MISCONFIGURED, Kind.TRANSIENT}
    assert url in verdict.message
    assert verdict.unsent


async def test_a_redirect_is_not_followed(api_server: ApiServer) -> None:
    with ApiServer() as elsewhere:
        api_server.script([Answer(307, {"location": f"{elsewhere.url}/v8/artifacts/events"})])
        async with connected(api_server.url) as transport:
            verdict = await transport.send(batch_of(events("h1")))
        assert verdict.kind is Kind.MISCONFIGURED
        assert "redirects are not followed" in verdict.message
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "location", ["x:y", "http://xn--zzzzz-9999999999999/", "http://[", "//", "/" * 70_000, "http://a:99999/"]
)
async def test_a_redirect_to_what_is_no_url_is_a_redirect_all_the_same(api_server: ApiServer, location: str) -> None:
    """Not a broken connection, after which the batch would be halved and sent again."""
    api_server.script([Answer(302, {"location": location})])
    async with connected(api_server.url) as transport:
        verdict = await transport.send(batch_of(events("h1")))
    assert (verdict.kind, verdict.status) == (Kind.MISCONFIGURED, 302)


async def test_a_giant_answer_is_not_read_whole(api_server: ApiServer) -> None:
    api_server.script([Answer(500, body=b"x" * 64 * 1024 * 1024)])
    async with connected(api_server.url) as transport:
        verdict = await transport.send(batch_of(events("h1")))
        assert (verdict.kind, len(verdict.message)) == (Kind.TRANSIENT, 300 + len("500 Internal Server Error: "))
        assert (await transport.send(batch_of(events("h2")))).kind is Kind.ACCEPTED


@pytest.mark.parametrize(("size", "kind"), [(MAX_ANSWER_BYTES - 1, Kind.TRANSIENT), (MAX_ANSWER_BYTES, Kind.ACCEPTED)])
async def test_of_a_giant_answer_that_accepts_the_beginning_counts(size: int, kind: Kind) -> None:
    with RawServer(b"HTTP/1.1 204 No Content\r\n\r\n") as server:
        server.script(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * size, End.CLOSED)
        async with connected(server.url) as transport:
            assert (await transport.send(batch_of(events("a")))).kind is kind
            assert (await transport.send(batch_of(events("b")))).kind is Kind.ACCEPTED
        assert server.accepted == 2


async def test_cookies_are_neither_kept_nor_sent(api_server: ApiServer) -> None:
    api_server.default = Answer(headers={"set-cookie": "a=b; Path=/"})
    async with connected(api_server.url) as transport:
        await transport.send(batch_of(events("h1")))
        await transport.send(batch_of(events("h2")))
    assert all("cookie" not in request.headers for request in api_server.requests)


@pytest.mark.parametrize(
    "said",
    [
        f"the token {TOKEN} is wrong",
        json.dumps({"error": {"message": f"Bearer {TOKEN}"}}),
        json.dumps({"error": {"message": "".join(f"\\u{ord(c):04x}" for c in TOKEN)}}).replace("\\\\", "\\"),
        *("x" * (300 - cut) + TOKEN for cut in range(8, len(TOKEN) + 1)),
    ],
)
async def test_a_token_that_the_server_echoes_is_in_no_message(api_server: ApiServer, said: str) -> None:
    api_server.default = Answer(401, body=said.encode())
    api_server.routes["GET", "/v8/artifacts/status"] = Answer(body=json.dumps({"status": said}).encode())
    async with connected(api_server.url) as transport:
        probed, sent = await transport.probe(), await transport.send(batch_of(events("h1")))
    assert probed is not None
    for message in (probed.message, sent.message):
        assert TOKEN[:8] not in message
    assert "[token]" in sent.message


async def test_the_token_is_in_no_repr_and_no_log(api_server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    async with connected(api_server.url) as transport:
        await transport.send(batch_of(events("h1")))
        assert TOKEN not in repr(transport)
    assert TOKEN not in repr(Endpoint(api_server.url, TOKEN))
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(body=b'{"status": "enabled"}'), Kind.ACCEPTED),
        (Answer(body=b'{"status": "disabled"}'), Kind.BLOCKED),
        (Answer(body=b"<html>"), Kind.ACCEPTED),
        (error(401, "x", "no"), Kind.BLOCKED),
        (error(503, "x", "later"), Kind.TRANSIENT),
        (error(404, "x", "no such route"), None),
    ],
)
async def test_a_probe_reads_the_accounts_status(api_server: ApiServer, answer: Answer, kind: Kind | None) -> None:
    api_server.routes["GET", "/v8/artifacts/status"] = answer
    async with connected(api_server.url, team_id="team_1") as transport:
        verdict = await transport.probe()
    assert (verdict.kind if verdict else None) == kind
    (request,) = api_server.requests
    assert (request.method, request.path, request.query) == ("GET", "/v8/artifacts/status", {"teamId": "team_1"})
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.body == b""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


async def test_a_proxy_of_the_environment_never_sees_what_stays_on_this_host(
    api_server: ApiServer, environment: pytest.MonkeyPatch
) -> None:
    with ApiServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            environment.setenv(name, proxy.url)
        for url in (api_server.url, api_server.url.replace("127.0.0.1", "localhost")):
            async with connected(url) as transport:
                assert (await transport.send(batch_of(events("h1")))).kind is Kind.ACCEPTED
        assert proxy.requests == []
    assert len(api_server.accepted()) == 2


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_a_proxy_of_the_environment_is_used_for_other_hosts(name: str, environment: pytest.MonkeyPatch) -> None:
    with ApiServer() as proxy:
        environment.setenv(name, proxy.url)
        async with connected("http://api.example.invalid", token=None) as transport:
            assert (await transport.send(batch_of(events("h1")))).status == 404
        assert [request.headers["host"] for request in proxy.requests] == ["api.example.invalid"]


async def test_a_proxy_may_be_named_without_a_scheme_and_with_a_password(environment: pytest.MonkeyPatch) -> None:
    with ApiServer() as proxy:
        for place in (proxy.url.removeprefix("http://"), proxy.url.replace("://", "://user:hunter2@")):
            environment.setenv("HTTP_PROXY", place)
            async with connected("http://api.example.invalid", token=None) as transport:
                assert (await transport.send(batch_of(events("h1")))).status == 404
        shown = [request.headers.get("proxy-authorization") for request in proxy.requests]
        assert shown == [None, "Basic " + base64.b64encode(b"user:hunter2").decode()]


async def test_the_proxy_for_https_makes_a_tunnel_and_sees_no_token(environment: pytest.MonkeyPatch) -> None:
    with ApiServer() as proxy, ApiServer() as other:
        environment.setenv("HTTPS_PROXY", proxy.url)
        environment.setenv("HTTP_PROXY", other.url)
        environment.setenv("ALL_PROXY", other.url)
        async with connected("https://api.example.invalid") as transport:
            verdict = await transport.send(batch_of(events("h1")))
        assert verdict.kind is Kind.TRANSIENT
        (request,) = proxy.requests
        assert request.method == "CONNECT"
        assert TOKEN not in repr(request.headers)
        assert other.requests == []


# An address that is taken for a name, as every other host is, but that is this host's: so no name has to be looked up.
LIKE_ANOTHER = "127.0.1"


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("", False),
        ("*", True),
        ("127.0.1", True),
        ("0.1", True),
        (".0.1", True),
        ("7.0.1", False),
        ("127.0", False),
        ("other.invalid", False),
        ("other.invalid, 127.0.1", True),
        ("127.0.1:PORT", True),
        ("0.1:PORT", True),
        ("127.0.1:1", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
async def test_what_no_proxy_names_is_asked_directly(
    api_server: ApiServer, environment: pytest.MonkeyPatch, name: str, no_proxy: str, direct: bool
) -> None:
    url = api_server.url.replace("127.0.0.1", LIKE_ANOTHER)
    with ApiServer() as proxy:
        environment.setenv("HTTP_PROXY", proxy.url)
        environment.setenv(name, no_proxy.replace("PORT", url.rpartition(":")[2]))
        async with connected(url, token=None) as transport:
            await transport.send(batch_of(events("h1")))
        assert (len(api_server.requests), len(proxy.requests)) == ((1, 0) if direct else (0, 1))


@pytest.mark.parametrize(
    "proxy", ["gopher://user:hunter2@127.0.0.1:1", "socks5://user:hunter2@127.0.0.1:1", "http://[:x"]
)
async def test_a_proxy_that_cannot_be_used_is_a_configuration_error_without_its_password(
    proxy: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match="ALL_PROXY") as raised:
        HttpTransport(Endpoint("https://api.example.invalid", TOKEN), wall_clock=lambda: NOW)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__suppress_context__


async def test_certificates_that_cannot_be_read_are_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "broken.pem"))
    (tmp_path / "broken.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        HttpTransport(Endpoint("https://api.example.invalid", TOKEN), wall_clock=lambda: NOW)
