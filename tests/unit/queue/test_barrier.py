"""What `agent.queue.barrier` promises: it reports of exactly the events accepted before it, whatever is settled when."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.queue.barrier import FlushReport, Numbers, SessionBarrier, WholeBarrier, total
from agent.queue.cursor import DROP_REASONS, Cursor, Outcome, Span

OUTCOMES = st.sampled_from([*Outcome])


def report_of(counts: Counter[Outcome], queued: int) -> FlushReport:
    """Return the report that says this."""
    dropped = {str(reason): counts[reason] for reason in DROP_REASONS if counts[reason]}
    return FlushReport(
        counts[Outcome.DELIVERED], queued, counts[Outcome.DEAD_LETTERED], dropped, counts[Outcome.FORWARDED]
    )


def test_a_barrier_counts_what_is_settled_below_it_and_nothing_else() -> None:
    cursor = Cursor()
    cursor.next_seq = 11
    cursor.settle([Span(2, 4)], Outcome.DELIVERED)
    cursor.shed(5, Outcome.STALLED)
    barrier = WholeBarrier(cursor)
    cursor.watchers.append(barrier)
    assert barrier.report() == FlushReport(2, 8, 0, {"stalled": 5})
    cursor.next_seq = 21
    cursor.shed(7, Outcome.STALLED)
    cursor.settle([Span(8, 15)], Outcome.DELIVERED)
    cursor.settle([Span(16, 17)], Outcome.DEAD_LETTERED)
    assert (barrier.report(), barrier.passed) == (FlushReport(5, 5, 0, {"stalled": 5}), False)
    cursor.settle([Span(1, 2)], Outcome.DEAD_LETTERED)
    cursor.settle([Span(1, 21)], Outcome.PURGED)
    assert (barrier.report(), barrier.passed) == (FlushReport(5, 0, 1, {"stalled": 5, "purged": 4}), True)


def test_a_dead_letter_that_is_put_back_is_a_new_event_which_no_older_barrier_counts() -> None:
    cursor = Cursor()
    cursor.next_seq = 3
    cursor.settle([Span(1, 3)], Outcome.DEAD_LETTERED)
    before = WholeBarrier(cursor)
    cursor.watchers.append(before)
    cursor.next_seq, cursor.retried = 5, 2
    after = WholeBarrier(cursor)
    cursor.watchers.append(after)
    cursor.settle([Span(3, 5)], Outcome.DELIVERED)
    assert (before.report(), before.passed) == (FlushReport(dead_lettered=2), True)
    assert after.report() == FlushReport(delivered=2, dead_lettered=2)
    assert after.report().lost == 2


def test_what_has_happened_since_an_earlier_report_is_told() -> None:
    before = FlushReport(3, 10, 1, {"expired": 4, "stalled": 1}, 1)
    after = FlushReport(5, 2, 2, {"expired": 8, "stalled": 1, "overflow": 1}, 4)
    since = after.since(before)
    assert since == FlushReport(2, 2, 1, {"expired": 4, "overflow": 1}, 3)
    assert (since.lost, FlushReport(delivered=9, queued=1).lost) == (6, 0)


def test_reports_of_several_queues_become_one() -> None:
    assert total(
        [FlushReport(1, 2, 3, {"expired": 4}, 5), FlushReport(10, 20, 30, {"overflow": 5, "expired": 6}, 50)]
    ) == FlushReport(11, 22, 33, {"expired": 10, "overflow": 5}, 55)
    assert total([]) == FlushReport()


@pytest.mark.parametrize("span", [(1, 2), (4095, 4097), (4096, 4097), (1, 20_000), (8192, 12_288), (7, 7), (9, 3)])
def test_a_set_of_numbers_counts_what_was_added(span: tuple[int, int]) -> None:
    numbers, wanted = Numbers(), {1, 2, 4095, 4096, *range(9000, 13_000)}
    for part in (Span(1, 3), Span(2, 3), Span(4095, 4097), Span(9000, 13_000)):
        numbers.add(part)
    assert len(numbers) == len(wanted)
    assert numbers.count(Span(*span)) == len(wanted.intersection(range(*span)))
    other = Numbers()
    other.add(Span(*span))
    assert other.common(numbers) == numbers.common(other) == numbers.count(Span(*span))


@pytest.mark.parametrize("first", [1, 4000, 4095, 4096, 1 << 40])
def test_numbers_can_be_added_by_marks(first: int) -> None:
    numbers, marked = Numbers(), {0, 1, 96, 97, 5000, 9000}
    numbers.add_marked(first, sum(1 << each for each in marked))
    numbers.add_marked(first, 0)
    assert len(numbers) == len(marked)
    assert {each for each in range(9100) if numbers.count(Span(first + each, first + each + 1))} == marked


def test_a_session_is_not_over_before_it_is_known_what_is_queued_of_it() -> None:
    cursor = Cursor()
    cursor.next_seq = 11
    barrier = SessionBarrier(cursor)
    cursor.watchers.append(barrier)
    assert (barrier.report(), barrier.passed) == (FlushReport(), False)
    cursor.settle([Span(1, 5)], Outcome.DELIVERED)
    mine = Numbers()
    mine.add(Span(4, 7))
    barrier.find(mine, {Outcome.DELIVERED: 3, Outcome.DEAD_LETTERED: 1})
    assert (barrier.report(), barrier.passed) == (FlushReport(4, 2, 1, {}), False)
    cursor.settle([Span(1, 11)], Outcome.EXPIRED)
    assert (barrier.report(), barrier.passed) == (FlushReport(4, 0, 1, {"expired": 2}), True)


class Accepted(NamedTuple):
    """An event of the model, and whether it is of the session that is asked for."""

    seq: int
    mine: bool


@dataclass
class Fixed:
    """What the model knows of one barrier: the numbers that it is about, and what has been dropped without one."""

    barrier: WholeBarrier | SessionBarrier
    numbers: list[int]
    others: Counter[Outcome] = field(default_factory=Counter)


class Barriers(RuleBasedStateMachine):
    """Any number of barriers over one cursor, against a model that knows the end of each event by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.cursor = Cursor()
        self.accepted: list[Accepted] = []
        self.ends: dict[int, Outcome] = {}
        self.shed: Counter[Outcome] = Counter()
        self.fixed: list[Fixed] = []
        self.searching: list[tuple[Fixed, SessionBarrier]] = []

    @rule(mine=st.lists(st.booleans(), min_size=1, max_size=20))
    def accept(self, mine: list[bool]) -> None:
        self.accepted += [Accepted(self.cursor.next_seq + index, each) for index, each in enumerate(mine)]
        self.cursor.next_seq += len(mine)

    @rule(count=st.integers(1, 5), outcome=st.sampled_from(DROP_REASONS))
    def shed_some(self, count: int, outcome: Outcome) -> None:
        self.cursor.shed(count, outcome)
        self.shed[outcome] += count

    @rule(data=st.data(), outcome=OUTCOMES)
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        numbers = st.integers(1, self.cursor.next_seq)
        spans = [Span(min(pair), max(pair)) for pair in data.draw(st.lists(st.tuples(numbers, numbers), max_size=3))]
        self.cursor.settle(spans, outcome)
        for seq in (seq for span in spans for seq in range(span.start, span.stop)):
            self.ends.setdefault(seq, outcome)

    @rule()
    def open_a_barrier(self) -> None:
        barrier = WholeBarrier(self.cursor)
        self.cursor.watchers.append(barrier)
        self.fixed.append(Fixed(barrier, [event.seq for event in self.accepted], self.shed.copy()))

    @rule()
    def open_one_for_the_session(self) -> None:
        mine = [event.seq for event in self.accepted if event.mine]
        before = Counter(self.ends[seq] for seq in mine if seq in self.ends)
        barrier = SessionBarrier(self.cursor)
        self.cursor.watchers.append(barrier)
        queued = [seq for seq in mine if seq not in self.ends]
        self.searching.append((Fixed(barrier, queued, before), barrier))

    @rule(data=st.data())
    def end_a_search(self, data: st.DataObject) -> None:
        if self.searching:
            index = data.draw(st.integers(0, len(self.searching) - 1))
            fixed, barrier = self.searching.pop(index)
            found = Numbers()
            for seq in fixed.numbers:
                found.add(Span(seq, seq + 1))
            barrier.find(found, {str(outcome): count for outcome, count in fixed.others.items()})
            self.fixed.append(fixed)

    @invariant()
    def every_barrier_reports_of_its_own_events(self) -> None:
        for each in self.fixed:
            ends = Counter(self.ends[seq] for seq in each.numbers if seq in self.ends)
            queued = len(each.numbers) - ends.total()
            assert each.barrier.report() == report_of(ends + each.others, queued)
            assert each.barrier.passed == (queued == 0)
        assert not any(barrier.passed for _, barrier in self.searching)


TestBarriers = Barriers.TestCase
TestBarriers.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
