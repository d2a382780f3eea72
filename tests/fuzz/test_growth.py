"""Adversarial input of four times the size takes about four times as long, not sixteen times."""

import time
from collections.abc import Callable

import pytest

from agent.delivery.http_transport import classify
from agent.events import Session, decode_lines
from agent.ingest.framing import LineFramer
from agent.queue import record, segment

STEP = 4
QUADRATIC = STEP**2
MEASURABLE = 0.005  # seconds


def decoded(block: bytes) -> None:
    """Decode a block of lines."""
    decode_lines(block, Session())


def scanned(data: bytes) -> None:
    """Scan a segment."""
    assert segment.scan(data, 0, whole=True).frames == []


def framed_by_byte(stream: bytes) -> None:
    """Read a stream a byte at a time."""
    framer = LineFramer(1 << 20)
    for number in range(len(stream)):
        framer.feed(stream[number : number + 1])


def told(body: bytes) -> None:
    """Read an answer."""
    classify(429, {"retry-after": body.decode("latin-1"), "x-ratelimit-reset": body.decode("latin-1")}, body, now=0.0)


EVENT = b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"%s"}\n'
CASES: dict[str, tuple[Callable[[bytes], None], Callable[[int], bytes]]] = {
    "markers alone": (scanned, lambda size: record.MARKER * (size // 4)),
    "the beginning of a marker": (scanned, lambda size: b"\xa4" * size),
    "zeros": (scanned, bytes),
    "empty lines": (decoded, lambda size: b"\n" * size),
    "bad lines": (decoded, lambda size: b"{\n" * (size // 2)),
    "events with colons": (decoded, lambda size: EVENT % (b":" * 9) * (size // 70)),
    "one event of colons": (decoded, lambda size: EVENT % (b":" * size)),
    "escapes": (decoded, lambda size: EVENT % (b"\\u0041" * (size // 6))),
    "digits": (decoded, lambda size: EVENT[:-2] % b"h" + b',"duration":' + b"9" * size + b"}"),
    "digits with an exponent": (decoded, lambda size: EVENT[:-2] % b"h" + b',"duration":0.' + b"9" * size + b"e-9}"),
    "nested arrays": (decoded, lambda size: b"[" * size),
    "an array of arrays": (decoded, lambda size: b"[" + b"[]," * (size // 3)),
    "an answer of brackets": (told, lambda size: b"[" * size),
    "an answer of digits": (told, lambda size: b"9" * size),
    "an answer of quotes": (told, lambda size: b'"' * size),
    "an answer of parentheses": (told, lambda size: b"(" * size),
    "an answer of blanks": (told, lambda size: b"{" + b" " * size + b"}"),
    "an answer of commas": (told, lambda size: b"Tue, 14 Nov 2023 " + b"," * size),
}


@pytest.mark.parametrize("case", CASES)
def test_the_time_grows_no_faster_than_the_input(case: str) -> None:
    call, make = CASES[case]
    size = 16 * 1024
    while (short := cpu_seconds(call, make(size))) < MEASURABLE and size < 2**18:
        size *= 2
    assert cpu_seconds(call, make(STEP * size)) < QUADRATIC * 0.6 * max(short, MEASURABLE), size


def test_a_line_that_comes_byte_by_byte_is_read_in_a_moment() -> None:
    """What is held is copied with every read, so this does grow with the square, up to the longest line there is."""
    assert cpu_seconds(framed_by_byte, b"x" * 64 * 1024) < 5


def cpu_seconds(call: Callable[[bytes], None], data: bytes) -> float:
    """Return the better of two runs, in seconds of this process."""
    times = []
    for _ in range(2):
        started = time.process_time()
        call(data)
        times.append(time.process_time() - started)
    return min(times)
