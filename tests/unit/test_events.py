"""What `agent.events` promises: exactly the API's schema, a bad line costs that line only, and nothing raises."""

import json
import re
import time

import msgspec
import pytest

from agent.cache_use import NO_USE
from agent.events import (
    ARRAY_OVERHEAD,
    MAX_LINE_BYTES,
    Block,
    Context,
    Decoded,
    Event,
    Reject,
    Session,
    count_fitting,
    decode_array,
    decode_event,
    decode_events,
    decode_lines,
    decode_messages,
    encode_events,
    may_hold_items,
    split_lines,
)
from agent.queue.record import Record, decode_record, encode_record
from tests.support.cache_use import use_of
from tests.support.json_array import to_json_array
from tests.support.recordings import Recorded

PLAIN = b'{"sessionId":"s","source":"REMOTE","event":"HIT","hash":"h","duration":7}'
PLAIN_EVENT = Event("s", "REMOTE", "HIT", "h", 7)
NO_DURATION = b'{"sessionId":"s","source":"LOCAL","event":"MISS","hash":"h"}'
NO_DURATION_EVENT = Event("s", "LOCAL", "MISS", "h")
COLON = b'{"sessionId":"s","source":"LOCAL","event":"MISS","hash":"sha256:h"}'
VERCEL = Session(Context("VERCEL", 0))
NOT_UTF8 = "JSON is malformed: a string is not UTF-8"


def with_duration(literal: str) -> bytes:
    return PLAIN.replace(b":7", b":" + literal.encode())


def with_hash(literal: bytes) -> bytes:
    """An event whose hash is written as `literal`, with everything between its quotes."""
    return PLAIN.replace(b'"h"', b'"' + literal + b'"')


def with_ci(text: str) -> bytes:
    return json.dumps({"context": {"ci": text}}).encode()


def block_of(context: Context, count: int, lines: bytes) -> Block:
    """Return the block of lines, with what they say of the cache."""
    return Block(context, count, lines, use_of(lines))


def events_of(decoded: Decoded) -> list[Event]:
    return [event for block in decoded.blocks for event in decode_events(block.lines)]


def the_reject(line: bytes) -> str:
    """The reason for which a line is refused; nothing else came of it."""
    decoded = decode_lines(line + b"\n", VERCEL)
    assert decoded.blocks == []
    assert decoded.session == VERCEL
    assert [reject.line for reject in decoded.rejects] == [1]
    return decoded.rejects[0].reason


def the_event(line: bytes) -> Event:
    """The one event that a line is."""
    decoded = decode_lines(line + b"\n", VERCEL)
    assert decoded.rejects == []
    [block] = decoded.blocks
    assert (block.context, block.event_count) == (VERCEL.context, 1)
    [event] = decode_events(block.lines)
    return event


def the_session(*lines: bytes, before: Session = VERCEL) -> Session:
    """What a connection has set after these lines, all of them context lines."""
    decoded = decode_lines(b"\n".join(lines), before)
    assert (decoded.blocks, decoded.rejects) == ([], [])
    return decoded.session


# --- events -------------------------------------------------------------------------------------------------------


def test_an_event_is_taken_as_it_was_sent() -> None:
    assert decode_lines(PLAIN + b"\n", VERCEL) == Decoded([block_of(VERCEL.context, 1, PLAIN + b"\n")], [], VERCEL, 1)


def test_duration_may_be_left_out_and_then_stays_out() -> None:
    assert the_event(NO_DURATION) == NO_DURATION_EVENT
    assert msgspec.json.encode(the_event(NO_DURATION)) == NO_DURATION


