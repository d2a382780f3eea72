"""What `agent.events` promises for whatever a client may send: nothing raises, lines stand alone, values stay the same."""

import json
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.events import Context, Decoded, Event, Group, Reject, Session, decode_block
from agent.queue.record import Record, decode_record, encode_record

PLAIN = b'{"sessionId":"s","source":"REMOTE","event":"HIT","hash":"h","duration":7}'
NO_DURATION = b'{"sessionId":"s","source":"LOCAL","event":"MISS","hash":"h"}'
COLON = b'{"sessionId":"s","source":"LOCAL","event":"MISS","hash":"sha256:h"}'
VERCEL = Session(Context("VERCEL", 0))

keys = st.sampled_from(["sessionId", "source", "event", "hash", "duration", "context", "ci", "interactive", "ack", "x"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text()
    | st.sampled_from(["LOCAL", "REMOTE", "HIT", "MISS", "none", "durable"])
)
any_json = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=20)
valid_events = st.fixed_dictionaries(
    {
        "sessionId": st.text(),
        "source": st.sampled_from(["LOCAL", "REMOTE"]),
        "event": st.sampled_from(["HIT", "MISS"]),
        "hash": st.text(),
    },
    optional={
        "duration": st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    },
)
contexts = st.fixed_dictionaries(
    {},
    optional={
        "ci": st.none() | st.text(max_size=51),
        "interactive": st.none() | st.integers(-1, 2),
        "ack": st.sampled_from(["none", "durable", "x"]),
    },
)


def written(value: Any, *, ascii_only: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


items = (
    valid_events | valid_events | st.lists(valid_events, max_size=3) | any_json | contexts.map(lambda c: {"context": c})
)
lines = (
    st.builds(lambda value, ascii_only: written(value, ascii_only=ascii_only), items, ascii_only=st.booleans())
    | st.sampled_from([PLAIN, PLAIN, NO_DURATION, COLON, PLAIN + PLAIN, PLAIN[:30], PLAIN[30:], b"", b"  ", b"\r"])
    | st.binary(max_size=20).map(lambda data: data.replace(b"\n", b""))
)
blocks = st.builds(
    lambda parts, ends, last: b"".join(part + end for part, end in zip(parts, ends, strict=False)) + last,
    st.lists(lines, max_size=8),
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n"]), min_size=8, max_size=8),
    st.just(b"") | lines,
)


def one_by_one(block: bytes, session: Session) -> Decoded:
    """What decoding each line for itself gives."""
    groups: list[Group] = []
    rejects: list[Reject] = []
    for number, line in enumerate(block.split(b"\n"), 1):
        decoded = decode_block(line, session)
        session = decoded.session
        groups += decoded.groups
        rejects += [Reject(number, reject.reason) for reject in decoded.rejects]
    return Decoded(groups, rejects, session)


def flat(decoded: Decoded) -> list[tuple[Context, Event]]:
    return [(group.context, event) for group in decoded.groups for event in group.events]


@settings(max_examples=300, deadline=None)
@given(blocks)
@example(PLAIN + b"\n" + NO_DURATION)
@example(PLAIN + PLAIN + b"\n\n")
def test_a_block_is_its_lines_one_by_one(block: bytes) -> None:
    together, apart = decode_block(block, VERCEL), one_by_one(block, VERCEL)
    assert repr(flat(together)) == repr(flat(apart))
    assert [reject.line for reject in together.rejects] == [reject.line for reject in apart.rejects]
    assert together.session == apart.session


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | blocks)
def test_every_line_is_an_event_or_a_reject_or_blank_or_a_context_and_nothing_raises(block: bytes) -> None:
    decoded = decode_block(block, VERCEL)
    assert all(reject.reason and 1 <= reject.line <= block.count(b"\n") + 1 for reject in decoded.rejects)
    assert all(group.events for group in decoded.groups)
    assert len({reject.line for reject in decoded.rejects}) == len(decoded.rejects)


@settings(max_examples=200, deadline=None)
@given(valid_events, st.booleans())
def test_what_is_sent_to_the_api_is_what_the_client_wrote(value: dict[str, Any], ascii_only: bool) -> None:
    [(_, event)] = flat(decode_block(written(value, ascii_only=ascii_only), VERCEL))
    stored = decode_record(encode_record(Record(0.0, Context(), [event]))).events[0]
    sent = json.loads(msgspec.json.encode(stored))
    assert sent == value
    assert list(map(repr, sent.values())) == [repr(value[key]) for key in sent]
