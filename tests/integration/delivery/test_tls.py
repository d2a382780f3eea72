"""Delivery over TLS, and by way of proxies: real certificates, real tunnels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import pytest

from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.transport import Kind
from tests.support.pipelines import batch_of, events
from tests.support.raw_server import RawServer
from tests.support.surplus import SURPLUS
from tests.support.tls import NAME, OWN, Certificate, TunnelProxy, make_certificate
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

TOKEN = "tok_Secret-0123456789abcdef"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, certificate: Certificate) -> pytest.MonkeyPatch:
    """An environment without proxies, which trusts the certificate."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))
    return monkeypatch


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(Endpoint(url, TOKEN, timeout=HUNG_AFTER), wall_clock=lambda: 0.0)
    try:
        yield transport
    finally:
        await transport.aclose()


async def test_one_connection_serves_many_requests_whatever_their_size(certificate: Certificate) -> None:
    with RawServer(OK, certificate.server) as server:
        async with connected(server.url) as transport:
            for count in (1, 10_000, 1):
                batch = batch_of(events(*(f"h{number}" * 20 for number in range(count))))
                assert (await transport.send(batch)).kind is Kind.ACCEPTED
        assert (len(server.requests), server.accepted) == (3, 1)


@pytest.mark.parametrize("names", [OWN, "IP:127.0.0.2"], ids=["of another one", "for another host"])
async def test_a_certificate_that_is_not_the_servers_sends_nothing(
    tmp_path: Path, environment: pytest.MonkeyPatch, names: str
) -> None:
    other = make_certificate(tmp_path, names)
    if names != OWN:
        environment.setenv("SSL_CERT_FILE", str(other.file))
    with RawServer(OK, other.server) as server:
        async with connected(server.url) as transport:
            verdict = await transport.send(batch_of(events("a")))
        assert server.requests == []
    assert (verdict.kind, verdict.unsent) == (Kind.TRANSIENT, True)
    assert verdict.message.startswith(f"cannot reach {server.url}: ")
    assert "certificate" in verdict.message


@pytest.mark.parametrize("kind", SURPLUS)
async def test_what_comes_behind_an_answer_is_not_the_next_one(certificate: Certificate, kind: str) -> None:
    answer, surplus = SURPLUS[kind]
    for pieces in ([answer + surplus], [answer, surplus]):
        with RawServer(REFUSED, certificate.server) as server:
            server.script(*pieces)
            async with connected(server.url) as transport:
                await transport.send(batch_of(events("a")))
                assert await anyio.to_thread.run_sync(server.finished.wait, HUNG_AFTER)
                assert [(await transport.send(batch_of(events(name)))).status for name in "bc"] == [503, 503]
            assert (len(server.requests), server.accepted) == (3, 2)


async def test_a_tunnel_serves_many_requests_and_nobody_in_it_sees_the_token(
    certificate: Certificate, environment: pytest.MonkeyPatch
) -> None:
    with RawServer(OK, certificate.server) as server, TunnelProxy(server.port) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url.replace("://", "://user:hunter2@"))
        async with connected(f"https://{NAME}") as transport:
            for name in "abc":
                assert (await transport.send(batch_of(events(name)))).kind is Kind.ACCEPTED
        assert (len(server.requests), server.accepted) == (3, 1)
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}:443\r\n".encode())
    assert b"Proxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n" in head
    assert TOKEN.encode() not in head


@pytest.mark.parametrize("kind", SURPLUS)
async def test_what_comes_through_a_tunnel_behind_an_answer_is_not_the_next_one(
    certificate: Certificate, environment: pytest.MonkeyPatch, kind: str
) -> None:
    with RawServer(REFUSED, certificate.server) as server, TunnelProxy(server.port) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url)
        server.script(b"".join(SURPLUS[kind]))
        async with connected(f"https://{NAME}") as transport:
            await transport.send(batch_of(events("a")))
            assert [(await transport.send(batch_of(events(name)))).status for name in "bc"] == [503, 503]
        assert (len(server.requests), server.accepted) == (3, 2)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_a_proxy_that_asks_itself_gives_no_request_anothers_answer(
    certificate: Certificate, environment: pytest.MonkeyPatch, *, secure: bool
) -> None:
    """Over one connection, where the proxy speaks plain HTTP, as long as it sends nothing but answers."""
    with RawServer(REFUSED, certificate.server if secure else None) as proxy:
        environment.setenv("HTTP_PROXY", proxy.url)
        for answer, surplus in SURPLUS.values():
            for script, connections in ((answer, 1), (answer + surplus, 2)):
                proxy.script(script)
                async with connected(f"http://{NAME}") as transport:
                    await transport.send(batch_of(events("a")))
                    assert [(await transport.send(batch_of(events(name)))).status for name in "bc"] == [503, 503]
                assert len(proxy.requests) == 3
                assert proxy.accepted == (3 if secure else connections)
        assert proxy.requests[0].startswith(f"post http://{NAME}/v8/artifacts/events ".encode())


async def test_a_proxy_that_refuses_a_tunnel_says_why(environment: pytest.MonkeyPatch) -> None:
    with TunnelProxy(1, b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url)
        async with connected(f"https://{NAME}") as transport:
            verdict = await transport.send(batch_of(events("a")))
    assert verdict.kind is Kind.TRANSIENT
    assert "407 Proxy Authentication Required" in verdict.message
