"""What a relay holds: local numbers stand for events of queues, and a message is held until all of its events are settled."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events import Context
from agent.fleet.engine import Message
from agent.fleet.held import Held, HeldMessages
from agent.fleet.message import Events
from agent.fleet.records import Part
from agent.queue.cursor import Span

LINUX, MAC = "aa.e.web.linux", "aa.e.web.mac"
Event = tuple[str, str, int]


def events(spans: Sequence[tuple[int, int]], queue: str = "q1") -> Events:
    """Return what a message says; the line of an event is its number."""
    found = tuple(Span(*span) for span in spans)
    lines = b"".join([b"%d\n" % number for span in found for number in range(*span)])
    return Events(queue, found, Context(), lines)


def hold(held: HeldMessages, *spans: tuple[int, int], subject: str = LINUX, queue: str = "q1", seq: int = 0) -> Held:
    """Hold a message with these spans; its number in the stream is one that no other has, unless it is given."""
    found = events(spans, queue)
    return held.add(Message(subject, {}, b"", seq or len(held) + 1), found, 5.0)


def part(*spans: tuple[int, int], subject: str = LINUX, queue: str = "q1") -> Part:
    """Return events of a queue."""
    return Part(subject, queue, tuple(Span(*span) for span in spans))


def test_local_numbers_count_on_from_message_to_message() -> None:
    held = HeldMessages()
    first, second = hold(held, (5, 7), (9, 10)), hold(held, (1, 3), queue="q2")
    assert (first.span, second.span) == (Span(1, 4), Span(4, 6))
    assert (list(held), len(held), held.event_count) == ([first, second], 2, 5)
    assert (held.at(1), held.at(3)) == (first, None)


def test_a_settled_number_is_never_used_again() -> None:
    held = HeldMessages()
    assert held.settle([hold(held, (1, 4)).span]) != []
    assert hold(held, (1, 4)).span == Span(4, 7)


def test_a_message_is_held_until_all_its_events_are_settled() -> None:
    held = HeldMessages()
    first, second = hold(held, (1, 5)), hold(held, (7, 9))
    assert held.settle([Span(1, 3), Span(5, 6)]) == []
    assert (held.event_count, held.unsettled(first.span)) == (3, [Span(3, 5)])
    assert held.settle([Span(2, 5)]) == [first]
    assert (first in held, second in held, held.at(1), held.event_count) == (False, True, None, 1)
    assert held.settle([Span(1, 7)]) == [second]
    assert (len(held), held.event_count) == (0, 0)


def test_what_is_dropped_is_held_no_more_and_dropping_it_again_changes_nothing() -> None:
    held = HeldMessages()
    first, second = hold(held, (1, 5)), hold(held, (7, 9))
    for _ in range(2):
        held.drop(first)
        assert (list(held), held.event_count, held.at(1)) == ([second], 2, None)
    assert not held.holds([Span(4, 6)])
    assert held.holds([Span(5, 7)])
    assert list(held.pieces([Span(1, 9)])) == [(second, Span(5, 7))]


def test_events_that_are_held_are_known_by_subject_queue_and_number() -> None:
    held = HeldMessages()
    first = hold(held, (3, 5), (8, 9))
    for other in (part((1, 3), (5, 8), (9, 20)), part((3, 5), subject=MAC), part((3, 5), queue="q2"), part()):
        assert not held.standing_for(other)
    for same in (part((1, 4)), part((8, 9)), part((1, 2), (4, 5)), part((1, 30))):
        assert held.standing_for(same)
    held.drop(first)
    assert not held.standing_for(part((1, 30)))


def test_a_copy_ends_with_the_last_message_that_stands_for_its_events() -> None:
    held = HeldMessages()
    first, second = hold(held, (1, 3)), hold(held, (3, 5))
    found = events(((1, 7),), "q1")
    copy = held.add(Message(LINUX, {}, b"", 3), found, 5.0, held.standing_for(part((1, 7))))
    same = held.add(Message(LINUX, {}, b"", 4), found, 5.0, held.standing_for(part((1, 7))))
    assert (held.parts([copy.span]), held.parts(held.unsettled(same.span))) == ((part((1, 7)),), ())
    assert (held.unsettled(copy.span), held.event_count) == ([Span(9, 11)], 6)
    assert held.settle([Span(9, 11)]) == []
    assert held.settle([Span(1, 3)]) == [first]
    assert held.settle([Span(3, 5)]) == [second, copy, same]
    assert (len(held), held.event_count) == (0, 0)


def test_a_copy_goes_with_the_message_that_stands_for_its_events() -> None:
    held = HeldMessages()
    first, other = hold(held, (1, 3)), hold(held, (8, 9))
    found = events(((1, 5),), "q1")
    copy = held.add(Message(LINUX, {}, b"xx", 3), found, 5.0, held.standing_for(part((1, 5))))
    assert held.byte_count == 2
    assert held.drop(first) == [first, copy]
    assert (list(held), held.event_count, held.byte_count, held.at(3)) == ([other], 1, 0, None)


def test_what_is_settled_elsewhere_is_held_no_more() -> None:
    held, found = HeldMessages(), events(((1, 5), (9, 11)), "q1")
    added = held.add(Message(LINUX, {}, b"", 1), found, 5.0)
    copy = held.add(Message(LINUX, {}, b"", 2), found, 5.0, [added])
    assert held.settle_but(added, [Span(2, 3), Span(10, 11)]) == []
    assert held.parts(held.unsettled(added.span)) == (part((2, 3), (10, 11)),)
    assert held.settle_but(added, []) == [added, copy]


def test_local_numbers_of_several_messages_become_one_part_for_each_queue() -> None:
    held = HeldMessages()
    hold(held, (1, 3))
    hold(held, (1, 3), queue="q2")
    hold(held, (3, 5), (9, 11))
    assert held.parts([Span(2, 9)]) == (part((2, 5), (9, 11)), part((1, 3), queue="q2"))


@pytest.mark.parametrize("local", [Span(1, 6), Span(2, 4), Span(5, 6), Span(1, 2), Span(3, 3)])
def test_some_lines_of_a_message_are_those_of_their_events(local: Span) -> None:
    found = hold(HeldMessages(), (11, 13), (20, 23))
    numbers = [11, 12, 20, 21, 22][local.start - 1 : local.stop - 1]
    assert found.lines(local) == b"".join([b"%d\n" % number for number in numbers])


spans = st.lists(st.integers(1, 40), min_size=2, max_size=12, unique=True).map(
    lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


@given(spans, spans)
def test_numbers_of_a_queue_are_local_ones_and_back(
    of_message: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    held = HeldMessages()
    hold(held, (50, 53))
    found = hold(held, *of_message)
    ours = list(found.ours([Span(*span) for span in asked]))
    numbers = [number for span in of_message for number in range(*span)]
    wanted = {number for span in asked for number in range(*span)}
    local = [number for span in ours for number in range(*span)]
    assert [numbers[number - found.first] for number in local] == [number for number in numbers if number in wanted]
    assert [number for span in ours for their in found.theirs(span) for number in range(*their)] == sorted(
        wanted.intersection(numbers)
    )
    assert b"".join(map(found.lines, ours)) == b"".join([b"%d\n" % number for number in numbers if number in wanted])


messages = st.lists(
    st.tuples(st.sampled_from([LINUX, MAC]), st.sampled_from(["q1", "q2"]), spans), min_size=1, max_size=6
)
local_spans = st.lists(st.integers(1, 60), min_size=2, max_size=8, unique=True).map(
    lambda edges: [Span(*pair) for pair in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False)]
)


@given(messages, st.lists(local_spans, max_size=5))
def test_what_is_held_is_that_of_a_list_of_all_events(
    found: list[tuple[str, str, list[tuple[int, int]]]], settled: list[list[Span]]
) -> None:
    held, all_events, of_message = HeldMessages(), list[Event](), list[tuple[Held, set[int]]]()
    for subject, queue, each in found:
        mine = [(subject, queue, number) for span in each for number in range(*span)]
        standing = held.standing_for(part(*each, subject=subject, queue=queue))
        assert bool(standing) == bool(set(mine) & set(all_events))
        first = len(all_events) + 1
        all_events += mine
        of_message.append((hold(held, *each, subject=subject, queue=queue), set(range(first, first + len(mine)))))
    left = set(range(1, len(all_events) + 1))
    for each_settled in settled:
        existing = [Span(span.start, min(span.stop, len(all_events) + 1)) for span in each_settled]
        asked = {number for span in existing for number in range(*span)}
        of_held = {number for message, numbers in of_message if message in held for number in numbers}
        assert held.holds([span for span in existing if span.length > 0]) == (asked <= of_held)
        named = {
            (p.subject, p.queue, number) for p in held.parts(existing) for span in p.spans for number in range(*span)
        }
        assert named == {all_events[number - 1] for number in asked & of_held}
        before, left = left, left - asked
        done = [message for message, numbers in of_message if numbers & before and not numbers & left]
        assert held.settle([span for span in existing if span.length > 0]) == done
        assert held.event_count == len(left)
        assert list(held) == [message for message, numbers in of_message if numbers & left]
