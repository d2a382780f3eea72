"""What httptools says of an answer, and what it leaves to `agent.http.answer`."""

import httpx
import pytest

from agent.http.answer import Answer
from tests.support.surplus import SURPLUS

HEAD = b"HTTP/1.1 200 As Asked\r\nA: b\r\nContent-Length: 4\r\n\r\n"
CHUNKS = (
    b"HTTP/1.1 200 As Asked\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nbo\r\n2\r\ndy\r\n0\r\nX-Trailer: t\r\n\r\n"
)
UNTIL_THE_END = b"HTTP/1.1 200 As Asked\r\n\r\nbody"


def fed(*parts: bytes, method: str = "POST") -> tuple[Answer, bytes]:
    """Return an answer after these parts, and its body."""
    answer, body = Answer(method), b""
    for part in parts:
        answer.feed(part)
        body += answer.take()
    return answer, body


@pytest.mark.parametrize("early", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2])
@pytest.mark.parametrize("data", [HEAD + b"body", CHUNKS])
def test_wherever_an_answer_is_cut_it_is_the_same(data: bytes, early: bytes) -> None:
    for cut in range(1, len(early + data)):
        answer, body = fed((early + data)[:cut], (early + data)[cut:])
        assert (answer.status, answer.reason, body) == (200, b"As Asked", b"body")
        assert len(answer.headers) == data.count(b":") - data.count(b"X-Trailer")
        assert (answer.is_whole, answer.is_last) == (True, False)
        assert not answer.has_surplus


@pytest.mark.parametrize("kind", SURPLUS)
def test_what_comes_behind_an_answer_is_seen(kind: str) -> None:
    data, surplus = SURPLUS[kind]
    assert not fed(data)[0].has_surplus
    answer, _ = fed(data + surplus)
    assert (answer.is_whole, answer.has_surplus) == (True, True)


@pytest.mark.parametrize("blanks", [b"", b" ", b"\t", b"  \t "])
def test_blanks_around_a_value_are_no_part_of_it(blanks: bytes) -> None:
    fields = b"A:%bb c%b\r\nEmpty:%b\r\n" % (blanks, blanks, blanks)
    answer, _ = fed(b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n")
    assert answer.headers == [(b"A", b"b c"), (b"Empty", b"")]


@pytest.mark.parametrize("blanks", [b" ", b"   "])
@pytest.mark.parametrize(
    ("framing", "data"), [(b"Transfer-Encoding:%bchunked%b", b"2\r\nhi\r\n0\r\n\r\n"), (b"Content-Length:%b2%b", b"hi")]
)
def test_blanks_around_what_frames_a_body_do_not_change_it(framing: bytes, data: bytes, blanks: bytes) -> None:
    answer, body = fed(b"HTTP/1.1 200 OK\r\n" + framing % (blanks, blanks) + b"\r\n\r\n" + data)
    assert (answer.is_whole, answer.is_last, answer.has_surplus, body) == (True, False, False, b"hi")
    assert answer.headers[0][1] in {b"chunked", b"2"}


def test_an_answer_to_head_has_no_body() -> None:
    answer, body = fed(HEAD, method="HEAD")
    assert (answer.is_whole, answer.has_surplus, body) == (True, False, b"")
    answer, body = fed(HEAD + b"body", method="HEAD")
    assert (answer.is_whole, answer.has_surplus, body) == (True, True, b"")


def test_an_answer_to_head_with_chunks_is_the_last_one() -> None:
    """Servers differ in whether the last chunk is sent, and the parser waits for it."""
    head = CHUNKS[: CHUNKS.index(b"\r\n\r\n") + 4]
    for data in (head, head + b"0\r\n\r\n", CHUNKS):
        answer, body = fed(data, method="HEAD")
        assert (answer.is_whole, answer.is_last, body) == (True, True, b"")


def test_the_end_of_the_connection_ends_an_answer_without_a_length_alone() -> None:
    answer, body = fed(UNTIL_THE_END)
    assert (answer.is_whole, answer.is_last, body) == (False, True, b"body")
    answer.feed(b"")
    assert answer.is_whole
    for data in (HEAD, CHUNKS):
        for cut in range(len(data)):
            with pytest.raises(httpx.RemoteProtocolError):
                fed(*filter(None, [data[:cut]]), b"")


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n"])
def test_a_connection_that_ends_has_no_other_answer(head: bytes) -> None:
    answer, _ = fed(head + b"Content-Length: 0\r\n\r\n")
    assert (answer.is_whole, answer.is_last) == (True, True)


@pytest.mark.parametrize(
    "early", [b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n", b"HTTP/1.0 100 Continue\r\n\r\n"]
)
@pytest.mark.parametrize("data", [HEAD + b"body", CHUNKS])
def test_an_informational_answer_may_say_that_the_connection_ends(early: bytes, data: bytes) -> None:
    for cut in range(1, len(early + data)):
        answer, body = fed((early + data)[:cut], (early + data)[cut:])
        assert (answer.status, body) == (200, b"body")
        assert (answer.is_whole, answer.is_last, answer.has_surplus) == (True, True, False)


def test_blanks_behind_the_size_of_a_chunk_are_no_part_of_it() -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4  \r\nbody\r\n0   \r\n\r\n"
    for cut in range(1, len(data)):
        answer, body = fed(data[:cut], data[cut:])
        assert (answer.is_whole, answer.is_last, answer.has_surplus, body) == (True, False, False, b"body")


@pytest.mark.parametrize("last", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_what_comes_behind_the_last_answer_of_a_connection_is_seen(last: bytes) -> None:
    answer, body = fed(last + b"Content-Length: 2\r\n\r\nhi" + HEAD + b"body")
    assert (answer.status, answer.is_whole, answer.is_last, answer.has_surplus, body) == (200, True, True, True, b"hi")


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICE/1.0 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\nRTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 000 No\r\n\r\n",
        b"HTTP/1.1 099 No\r\nContent-Length: 5\r\n\r\nhello" + HEAD,
        b"HTTP/1.1 199 No\r\nContent-Length: 5\r\n\r\nhello" + HEAD,
        b"HTTP/1.1 104 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n" + HEAD,
        b"HTTP/1.1 104 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HEAD,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x01c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 2\r\nhi\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1%b\r\n\r\n" % (b"0" * 30),
        b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_what_is_no_answer_is_an_error(data: bytes, step: int) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        fed(*(data[at : at + step] for at in range(0, len(data), step)))
