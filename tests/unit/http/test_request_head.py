"""What is written of a request, and what is not."""

import httpx
import pytest

from agent.http.client import RequestHead

HOST = (b"Host", b"api")


def test_a_head_is_written_as_it_is() -> None:
    headers = [HOST, (b"X-Twice", b"1"), (b"x-twice", b"caf\xe9, \t2"), (b"Empty", b"")]
    head = RequestHead("PUT", b"/v8/a?b=%20c", headers)
    assert head.data == (
        b"PUT /v8/a?b=%20c HTTP/1.1\r\nHost: api\r\nX-Twice: 1\r\nx-twice: caf\xe9, \t2\r\nEmpty: \r\n\r\n"
    )
    assert (head.encode(b"body"), head.end) == ((b"body",), b"")


def test_a_body_without_a_length_goes_in_chunks() -> None:
    head = RequestHead("PUT", b"/", [HOST, (b"Transfer-Encoding", b"chunked")])
    assert b"".join(head.encode(b"x" * 20)) == b"14\r\n%b\r\n" % (b"x" * 20)
    assert b"".join(head.encode(b"")) == b""  # an empty chunk would be the end
    assert head.end == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GE T", b"/", HOST),
        ("", b"/", HOST),
        ("GET", b"", HOST),
        ("GET", b"/ HTTP/1.1\r\nX: y\r\n\r\nGET /", HOST),
        ("GET", b"/a b", HOST),
        ("GET", b"/\xe9", HOST),
        ("GET", b"/", (b"", b"a")),
        ("GET", b"/", (b"a b", b"c")),
        ("GET", b"/", (b"a:b", b"c\r\nd: e")),
        ("GET", b"/", (b"a", b"b\r\nc: d")),
        ("GET", b"/", (b"a: b\r\nc", b"d")),
        ("GET", b"/", (b"a", b"b\r\n\r\nGET / HTTP/1.1\r\nc: d")),
        ("GET", b"/", (b"a", b"b\nc: d")),
        ("GET", b"/", (b"a", b"b\rc")),
        ("GET", b"/", (b"a", b"b\0c")),
        ("GET", b"/", (b"a", b"b\x7fc")),
    ],
)
def test_what_http_does_not_allow_is_not_sent(method: str, target: bytes, header: tuple[bytes, bytes]) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        RequestHead(method, target, [HOST, header])