def test_the_order_of_keys_does_not_matter() -> None:
    assert the_event(b'{"duration":7,"hash":"h","event":"HIT","source":"REMOTE","sessionId":"s"}') == PLAIN_EVENT


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(b"hello", "malformed", id="words"),
        pytest.param(b"\x00\xff\xfe\x80", "malformed", id="binary"),
        pytest.param(b"\xef\xbb\xbf" + PLAIN, "malformed", id="byte-order mark"),
        pytest.param(PLAIN[:-1], "truncated", id="cut short"),
        pytest.param(PLAIN[:-1] + b",}", "trailing comma", id="trailing comma"),
        pytest.param(b"[" + PLAIN + b",]", "trailing comma", id="trailing comma in an array"),
        pytest.param(PLAIN.replace(b'"', b"'"), "malformed", id="single quotes"),
        pytest.param(b"// x", "malformed", id="comment"),
        pytest.param(PLAIN + b" // x", "trailing characters", id="comment behind"),
        pytest.param(PLAIN + PLAIN, "trailing characters", id="two objects"),
        pytest.param(PLAIN + b" " + PLAIN, "trailing characters", id="two objects with a blank"),
        pytest.param(PLAIN + b"}", "trailing characters", id="one brace too many"),
        pytest.param(b"null", "got `null`", id="null"),
        pytest.param(b"42", "got `int`", id="number"),
        pytest.param(b'"x"', "got `str`", id="string"),
        pytest.param(b"{}", "missing required field `sessionId`", id="empty object"),
        pytest.param(NO_DURATION.replace(b',"hash":"h"', b""), "missing required field `hash`", id="no hash"),
        pytest.param(PLAIN.replace(b"hash", b"Hash"), "unknown field `Hash`", id="wrong case"),
        pytest.param(PLAIN.replace(b"sessionId", b"session_id"), "unknown field `session_id`", id="snake case"),
        pytest.param(PLAIN[:-1] + b',"x":1}', "unknown field `x`", id="unknown key"),
        pytest.param(PLAIN.replace(b"REMOTE", b"remote"), "Invalid enum value 'remote' - at `$.source`", id="source"),
        pytest.param(PLAIN.replace(b"HIT", b"PUT"), "Invalid enum value 'PUT' - at `$.event`", id="event"),
        pytest.param(PLAIN.replace(b'"h"', b"1"), "Expected `str`, got `int` - at `$.hash`", id="hash is a number"),
        pytest.param(PLAIN.replace(b'"h"', b'""'), "Expected `str` of length >= 1 - at `$.hash`", id="no artifact"),
        pytest.param(PLAIN.replace(b'"s"', b'""'), "Expected `str` of length >= 1 - at `$.sessionId`", id="no session"),
        pytest.param(PLAIN.replace(b'"s"', b"null"), "got `null` - at `$.sessionId`", id="session is null"),
        pytest.param(PLAIN.replace(b'"HIT"', b'["HIT"]'), "got `array` - at `$.event`", id="event is an array"),
        pytest.param(with_hash(b"\xff"), NOT_UTF8, id="invalid UTF-8"),
        pytest.param(with_hash(b"\xc0\x80"), NOT_UTF8, id="overlong UTF-8"),
        pytest.param(with_hash(b"\xed\xa0\x80"), NOT_UTF8, id="surrogate as UTF-8"),
        pytest.param(with_hash(b"\xc3:"), NOT_UTF8, id="cut UTF-8"),
        pytest.param(with_hash(rb"\ud800"), "surrogate", id="lone high surrogate"),
        pytest.param(with_hash(rb"\ud800x"), "surrogate", id="high surrogate without its low one"),
        pytest.param(with_hash(rb"\udc00"), "surrogate", id="lone low surrogate"),
        pytest.param(with_hash(b"\0"), "malformed", id="bare NUL"),
        pytest.param(with_hash(b"\t"), "malformed", id="bare tab"),
        pytest.param(with_hash(rb"\x41"), "malformed", id="unknown escape"),
    ],
)
def test_a_line_against_the_schema_is_refused_and_says_why(line: bytes, reason: str) -> None:
    assert reason in the_reject(line)


