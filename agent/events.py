"""Usage events: their schema, the context they were sent in, and the validation of the lines that carry them.

The contract is the OpenAPI description of `POST /v8/artifacts/events`
(https://vercel.com/docs/rest-api/artifacts/record-an-artifacts-cache-usage-event).

From here on events are text: canonical JSON, one event a line, with the API's keys in the API's order and nothing else. That
is what is kept, and what is sent. The common case, lines that are canonical already, stays in C: one `decode_lines` for the whole
block, one `encode_lines`, one comparison. Only a block that is not that simple is looked at more closely.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from agent.cache_use import NO_USE, CacheUse, count_use

MAX_LINE_BYTES = 64 * 1024

# msgpack, and so the queue, holds integers of 64 bits.
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Text = Annotated[str, Meta(min_length=1)]
_Milliseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)] | Annotated[float, Meta(ge=0)]


class Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """One Remote Cache usage event, exactly the API's schema: `duration` is in milliseconds, and an integer stays one.

    It is what a queue of any age may hold; what comes in has to be an `_IncomingEvent`.
    """

    session_id: str
    source: Literal["LOCAL", "REMOTE"]
    event: Literal["HIT", "MISS"]
    hash: str
    duration: _Integer | float | UnsetType = UNSET


class _IncomingEvent(Event, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """What is taken from a sender, whichever way it comes: besides the API's schema, what the contract says in words.

    The session is a UUID, the hash that of an artifact, the duration a time that was taken: nothing of it can be empty or
    negative. No event of a real client is (2,539 that were recorded, from turbo, whose duration has no sign), and those that are
    would be counted as one session, one task, or time lost. That a session is a UUID is left to the API. `agent.client`, which
    imports nothing of the package, keeps the same rule; a test holds them together.
    """

    session_id: _Text
    source: Literal["LOCAL", "REMOTE"]
    event: Literal["HIT", "MISS"]
    hash: _Text
    duration: _Milliseconds | UnsetType = UNSET


# It becomes a header's value, so no control characters and no blanks at the ends; the API allows 50 characters.
Ci = Annotated[str, Meta(max_length=50, pattern=r"^[!-~]([ -~]*[!-~])?\Z")]  # `$` would let a line end through
Interactive = Literal[0, 1]
Job = Annotated[str, Meta(max_length=200, pattern=r"^[!-~]([ -~]*[!-~])?\Z")]


class Context(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is said of a client: the API's headers `x-artifact-client-ci` and `x-artifact-client-interactive`, and its job.

    The job is a label for reports. It stays on this machine.
    """

    ci: Ci | None = None
    interactive: Interactive | None = None
    job: Job | None = None

    @property
    def for_api(self) -> "Context":
        """What the API is told: all but the job. A batch has one of these, and events of several jobs."""
        return Context(self.ci, self.interactive)


class Session(NamedTuple):
    """What a connection has set for the lines that follow; by `asks_for`, to which destination they are to go."""

    context: Context = Context()
    durable_acks: bool = False
    asks_for: str | None = None


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ci: Ci | None | UnsetType = UNSET
    interactive: Interactive | None | UnsetType = UNSET
    job: Job | None | UnsetType = UNSET
    ack: Literal["none", "durable"] | UnsetType = UNSET
    destination: Annotated[str, Meta(max_length=32)] | None | UnsetType = UNSET


class _ContextLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    context: _Settings


class Block(NamedTuple):
    """Events that share a context, as canonical JSON: one a line, each with its line end, in the order they came.

    `use` is what they say of the cache, where they come from a client; events that are queued again say nothing new. Their sender
    wants them to go to the destination `asks_for`, if it says so, and durable acks of some of them or of none.
    """

    context: Context
    event_count: int
    lines: bytes
    use: CacheUse = NO_USE
    asks_for: str | None = None
    durable_acks: bool = False


class Reject(NamedTuple):
    """A line that was refused: its number within the block, from 1, and what is wrong with it."""

    line: int
    reason: str


class Decoded(NamedTuple):
    """What lines held, the session as it is after them, and how many they were, an unterminated last one included."""

    blocks: list[Block]
    rejects: list[Reject]
    session: Session
    line_count: int


decode_event = msgspec.json.Decoder(Event).decode
decode_events = msgspec.json.Decoder(Event).decode_lines
encode_events = msgspec.json.Encoder().encode_lines
_decode_incoming = msgspec.json.Decoder(_IncomingEvent).decode_lines
_decode_array = msgspec.json.Decoder(list[_IncomingEvent]).decode
_decode_line = msgspec.json.Decoder(_IncomingEvent | list[_IncomingEvent]).decode
_decode_context = msgspec.json.Decoder(_ContextLine).decode
_is_context_line = re.compile(rb'\s*\{\s*"context"\s*:').match


