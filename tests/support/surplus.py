"""Answers with more behind them than an answer may have."""

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

# Each with where the answer ends and the surplus begins.
SURPLUS = {
    "another answer": (_OK, POISON),
    "hundreds of answers": (_OK, POISON * 500),
    "a byte": (_OK, b"x"),
    "an empty line": (_OK, b"\r\n"),
    "half of an answer": (_OK, POISON[: len(POISON) // 2]),
    "an informational answer": (_OK, _EARLY_HINTS),
    "another answer, after informational ones": (_EARLY_HINTS * 2 + _OK, POISON),
    "more than its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", b"}" + POISON),
    "more than no length": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", POISON),
    "bytes after the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n" + POISON,
    ),
    "another answer after the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: t\r\n\r\n",
        POISON,
    ),
    "a body of 204": (b"HTTP/1.1 204 No Content\r\n\r\n", POISON),
    "a body of 304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: %d\r\n\r\n" % len(POISON), POISON),
}
