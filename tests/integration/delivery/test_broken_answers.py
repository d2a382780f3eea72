"""Answers that end, hang or go on where they should not: none of them counts, and the next request gets an answer of its own."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.delivery.http_transport import Endpoint, HttpTransport
from agent.delivery.transport import Kind, Verdict
from tests.support.pipelines import batch_of, events
from tests.support.raw_server import End, Endless, Piece, RawServer
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LENGTH = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK
CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\nX-Trailer: t\r\n\r\n"


@asynccontextmanager
async def connected(server: RawServer, seconds: float = HUNG_AFTER) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(Endpoint(server.url, "token", timeout=seconds), wall_clock=lambda: 0.0)
    try:
        yield transport
    finally:
        await transport.aclose()


async def answered(transport: HttpTransport, server: RawServer, *pieces: Piece) -> Verdict:
    """Send a batch that is answered so, and see that the next one, answered as it should be, is accepted."""
    server.script(*pieces)
    verdict = await transport.send(batch_of(events("a")))
    assert (await transport.send(batch_of(events("b")))).kind is Kind.ACCEPTED, pieces
    return verdict


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("answer", [LENGTH, CHUNKED], ids=["length", "chunks"])
async def test_an_answer_that_ends_before_its_end_counts_for_nothing(answer: bytes, end: End) -> None:
    """At whatever byte, over a connection that is new, or that has served before."""
    with RawServer(OK) as server:
        for cut in range(len(answer)):
            async with connected(server) as transport:
                for _ in range(2):
                    verdict = await answered(transport, server, answer[:cut], end)
                    assert verdict.kind in {Kind.CUT_OFF, Kind.TRANSIENT}, (cut, verdict)
                    assert verdict.status is None, (cut, verdict)


@pytest.mark.parametrize("cut", range(0, len(CHUNKED), 7))
async def test_an_answer_that_hangs_counts_for_nothing(cut: int) -> None:
    with RawServer(OK) as server:
        never = threading.Event()
        server.script(CHUNKED[:cut], never)
        async with connected(server, 0.2) as transport:
            verdict = await transport.send(batch_of(events("a")))
        never.set()
    assert (verdict.kind, verdict.message) == (Kind.TRANSIENT, "no whole answer within 0.2 s")


@pytest.mark.parametrize(
    ("begin", "again", "reason"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "is longer than 131,072 bytes"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "is longer than 131,072 bytes"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nX-Header: ", b"x" * 1000, ""),
        (b"HTTP/1.1 ", b"2", ""),
        (b"", b"\r\n", ""),
        (b"", b"\0", ""),
    ],
)
async def test_a_head_without_an_end_is_given_up(begin: bytes, again: bytes, reason: str) -> None:
    with RawServer(OK) as server:
        async with connected(server) as transport:
            verdict = await answered(transport, server, begin + again, Endless(again))
    assert (verdict.kind, verdict.status) == (Kind.CUT_OFF, None)
    assert reason in verdict.message


@pytest.mark.parametrize("end", [b"", b"0\r\n"], ids=["chunks", "trailers"])
async def test_a_body_without_an_end_is_not_read_for_ever(end: bytes) -> None:
    """What accepts has accepted; trailers are a part of the answer, and do not come to their end."""
    more = b"X-Trailer: t\r\n" * 100 if end else b"400\r\n" + b"x" * 1024 + b"\r\n"
    with RawServer(OK) as server:
        async with connected(server) as transport:
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            verdict = await answered(transport, server, head + end, Endless(more))
    assert verdict.kind is (Kind.TRANSIENT if end else Kind.ACCEPTED)
