"""What `agent.delivery.http_transport.classify` promises: one verdict for every answer, and a message that is fit for people."""

import json
import time
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.delivery.http_transport import MAX_ANSWER_BYTES, MAX_MESSAGE_CHARACTERS, classify
from agent.delivery.transport import Kind, Verdict

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
NO_REDIRECTS = "; redirects are not followed, since they would carry the token: correct api.url"


def waits(**headers: str) -> float | None:
    """How long a 429 with these headers asks to wait; underscores stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    verdict = classify(429, named, b"", now=NOW)
    assert verdict.kind is Kind.TRANSIENT
    return verdict.retry_after


def message_of(body: bytes) -> str:
    """What is told of a body, without the status before it."""
    return classify(400, {}, body, now=NOW).message.removeprefix("400 Bad Request").removeprefix(": ")


# --- statuses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (Kind.ACCEPTED, [200, 201, 202, 204, 206, 299]),
        (Kind.TRANSIENT, [408, 425, 429, 500, 501, 502, 503, 504, 505, 507, 511, 520, 529, 599, 600, 999]),
        (Kind.REJECTED, [400, 422]),
        (Kind.TOO_LARGE, [413]),
        (Kind.BLOCKED, [401, 402, 403]),
        (Kind.MISCONFIGURED, [100, 101, 199, 300, 301, 302, 303, 304, 307, 308, 399]),
        (Kind.MISCONFIGURED, [404, 405, 406, 407, 409, 410, 411, 412, 414, 415, 418, 421, 426, 428, 431, 451, 499]),
    ],
)
def test_each_status_has_its_verdict(kind: Kind, statuses: list[int]) -> None:
    for status in statuses:
        verdict = classify(status, {"retry-after": "3"}, b"", now=NOW)
        assert (verdict.kind, verdict.status) == (kind, status)
        assert verdict.retry_after == (3.0 if kind is Kind.TRANSIENT else None)


def test_the_table_leaves_no_status_out() -> None:
    for status in range(100, 1000):
        verdict = classify(status, {}, b"", now=NOW)
        assert isinstance(verdict.kind, Kind)
        assert verdict.message.startswith(str(status))
        assert verdict.message == verdict.message.strip()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"", "200 OK"),
        (200, b"{}", "200 OK: {}"),
        (503, b"", "503 Service Unavailable"),
        (520, b"", "520"),
        (520, b"origin down", "520: origin down"),
        (402, b'{"error":{"message":"pay"}}', "402 Payment Required: pay"),
        (301, b"", "301 Moved Permanently" + NO_REDIRECTS),
        (308, b"over there", "308 Permanent Redirect: over there" + NO_REDIRECTS),
        (404, b"", "404 Not Found"),
    ],
)
def test_a_message_says_what_the_server_said(status: int, body: bytes, message: str) -> None:
    assert classify(status, {}, body, now=NOW).message == message


# --- how long to wait ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("5", 5.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-5", 0.0),
        ("1e9", 1e9),
        ("99999999999999999999999", 1e23),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 0.0),
        ("Tue, 14 Nov 2023 22:12:20 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0),
        ("Tue, 14 Nov 2023 22:14:20", 60.0),
        ("Tue, 14 Nov 2023 22:14:20 -0000", 60.0),
        ("Tue, 14 Nov 2023 23:14:20 +0100", 60.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799 - NOW),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    assert waits(retry_after=value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "0x10",
        "5, 6",
        "9" * 5000,
        "(" * 5000,
        '"' * 5000,
        "\0",
        "2023-11-14T22:14:20Z",
        "Tue, 99 Nov 2023 22:14:20 GMT",
        "Tue, 14 Nov 2023 99:14:20 GMT",
        "Tue, 14 Nov 2023 22:14:20 +2500",
        "Tue, 14 Nov 2023 22:14:20 +99999999999999999999",
        "Tue, 14 Nov 99999999999 22:14:20 GMT",
        "Tue, 14 Nov " * 2000,
    ],
)
def test_a_retry_after_that_says_nothing_is_passed_over(value: str) -> None:
    assert waits(retry_after=value) is None
    assert waits(retry_after=value, x_ratelimit_reset="30") == 30.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("60", 60.0),
        ("0", 0.0),
        ("-1", 0.0),
        ("1700000060", 60.0),
        ("1700000060.5", 60.5),
        ("1700000060000", 60.0),
        ("1600000000", 0.0),
        ("1600000000000", 0.0),
        ("later", None),
        ("", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_the_limits_reset_is_seconds_from_now_or_a_time_in_seconds_or_milliseconds(
    value: str, seconds: float | None
) -> None:
    assert waits(x_ratelimit_reset=value) == seconds


@pytest.mark.parametrize(
    ("remaining", "seconds"), [("0", 60.0), (" 0", 60.0), ("1", None), ("99", None), ("many", None)]
)
def test_the_limits_reset_counts_only_when_nothing_remains(remaining: str, seconds: float | None) -> None:
    assert waits(x_ratelimit_reset="1700000060", x_ratelimit_remaining=remaining) == seconds


def test_of_two_headers_the_longer_wait_counts() -> None:
    assert waits(retry_after="10", x_ratelimit_reset="60") == 60.0
    assert waits(retry_after="60", x_ratelimit_reset="10") == 60.0
    assert waits() is None


def test_headers_are_found_however_the_server_writes_their_names() -> None:
    headers = httpx.Headers({"Retry-After": "10", "X-RateLimit-Reset": "60"})
    assert classify(503, headers, b"", now=NOW).retry_after == 60.0


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.datetimes().map(format_datetime) | st.floats().map(str), st.text(max_size=20))
def test_no_header_can_break_the_reading_of_an_answer(value: str, other: str) -> None:
    headers = {"retry-after": value, "x-ratelimit-reset": other, "x-ratelimit-remaining": other}
    wait = classify(429, headers, b"", now=NOW).retry_after
    assert wait is None or 0 <= wait < float("inf")


# --- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b'{"error":{"code":"bad_request","message":"Invalid hash"}}', "Invalid hash", id="the API"),
        pytest.param(
            b'{"statusCode":400,"error":"Bad Request","message":"body/3/hash must be string"}',
            "body/3/hash must be string",
            id="fastify",
        ),
        pytest.param(b'{"message":"no"}', "no", id="a message"),
        pytest.param(b'{"error":"no"}', "no", id="an error"),
        pytest.param(b'{"error":null,"message":"no"}', "no", id="no error but a message"),
        pytest.param(b'{"error":"no","message":""}', "no", id="an empty message"),
        pytest.param(b'{"error":{"message":""}}', "", id="an empty message of the API"),
        pytest.param(b'{"error":{"message":5}}', '{"error":{"message":5}}', id="a message that is a number"),
        pytest.param(b'{"message":["a","b"]}', '{"message":["a","b"]}', id="a message that is an array"),
        pytest.param(b"{}", "{}", id="an empty object"),
        pytest.param(b"[]", "[]", id="an array"),
        pytest.param(b"null", "null", id="null"),
        pytest.param(b"NaN", "NaN", id="NaN"),
        pytest.param(b"  no \r\n way\t", "no way", id="plain text"),
        pytest.param(b"<html>\n<h1>502</h1>\n</html>", "<html> <h1>502</h1> </html>", id="HTML"),
        pytest.param(b"", "", id="nothing"),
        pytest.param(b" \n ", "", id="white space"),
        pytest.param(b"\x1b[31mred\x1b[0m\x07", "[31mred [0m", id="escape sequences"),
        pytest.param(b'{"message":"a\\u0000b\\u001b[2J\\nc"}', "a b [2J c", id="escaped control characters"),
        pytest.param(b'{"message":"\\ud800x"}', "x", id="a lone surrogate"),
        pytest.param('{"message":"\u202eevil\u200b"}'.encode(), "evil", id="characters that turn text around"),
        pytest.param("não".encode("latin-1"), "n\ufffdo", id="not UTF-8"),
        pytest.param(b"\xff\xfe\x00\x80", "\ufffd\ufffd \ufffd", id="binary"),
        pytest.param(b"\xef\xbb\xbf" + b'{"message":"no"}', '{"message":"no"}', id="a byte-order mark"),
        pytest.param(b'{"message":"cut', '{"message":"cut', id="cut short"),
    ],
)
def test_the_servers_own_words_are_found(body: bytes, message: str) -> None:
    assert message_of(body) == message


@pytest.mark.parametrize(
    "body",
    [
        b"x" * MAX_ANSWER_BYTES,
        json.dumps({"message": "x" * 50_000}).encode(),
        b"[" * MAX_ANSWER_BYTES,
        b'{"error":' * 7000,
        b'{"error":' * 7000 + b"1" + b"}" * 7000,
        b"9" * 50_000,
        b'{"message":' + b"9" * 50_000 + b"}",
        b"\xff" * MAX_ANSWER_BYTES,
    ],
    ids=["text", "message", "brackets", "objects", "nested objects", "number", "message is a number", "binary"],
)
def test_a_bomb_gets_a_short_message_in_a_moment(body: bytes) -> None:
    started = time.thread_time()
    assert len(message_of(body)) == MAX_MESSAGE_CHARACTERS
    assert time.thread_time() - started < 1


@settings(max_examples=300, deadline=None)
@given(st.integers(100, 999), st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_whatever_a_server_says_is_one_printable_line(status: int, body: bytes) -> None:
    verdict = classify(status, {}, body, now=NOW)
    assert verdict.message.isprintable()
    assert verdict == Verdict(verdict.kind, verdict.message, status)
    assert len(verdict.message) <= MAX_MESSAGE_CHARACTERS + 200
