"""Events that were refused once wait until others have been accepted."""

from agent.delivery.batching import Batch
from agent.delivery.suspects import MAX_SUSPECTS, Suspects
from agent.events import encode_events
from agent.queue.cursor import Span
from tests.support.pipelines import PLAIN, event

NEVER = float("inf")


def one(number: int) -> Batch:
    """A batch of the event with this number."""
    return Batch(PLAIN, encode_events([event(f"h{number}")]), (Span(number, number + 1),))


def test_an_event_that_was_set_aside_is_due_after_others_have_been_accepted() -> None:
    suspects = Suspects()
    suspects.set_aside(one(1), 7.0)
    assert (suspects.due_at(alone=False), suspects.due_at(alone=True)) == (NEVER, 7.0)
    suspects.note_acceptance()
    assert suspects.due_at(alone=False) == 7.0
    again = suspects.take(alone=False)
    assert (again, again.refusals) == (one(1), 1)
    assert suspects.due_at(alone=True) == NEVER


def test_what_was_accepted_before_the_last_refusal_does_not_count() -> None:
    suspects = Suspects()
    suspects.note_acceptance()
    suspects.set_aside(one(1), 7.0)
    suspects.note_acceptance()
    suspects.set_aside(suspects.take(alone=False), 9.0)
    assert suspects.due_at(alone=False) == NEVER
    assert suspects.take(alone=True).refusals == 2


def test_one_that_is_put_back_is_as_suspicious_as_before() -> None:
    suspects = Suspects()
    suspects.set_aside(one(1), 7.0)
    suspects.put_back(suspects.take(alone=True), 8.0)
    assert (suspects.due_at(alone=False), suspects.due_at(alone=True)) == (NEVER, 8.0)
    suspects.note_acceptance()
    assert suspects.take(alone=False).refusals == 1


def test_the_first_that_is_due_is_taken_first() -> None:
    suspects = Suspects()
    for number, due_at in ((1, 9.0), (2, 7.0), (3, 8.0)):
        suspects.set_aside(one(number), due_at)
    assert [suspects.take(alone=True).spans[0].start for _ in range(3)] == [2, 3, 1]


def test_what_was_refused_lately_is_remembered_up_to_a_bound_and_until_something_is_accepted() -> None:
    suspects = Suspects()
    for number in range(3 * MAX_SUSPECTS):
        suspects.note_refusal(one(number))
    assert len(suspects.refused) == MAX_SUSPECTS
    suspects.set_aside(one(0), 1.0)
    suspects.note_acceptance()
    assert suspects.refused == [one(0)]
    suspects.clear()
    assert suspects.refused == []


def test_they_are_full_at_a_bound() -> None:
    suspects = Suspects()
    for number in range(MAX_SUSPECTS):
        assert not suspects.is_full
        suspects.set_aside(one(number), 1.0)
    assert suspects.is_full