@pytest.mark.parametrize(
    ("literal", "reason"),
    [
        ("null", "got `null` - at `$.duration`"),
        ("true", "got `bool`"),
        ('"7"', "got `str`"),
        ("[7]", "got `array`"),
        ("NaN", "malformed"),
        ("Infinity", "malformed"),
        ("-Infinity", "malformed"),
        ("1e400", "out of range"),
        ("-1e400", "out of range"),
        ("9223372036854775808", "Expected `int` <= 9223372036854775807"),
        ("-7", "Expected `int` >= 0 - at `$.duration`"),
        ("-0.5", "Expected `float` >= 0.0 - at `$.duration`"),
        ("-9223372036854775809", "Expected `int` >= 0"),
        ("18446744073709551616", "Expected `int` <="),
        pytest.param("9" * 300, "Expected `int` <=", id="300 digits"),
        pytest.param("9" * 5000, "out of range", id="5,000 digits"),
        pytest.param("9" * 60_000, "out of range", id="60,000 digits"),
        ("07", "malformed"),
        ("+7", "malformed"),
        (".5", "malformed"),
        ("5.", "malformed"),
        ("0x10", "malformed"),
        ("1_000", "malformed"),
    ],
)
def test_a_duration_that_is_no_number_of_64_bits_or_negative_is_refused(literal: str, reason: str) -> None:
    assert reason in the_reject(with_duration(literal))


def test_what_an_older_agent_has_queued_can_be_read_although_it_would_be_refused_now() -> None:
    kept = b'{"sessionId":"","source":"LOCAL","event":"HIT","hash":"","duration":-7}'
    assert decode_event(kept) == Event("", "LOCAL", "HIT", "", -7)
    assert decode_events(kept + b"\n") == [decode_event(kept)]


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("9007199254740993", 2**53 + 1),
        ("9223372036854775807", 2**63 - 1),
        ("0.0", 0.0),
        ("-0.0", -0.0),
        ("7.0", 7.0),
        ("1e2", 100.0),
        ("1E-2", 0.01),
        ("0.1", 0.1),
        ("123456789012345678901234567890.0", 1.2345678901234568e29),
        ("5e-324", 5e-324),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("1e-400", 0.0),
    ],
)
def test_integers_stay_integers_and_floats_stay_floats_on_the_whole_way(literal: str, value: float) -> None:
    event = the_event(with_duration(literal))
    record = decode_record(encode_record(Record(0.0, Context(), encode_events([event]))))
    [stored] = decode_events(record.lines)
    [sent] = [each["duration"] for each in json.loads(to_json_array(record.lines))]
    for duration in (event.duration, stored.duration, sent):
        assert (type(duration), repr(duration)) == (type(value), repr(value))


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (b"sha256:00:ff", "sha256:00:ff"),
        (b"}", "}"),
        (b"{\\n}", "{\n}"),
        (rb"\u0000", "\0"),
        (rb"\ud83d\ude00", "\N{GRINNING FACE}"),
        ("\N{GRINNING FACE}\u2028\x85".encode(), "\N{GRINNING FACE}\u2028\x85"),
        (rb"\"hash\":\\", '"hash":\\'),
    ],
)
def test_strings_are_taken_whatever_they_hold(literal: bytes, value: str) -> None:
    assert the_event(with_hash(literal)).hash == value


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(NO_DURATION[:-1] + b',"hash":"i"}', id="twice"),
        pytest.param(NO_DURATION[:-1] + b',"hash":"h"}', id="with the same value"),
        pytest.param(NO_DURATION[:-1] + rb',"h\u0061sh":"i"}', id="once escaped"),
        pytest.param(COLON[:-1] + b',"hash":"i"}', id="with colons in strings"),
        pytest.param(b"[" + PLAIN + b"," + NO_DURATION[:-1] + b',"hash":"i"}]', id="in an array"),
    ],
)
def test_an_event_with_a_key_twice_is_refused(line: bytes) -> None:
    assert the_reject(line) == "Object has the key `hash` twice"


def test_a_duration_given_twice_is_refused_although_a_missing_one_would_make_the_number_of_keys_right() -> None:
    decoded = decode_lines(PLAIN[:-1] + b',"duration":8}\n' + NO_DURATION + b"\n", VERCEL)
    assert decoded.rejects == [Reject(1, "Object has the key `duration` twice")]
    assert events_of(decoded) == [NO_DURATION_EVENT]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"[" * 65_000, id="brackets"),
        pytest.param(b"[" * 32_000 + b"]" * 32_000, id="closed brackets"),
        pytest.param(b'{"sessionId":' * 5_000, id="objects"),
        pytest.param(b'{"x":' + b"[" * 65_000, id="under an unknown key"),
        pytest.param(b'{"context":' * 5_000, id="context lines"),
        pytest.param(b'{"context":{"ci":' + b"[" * 65_000, id="in a context"),
        pytest.param(b"[" * 100_000, id="longer than a line may be"),
    ],
)
def test_deep_nesting_is_refused_at_its_first_level(line: bytes) -> None:
    started = time.thread_time()
    assert the_reject(line)
    assert time.thread_time() - started < 1


