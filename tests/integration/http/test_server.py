"""The small HTTP server over a real Unix socket: whatever clients send or leave out, it goes on."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from agent.acceptor import KEPT_PART
from agent.http import server as http_server
from agent.http.connection import ClientGoneError
from agent.http.server import MAX_BODY_BYTES, MAX_CONNECTIONS, Exchange, Request, Response
from agent.ingest import sockets
from tests.support.http_client import Client
from tests.support.waiting import HUNG_AFTER

pytestmark = pytest.mark.anyio
GET = b"GET /ok HTTP/1.1\r\nHost: agent\r\n\r\n"


class Server:
    """A server whose handler keeps the requests, and raises, waits or answers as the path says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.go_on = anyio.Event()

    def client(self) -> Client:
        return Client(str(self.path))

    async def handle(self, request: Request) -> Response:
        self.requests.append(request)
        if request.path == "/raise":
            raise ZeroDivisionError("in the handler")
        if request.path == "/wait":
            await self.go_on.wait()
        if request.path == "/stay":
            await request.hung_up()
            self.go_on.set()
        return Response.json({"path": request.path})


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Server]:
    """Serve while the block lasts; afterwards a fresh client must still be answered."""
    server = Server(directory / "c.sock")
    bound = sockets.bind(server.path, sockets.STREAM, mode=0o600)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http_server.serve, bound.socket, server.handle)
            yield server
            server.go_on.set()
            with server.client() as client:
                await client.send(GET)
                assert (await client.answer()).status == 200
            tasks.cancel_scope.cancel()
    finally:
        bound.release()


async def test_a_connection_is_kept_for_request_after_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            for number in range(3):
                await client.send(b"GET /ok/%d?a=1&a=2&b HTTP/1.1\r\nHost: agent\r\nX-Thing: 7\r\n\r\n" % number)
                answer = await client.answer()
                assert (answer.status, json.loads(answer.body)) == (200, {"path": f"/ok/{number}"})
                assert answer.headers["content-type"] == "application/json"
        assert [request.query for request in server.requests[:3]] == [{"a": "2", "b": ""}] * 3
        assert server.requests[0].headers["x-thing"] == "7"


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(GET.replace(b"ok", b"one") + GET.replace(b"ok", b"two"))
            assert [json.loads((await client.answer()).body)["path"] for _ in range(2)] == ["/one", "/two"]


async def test_a_request_in_single_bytes_and_a_body_in_chunks_are_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            head = b"POST /ok HTTP/1.1\r\nHost: agent\r\nTransfer-Encoding: chunked\r\n\r\n"
            for byte in head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n":
                await client.send(bytes([byte]))
                await anyio.lowlevel.checkpoint()
            assert (await client.answer()).status == 200
        assert server.requests[0].body == b"abcde"


async def test_a_half_closed_client_still_gets_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(GET)
            client.socket.shutdown(socket.SHUT_WR)
            assert (await client.answer()).status == 200
            assert await client.ended()


async def test_a_handler_learns_of_a_hang_up_but_not_of_a_half_close(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(GET.replace(b"ok", b"stay") + b"GET")
            client.socket.shutdown(socket.SHUT_WR)
            with server.client() as other:  # the loop has looked at every socket before this is answered
                await other.send(GET)
                assert (await other.answer()).status == 200
            assert not server.go_on.is_set()
        with anyio.fail_after(HUNG_AFTER):
            await server.go_on.wait()


async def test_what_goes_on_without_its_client_ends_after_a_while(tmp_path: Path) -> None:
    bound, ended = sockets.bind(tmp_path / "c.sock", sockets.STREAM, mode=0o600), anyio.Event()

    async def handle(exchange: Exchange) -> None:
        with exchange.until_left(0.05):
            await anyio.sleep_forever()
        ended.set()
        raise ClientGoneError

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http_server.Server(1).serve, bound.socket, handle)
            with Client(str(tmp_path / "c.sock")) as client:
                await client.send(GET)
            with anyio.fail_after(HUNG_AFTER):
                await ended.wait()
            tasks.cancel_scope.cancel()
    finally:
        bound.release()


async def test_whole_requests_of_a_client_that_has_hung_up_reach_the_handler(tmp_path: Path) -> None:
    """Answers that cannot be sent, or that nobody waits for any more, cost only themselves."""
    async with serving(tmp_path) as server:
        with server.client() as client:
            paths = [b"/ok/1", b"/stay", b"/ok/2", b"/ok/3"]
            await client.send(b"".join(GET.replace(b"/ok", path) for path in paths))
        with anyio.fail_after(HUNG_AFTER):
            while len(server.requests) < len(paths):
                await anyio.lowlevel.checkpoint()
        assert [request.path.encode() for request in server.requests] == paths


