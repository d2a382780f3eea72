"""The target for what is written to the HTTP listener: a real socket, before a real queue, with a front that has no server."""

import json

import anyio
from structlog.testing import capture_logs

from agent.delivery.pipeline import Pipeline
from agent.http.api import EVENTS_PATH
from agent.http.proxy import Proxy
from agent.ingest import sockets
from agent.ingest.http_events import AccessPolicy, HttpListener
from agent.ingest.intake import Intake
from tests.fuzz.control import exchange
from tests.fuzz.loop import Loop
from tests.fuzz.scratch import scratch
from tests.support.pipelines import host

_EVENT = b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h","duration":7}'
_POST = b"POST %b HTTP/1.1\r\nHost: a\r\n" % EVENTS_PATH.encode()
_GOOD = _POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n[%b]" % (len(_EVENT) + 2, _EVENT)


def http(data: bytes) -> None:
    """Any bytes are answered or hung up on; events are kept where it says so, and nowhere else; the next client is served."""
    site = _LOOP.resource(Site)
    before = site.accepted
    with capture_logs() as logs:
        answer = _LOOP.run(lambda: site.exchange(data))
        kept, before = site.accepted - before, site.accepted
        good = _LOOP.run(lambda: site.exchange(_GOOD))
    assert logs == [log for log in logs if log["event"] not in {"request_failed", "cannot_accept"}], logs
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in answer
    assert not kept or b"HTTP/1.1 200 OK\r\n" in answer
    assert good.startswith(b"HTTP/1.1 200 ")
    assert site.accepted == before + 1


class Site:
    """A listener before a queue in memory, and a front whose server is not there."""

    def __init__(self) -> None:
        self._path = scratch() / "h.sock"
        self._pipeline: Pipeline | None = None

    @property
    def accepted(self) -> int:
        """How many events have been accepted."""
        assert self._pipeline is not None
        return self._pipeline.ledger().accepted

    async def run(self, started: anyio.Event) -> None:
        """Serve until cancelled."""
        bound = sockets.bind(self._path, sockets.STREAM, mode=0o600)
        front = Proxy("http://127.0.0.1:9")
        try:
            async with host() as made:
                self._pipeline = made.start()
                self._pipeline.pause()
                listener = HttpListener(
                    [bound],
                    Intake({"default": self._pipeline}),
                    {"default": AccessPolicy(None, None, "ours")},
                    64,
                    forward=lambda exchange, _: front.forward(exchange),
                )
                made.tasks.start_soon(listener.serve)
                started.set()
                await anyio.sleep_forever()
        finally:
            bound.release()
            await front.aclose()

    async def exchange(self, data: bytes) -> bytes:
        """See `tests.fuzz.control.exchange`."""
        return await exchange(self._path, data)


_LOOP = Loop()


def http_seeds() -> list[bytes]:
    """Requests with events in every form, requests for the front, several in a row, and what is none."""
    body = json.dumps([json.loads(_EVENT)] * 2).encode()
    length = b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return [
        _POST + length,
        _POST + chunked,
        _GOOD.replace(b"Connection: close\r\n", b"") * 3,
        _POST.replace(b" HTTP", b"?slug=theirs&teamId=x HTTP") + length,
        _POST + b"x-artifact-client-ci: VERCEL\r\nx-artifact-client-interactive: 1\r\n" + length,
        _POST + b"x-artifact-client-interactive: 2\r\nExpect: 100-continue\r\n" + length,
        _POST + b"Content-Length: 99999999\r\n\r\n",
        _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /v8/artifacts/a%2F HTTP/1.1\r\nHost: a\r\nConnection: x, te\r\nTE: trailers\r\n" + length,
        b"HEAD /v8/artifacts/a HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/v8 HTTP/1.0\r\n\r\n",
    ]