# --- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b"", b"\n", b"\r\n", b" \t\r\n\n", b"\x0c\n"])
def test_blank_lines_are_ignored(block: bytes) -> None:
    assert decode_lines(block, VERCEL) == Decoded([], [], VERCEL, block.count(b"\n"))


@pytest.mark.parametrize(
    "block",
    [
        PLAIN,
        PLAIN + b"\n",
        PLAIN + b"\r\n",
        b"  " + PLAIN + b" \t\n",
        b"\n\n" + PLAIN + b"\n\n",
        PLAIN.replace(b",", b" , ").replace(b":", b" : "),
    ],
)
def test_white_space_around_an_event_does_not_matter(block: bytes) -> None:
    expected = Decoded([block_of(VERCEL.context, 1, PLAIN + b"\n")], [], VERCEL, len(block.splitlines()))
    assert decode_lines(block, VERCEL) == expected


@pytest.mark.parametrize(
    ("block", "good", "bad"),
    [
        pytest.param(PLAIN + b"x\n" + PLAIN + b"\n", 1, [1], id="bad, good"),
        pytest.param(PLAIN + b"\n\nx\n" + COLON + b"\r\nx", 2, [3, 5], id="blank lines count"),
        pytest.param(PLAIN + PLAIN + b"\n", 0, [1], id="two on a line"),
        pytest.param(PLAIN + PLAIN + b"\n\n", 0, [1], id="two on a line and a blank one"),
        pytest.param(
            PLAIN + b"\n" + PLAIN + b" " + PLAIN + b"\n\n", 1, [2], id="two on a line, as many lines as events"
        ),
        pytest.param(PLAIN.replace(b",", b",\n") + b"\n", 0, [1, 2, 3, 4, 5], id="pretty-printed"),
        pytest.param(PLAIN[:-1] + b"\n}" + PLAIN + b"\n", 0, [1, 2], id="across two lines, beside another"),
    ],
)
def test_a_bad_line_costs_that_line_only(block: bytes, good: int, bad: list[int]) -> None:
    decoded = decode_lines(block, VERCEL)
    assert len(events_of(decoded)) == good
    assert [reject.line for reject in decoded.rejects] == bad


@pytest.mark.parametrize("neighbour", [b"", PLAIN, NO_DURATION, COLON, b"[" + PLAIN + b"]", b'{"context":{}}', b"\r"])
def test_what_becomes_of_a_line_does_not_depend_on_its_neighbours(neighbour: bytes) -> None:
    for line in (PLAIN + PLAIN, PLAIN + b" " + NO_DURATION, PLAIN[:-1] + b',"hash":"h"}'):
        decoded = decode_lines(neighbour + b"\n" + line + b"\n", VERCEL)
        assert [reject.line for reject in decoded.rejects] == [2]


@pytest.mark.parametrize(
    ("line", "count"),
    [(b"[]", 0), (b"[ ]", 0), (b"[" + PLAIN + b"]", 1), (b"[" + PLAIN + b" ,\t" + COLON + b"]\r", 2)],
)
def test_an_array_of_events_is_a_line(line: bytes, count: int) -> None:
    decoded = decode_lines(line + b"\n", VERCEL)
    assert decoded.rejects == []
    assert len(events_of(decoded)) == count
    assert all(block.event_count and block.lines for block in decoded.blocks)


@pytest.mark.parametrize(
    "line",
    [
        b"[" + PLAIN + b",{}]",
        b"[" + PLAIN + b",null]",
        b"[[" + PLAIN + b"]]",
        b"[" + PLAIN + b"][" + PLAIN + b"]",
        b'[{"context":{}}]',
        b"[" + PLAIN + b",",
    ],
)
def test_one_bad_item_costs_the_whole_array_and_nothing_else(line: bytes) -> None:
    decoded = decode_lines(PLAIN + b"\n" + line + b"\n" + PLAIN + b"\n", VERCEL)
    assert events_of(decoded) == [PLAIN_EVENT] * 2
    assert [reject.line for reject in decoded.rejects] == [2]


