"""What a worker measures of its requests and deliveries."""

from agent.delivery.batching import Batch
from agent.delivery.measures import DELAY_BOUNDS, Histogram, Measures
from agent.delivery.transport import Kind, Verdict
from agent.queue.cursor import Span
from tests.support.pipelines import PLAIN

BATCH = Batch(PLAIN, b"{}\n{}\n", (Span(1, 3),), enqueued_at=1000.0)


def test_a_value_on_a_bound_is_no_larger_than_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, count in ((1.0, 3), (1.5, 1), (2.5, 1)):
        histogram.observe(value, count)
    assert (histogram.counts, histogram.total) == ([3, 1, 1], 7.0)


def test_events_count_with_the_delay_of_their_batch_once_it_is_delivered() -> None:
    measures = Measures()
    measures.note_answer(BATCH, Verdict(Kind.TRANSIENT, status=503), 0.5, now=1000.0)
    assert (measures.last_delivery_at, sum(measures.delay_seconds.counts)) == (None, 0)
    measures.note_answer(BATCH, Verdict(Kind.ACCEPTED, status=200), 0.5, now=1004.0)
    assert (measures.last_delivery_at, measures.delay_seconds.total) == (1004.0, 8.0)
    assert measures.delay_seconds.counts[DELAY_BOUNDS.index(5.0)] == 2
    assert (sum(measures.request_seconds.counts), measures.request_seconds.total) == (2, 1.0)


def test_a_clock_that_was_set_back_makes_no_negative_delay() -> None:
    measures = Measures()
    measures.note_answer(BATCH, Verdict(Kind.ACCEPTED, status=200), 0.5, now=10.0)
    assert (measures.delay_seconds.counts[0], measures.delay_seconds.total) == (2, 0.0)


def test_what_a_server_answers_makes_few_series() -> None:
    measures = Measures()
    for status in (None, 200, 201, 402, 299, 799, *range(600, 999)):
        measures.note_answer(BATCH, Verdict(Kind.TRANSIENT, status=status), 0.1, now=1.0)
    assert measures.responses == {"none": 1, "200": 1, "201": 1, "402": 1, "other": 401}


def test_the_parts_of_a_batch_have_its_delay() -> None:
    assert {part.enqueued_at for part in BATCH.split()} == {1000.0}


def test_the_last_answer_is_a_servers_whatever_it_says_and_silence_is_none() -> None:
    measures = Measures()
    measures.note_answer(BATCH, Verdict(Kind.TRANSIENT, "connection refused"), 0.1, now=1.0)
    assert (measures.last_answer_at, measures.last_answer) == (None, None)
    measures.note_answer(BATCH, Verdict(Kind.ACCEPTED, status=200), 0.1, now=2.0)
    assert (measures.last_answer_at, measures.last_answer) == (2.0, "200")
    measures.note_last(Verdict(Kind.BLOCKED, "403 Forbidden: no", 403), now=3.0)
    measures.note_answer(BATCH, Verdict(Kind.TRANSIENT, "no answer"), 0.1, now=4.0)
    assert (measures.last_answer_at, measures.last_answer) == (3.0, "403 Forbidden: no")
