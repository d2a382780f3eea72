"""Targets for what clients write: the cutting of a stream into lines, and what the lines say."""

import copy
import json
import random
import zlib
from collections.abc import Callable, Iterator

import msgspec

from agent.events import Block, Context, Session, decode_lines, decode_messages
from agent.ingest.framing import LineFramer, as_lines
from agent.queue.record import Record, decode_record, encode_record
from tests.support import recordings
from tests.support.api_schema import violations
from tests.support.capture import EVENTS_PATH, Captured
from tests.support.json_array import to_json_array

SESSION = Session(Context("VERCEL", 0))
PLAIN = b'{"sessionId":"s","source":"LOCAL","event":"MISS","hash":"h"}\n'
EMPTY_CONTEXT = b'{"context":{}}\n'
_JSON = {"content-type": "application/json"}


def framing(data: bytes) -> None:
    """The lines do not depend on how reads cut the stream, none is too long, and what is held is bounded.

    The first byte is the limit, the rest the stream.
    """
    limit, stream = 1 + (data[0] if data else 0) % 40, data[1:]
    *ended, last = stream.split(b"\n")
    kept = [line + b"\n" for line in ended if len(line) <= limit] + [last] * (len(last) <= limit)
    expected = b"".join(kept), sum(len(line) > limit for line in [*ended, last])
    chance = random.Random(zlib.crc32(data))
    for sizes in (lambda: limit, lambda: 1, lambda: chance.randint(1, limit)):
        assert _framed(LineFramer(limit), limit, [*_cut(stream, sizes)]) == expected


def _cut(stream: bytes, size: Callable[[], int]) -> Iterator[bytes]:
    while stream:
        length = size()
        yield stream[:length]
        stream = stream[length:]


def _framed(framer: LineFramer, limit: int, chunks: list[bytes]) -> tuple[bytes, int]:
    blocks, oversized = [], 0
    for chunk in chunks:
        lines = framer.feed(chunk)
        blocks.append(lines.block)
        oversized += lines.oversized
        assert not lines.block or lines.block.endswith(b"\n")
        assert len(copy.copy(framer).end().block) <= limit
    end = framer.end()
    return b"".join([*blocks, end.block]), oversized + end.oversized


def events(data: bytes) -> None:
    """Lines are decoded alike as a whole and one by one; what is accepted is, in the API's schema, what was written."""
    whole, slow = decode_lines(data, SESSION), decode_lines(EMPTY_CONTEXT + data, SESSION)
    assert whole.blocks == slow.blocks
    assert [(line + 1, reason) for line, reason in whole.rejects] == slow.rejects
    assert whole.session == slow.session
    refused = {reject.line for reject in whole.rejects}
    assert len(refused) == len(whole.rejects)
    assert all(reject.reason.strip() and msgspec.json.encode(reject.reason) for reject in whole.rejects)
    written = [
        event for number, line in enumerate(data.split(b"\n"), 1) if number not in refused for event in _events_of(line)
    ]
    accepted = [event for block in whole.blocks for event in _kept(block)]
    assert repr([[*event.items()] for event in accepted]) == repr([_in_order(event) for event in written])
    _check_as_message(as_lines(data))


def _events_of(line: bytes) -> list[dict[str, object]]:
    """What a line that was accepted says, as another decoder reads it."""
    if not line.strip():
        return []
    item = json.loads(line)
    events = item if isinstance(item, list) else [item]
    return [event for event in events if "context" not in event]


def _kept(block: Block) -> list[dict[str, object]]:
    """What of a block comes out of the queue and goes to the API, which takes it."""
    assert decode_lines(block.lines, Session(block.context, block.durable_acks, block.asks_for)).blocks == [block]
    record = Record(0.0, block.context, block.lines)
    assert decode_record(encode_record(record)) == record
    body = to_json_array(record.lines)
    assert violations(Captured("POST", EVENTS_PATH, {}, _JSON, body)) == []
    sent: list[dict[str, object]] = json.loads(body)
    assert len(sent) == block.event_count
    return sent


def _in_order(event: dict[str, object]) -> list[tuple[str, object]]:
    return [(key, event[key]) for key in ("sessionId", "source", "event", "hash", "duration") if key in event]


def _check_as_message(message: bytes) -> None:
    """Among other messages it is what it is alone."""
    alone = decode_lines(message, Session())
    blocks, others = decode_messages([PLAIN, message, PLAIN])
    asks = any(block.asks_for is not None for block in alone.blocks)
    assert others == [1] * bool(alone.rejects or alone.session.durable_acks or asks)
    taken = 0 if others else sum(block.event_count for block in alone.blocks)
    assert sum(block.event_count for block in blocks) == 2 + taken


def framing_seeds() -> list[bytes]:
    """Streams of short and long lines."""
    return [b"\x07a\nbb\nccc\n", b"\x03long line\nx\n\n\ny", b"\x00\n\n", b"\x28" + b"x" * 100 + b"\n" + b"y" * 39]


def event_seeds() -> list[bytes]:
    """The recorded events, contexts, arrays, and lines that are almost right."""
    line, other = recordings.load()[0].lines.splitlines()[:2]
    return [
        line,
        line + b"\n" + other + b"\n",
        b"[" + line + b"," + other + b"]",
        b'{"context":{"ci":"GITHUB_ACTIONS","interactive":1,"ack":"durable"}}\n' + line,
        b'\xef\xbb\xbf{"sessionId":"\\u00e9\\ud83d\\ude00","source":"LOCAL","event":"HIT","hash":":","duration":1e999}',
        line.replace(b"}", b',"hash":"\\ud800"}'),
        b"[" * 50 + b"]" * 50 + b"\r\n \t\r" + line + b"\r",
        line[:-1] + b',"duration":' + b"9" * 30 + b"}",
    ]