def test_the_apis_body_becomes_lines() -> None:
    assert decode_array(b"[%b]" % PLAIN) == ([PLAIN + b"\n"], use_of(PLAIN))
    lines = PLAIN + b"\n" + COLON + b"\n"
    assert decode_array(b" [\n%b , %b ] " % (PLAIN, COLON)) == ([lines], use_of(lines))
    assert decode_array(b"[]") == ([], NO_USE)


def test_a_long_body_becomes_chunks_of_whole_lines() -> None:
    fitting = MAX_LINE_BYTES // (len(PLAIN) + 1)
    pieces, _ = decode_array(b"[%b]" % b",".join([PLAIN] * (2 * fitting + 1)))
    assert [piece.count(b"\n") for piece in pieces] == [fitting, fitting, 1]
    assert b"".join(pieces) == (PLAIN + b"\n") * (2 * fitting + 1)


@pytest.mark.parametrize("size", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_an_event_of_a_body_has_the_length_of_a_line(size: int) -> None:
    event = PLAIN[:-1].replace(b'"hash":"', b'"hash":"' + b"h" * (size - len(PLAIN))) + b"}"
    body = b"[%b,%b]" % (PLAIN, event)
    if size > MAX_LINE_BYTES:
        with pytest.raises(ValueError, match=r"Event is longer than 65,536 bytes - at `\$\[1\]`"):
            decode_array(body)
    else:
        assert [len(piece) for piece in decode_array(body)[0]] == [len(PLAIN) + 1, size + 1]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PLAIN, "Expected `array`, got `object`"),
        (b"[%b,7]" % PLAIN, "Expected `object`, got `int` - at `$[1]`"),
        (b"[%b,%b]" % (PLAIN, PLAIN.replace(b"HIT", b"hit")), "Invalid enum value 'hit' - at `$[1].event`"),
        (b'[%b,%b,"duration":8}]' % (PLAIN, PLAIN[:-1]), "Object has the key `duration` twice - at `$[1]`"),
        (b'[{"sessionId":"\xff"}]', "JSON is malformed: a string is not UTF-8"),
    ],
)
def test_a_body_against_the_schema_says_which_item_and_field(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        decode_array(body)


def test_recorded_requests_are_taken_as_turbo_sent_them(recorded_requests: list[Recorded]) -> None:
    for request in recorded_requests:
        decoded = decode_lines(request.lines, VERCEL)
        assert decoded.rejects == []
        [block] = decoded.blocks
        assert block.event_count == len(request.events)
        assert to_json_array(block.lines) == json.dumps(request.events, separators=(",", ":")).encode()


# --- context lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "after"),
    [
        ("{}", VERCEL),
        ('{"ci":"GITHUB_ACTIONS"}', Session(Context("GITHUB_ACTIONS", 0))),
        ('{"ci":null}', Session(Context(None, 0))),
        ('{"interactive":1}', Session(Context("VERCEL", 1))),
        ('{"interactive":null}', Session(Context("VERCEL", None))),
        ('{"ci":null,"interactive":null}', Session()),
        ('{"job":"build 7"}', Session(Context(VERCEL.context.ci, VERCEL.context.interactive, "build 7"))),
        ('{"ack":"durable"}', Session(VERCEL.context, durable_acks=True)),
        ('{"ack":"none"}', VERCEL),
        ('{"ack":"durable","ci":"X","interactive":1}', Session(Context("X", 1), durable_acks=True)),
    ],
)
def test_a_context_line_sets_what_it_names_and_leaves_the_rest(settings_: str, after: Session) -> None:
    assert the_session(b'{"context":' + settings_.encode() + b"}") == after


def test_context_lines_add_up() -> None:
    lines = [b'{"context":{"ack":"durable"}}', b' { "context" : {"interactive":1} } \r', b'{"context":{"ci":"X"}}']
    assert the_session(*lines, before=Session()) == Session(Context("X", 1), durable_acks=True)
    assert the_session(*lines, b'{"context":{"ack":"none"}}') == Session(Context("X", 1))


