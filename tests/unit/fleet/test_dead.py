"""What goes into AA_DEAD is kept once, can be read there, and is none that the engine or its client would refuse."""

import pytest

from agent.events import Context, encode_events
from agent.fleet import dead
from agent.fleet.engine import Message
from agent.queue.dead_letters import DeadLetter, decode_dead_letter
from tests.support.pipelines import EPOCH, event

SUBJECT = "aa.e.web.linux"
MOST = 64 * 1024


def size_of(body: bytes, headers: dict[str, str]) -> int:
    """Return how many bytes a message has, as the engine counts them."""
    return len(body) + 12 + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())


def test_a_refused_event_is_named_by_its_queue_and_number_and_kept_as_it_is_on_one_machine() -> None:
    letter = DeadLetter(7, EPOCH, 400, "400 Bad Request", Context("ci"), encode_events([event("a")]))
    body, headers = dead.of_event(SUBJECT, "q1", letter)
    assert decode_dead_letter(body) == letter
    assert headers == {"Nats-Msg-Id": f"{SUBJECT}:q1:7", dead.KIND: dead.EVENT, dead.SUBJECT: SUBJECT, dead.QUEUE: "q1"}


def test_a_message_that_says_nothing_is_kept_with_its_headers_its_number_and_the_reason() -> None:
    found = Message(SUBJECT, {"AA-Queue": "q", "AA-Spans": "x"}, b"body\n", 9)
    body, headers = dead.of_message(found, "no spans", MOST)
    assert body == b"body\n"
    assert headers == {
        "Nats-Msg-Id": "message:9",
        dead.KIND: dead.MESSAGE,
        dead.SUBJECT: SUBJECT,
        dead.REASON: "no spans",
        dead.SEQ: "9",
        "Original-AA-Queue": "q",
        "Original-AA-Spans": "x",
    }


@pytest.mark.parametrize(
    ("reason", "kept"), [("a\r\nNats-Msg-Id: x", "a??Nats-Msg-Id: x"), ("é" * 300, "?" * 200), ("a\x00\x7fb", "a??b")]
)
def test_a_reason_is_one_line_of_text_and_short(reason: str, kept: str) -> None:
    assert dead.of_message(Message(SUBJECT, {}, b"", 1), reason, MOST)[1][dead.REASON] == kept


def test_headers_that_are_too_many_are_left_out_and_the_body_stays() -> None:
    few = {f"H{number}": "x" * 1000 for number in range(31)}
    many = {f"H{number}": "x" * 1000 for number in range(33)}
    for theirs, kept in ((few, 31), (many, 0)):
        body, headers = dead.of_message(Message(SUBJECT, theirs, b"body", 1), "why", MOST)
        assert (body, len([name for name in headers if name.startswith("Original-")])) == (b"body", kept)


@pytest.mark.parametrize("theirs", [{}, {"A": "x" * 2000}])
@pytest.mark.parametrize("excess", range(-400, 1, 100))
def test_whatever_is_kept_is_no_larger_than_a_message_may_be_and_says_what_it_was(
    excess: int, theirs: dict[str, str]
) -> None:
    found = Message(SUBJECT, theirs, b"x" * (MOST + excess), 1)
    body, headers = dead.of_message(found, "w" * 300, MOST)
    assert size_of(body, headers) <= MOST
    assert found.body.startswith(body)
    assert headers.get(dead.TRUNCATED) == (str(len(found.body)) if body != found.body else None)


def test_a_body_that_fits_without_its_headers_is_not_cut() -> None:
    found = Message(SUBJECT, {"A": "x" * 9000}, b"x" * (MOST - 8000), 1)
    body, headers = dead.of_message(found, "why", MOST)
    assert (body, headers.get(dead.TRUNCATED), "Original-A" in headers) == (found.body, None, False)