def decode_lines(text: bytes, session: Session, max_rejects: int | None = None) -> Decoded:
    """Validate complete lines: events, arrays of events, or context lines; blank lines are skipped.

    Never raises for what a client sent: a line that is not valid becomes a Reject and costs that line only. After `max_rejects`
    the rest is not looked at.
    """
    block = decode_bare_events(text, session)
    if block is None:
        return _decode_line_by_line(text, session, max_rejects)
    return Decoded([block], [], session, block.event_count)


def decode_array(text: bytes) -> tuple[list[bytes], CacheUse]:
    """Validate an array of events, the API's body; return them as lines, in chunks of at most MAX_LINE_BYTES, and what they say.

    Raises ValueError, which names the offending item and field, where there is one.
    """
    try:
        events = _decode_array(text)
        if _may_repeat_a_key(text, events):
            _refuse_repeated_keys_of_items(text)
    except ValueError as error:
        raise ValueError(_reason_of(error)) from error
    return _chunk(encode_events(events)), count_use(events)


def _chunk(lines: bytes) -> list[bytes]:
    chunks, start = [], 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + MAX_LINE_BYTES + 1) + 1
        if not end:
            index = lines.count(b"\n", 0, start)
            raise ValueError(f"Event is longer than {MAX_LINE_BYTES:,} bytes - at `$[{index}]`")
        chunks.append(lines[start:end])
        start = end
    return chunks


def decode_messages(messages: Sequence[bytes]) -> tuple[list[Block], list[int]]:
    """Validate what several senders sent, each in a session of its own, as lines that are complete.

    Returns the events, one block for each context, and the indexes of the messages that take more than that, and of which
    nothing is in the blocks: those with something to reject, those that want acks, and those that ask for a destination.
    """
    block = decode_bare_events(b"".join(messages), Session())
    if block is not None:
        return [block], []
    found: dict[Context, list[Block]] = {}
    others: list[int] = []
    for index, message in enumerate(messages):
        decoded = decode_lines(message, Session(), max_rejects=1)
        asks = any(block.asks_for is not None for block in decoded.blocks)
        if decoded.rejects or decoded.session.durable_acks or asks:
            others.append(index)
            continue
        for block in decoded.blocks:
            found.setdefault(block.context, []).append(block)
    return [_join(blocks) for blocks in found.values()], others


def _join(blocks: list[Block]) -> Block:
    use, first = NO_USE, blocks[0]
    for block in blocks:
        use = use.plus(block.use)
    count, lines = sum(block.event_count for block in blocks), b"".join(block.lines for block in blocks)
    return Block(first.context, count, lines, use)


def decode_bare_events(text: bytes, session: Session) -> Block | None:
    """Validate lines that hold one event each and nothing else; None if they do not, or if one of them is not valid."""
    try:
        events = _decode_incoming(text)
    except ValueError:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None
    lines = encode_events(events)
    plain = lines == text or (is_one_a_line(text, events) and not _may_repeat_a_key(text, events))
    if not plain or not events:
        return None
    return Block(session.context, len(events), lines, count_use(events), session.asks_for, session.durable_acks)


ARRAY_OVERHEAD = 1
"""How many bytes a JSON array of events has more than the same events as lines."""


def json_array_parts(lines: bytes) -> tuple[bytes, memoryview, bytes]:
    """Return lines of events as a JSON array, in parts: to join them would be one more copy of a large batch.

    Their line ends are the only ones: in JSON's strings they are escaped.
    """
    return b"[", memoryview(lines.replace(b"\n", b","))[:-1], b"]"


def cut_lines(text: bytes, size: int) -> Iterator[bytes]:
    """Cut lines into pieces of about `size` bytes, each of whole lines."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + size) + 1 or len(text)
        yield text[start:end]
        start = end


def may_hold_items(text: bytes) -> bool:
    """Tell whether any line of a text may be an event, an array or a context line: False only if none can be valid.

    It is asked of floods, and so has no loop but those of `bytes`: whether any line begins as these do, and whether there are the
    keys that they need, unless they are escaped.
    """
    has_keys = b"{" in text and (b"sessionId" in text or b"context" in text or b"\\" in text)
    if not has_keys and b"[" not in text:
        return False
    packed = text.translate(None, b" \t\r\v\f")
    return any(packed.startswith(each) or b"\n" + each in packed for each in (b"[", *([b"{"] if has_keys else [])))


def split_lines(lines: bytes, count: int) -> tuple[bytes, bytes]:
    """Return the first `count` lines, and the rest."""
    rest = lines.split(b"\n", count)[count]
    return lines[: len(lines) - len(rest)], rest


def count_fitting(lines: bytes, count: int, size: int) -> int:
    """Return how many of the first `count` lines fit into `size` bytes; there are at least `count`."""
    return count if len(lines) <= size else min(lines.count(b"\n", 0, max(size, 0)), count)


def session_prefix(session: str) -> bytes:
    """Return what each line of a session's events begins with. It is nowhere else in lines, since strings escape quotes."""
    return _PREFIX % msgspec.json.encode(session)