async def test_expect_100_continue_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert (await client.head())[0] == 100
            await client.send(b"hi")
            assert (await client.answer()).status == 200
        assert server.requests[0].body == b"hi"


async def test_the_answer_to_head_has_a_length_and_no_body(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(GET.replace(b"GET", b"HEAD"))
            answer = await client.answer(body=False)
            assert (answer.status, answer.headers["content-length"]) == (200, "15")
            await client.send(GET)
            assert (await client.answer()).body == b'{"path":"/ok"}\n'


async def test_an_http_1_0_client_is_answered_and_disconnected(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(b"GET /ok HTTP/1.0\r\n\r\n")
            assert (await client.answer()).status == 200
            assert await client.ended()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/x.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b'{"sessionId":"an event on the wrong socket"}\n\n\n',
    ],
)
async def test_an_invalid_request_gets_400_in_the_apis_shape(tmp_path: Path, data: bytes) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(data)
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (400, "bad_request")
            assert await client.ended()
        assert server.requests == []


async def test_a_head_without_end_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(b"GET /ok HTTP/1.1\r\n" + b"X: 1\r\n" * 20_000)
            assert (await client.answer()).status == 431
            assert await client.ended()


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
async def test_a_body_that_is_too_large_is_refused(tmp_path: Path, method: bytes) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(method + b" /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n")
            for _ in range(MAX_BODY_BYTES // 1024 + 1):
                await client.send(b"x" * 1024)
            answer = await client.answer(body=method == b"POST")
            assert answer.status == 413
        assert server.requests == []


async def test_a_body_of_the_largest_size_is_taken(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES)
            await client.send(b"x" * MAX_BODY_BYTES)
            assert (await client.answer()).status == 200
        assert len(server.requests[0].body) == MAX_BODY_BYTES


@pytest.mark.parametrize(
    "sent", [b"", b"GET /o", GET[:-2], b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", GET]
)
async def test_a_client_that_vanishes_at_any_point_does_not_disturb_the_server(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as server:
        for _ in range(3):
            with server.client() as client:
                await client.send(sent)
            await anyio.lowlevel.checkpoint()


async def test_a_client_that_vanishes_before_its_answer_does_not_disturb_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client:
            await client.send(GET.replace(b"ok", b"wait") * 3)
            while not server.requests:
                await anyio.lowlevel.checkpoint()
        server.go_on.set()


async def test_an_exception_in_the_handler_is_a_500_and_a_log_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with server.client() as client, capture_logs() as logged:
            await client.send(GET.replace(b"ok", b"raise"))
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (500, "internal_error")
            assert "ZeroDivisionError" not in answer.body.decode()
            await client.send(GET)
            assert (await client.answer()).status == 200
        (failure,) = [each for each in logged if each["event"] == "request_failed"]
        assert (failure["path"], failure["exc_info"], failure["log_level"]) == ("/raise", True, "error")


async def test_too_many_clients_evict_the_longest_silent(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        silent = [server.client() for _ in range(MAX_CONNECTIONS)]
        await anyio.wait_all_tasks_blocked()
        with server.client() as client:
            await client.send(GET)
            assert (await client.answer()).status == 200
        assert await silent[0].ended()
        await silent[1].send(GET)
        assert (await silent[1].answer()).status == 200
        for each in silent:
            each.socket.close()
        await anyio.wait_all_tasks_blocked()


async def test_a_client_that_is_accepted_as_the_server_closes_is_not_waited_for(tmp_path: Path) -> None:
    bound, answers = sockets.bind(tmp_path / "c.sock", sockets.STREAM, mode=0o600), Server(tmp_path / "c.sock")
    server = http_server.Server(MAX_CONNECTIONS)
    with anyio.fail_after(HUNG_AFTER):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, bound.socket, http_server.buffered(answers.handle), bound.release)
            await anyio.wait_all_tasks_blocked()
            with Client(str(answers.path)):
                await server.catch_up()  # it is accepted, and its task has yet to begin
                server.close()


async def test_a_new_client_is_refused_while_all_others_are_being_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        most = MAX_CONNECTIONS - 2 * (MAX_CONNECTIONS // KEPT_PART)  # the rest is for other processes and users
        clients = [server.client() for _ in range(most)]
        for client in clients:
            await client.send(GET.replace(b"ok", b"wait"))
        await anyio.wait_all_tasks_blocked()
        with server.client() as one_too_many:
            assert await one_too_many.ended()
        server.go_on.set()
        for client in clients:
            with client:
                assert (await client.answer()).status == 200
        await anyio.wait_all_tasks_blocked()
