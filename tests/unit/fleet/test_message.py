"""What a message of a fleet says, comes back as it went; whatever else somebody publishes is refused in words."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delivery.batching import Batch
from agent.events import MAX_LINE_BYTES, Context, Event, encode_events
from agent.fleet import message
from agent.fleet.message import InvalidMessageError, format_spans, parse_spans
from agent.queue.cursor import Ledger, Span
from tests.support.pipelines import event

QUEUE = "0123456789abcdef0123456789abcdef"
LEDGER = Ledger(10, 4, 1, {"expired": 2}, 3)


def lines(count: int) -> bytes:
    """Return so many events as lines."""
    return encode_events([event(f"h{number}") for number in range(count)])


def ledger_with(**changes: object) -> str:
    """Return a ledger's header with other values."""
    return json.dumps({**msgspec.to_builtins(LEDGER), **changes}, separators=(",", ":"))


@st.composite
def ascending(draw: st.DrawFn) -> tuple[Span, ...]:
    """Return spans in order, apart or meeting."""
    at, spans = 1, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=20)):
        spans.append(Span(at + gap, at + gap + length))
        at = spans[-1].stop
    return tuple(spans)


@given(ascending())
def test_spans_come_back_as_they_went(spans: tuple[Span, ...]) -> None:
    assert parse_spans(format_spans(spans)) == spans


@given(ascending(), st.sampled_from([Context(), Context(ci="GITHUB_ACTIONS"), Context(interactive=0)]))
def test_a_batch_comes_back_as_it_went(spans: tuple[Span, ...], context: Context) -> None:
    count = sum(span.length for span in spans)
    batch = Batch(context, lines(count), spans, enqueued_at=1_750_000_000.125)
    found = message.decode(message.encode(batch, QUEUE, LEDGER), batch.lines)
    assert found == message.Events(QUEUE, spans, context, batch.lines, 1_750_000_000.125, LEDGER)
    assert found.event_count == count


def test_the_same_events_have_the_same_message_id_and_others_another_one() -> None:
    one, same, other = (Batch(Context(), lines(2), (Span(start, start + 2),)) for start in (1, 1, 2))
    ids = [message.encode(each, QUEUE)["Nats-Msg-Id"] for each in (one, same, other)]
    assert ids == [f"{QUEUE}:1-2", f"{QUEUE}:1-2", f"{QUEUE}:2-3"]


def test_a_label_of_a_job_does_not_leave_the_machine() -> None:
    batch = Batch(Context(job="build 1"), lines(1), (Span(1, 2),))
    assert "build 1" not in str(message.encode(batch, QUEUE))


def test_a_ledger_travels_without_events() -> None:
    found = message.decode(message.encode_ledger(QUEUE, LEDGER), b"")
    assert found == message.Events(QUEUE, (), Context(), b"", None, LEDGER)