@pytest.mark.parametrize("ci", ["X", "x" * 50, "a b", "!", "~", "Travis CI", "{};:"])
def test_a_ci_name_is_what_a_header_can_carry(ci: str) -> None:
    assert the_session(with_ci(ci)).context.ci == ci


@pytest.mark.parametrize(
    "ci",
    [
        "",
        " ",
        " x",
        "x ",
        "x" * 51,
        "a\tb",
        "a\nb",
        "x\n",
        "x\r\n",
        "\n",
        "x\0",
        "\x7f",
        "é",
        "\u2028",
        "\N{GRINNING FACE}",
    ],
)
def test_a_ci_name_that_no_header_can_carry_is_refused(ci: str) -> None:
    assert "`$.context.ci`" in the_reject(with_ci(ci))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"context":null}', "got `null`"),
        (b'{"context":[]}', "got `array`"),
        (b'{"context":{"ci":1}}', "got `int`"),
        (b'{"context":{"job":7}}', "got `int`"),
        (b'{"context":{"job":""}}', "$.context.job"),
        (b'{"context":{"job":" x"}}', "$.context.job"),
        (b'{"context":{"job":"\xc3\xa9"}}', "$.context.job"),
        (b'{"context":{"job":"' + b"x" * 201 + b'"}}', "$.context.job"),
        (b'{"context":{"interactive":true}}', "got `bool`"),
        (b'{"context":{"interactive":false}}', "got `bool`"),
        (b'{"context":{"interactive":2}}', "Invalid enum value 2"),
        (b'{"context":{"interactive":-1}}', "Invalid enum value -1"),
        (b'{"context":{"interactive":1.0}}', "got `float`"),
        (b'{"context":{"interactive":"1"}}', "got `str`"),
        (b'{"context":{"ack":"maybe"}}', "Invalid enum value 'maybe'"),
        (b'{"context":{"ack":null}}', "got `null`"),
        (b'{"context":{"ack":true}}', "got `bool`"),
        (b'{"context":{"CI":"X"}}', "unknown field `CI`"),
        (b'{"context":{"ci":"X"},"x":1}', "unknown field `x`"),
        (b'{"x":1,"context":{"ci":"X"}}', "unknown field `x`"),
        (b'{"context":{"ci":"X"}', "truncated"),
        (b'{"context":{"ci":"X"}}}', "trailing characters"),
        (b'{"context":{"ci":"\xff"}}', NOT_UTF8),
        (b'{"context":{"ci":"X","ci":"Y"}}', "has the key `ci` twice"),
        (rb'{"context":{"ci":"X","c\u0069":"Y"}}', "has the key `ci` twice"),
        (b'{"context":{"ci":"X"},"context":{"ci":"X"}}', "has the key `context` twice"),
    ],
)
def test_a_wrong_context_line_is_refused_and_changes_nothing(line: bytes, reason: str) -> None:
    assert reason in the_reject(line)


def test_a_context_line_holds_for_what_follows_it() -> None:
    other = b'{"context":{"ci":"X"}}'
    decoded = decode_lines(b"\n".join([PLAIN, PLAIN, other, COLON, other[:-1], PLAIN]), VERCEL)
    assert [(block.context.ci, block.event_count) for block in decoded.blocks] == [("VERCEL", 2), ("X", 2)]
    assert [reject.line for reject in decoded.rejects] == [5]
    assert decoded.session.context == Context("X", 0)


def test_asking_for_acks_in_between_does_not_part_events_of_one_context() -> None:
    decoded = decode_lines(b"\n".join([PLAIN, b'{"context":{"ack":"durable"}}', PLAIN]), VERCEL)
    session = Session(VERCEL.context, durable_acks=True)
    block = block_of(VERCEL.context, 2, (PLAIN + b"\n") * 2)._replace(durable_acks=True)
    assert decoded == Decoded([block], [], session, 3)
    off = decode_lines(b"\n".join([PLAIN, b'{"context":{"ack":"none"}}', PLAIN]), session)
    assert off == Decoded([block], [], VERCEL, 3)


