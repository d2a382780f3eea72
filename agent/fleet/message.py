"""How events travel: one message is one batch, its body the events' lines, its headers what a relay has to know of them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from agent.delivery.batching import Batch
from agent.events import MAX_LINE_BYTES, Context, decode_events, is_one_a_line
from agent.fleet.names import EVENTS
from agent.queue.cursor import Ledger, Span
from agent.queue.record import MAX_SEQ

VERSION = "1"
"""Of the headers: those that a relay does not know it ignores. Another version has other subjects: see `agent.fleet.names`."""

MAX_SPANS = 1000
MAX_LEDGER_BYTES = 1024
_VERSION = "AA-Version"
_QUEUE = "AA-Queue"
_SPANS = "AA-Spans"
_CONTEXT = "AA-Context"
_ENQUEUED_AT = "AA-Enqueued-At"
_LEDGER = "AA-Ledger"
_END_OF_TIME = 253_402_300_800.0  # the year 10000

_decode_context = msgspec.json.Decoder(Context).decode
_decode_ledger = msgspec.json.Decoder(Ledger).decode
_encode = msgspec.json.encode


class InvalidMessageError(ValueError):
    """A message that no agent wrote, or one of another version. The text says what is wrong."""


class Events(NamedTuple):
    """What a message says: events by their numbers in the queue they come from, and that queue's ledger when it was published.

    No other queue has its id. `enqueued_at` is in seconds since the epoch. A message without events brings a ledger.
    """

    queue: str
    spans: tuple[Span, ...]
    context: Context
    lines: bytes
    enqueued_at: float | None = None
    ledger: Ledger | None = None

    @property
    def event_count(self) -> int:
        """How many events it has."""
        return sum([span.length for span in self.spans])


def format_spans(spans: Iterable[Span]) -> str:
    """Return spans as text: the first and the last number of each, such as `1-100,105-105`."""
    return ",".join([f"{span.start}-{span.stop - 1}" for span in spans])


def parse_spans(text: str) -> tuple[Span, ...]:
    """Return what `format_spans` wrote. Raises InvalidMessageError."""
    parts = text.split(",") if text else []
    if len(parts) > MAX_SPANS:
        raise InvalidMessageError(f"{len(parts)} spans are more than {MAX_SPANS}")
    spans: list[Span] = []
    for part in parts:
        first, dash, last = part.partition("-")
        if not (
            dash and first.isascii() and first.isdecimal() and last.isascii() and last.isdecimal() and len(part) < 48
        ):
            raise InvalidMessageError(f"{part[:48]!r} is no span: FIRST-LAST")
        span = Span(int(first), int(last) + 1)
        if not (spans[-1].stop if spans else 1) <= span.start < span.stop <= MAX_SEQ:
            raise InvalidMessageError(f"the span {part!r} is empty or not behind the one before it")
        spans.append(span)
    return tuple(spans)


def encode(batch: Batch, queue: str, ledger: Ledger | None = None) -> dict[str, str]:
    """Return the headers of the message that a batch of the queue with that id becomes; its body is `batch.lines`."""
    spans = format_spans(batch.spans)
    headers = {
        "Nats-Msg-Id": f"{queue}:{spans}",
        "Nats-Expected-Stream": EVENTS,
        _VERSION: VERSION,
        _QUEUE: queue,
        _SPANS: spans,
        _CONTEXT: _encode(batch.context.for_api).decode(),
    }
    if batch.enqueued_at is not None:
        headers[_ENQUEUED_AT] = f"{batch.enqueued_at:.3f}"
    if ledger is not None:
        headers[_LEDGER] = _encode(ledger).decode()
    return headers


def encode_ledger(queue: str, ledger: Ledger) -> dict[str, str]:
    """Return the headers of a message without events that brings a queue's ledger; its body is empty."""
    text = _encode(ledger).decode()
    return {"Nats-Expected-Stream": EVENTS, _VERSION: VERSION, _QUEUE: queue, _SPANS: "", _LEDGER: text}


def decode(headers: Mapping[str, str], body: bytes) -> Events:
    """Return what a message says. Raises InvalidMessageError: whoever may publish can send anything."""
    version, queue = headers.get(_VERSION), headers.get(_QUEUE, "")
    if version != VERSION:
        raise InvalidMessageError(f"the version is {str(version)[:16]!r}, not {VERSION!r}")
    if not (queue.isascii() and queue.isalnum() and len(queue) <= 64):
        raise InvalidMessageError(f"{queue[:64]!r} is no id of a queue")
    spans = parse_spans(headers.get(_SPANS, ""))
    found, wanted = body.count(b"\n"), sum([span.length for span in spans])
    if found != wanted or (body and not body.endswith(b"\n")):
        raise InvalidMessageError(f"the body has {found} lines, the spans {wanted} events")
    _check_events(body)
    try:
        context = _decode_context(headers[_CONTEXT]) if _CONTEXT in headers else Context()
        ledger = _ledger(headers[_LEDGER]) if _LEDGER in headers else None
        enqueued_at = float(headers[_ENQUEUED_AT]) if _ENQUEUED_AT in headers else None
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise InvalidMessageError(f"a header cannot be read: {error}") from error
    if enqueued_at is not None and not 0 <= enqueued_at < _END_OF_TIME:
        raise InvalidMessageError(f"{_ENQUEUED_AT} is {enqueued_at:g}, no time in seconds since the epoch")
    return Events(queue, spans, context.for_api, body, enqueued_at, ledger)


def _check_events(body: bytes) -> None:
    """Raise InvalidMessageError for lines that are no events: with those of others in one request they have all refused.

    What a queue of any age may hold is an event: those who publish now take less, but may have a queue from before.
    """
    try:
        events = decode_events(body)
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"the body has lines that are no events: {error}") from error
    if not is_one_a_line(body, events):
        raise InvalidMessageError("the body's lines are not one event each")
    if _has_longer_line(body, MAX_LINE_BYTES):
        raise InvalidMessageError(f"an event is longer than {MAX_LINE_BYTES} bytes")


def _has_longer_line(body: bytes, most: int) -> bool:
    """Whether a line has more than so many bytes; looks at no line that does not matter."""
    start = 0
    while len(body) - start > most:
        end = body.rfind(b"\n", start, start + most + 1)
        if end < 0:
            return True
        start = end + 1
    return False


def _ledger(text: str) -> Ledger:
    """Return a queue's ledger. Raises ValueError for one that no queue can have: it would be kept, and added to others."""
    if len(text) > MAX_LEDGER_BYTES:
        raise ValueError(f"a ledger of {len(text)} characters is longer than {MAX_LEDGER_BYTES}")
    ledger = _decode_ledger(text)
    own = (ledger.accepted, ledger.delivered, ledger.dead_lettered, ledger.queued, ledger.retried, ledger.forwarded)
    if not all(0 <= count <= MAX_SEQ for count in (*own, *ledger.dropped.values())):
        raise ValueError("a count of the ledger is negative or too large")
    return ledger