@pytest.mark.parametrize(
    ("change", "body", "reason"),
    [
        pytest.param({"AA-Version": "2"}, None, "the version is '2', not '1'", id="a later version"),
        pytest.param({"AA-Version": None}, None, "the version is 'None', not '1'", id="no version"),
        pytest.param({"AA-Queue": "a b"}, None, "'a b' is no id of a queue", id="queue"),
        pytest.param({"AA-Queue": "q" * 65}, None, "is no id of a queue", id="long queue"),
        pytest.param({"AA-Queue": "\N{SUPERSCRIPT TWO}"}, None, "is no id of a queue", id="a queue of other letters"),
        pytest.param({"AA-Spans": "1"}, None, "'1' is no span: FIRST-LAST", id="no dash"),
        pytest.param({"AA-Spans": "1-x"}, None, "'1-x' is no span", id="no number"),
        pytest.param({"AA-Spans": "1-\N{SUPERSCRIPT TWO}"}, None, "is no span", id="a digit of another script"),
        pytest.param({"AA-Spans": f"1-{10**50}"}, None, "is no span", id="a number that is too long"),
        pytest.param({"AA-Spans": "0-1"}, None, "the span '0-1' is empty or not behind", id="from zero"),
        pytest.param({"AA-Spans": "2-1"}, None, "the span '2-1' is empty or not behind", id="backwards"),
        pytest.param({"AA-Spans": "1-1,1-1"}, None, "the span '1-1' is empty or not behind", id="twice"),
        pytest.param({"AA-Spans": "1-1," * 1000 + "1-1"}, None, "1001 spans are more than 1000", id="too many"),
        pytest.param({"AA-Spans": "1-3"}, None, "the body has 2 lines, the spans 3 events", id="too few lines"),
        pytest.param({}, b"{}\n{}", "the body has 1 lines, the spans 2 events", id="cut"),
        pytest.param({}, b"{}\n{}\n{", "the body has 2 lines, the spans 2 events", id="more than lines"),
        pytest.param({"AA-Context": "{"}, None, "a header cannot be read", id="context"),
        pytest.param({"AA-Ledger": '{"accepted": "x"}'}, None, "a header cannot be read", id="ledger"),
        pytest.param({"AA-Context": "[0,0,0," + "[" * 50_000}, None, "a header cannot be read", id="deep context"),
        pytest.param({"AA-Ledger": '{"x":' + "[" * 1000}, None, "a header cannot be read", id="deep ledger"),
        pytest.param({"AA-Ledger": ledger_with(accepted=-1)}, None, "negative or too large", id="negative count"),
        pytest.param({"AA-Ledger": ledger_with(forwarded=2**63)}, None, "negative or too large", id="large count"),
        pytest.param({"AA-Ledger": ledger_with(dropped={"x": -1})}, None, "negative or too large", id="dropped"),
        pytest.param(
            {"AA-Ledger": ledger_with(dropped={"x" * 1024: 1})}, None, "is longer than 1024", id="long ledger"
        ),
        pytest.param({"AA-Context": json.dumps(["x" * 51])}, None, "of length <= 50", id="long ci"),
        pytest.param({"AA-Context": '["a\\n"]'}, None, "matching regex", id="a line end in ci"),
        pytest.param({"AA-Context": '["a",2]'}, None, "a header cannot be read", id="interactive"),
        pytest.param({}, b"\n\n", "lines are not one event each", id="blank lines"),
        pytest.param({}, lines(1) + b"\n", "lines are not one event each", id="a blank line"),
        pytest.param(
            {}, lines(2).replace(b"}\n", b"}", 1) + b"\n", "lines are not one event each", id="two, and blank"
        ),
        pytest.param({}, lines(2).replace(b"}\n", b"\n}", 1), "lines are not one event each", id="cut within"),
        pytest.param(
            {}, lines(1).replace(b"\n", b"\r") + lines(1) + b"\n", "not one event each", id="another line end"
        ),
        pytest.param({}, b"{}\n[]\n", "lines that are no events", id="no events"),
        pytest.param({}, b"[" * 50_000 + b"\n\n", "lines that are no events", id="deep body"),
        pytest.param({}, lines(1)[:-1] + b"," + lines(2), "lines that are no events", id="two in one line"),
        pytest.param({}, lines(1) + encode_events([event("h" * 70_000)]), "longer than 65536", id="long event"),
        pytest.param({"AA-Enqueued-At": "noon"}, None, "a header cannot be read", id="age"),
        pytest.param({"AA-Enqueued-At": "nan"}, None, "AA-Enqueued-At is nan, no time", id="no age"),
    ],
)
def test_what_no_agent_wrote_is_refused_in_words(
    change: dict[str, str | None], body: bytes | None, reason: str
) -> None:
    batch = Batch(Context(), lines(2), (Span(1, 3),))
    headers = {**message.encode(batch, QUEUE), **change}
    with pytest.raises(InvalidMessageError, match=reason):
        message.decode({name: value for name, value in headers.items() if value is not None}, body or batch.lines)


def test_what_a_queue_may_hold_from_before_events_had_to_say_more_is_no_rubbish() -> None:
    old = [
        Event("", "LOCAL", "MISS", "h", -1),
        Event("s", "REMOTE", "HIT", "", 0.5),
        Event("s}\n{:", "LOCAL", "HIT", "h"),
    ]
    batch = Batch(Context(), encode_events(old), (Span(1, 4),))
    assert message.decode(message.encode(batch, QUEUE), batch.lines).lines == batch.lines


@pytest.mark.parametrize("before", [0, 1, 1000])
@pytest.mark.parametrize("after", [0, 1, 1000])
def test_an_event_may_be_as_long_as_one_on_a_machine_wherever_it_stands(before: int, after: int) -> None:
    others = before + after + 1
    headers = message.encode(Batch(Context(), lines(others), (Span(1, 1 + others),)), QUEUE)
    short = len(encode_events([event("")])) - 1

    def body(size: int) -> bytes:
        long = encode_events([event("h" * (size - short))])
        return (lines(before) if before else b"") + long + (lines(after) if after else b"")

    assert message.decode(headers, body(MAX_LINE_BYTES)).event_count == others
    with pytest.raises(InvalidMessageError, match="longer than 65536"):
        message.decode(headers, body(MAX_LINE_BYTES + 1))