# --- bounds and the queue ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"x\n", b"[]\n", b"{}\n", b'{"context":{}}\n', b":\n", b"\n", b" ", b"{", b'"', b"\xff"]
)
def test_a_read_full_of_anything_takes_no_more_than_a_moment(line: bytes) -> None:
    block = line * (MAX_LINE_BYTES // len(line))
    started = time.thread_time()
    decoded = decode_lines(block, VERCEL)
    assert time.thread_time() - started < 2
    assert decoded.blocks == []


def test_an_events_record_can_be_read_again() -> None:
    [block] = decode_lines(PLAIN + b"\n" + COLON + b"\n", VERCEL).blocks
    record = Record(1.5, block.context, block.lines)
    assert decode_record(encode_record(record)) == record


# --- text ---------------------------------------------------------------------------------------------------------


CANONICAL = PLAIN + b"\n"
REORDERED = b'{"duration":7,"hash":"h","event":"HIT","source":"REMOTE","sessionId":"s"}'


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param(CANONICAL, CANONICAL, id="canonical"),
        pytest.param(CANONICAL * 3, CANONICAL * 3, id="canonical, some lines"),
        pytest.param(
            NO_DURATION + b"\n" + COLON + b"\n", NO_DURATION + b"\n" + COLON + b"\n", id="canonical, with colons"
        ),
        pytest.param(PLAIN, CANONICAL, id="no last line end"),
        pytest.param(CANONICAL + PLAIN, CANONICAL * 2, id="no last line end, some lines"),
        pytest.param(PLAIN + b"\r\n", CANONICAL, id="CRLF"),
        pytest.param(b"\n" + CANONICAL + b" \n\n" + CANONICAL, CANONICAL * 2, id="blank lines"),
        pytest.param(b" " + PLAIN.replace(b",", b" , ").replace(b":", b"\t: ") + b" \n", CANONICAL, id="spaces"),
        pytest.param(REORDERED + b"\n", CANONICAL, id="other order"),
        pytest.param(b"[" + REORDERED + b", " + PLAIN + b"]\n" + CANONICAL, CANONICAL * 3, id="an array"),
        pytest.param(with_duration("1e3") + b"\n", with_duration("1000.0") + b"\n", id="exponent"),
        pytest.param(with_duration("1E-2") + b"\n", with_duration("0.01") + b"\n", id="capital exponent"),
        pytest.param(with_duration("7.00") + b"\n", with_duration("7.0") + b"\n", id="zeros"),
        pytest.param(with_duration("-0") + b"\n", with_duration("0") + b"\n", id="negative zero"),
        pytest.param(with_hash(rb"\u0041\/\u00fc") + b"\n", with_hash("A/ü".encode()) + b"\n", id="escapes"),
        pytest.param(with_hash(rb"\ud83d\ude00") + b"\n", with_hash("\N{GRINNING FACE}".encode()) + b"\n", id="a pair"),
        pytest.param(with_hash(rb"\u000a\u0022") + b"\n", with_hash(rb"\n\"") + b"\n", id="needed escapes, long"),
        pytest.param(with_hash(rb"\n\r\u0000") + b"\n", with_hash(rb"\n\r\u0000") + b"\n", id="needed escapes"),
        pytest.param(PLAIN.replace(b"hash", rb"h\u0061sh") + b"\n", CANONICAL, id="an escape in a key"),
        pytest.param(b"x\n" + CANONICAL + REORDERED, CANONICAL * 2, id="beside a bad line"),
    ],
)
def test_the_lines_of_a_block_are_canonical_however_they_were_written(text: bytes, lines: bytes) -> None:
    [block] = decode_lines(text, VERCEL).blocks
    assert block == block_of(VERCEL.context, lines.count(b"\n"), lines)


ONE, TWO, THREE = b"1\n", b"22\n", b"333\n"


@pytest.mark.parametrize(
    ("count", "first", "others"),
    [
        (0, b"", ONE + TWO + THREE),
        (1, ONE, TWO + THREE),
        (2, ONE + TWO, THREE),
        (3, ONE + TWO + THREE, b""),
    ],
)
def test_lines_are_split_after_a_count(count: int, first: bytes, others: bytes) -> None:
    assert split_lines(ONE + TWO + THREE, count) == (first, others)