def count_session_prefixes(lines: bytes, count: int) -> Mapping[bytes, int]:
    """Count lines by the `session_prefix` that they begin with; there are `count`, as a rule all of one session.

    A line that another program wrote may have none, and is not counted.
    """
    first = _match_prefix(lines)
    if first and lines.startswith(first[0], lines.rfind(b"\n", 0, -1) + 1) and lines.count(first[0]) == count:
        return {first[0]: count}
    found: Counter[bytes] = Counter()
    for run in _find_runs(lines):
        found[run[1]] += lines.count(run[1], *run.span())
    return found


_PREFIX = b'{"sessionId":%b,'
_ANY_PREFIX = _PREFIX % rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'
_match_prefix = re.compile(_ANY_PREFIX).match
_find_runs = re.compile(rb"(%b)[^\n]*+\n(?:\1[^\n]*+\n)*+" % _ANY_PREFIX).finditer  # lines that follow each other


def has_line_count(text: bytes, count: int) -> bool:
    """Tell whether a text is that many lines, the last one with its line end, whatever they say."""
    return text.endswith(b"\n") and text.count(b"\n") == count


def is_one_a_line(text: bytes, events: Sequence[Event]) -> bool:
    """Tell whether each line is exactly one of `events`: what a line is must not depend on those that came with it.

    JSON's strings hold no line ends, so a brace before a line end is always the end of an event.
    """
    last_braces = text.count(b"}\n") + text.endswith(b"}")
    return line_count(text) == last_braces == len(events)


def line_count(text: bytes) -> int:
    return text.count(b"\n") + (bool(text) and not text.endswith(b"\n"))


def _may_repeat_a_key(text: bytes, events: Sequence[Event]) -> bool:
    """Tell whether events have more colons than keys; strings with colons make this a false alarm.

    msgspec keeps the last of two equal keys; to a sender that wrote both it matters which one was meant.
    """
    return text.count(b":") != 5 * len(events) - [event.duration for event in events].count(UNSET)


def _decode_line_by_line(text: bytes, session: Session, max_rejects: int | None) -> Decoded:
    groups: list[tuple[Session, list[Event]]] = []
    rejects: list[Reject] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line or line.isspace():
            continue
        try:
            if _is_context_line(line):
                decode_settings = _decode_known_settings if len(line) <= 512 else _decode_settings
                session = _apply_settings(decode_settings(line), session)
                continue
            events = _decode_events_line(line)
        except ValueError as error:
            rejects.append(Reject(number, _reason_of(error)))
            if len(rejects) == max_rejects:
                break
            continue
        last = groups[-1][0] if groups else None
        if last is not None and last.context is session.context and last.asks_for == session.asks_for:
            groups[-1][1].extend(events)
            if session.durable_acks:
                groups[-1] = session, groups[-1][1]
        elif events:
            groups.append((session, [*events]))
    blocks = [
        Block(each.context, len(events), encode_events(events), count_use(events), each.asks_for, each.durable_acks)
        for each, events in groups
    ]
    return Decoded(blocks, rejects, session, line_count(text))


def _decode_events_line(line: bytes) -> Sequence[Event]:
    item = _decode_line(line)
    events = item if isinstance(item, list) else [item]
    if _may_repeat_a_key(line, events):
        _refuse_repeated_keys(line)
    return events


def _decode_settings(line: bytes) -> _Settings:
    settings = _decode_context(line).context
    _refuse_repeated_keys(line)
    return settings


_decode_known_settings = lru_cache(maxsize=256)(_decode_settings)  # the clients of a machine set much the same


def _apply_settings(settings: _Settings, session: Session) -> Session:
    context = session.context
    if settings.ci is not UNSET or settings.interactive is not UNSET or settings.job is not UNSET:
        context = Context(
            ci=context.ci if settings.ci is UNSET else settings.ci,
            interactive=context.interactive if settings.interactive is UNSET else settings.interactive,
            job=context.job if settings.job is UNSET else settings.job,
        )
    return Session(
        context,
        session.durable_acks if settings.ack is UNSET else settings.ack == "durable",
        session.asks_for if settings.destination is UNSET else settings.destination,
    )


def _refuse_repeated_keys(line: bytes) -> None:
    json.loads(line, object_pairs_hook=_check_unique)


def _refuse_repeated_keys_of_items(array: bytes) -> None:
    index = -1

    def unique(pairs: Iterable[tuple[str, object]]) -> None:
        nonlocal index
        index += 1
        try:
            _check_unique(pairs)
        except ValueError as error:
            raise ValueError(f"{error} - at `$[{index}]`") from error

    json.loads(array, object_pairs_hook=unique)


def _check_unique(pairs: Iterable[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"Object has the key `{key}` twice")
        seen.add(key)


def _reason_of(error: ValueError) -> str:
    # Which error it is depends on the version of msgspec.
    not_utf8 = isinstance(error, UnicodeDecodeError) or str(error).startswith("Invalid UTF-8")
    return "JSON is malformed: a string is not UTF-8" if not_utf8 else str(error)
