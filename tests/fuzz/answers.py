"""Targets for what a server answers: the reading of a status, headers and body, and raw bytes over a real socket."""

import math
import socket

import anyio

from agent.delivery.batching import Batch
from agent.delivery.http_transport import KEEP_SECONDS, Endpoint, HttpTransport, classify
from agent.delivery.transport import Kind, Verdict
from agent.events import Context
from agent.http.client import SingleConnectionTransport
from agent.http.dialing import Route
from agent.queue.cursor import Span
from tests.fuzz.loop import Loop
from tests.fuzz.scratch import scratch
from tests.support.daemon import TOKEN

NOW = 1_700_000_000.0
MAX_MESSAGE = 1500
PLACEHOLDER = b"%TOKEN%"
BATCH = Batch(Context(), b"{}\n", (Span(1, 2),))
_HEADERS = ("retry-after", "x-ratelimit-reset", "x-ratelimit-remaining")


def classified(data: bytes) -> None:
    """Any status, headers and body are a verdict with one printable line and a wait that can be waited for.

    The data: two bytes of status, then a line for each header, then the body.
    """
    status, rest = 100 + int.from_bytes(data[:2]) % 900, data[2:]
    *values, body = rest.split(b"\n", len(_HEADERS))
    headers = {name: value.decode("latin-1") for name, value in zip(_HEADERS, values, strict=False)}
    check(classify(status, headers, body, now=NOW))


def check(verdict: Verdict) -> None:
    """A verdict is fit for a person and for a clock, and holds no token."""
    assert verdict.kind in set(Kind)
    assert verdict.message.isprintable()
    assert 0 < len(verdict.message) <= MAX_MESSAGE
    assert TOKEN not in verdict.message
    assert verdict.status is None or 100 <= verdict.status <= 999
    wait = verdict.retry_after
    assert wait is None or (math.isfinite(wait) and wait >= 0)


def answered(data: bytes) -> None:
    """Whatever bytes a server sends, a batch and a probe have a verdict each; nothing raises, and no token is told.

    The bytes are sent as they are, up to the end of the connection; a placeholder in them stands for the token.
    """
    server = _LOOP.resource(Server)
    server.answer = data.replace(PLACEHOLDER, TOKEN.encode())
    verdicts = _LOOP.run(server.ask)
    for verdict in verdicts:
        check(verdict)
    if data.startswith((b"HTTP/1.1 30", b"HTTP/1.0 30")) and verdicts[0].status is not None:
        assert verdicts[0].kind is Kind.MISCONFIGURED


class Server:
    """A server on a Unix socket with one answer for all, and a transport that asks it."""

    def __init__(self) -> None:
        self.answer = b""
        self._path = scratch() / "api.sock"
        endpoint = Endpoint("http://127.0.0.1:9", TOKEN, timeout=5.0)
        wire = SingleConnectionTransport(Route(b"127.0.0.1", 9), KEEP_SECONDS, self._dial)
        self._transport = HttpTransport(endpoint, wall_clock=lambda: NOW, transport=wire)

    async def run(self, started: anyio.Event) -> None:
        """Serve until cancelled."""
        async with await anyio.create_unix_listener(self._path) as listener:
            started.set()
            try:
                await listener.serve(self._serve)
            finally:
                await self._transport.aclose()

    async def ask(self) -> list[Verdict]:
        """Send one batch and one probe."""
        verdict = await self._transport.send(BATCH)
        probed = await self._transport.probe()
        return [verdict] if probed is None else [verdict, probed]

    async def _dial(self, _: Route) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        connection.connect(str(self._path))
        return connection

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request or (request.startswith(b"POST") and not request.endswith(b"]")):
                request += await stream.receive()
            if self.answer:
                await stream.send(self.answer)
            await stream.send_eof()


_LOOP = Loop()


def classified_seeds() -> list[bytes]:
    """Waits in every form, and bodies with a message and without."""
    status = (429 - 100).to_bytes(2)
    waits = [b"5", b"1e999", b"Tue, 14 Nov 2023 22:14:20 GMT", b"Tue Nov 14 22:14:20 2023", b"9" * 400, b"nan", b"-1"]
    bodies = [b"", b'{"error":{"code":"x","message":"no"}}', b'{"message":"\\ud800"}', b"\xff\x00<html>", b"[" * 300]
    return [status + wait + b"\n1700000060\n0\n" + body for wait in waits for body in bodies[:2]] + [
        code.to_bytes(2) + b"\n\n\n" + body for code in (100, 203, 300, 402) for body in bodies
    ]


def answered_seeds() -> list[bytes]:
    """Answers, whole and broken."""
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"status":"disabled"}',
        b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nX-RateLimit-Reset: 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://xn--/\r\nSet-Cookie: a=b; Path=/; Expires=Tue, 14 Nov 2023\r\n\r\n",
        b"HTTP/1.1 307 Found\r\nLocation: x:y\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.0 400 Bad\r\nContent-Encoding: gzip\r\n\r\n{"error":{"message":"%TOKEN%"}}',
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\ncut",
        b"HTTP/1.1 413 %TOKEN%\r\nContent-Length: x\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 199 No\r\nContent-Length: 2\r\n\r\nhiHTTP/1.0 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked \r\n\r\n2 \r\n{}\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"",
    ]
