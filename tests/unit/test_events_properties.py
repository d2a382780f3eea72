"""What `agent.events` promises for whatever a client may send: nothing raises, lines stand alone, values stay the same."""

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.events import (
    Block,
    Context,
    Decoded,
    Reject,
    Session,
    count_fitting,
    decode_events,
    decode_lines,
    decode_messages,
    encode_events,
    split_lines,
)
from agent.queue.record import Record, decode_record, encode_record
from tests.support.json_array import to_json_array

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
        "sessionId": st.text(min_size=1),
        "source": st.sampled_from(["LOCAL", "REMOTE"]),
        "event": st.sampled_from(["HIT", "MISS"]),
        "hash": st.text(min_size=1),
    },
    optional={
        "duration": st.integers(0, 2**63 - 1) | st.floats(min_value=0, allow_nan=False, allow_infinity=False),
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


event_lines = st.builds(
    lambda value, order, ascii_only, spaces: json.dumps(
        {key: value[key] for key in sorted(value, key=order.index)},
        ensure_ascii=ascii_only,
        separators=(", ", ": ") if spaces else (",", ":"),
    ).encode("utf-8", "surrogatepass"),
    valid_events,
    st.just(["sessionId", "source", "event", "hash", "duration"])
    | st.permutations(["sessionId", "source", "event", "hash", "duration"]),
    ascii_only=st.booleans(),
    spaces=st.booleans(),
)


def one_by_one(block: bytes, session: Session) -> Decoded:
    """What decoding each line for itself gives."""
    blocks: list[Block] = []
    rejects: list[Reject] = []
    for number, line in enumerate(block.split(b"\n"), 1):
        decoded = decode_lines(line, session)
        session = decoded.session
        blocks += decoded.blocks
        rejects += [Reject(number, reject.reason) for reject in decoded.rejects]
    return Decoded(blocks, rejects, session, block.count(b"\n") + (bool(block) and not block.endswith(b"\n")))


def flat(decoded: Decoded) -> list[tuple[Context, bytes]]:
    return [(block.context, line) for block in decoded.blocks for line in block.lines.splitlines(keepends=True)]


@settings(max_examples=300, deadline=None)
@given(blocks)
@example(PLAIN + b"\n" + NO_DURATION)
@example(PLAIN + PLAIN + b"\n\n")
@example(PLAIN + b"\n" + PLAIN + b"\n")
@example(PLAIN[:-1] + b',"duration":8}\n' + NO_DURATION + b"\n")
def test_a_block_is_its_lines_one_by_one(block: bytes) -> None:
    together, apart = decode_lines(block, VERCEL), one_by_one(block, VERCEL)
    assert flat(together) == flat(apart)
    assert together.rejects == apart.rejects
    assert together.session == apart.session


@settings(max_examples=300, deadline=None)
@given(st.lists(event_lines, max_size=6), st.booleans())
def test_a_block_of_events_alone_is_the_same_beside_a_line_that_sends_it_the_other_way(
    parts: list[bytes], last_end: bool
) -> None:
    """A block of events is taken as a whole; one that holds anything else, such as an empty array, line by line."""
    block = b"\n".join(parts) + (b"\n" if last_end and parts else b"")
    alone, beside = decode_lines(block, VERCEL), decode_lines(block.rstrip(b"\n") + b"\n[]", VERCEL)
    assert alone.rejects == beside.rejects == []
    assert alone.blocks == beside.blocks
    assert sum(each.event_count for each in alone.blocks) == len(parts)


@settings(max_examples=300, deadline=None)
@given(st.lists(event_lines, min_size=1, max_size=6))
def test_canonical_lines_stay_as_they_are(parts: list[bytes]) -> None:
    [block] = decode_lines(b"\n".join(parts), VERCEL).blocks
    assert decode_lines(block.lines, VERCEL) == Decoded([block], [], VERCEL, len(parts))
    assert encode_events(decode_events(block.lines)) == block.lines


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400) | blocks)
def test_every_line_is_an_event_or_a_reject_or_blank_or_a_context_and_nothing_raises(block: bytes) -> None:
    decoded = decode_lines(block, VERCEL)
    assert all(reject.reason and 1 <= reject.line <= block.count(b"\n") + 1 for reject in decoded.rejects)
    assert all(each.event_count > 0 for each in decoded.blocks)
    assert all(each.lines.count(b"\n") == each.event_count and each.lines.endswith(b"\n") for each in decoded.blocks)
    assert all(len(decode_events(each.lines)) == each.event_count for each in decoded.blocks)
    assert len({reject.line for reject in decoded.rejects}) == len(decoded.rejects)


@settings(max_examples=300, deadline=None)
@given(st.lists(blocks.map(lambda text: text if text.endswith(b"\n") else text + b"\n"), max_size=5))
def test_messages_are_what_each_of_them_is_alone(messages: list[bytes]) -> None:
    found, others = decode_messages(messages)
    alone = [decode_lines(message, Session()) for message in messages]
    assert others == [i for i, each in enumerate(alone) if each.rejects or each.session.durable_acks]
    taken = [pair for i, each in enumerate(alone) if i not in others for pair in flat(each)]
    for context in {context for context, _ in taken}:
        [block] = [block for block in found if block.context == context]
        assert block.lines == b"".join(line for other, line in taken if other == context)
        assert block.event_count == block.lines.count(b"\n")
    assert {block.context for block in found} == {context for context, _ in taken}


@settings(max_examples=200, deadline=None)
@given(st.lists(event_lines, min_size=1, max_size=8), st.data())
def test_lines_that_are_cut_to_a_size_are_the_first_that_fit_and_lose_nothing(
    parts: list[bytes], data: st.DataObject
) -> None:
    [block] = decode_lines(b"\n".join(parts), VERCEL).blocks
    count = data.draw(st.integers(0, len(parts)))
    size = data.draw(st.integers(-1, len(block.lines) + 1))
    fit = count_fitting(block.lines, count, size)
    first, others = split_lines(block.lines, fit)
    assert first + others == block.lines
    assert (first.count(b"\n"), fit) == (fit, min(fit, count))
    assert len(first) <= size or fit == 0
    assert fit == count or len(split_lines(block.lines, fit + 1)[0]) > size


@settings(max_examples=200, deadline=None)
@given(valid_events, st.booleans())
def test_what_is_sent_to_the_api_is_what_the_client_wrote(value: dict[str, Any], ascii_only: bool) -> None:
    [(_, line)] = flat(decode_lines(written(value, ascii_only=ascii_only), VERCEL))
    stored = decode_record(encode_record(Record(0.0, Context(), line))).lines
    [sent] = json.loads(to_json_array(stored))
    assert sent == value
    assert list(map(repr, sent.values())) == [repr(value[key]) for key in sent]
