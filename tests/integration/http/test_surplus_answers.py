"""What the API sends beyond an answer is never the answer to another client: no artifact is another one's."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.raw_server import RawServer
from tests.support.surplus import POISON, SURPLUS
from tests.support.waiting import HUNG_AFTER

HTTP: Sections = {"http": {"listen": "127.0.0.1:0"}, "front": {"enabled": True}}
RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"


@pytest.fixture(scope="module")
def api() -> Iterator[RawServer]:
    with RawServer(RIGHT) as server:
        yield server


@pytest.fixture(scope="module")
def front(api: RawServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a daemon that delivers nothing, so that the server sees the front alone."""
    with Daemon(tmp_path_factory.mktemp("front"), api.url, HTTP) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        yield daemon.status()["http"]["listen"]
        assert daemon.terminate() == 0
        assert "request_failed" not in daemon.stderr_text()


def ask(address: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask as a client of its own, over a connection of its own; return status and body."""
    with closing(http.client.HTTPConnection(address, timeout=HUNG_AFTER)) as connection:
        connection.request(method, f"/v8/artifacts/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize("kind", SURPLUS)
def test_what_comes_with_an_artifact_is_not_the_next_one(front: str, api: RawServer, kind: str) -> None:
    answer, surplus = SURPLUS[kind]
    api.script(answer + surplus)
    status, body = ask(front, "first")
    assert status in {200, 204, 304}
    assert b"poison" not in body
    assert [ask(front, path) for path in "abc"] == [(200, b"right")] * 3
    assert len(api.requests) == 4


@pytest.mark.parametrize("kind", SURPLUS)
def test_what_comes_while_the_connection_is_idle_is_not_the_next_artifact(
    front: str, api: RawServer, kind: str
) -> None:
    answer, surplus = SURPLUS[kind]
    later = threading.Event()
    api.script(answer, later, surplus)
    ask(front, "first")
    later.set()
    assert api.finished.wait(HUNG_AFTER)
    assert [ask(front, path) for path in "abc"] == [(200, b"right")] * 3
    assert len(api.requests) == 4


@pytest.mark.parametrize("surplus", [b"{}", POISON, b"{}" + POISON], ids=["its body", "another answer", "both"])
def test_what_comes_behind_the_answer_to_head_is_not_the_next_artifact(
    front: str, api: RawServer, surplus: bytes
) -> None:
    api.script(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + surplus)
    assert ask(front, "first", "HEAD") == (200, b"")
    assert [ask(front, path) for path in "abc"] == [(200, b"right")] * 3
    assert len(api.requests) == 4


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n", b"0\r\n\r\n" + POISON], ids=["nothing", "its end", "both"])
def test_what_comes_behind_the_answer_to_head_in_chunks_is_not_the_next_artifact(
    front: str, api: RawServer, end: bytes
) -> None:
    api.script(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + end)
    assert ask(front, "first", "HEAD") == (200, b"")
    assert [ask(front, path) for path in "abc"] == [(200, b"right")] * 3
    assert len(api.requests) == 4


def test_wherever_an_answer_and_its_surplus_are_split_the_next_client_gets_its_own(front: str, api: RawServer) -> None:
    data = RIGHT + POISON
    for cut in range(1, len(data)):
        later = threading.Event()
        if cut < len(RIGHT):
            later.set()
        api.script(data[:cut], later, data[cut:])
        assert ask(front, "first") == (200, b"right")
        later.set()
        assert api.finished.wait(HUNG_AFTER)
        assert [ask(front, path) for path in "ab"] == [(200, b"right")] * 2, cut
