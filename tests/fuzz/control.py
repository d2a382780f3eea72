"""The target for what is written to the control socket: a real one, before a real queue."""

import socket
from pathlib import Path

import anyio
from structlog.testing import capture_logs

from agent.control.routes import Control
from agent.http import server as http_server
from agent.ingest import sockets
from tests.fuzz.loop import Loop
from tests.fuzz.scratch import scratch
from tests.support.edge import Client
from tests.support.pipelines import Host, host

MAX_ANSWERS = 4 * 1024 * 1024
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
_STATUSES = {b"100", b"200", b"400", b"404", b"405", b"413", b"414", b"431", b"501", b"503", b"504", b"505"}


def control(data: bytes) -> None:
    """Any bytes are answered or hung up on, no handler fails on them, and the next client finds all in order."""
    daemon = _LOOP.resource(Daemon)
    with capture_logs() as logs:
        answer = _LOOP.run(lambda: daemon.exchange(data))
        healthy = _LOOP.run(lambda: daemon.exchange(HEALTHZ))
    assert logs == [log for log in logs if log["event"] not in {"request_failed", "cannot_accept"}], logs
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert answer[9:12] in _STATUSES | {b""}
    assert b"HTTP/1.1 500" not in answer
    assert healthy.startswith(b"HTTP/1.1 200 ")


class Daemon:
    """A control socket before a queue in memory."""

    def __init__(self) -> None:
        self._path = scratch() / "c.sock"

    async def run(self, started: anyio.Event) -> None:
        """Serve until cancelled."""
        bound = sockets.bind(self._path, sockets.STREAM, mode=0o600)
        try:
            async with host() as made:
                control = _control(made)
                made.tasks.start_soon(http_server.serve, bound.socket, control.handle)
                started.set()
                await anyio.sleep_forever()
        finally:
            bound.release()

    async def exchange(self, data: bytes) -> bytes:
        """See `exchange`."""
        return await exchange(self._path, data)


async def exchange(path: Path, data: bytes) -> bytes:
    """Write all of it, hang up on this side, and read to the end."""
    answer = b""
    with Client(path) as client:
        try:
            await client.send(data)
            client.socket.shutdown(socket.SHUT_WR)
            while more := await client.receive():
                answer += more
                assert len(answer) <= MAX_ANSWERS
        except ConnectionError:
            pass  # it hung up with bytes of ours unread
    return answer


def _control(made: Host) -> Control:
    return Control({"default": made.start()}, [], made.wall_clock)


_LOOP = Loop()


def control_seeds() -> list[bytes]:
    """Requests, several in a row, and what is none."""
    paths = [
        b"/status",
        b"/metrics",
        b"/healthz",
        b"/flush?deadline=1e999",
        b"/pause",
        b"/resume?a=%ff&a",
        b"//[",
        b"*",
    ]
    requests = [m + b" " + p + b" HTTP/1.1\r\nHost: a\r\n\r\n" for p in paths for m in (b"GET", b"POST")]
    return [
        *requests,
        b"".join(requests[:6]),
        b"POST /flush HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HEAD /status HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"CONNECT /status HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"GET /status HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"a" * 500 + b" HTTP/1.1\r\n" + b"X: y\r\n" * 50,
    ]
