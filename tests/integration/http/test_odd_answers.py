"""What the front makes of odd answers: passed on if HTTP allows them, else a 502; no client is left without an answer."""

import http.client
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.daemon import TOKEN, Daemon, Sections
from tests.support.raw_server import RawServer
from tests.support.waiting import HUNG_AFTER

HTTP: Sections = {"http": {"listen": "127.0.0.1:0"}, "front": {"enabled": True}}
RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"


@pytest.fixture(scope="module")
def api() -> Iterator[RawServer]:
    with RawServer(RIGHT) as server:
        yield server


@pytest.fixture(scope="module")
def daemon(api: RawServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that delivers nothing, so that the server sees the front alone."""
    with Daemon(tmp_path_factory.mktemp("front"), api.url, HTTP) as daemon:
        daemon.request("POST", "/pause").raise_for_status()
        yield daemon
        assert daemon.terminate() == 0
        assert "request_failed" not in daemon.stderr_text()


def ask(daemon: Daemon) -> tuple[int, dict[str, str], bytes]:
    """Ask as a client of its own; return status, headers and body."""
    with closing(http.client.HTTPConnection(daemon.status()["http"]["listen"], timeout=HUNG_AFTER)) as connection:
        connection.request("GET", "/v8/artifacts/a", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Artifact-Tag: t \t\r\nContent-Length: 2\r\n\r\nhi",
        b"X-Artifact-Tag: t\t\r\nContent-Length: 2  \r\n\r\nhi",
        b"X-Artifact-Tag: t\r\nTransfer-Encoding: chunked \r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ],
)
def test_blanks_behind_values_are_not_passed_on(daemon: Daemon, api: RawServer, fields: bytes) -> None:
    api.script(b"HTTP/1.1 200 OK\r\n" + fields)
    status, headers, body = ask(daemon)
    assert (status, headers["X-Artifact-Tag"], body) == (200, "t", b"hi")


@pytest.mark.parametrize("digits", [21, 25])
@pytest.mark.parametrize("body", [b"hi", b"h"], ids=["whole", "begun"])
def test_an_answer_that_cannot_be_passed_on_is_a_502_and_named(
    daemon: Daemon, api: RawServer, digits: int, body: bytes
) -> None:
    """llhttp takes any number of zeros before a length, the front's own HTTP does not."""
    api.script(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\n" % b"2".zfill(digits) + body)
    status, _, _ = ask(daemon)
    assert status == 502
    assert "answer_invalid" in daemon.stderr_text()
    assert ask(daemon)[2] == b"right"


@pytest.mark.parametrize(
    "answer",
    [
        b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 199 No\r\nContent-Length: 6\r\n\r\npoison" + RIGHT,
        b"HTTP/1.1 000 No\r\nContent-Length: 0\r\n\r\n" + RIGHT,
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    ],
)
def test_what_is_no_http_1_1_is_a_502(daemon: Daemon, api: RawServer, answer: bytes) -> None:
    api.script(answer)
    status, _, body = ask(daemon)
    assert status == 502
    assert b"invalid answer" in body
    assert ask(daemon)[2] == b"right"