@pytest.mark.parametrize(
    ("count", "size", "fit"),
    [
        (3, 9, 3),
        (3, 100, 3),
        (2, 100, 2),
        (0, 100, 0),
        (3, 8, 2),
        (3, 5, 2),
        (1, 5, 1),
        (3, 4, 1),
        (3, 2, 1),
        (3, 1, 0),
        (3, 0, 0),
        (3, -1, 0),
        (0, 5, 0),
    ],
)
def test_as_many_lines_fit_as_have_at_most_that_many_bytes(count: int, size: int, fit: int) -> None:
    assert count_fitting(ONE + TWO + THREE, count, size) == fit


@pytest.mark.parametrize("hash_", ["h", "a\nb,\n", "\r\n", "\u2028\x85\x0c\x1c", '"},{"'])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_array_has_the_events_of_its_lines_and_one_byte_more(hash_: str, count: int) -> None:
    events = [Event("s", "LOCAL", "MISS", hash_, number) for number in range(count)]
    lines = encode_events(events)
    assert to_json_array(lines) == msgspec.json.encode(events)
    assert len(to_json_array(lines)) == len(lines) + ARRAY_OVERHEAD
    assert split_lines(lines, count - 1)[1] == encode_events(events[-1:])
    assert count_fitting(lines, count, len(lines) - 1) == count - 1


# --- messages of several senders ----------------------------------------------------------------------------------


X = b'{"context":{"ci":"X"}}\n'
ACKS = b'{"context":{"ack":"durable"}}\n'
NOTHING = Context()


@pytest.mark.parametrize(
    ("messages", "blocks", "others"),
    [
        pytest.param([], [], [], id="none"),
        pytest.param([b"", b"\n"], [], [], id="nothing in them"),
        pytest.param([CANONICAL, CANONICAL * 2], [block_of(NOTHING, 3, CANONICAL * 3)], [], id="canonical"),
        pytest.param([CANONICAL, REORDERED + b"\n"], [block_of(NOTHING, 2, CANONICAL * 2)], [], id="not canonical"),
        pytest.param(
            [CANONICAL, X + CANONICAL, CANONICAL],
            [block_of(NOTHING, 2, CANONICAL * 2), block_of(Context("X"), 1, CANONICAL)],
            [],
            id="a context holds for its message",
        ),
        pytest.param(
            [X + CANONICAL, X + CANONICAL + b'{"context":{"ci":null}}\n' + CANONICAL],
            [block_of(Context("X"), 2, CANONICAL * 2), block_of(NOTHING, 1, CANONICAL)],
            [],
            id="equal contexts are one",
        ),
        pytest.param([CANONICAL, b"x\n" + CANONICAL], [block_of(NOTHING, 1, CANONICAL)], [1], id="something to reject"),
        pytest.param([ACKS + CANONICAL, CANONICAL], [block_of(NOTHING, 1, CANONICAL)], [0], id="acks are wanted"),
        pytest.param([PLAIN[:-1] + b"\n", b"}\n", CANONICAL], [block_of(NOTHING, 1, CANONICAL)], [0, 1], id="halves"),
        pytest.param([PLAIN + CANONICAL, b"\n"], [], [0], id="two on a line, beside a blank message"),
        pytest.param([b"\xff\n", b"\xff\n"], [], [0, 1], id="nothing valid"),
    ],
)
def test_messages_give_a_block_for_each_context_and_what_takes_more_is_named(
    messages: list[bytes], blocks: list[Block], others: list[int]
) -> None:
    assert decode_messages(messages) == (blocks, others)


@pytest.mark.parametrize(
    "text",
    [
        b'{"sessionId"',
        b"[",
        b' \t{"context"',
        b"a\n\n \r[",
        b'a\r\n\v\f{ "sessionId" :',
        b'a\n{"session\\u0049d":',
        b'{\n"context',
    ],
)
def test_a_text_with_a_line_that_may_be_valid_is_known(text: bytes) -> None:
    assert may_hold_items(text)


@pytest.mark.parametrize(
    "text",
    [b"", b"a{\nb[", b'a{"sessionId"', b"{\n" * 1_000_000, b"\n" * 2_000_000, b" " * 2_000_000, b"\n " * 1_000_000],
)
def test_a_text_without_one_is_known_in_one_pass(text: bytes) -> None:
    assert not may_hold_items(text)
