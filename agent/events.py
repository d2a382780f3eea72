"""Usage events: their schema, the context they were sent in, and the validation of the lines that carry them.

It knows JSON and the API's contract. It must never know sockets, files or queues. The contract is the OpenAPI
description of `POST /v8/artifacts/events`
(https://vercel.com/docs/rest-api/artifacts/record-an-artifacts-cache-usage-event).

The common case, a block of lines that are all valid events, stays in C: one `decode_lines` for the whole block and a few
cheap counts. Only a block that is not that simple is taken apart line by line.
"""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_LINE_BYTES = 64 * 1024

# msgpack, and so the queue, holds integers of 64 bits.
_Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """One Remote Cache usage event, exactly the API's schema: `duration` is in milliseconds, and an integer stays one."""

    session_id: str
    source: Literal["LOCAL", "REMOTE"]
    event: Literal["HIT", "MISS"]
    hash: str
    duration: _Integer | float | UnsetType = UNSET


# It becomes a header's value, so no control characters and no blanks at the ends; the API allows 50 characters.
Ci = Annotated[str, Meta(max_length=50, pattern=r"^[!-~]([ -~]*[!-~])?\Z")]  # `$` would let a line end through
Interactive = Literal[0, 1]


class Context(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the API's headers say of the client: `x-artifact-client-ci` and `x-artifact-client-interactive`."""

    ci: Ci | None = None
    interactive: Interactive | None = None


class Session(NamedTuple):
    """What a connection has set for the lines that follow."""

    context: Context = Context()
    durable_acks: bool = False


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ci: Ci | None | UnsetType = UNSET
    interactive: Interactive | None | UnsetType = UNSET
    ack: Literal["none", "durable"] | UnsetType = UNSET


class _ContextLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    context: _Settings


class Group(NamedTuple):
    """Events that share a context, in the order they came."""

    context: Context
    events: list[Event]


class Reject(NamedTuple):
    """A line that was refused: its number within the block, from 1, and what is wrong with it."""

    line: int
    reason: str


class Decoded(NamedTuple):
    """What a block held, and the session as it is after it."""

    groups: list[Group]
    rejects: list[Reject]
    session: Session


_decode_events = msgspec.json.Decoder(Event).decode_lines
_decode_line = msgspec.json.Decoder(Event | list[Event]).decode
_decode_context = msgspec.json.Decoder(_ContextLine).decode
_is_context_line = re.compile(rb'\s*\{\s*"context"\s*:').match


def decode_block(block: bytes, session: Session) -> Decoded:
    """Validate a block of complete lines: events, arrays of events, or context lines; blank lines are skipped.

    Never raises for what a client sent: a line that is not valid becomes a Reject and costs that line only.
    """
    try:
        events = _decode_events(block)
    except ValueError:  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return _decode_each(block, session)
    if not _is_one_a_line(block, events) or _may_repeat_a_key(block, events):
        return _decode_each(block, session)
    return Decoded([Group(session.context, events)], [], session)


def _is_one_a_line(block: bytes, events: list[Event]) -> bool:
    """Tell whether each line is exactly one of `events`: what a line is must not depend on those that came with it.

    JSON's strings hold no line ends, so a brace before a line end is always the end of an event.
    """
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    last_braces = block.count(b"}\n") + block.endswith(b"}")
    return lines == last_braces == len(events)


def _may_repeat_a_key(block: bytes, events: list[Event]) -> bool:
    """Tell whether a block of events has more colons than keys; strings with colons make this a false alarm.

    msgspec keeps the last of two equal keys; to a sender that wrote both it matters which one was meant.
    """
    return block.count(b":") != 5 * len(events) - [event.duration for event in events].count(UNSET)


def _decode_each(block: bytes, session: Session) -> Decoded:
    groups: list[Group] = []
    rejects: list[Reject] = []
    for number, line in enumerate(block.split(b"\n"), 1):
        if not line or line.isspace():
            continue
        try:
            if _is_context_line(line):
                session = _apply(_settings_of(line), session)
                continue
            events = _events_of(line)
        except ValueError as error:
            rejects.append(Reject(number, _explain(error)))
            continue
        if groups and groups[-1].context is session.context:
            groups[-1].events.extend(events)
        elif events:
            groups.append(Group(session.context, events))
    return Decoded(groups, rejects, session)


def _events_of(line: bytes) -> list[Event]:
    item = _decode_line(line)
    events = item if isinstance(item, list) else [item]
    if _may_repeat_a_key(line, events):
        _refuse_repeated_keys(line)
    return events


def _settings_of(line: bytes) -> _Settings:
    settings = _decode_context(line).context
    _refuse_repeated_keys(line)
    return settings


def _apply(settings: _Settings, session: Session) -> Session:
    context = session.context
    if settings.ci is not UNSET or settings.interactive is not UNSET:
        context = Context(
            ci=context.ci if settings.ci is UNSET else settings.ci,
            interactive=context.interactive if settings.interactive is UNSET else settings.interactive,
        )
    return Session(context, session.durable_acks if settings.ack is UNSET else settings.ack == "durable")


def _refuse_repeated_keys(line: bytes) -> None:
    json.loads(line, object_pairs_hook=_unique)


def _unique(pairs: Iterable[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"Object has the key `{key}` twice")
        seen.add(key)


def _explain(error: ValueError) -> str:
    return "JSON is malformed: a string is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
