"""The accounts of a team are exact, whoever writes what down how often; a snapshot goes on where it was taken."""

import zlib
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fleet import accounting
from agent.fleet.accounting import FleetLedger, Forgotten, LastSeen, QueueKey
from agent.fleet.overview import InStream, account
from agent.fleet.records import Intent, Part, QueueLedger, Record, Released, Seen, Settled
from agent.queue.cursor import DROP_REASONS, Ledger, Outcome, Span
from agent.queue.record import MAX_SEQ

SUBJECT = "aa.e.web.linux"
EPOCH = 1_750_000_000.0
OUTCOMES = (Outcome.DELIVERED, Outcome.DEAD_LETTERED, Outcome.EXPIRED)


def part(start: int, stop: int, queue: str = "q1", subject: str = SUBJECT) -> Part:
    """Return events of a queue."""
    return Part(subject, queue, (Span(start, stop),))


def seen(queue: str, ledger: Ledger, at: float) -> Seen:
    """Return a record of one queue's ledger."""
    return Seen((QueueLedger(SUBJECT, queue, ledger),), at)


def fold(*records: Record | None) -> FleetLedger:
    """Return the accounts after these records."""
    ledger = FleetLedger()
    for seq, record in enumerate(records, 1):
        ledger.apply(record, seq)
    return ledger


def test_an_event_is_settled_once_by_what_comes_first() -> None:
    ledger = fold(Settled(Outcome.DELIVERED, (part(1, 4),)), Settled(Outcome.EXPIRED, (part(2, 6),)))
    assert ledger.sums == {"delivered": 3, "expired": 2}
    assert ledger.counts(QueueKey(SUBJECT, "q1")) == {"delivered": 3, "expired": 2}
    assert ledger.counts(QueueKey(SUBJECT, "q2")) == {}
    assert ledger.unsettled(part(4, 9)) == [Span(6, 9)]
    assert ledger.unsettled(part(1, 2, "q2")) == [Span(1, 2)]


def test_who_publishes_on_another_subject_settles_nothing_of_a_queue_with_the_same_id() -> None:
    ledger = fold(Settled(Outcome.DELIVERED, (part(1, 4, subject="aa.e.web.mac"),)))
    assert ledger.unsettled(part(1, 4)) == [Span(1, 4)]
    assert ledger.queues == [QueueKey("aa.e.web.mac", "q1")]


def test_a_record_that_was_taken_before_changes_nothing() -> None:
    ledger = fold(Settled(Outcome.DELIVERED, (part(1, 4),)))
    ledger.apply(Settled(Outcome.DELIVERED, (part(4, 9),)), 1)
    assert (ledger.sums, ledger.seq, ledger.records) == ({"delivered": 3}, 1, 1)


def test_what_is_no_record_is_passed_over() -> None:
    ledger = fold(None, Settled(Outcome.DELIVERED, (part(1, 2), Part(SUBJECT, "q2", ()))))
    assert (ledger.seq, ledger.sums) == (2, {"delivered": 1})


def test_the_numbers_that_nothing_has_settled_before_the_last_are_named() -> None:
    ledger = fold(Settled(Outcome.DELIVERED, (part(3, 5), part(8, 9))))
    assert ledger.gaps(QueueKey(SUBJECT, "q1")) == [Span(1, 3), Span(5, 8)]
    assert ledger.gaps(QueueKey(SUBJECT, "none")) == []


def test_a_request_is_in_doubt_until_something_closes_it() -> None:
    ledger = fold(Intent("a", "r", (part(1, 4),)), Intent("b", "r", (part(4, 6),)))
    assert (ledger.in_doubt, ledger.open_intents) == (5, 2)
    ledger.apply(Released("a"), 3)
    assert ledger.in_doubt == 2
    ledger.apply(Settled(Outcome.DELIVERED, (part(4, 6),), "b"), 4)
    assert (ledger.in_doubt, ledger.open_intents) == (0, 0)


def test_copies_of_records_that_come_late_open_and_close_nothing() -> None:
    settled = Settled(Outcome.DELIVERED, (part(1, 4),), "a")
    intent = Intent("a", "r", (part(1, 4),))
    ledger = fold(intent, intent, settled, intent, settled, Released("a"))
    assert (ledger.in_doubt, ledger.sums) == (0, {"delivered": 3})


def test_events_that_two_requests_delivered_are_in_doubt() -> None:
    first, second = (Settled(Outcome.DELIVERED, (part(1, 4),), each) for each in "ab")
    ledger = fold(Intent("a", "r", (part(1, 4),)), Intent("b", "s", (part(1, 4),)), first, second)
    assert (ledger.in_doubt, ledger.sums) == (3, {"delivered": 3})


def test_what_was_settled_as_something_else_before_is_no_repeat() -> None:
    ledger = fold(
        Intent("a", "r", (part(1, 2),)),
        Settled(Outcome.EXPIRED, (part(1, 2),)),
        Settled(Outcome.DEAD_LETTERED, (part(1, 2),), "a"),
    )
    assert (ledger.in_doubt, ledger.sums) == (0, {"expired": 1, "dead_lettered": 0})


def test_open_requests_are_remembered_up_to_a_bound_and_counted_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_OPEN_INTENTS", 2)
    monkeypatch.setattr(accounting, "MAX_CLOSED", 1)
    ledger = fold(*[Intent(each, "r", (part(1, 4),)) for each in "abc"])
    assert (ledger.in_doubt, ledger.open_intents) == (9, 2)
    for seq, each in enumerate("abc", 4):
        ledger.apply(Released(each), seq)
    assert ledger.in_doubt == 3
    ledger.apply(Intent("b", "r", (part(1, 4),)), 9)
    assert ledger.in_doubt == 6  # forgotten, and counted once too often rather than not at all


def test_the_last_ledger_of_a_queue_counts_and_says_what_was_forwarded() -> None:
    early, late = (Ledger(accepted, 0, 0, {}, 0, forwarded=accepted) for accepted in (3, 9))
    ledger = fold(
        seen("q1", late, 20.0),
        seen("q1", early, 30.0),
        Settled(Outcome.DELIVERED, (part(1, 4), part(1, 6, "q2"))),
    )
    assert ledger.seen == {QueueKey(SUBJECT, "q1"): LastSeen(late, 20.0)}
    assert ledger.forwarded == 9 + 5
    assert ledger.queues == [QueueKey(SUBJECT, "q1"), QueueKey(SUBJECT, "q2")]


def test_a_snapshot_that_is_damaged_or_of_another_version_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fold(Settled(Outcome.DELIVERED, (part(1, 4),))).encode()
    assert FleetLedger.decode(data) is not None
    for damaged in (b"", data[:-1], data[:9] + b"\xff" + data[10:]):
        assert FleetLedger.decode(damaged) is None
    monkeypatch.setattr(accounting, "_encode", lambda _: b"\xc1")
    assert FleetLedger.decode(FleetLedger().encode()) is None
    monkeypatch.undo()
    monkeypatch.setattr(accounting, "_VERSION", 2)
    assert FleetLedger.decode(data) is None


def test_a_queue_that_is_silent_for_long_is_forgotten_but_for_its_sums() -> None:
    ledger = fold(
        Seen((QueueLedger(SUBJECT, "q1", Ledger(9, 0, 0, {"expired": 2}, 2, forwarded=5)),), 1.0),
        Settled(OUTCOMES[0], (part(1, 4),)),
    )
    hours = int(accounting.FORGET_SECONDS / accounting.MAX_STEP)
    for hour in range(hours + 2):
        ledger.apply(Settled(OUTCOMES[0], (part(hour + 1, hour + 2, "q2"),)), ledger.seq + 1, EPOCH + hour * 3600.0)
        assert (QueueKey(SUBJECT, "q1") in ledger.queues) is (hour <= hours)
    assert ledger.queues == [QueueKey(SUBJECT, "q2")]
    assert ledger.forgotten == {SUBJECT: Forgotten(1, {"delivered": 3}, 5, 2, 1.0)}
    assert (ledger.forwarded, ledger.sums) == (hours + 2 + 5, {"delivered": hours + 2 + 3})
    again = FleetLedger.decode(ledger.encode())
    assert again is not None
    assert (again.forgotten, again.queues, again.encode()) == (ledger.forgotten, ledger.queues, ledger.encode())


def test_a_queue_that_goes_on_keeps_no_silent_one_from_being_forgotten() -> None:
    ledger = fold(Settled(OUTCOMES[0], (part(1, 2, "q1"),)), Settled(OUTCOMES[0], (part(1, 2, "q2"),)))
    for hour in range(int(accounting.FORGET_SECONDS / accounting.MAX_STEP) + 2):
        ledger.apply(Settled(OUTCOMES[0], (part(hour + 2, hour + 3, "q1"),)), ledger.seq + 1, EPOCH + hour * 3600.0)
    assert ledger.queues == [QueueKey(SUBJECT, "q1")]


def test_behind_a_snapshot_the_same_queue_is_forgotten_as_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_KEPT", 9)
    ledger = FleetLedger.decode(fold(*[gaps(queue, 2) for queue in "abca"]).encode())
    assert ledger is not None
    ledger.apply(gaps("d", 2), 5)
    assert ledger.queues == [QueueKey(SUBJECT, queue) for queue in "acd"]


def test_what_forgotten_queues_claimed_fits_into_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_KEPT", 1)
    claim = Ledger(MAX_SEQ, 0, 0, {"a": MAX_SEQ, "b": MAX_SEQ}, 0, forwarded=MAX_SEQ)
    ledger = fold(*[seen(queue, claim, 1.0) for queue in "abcd"])
    assert ledger.forgotten == {SUBJECT: Forgotten(3, {}, MAX_SEQ, MAX_SEQ, 1.0, early=3)}
    again = FleetLedger.decode(ledger.encode())
    assert again is not None
    assert again.forgotten == ledger.forgotten


def gaps(queue: str, count: int, subject: str = SUBJECT) -> Settled:
    """Return a record that leaves so many spans beyond a gap."""
    return Settled(OUTCOMES[0], (Part(subject, queue, tuple(Span(at, at + 1) for at in range(2, 2 + 2 * count, 2))),))


def test_of_too_many_queues_of_a_subject_those_are_forgotten_of_which_was_heard_longest_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounting, "MAX_KEPT", 10)
    ledger = fold(gaps("a", 8, "aa.e.web.mac"), *[gaps(queue, 2) for queue in "abcad"])
    assert ledger.queues == [*[QueueKey(SUBJECT, queue) for queue in "acd"], QueueKey("aa.e.web.mac", "a")]
    assert ledger.forgotten == {SUBJECT: Forgotten(1, {"delivered": 2}, 2, 0, None, early=1)}
    assert ledger.sums == {"delivered": 4 * 2 + 8}


def test_a_queue_of_too_many_gaps_is_forgotten_and_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_KEPT", 10)
    ledger = fold(gaps("a", 2), gaps("b", 2), gaps("c", 10))
    assert ledger.queues == [QueueKey(SUBJECT, queue) for queue in "ab"]
    ledger.apply(gaps("c", 2), 4)
    assert ledger.unsettled(part(1, 4, "c")) == [Span(1, 2), Span(3, 4)]
    assert ledger.sums == {"delivered": 2 + 2 + 10 + 2}  # it counts as a new one


def test_a_ledger_of_many_reasons_counts_as_several_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_KEPT", 10)
    many = Ledger(9, 0, 0, {f"reason {number}": 1 for number in range(100)}, 0)
    assert fold(seen("q1", many, 1.0)).queues == []
    few = Ledger(9, 0, 0, dict.fromkeys(DROP_REASONS[:4], 1), 0)
    assert len(fold(*[seen(queue, few, 1.0) for queue in "abcdefghij"]).queues) == 10


def test_while_nothing_is_settled_no_time_passes() -> None:
    ledger, year = fold(Settled(OUTCOMES[0], (part(1, 4),))), 365 * accounting.DAY
    for turn in range(1000):
        ledger.apply(Intent(f"i{turn}", "r", (part(1, 2, "q2"),)), ledger.seq + 1, EPOCH + turn * 3600.0)
    ledger.apply(Settled(OUTCOMES[0], ()), ledger.seq + 1, EPOCH + year)
    ledger.apply(Settled(OUTCOMES[0], ()), ledger.seq + 1, EPOCH + 2 * year)
    assert ledger.queues == [QueueKey(SUBJECT, "q1")]


def test_a_snapshot_of_before_queues_were_forgotten_is_gone_on_from() -> None:
    ledger = fold(
        Settled(OUTCOMES[0], (part(1, 4),)),
        seen("q2", Ledger(9, 0, 0, {}, 0, forwarded=9), 1.0),
    )
    body = msgspec.msgpack.encode(msgspec.msgpack.decode(ledger.encode()[4:])[:9])
    again = FleetLedger.decode(zlib.crc32(body).to_bytes(4, "big") + body)
    assert again is not None
    assert (again.encode(), again.forwarded) == (ledger.encode(), 12)


def test_a_snapshot_whose_times_are_not_those_of_its_queues_is_of_no_use() -> None:
    ledger = fold(
        Settled(OUTCOMES[0], (part(1, 4),)),
        seen("q2", Ledger(9, 0, 0, {}, 0, forwarded=9), 1.0),
    )
    fields = msgspec.msgpack.decode(ledger.encode()[4:])
    at = next(index for index, value in enumerate(fields) if index > 8 and isinstance(value, list) and len(value) == 2)
    body = msgspec.msgpack.encode([*fields[:at], fields[at][:1], *fields[at + 1 :]])
    assert FleetLedger.decode(zlib.crc32(body).to_bytes(4, "big") + body) is None


queues = st.sampled_from([(SUBJECT, "q1"), (SUBJECT, "q2"), ("aa.e.web.mac", "q1")])
spans = st.lists(st.integers(1, 30), min_size=2, max_size=6, unique=True).map(
    lambda edges: tuple(Span(*pair) for pair in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)
parts = st.lists(
    st.builds(lambda queue, spans: Part(queue[0], queue[1], spans), queues, spans), min_size=1, max_size=3
).map(tuple)
ids = st.sampled_from("abcdef")
records = st.one_of(
    st.builds(Intent, ids, st.just("r"), parts),
    st.builds(Released, ids),
    st.builds(Settled, st.sampled_from(OUTCOMES), parts, st.none() | ids),
)


class Naive:
    """The same accounts, event by event."""

    def __init__(self) -> None:
        self.ends: dict[tuple[str, str, int], Outcome] = {}

    def apply(self, record: Record) -> None:
        """Settle what the record settles, each event once."""
        if isinstance(record, Settled):
            for each in record.parts:
                for span in each.spans:
                    for number in range(*span):
                        self.ends.setdefault((each.subject, each.queue, number), record.outcome)


@given(st.lists(records, max_size=20), st.data())
def test_sums_are_those_of_a_naive_model_wherever_a_snapshot_is_taken(
    stream: Sequence[Record], data: st.DataObject
) -> None:
    taken_at = data.draw(st.integers(0, len(stream)))
    naive, ledger = Naive(), FleetLedger()
    for seq, record in enumerate(stream, 1):
        naive.apply(record)
        ledger.apply(record, seq)
        if seq == taken_at:
            again = FleetLedger.decode(ledger.encode())
            assert again is not None
            ledger = again
    assert +ledger.sums == Counter(map(str, naive.ends.values()))
    whole = fold(*stream)
    assert (whole.in_doubt, whole.queues, whole.encode()) == (ledger.in_doubt, ledger.queues, ledger.encode())
    for key in ledger.queues:
        left = [
            number for span in ledger.unsettled(Part(key.subject, key.queue, (Span(1, 40),))) for number in range(*span)
        ]
        assert left == [number for number in range(1, 40) if (key.subject, key.queue, number) not in naive.ends]


of_one_queue = st.lists(
    st.tuples(
        st.builds(Settled, st.sampled_from(OUTCOMES), spans.map(lambda each: (Part(SUBJECT, "", each),)))
        | st.builds(
            lambda count: seen("", Ledger(count, 0, 0, {"quota": 1}, 0, forwarded=count), 1.0),
            st.integers(0, 40),
        ),
        st.floats(0.0, 2 * accounting.MAX_STEP),
    ),
    min_size=1,
    max_size=4,
)


@given(st.lists(of_one_queue, max_size=10), st.integers(0, 40))
def test_what_is_forgotten_changes_no_sum_wherever_a_snapshot_is_taken(
    lives: Sequence[Sequence[tuple[Settled | Seen, float]]], taken_at: int
) -> None:
    """Each queue is silent for good when the next one begins."""
    forgetful, whole, now = FleetLedger(), FleetLedger(), EPOCH
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accounting, "FORGET_SECONDS", 4 * accounting.MAX_STEP)
        for number, life in enumerate(lives):
            for each, seconds in life:
                record: Record
                if isinstance(each, Settled):
                    record = Settled(each.outcome, (Part(SUBJECT, str(number), each.parts[0].spans),))
                else:
                    record = seen(str(number), each.ledgers[0].ledger, each.at)
                now += seconds
                whole.apply(record, whole.seq + 1)
                forgetful.apply(record, whole.seq, now)
                if whole.seq == taken_at:
                    again = FleetLedger.decode(forgetful.encode())
                    assert again is not None
                    assert again.encode() == forgetful.encode()
                    forgetful = again
    assert (forgetful.sums, forgetful.forwarded) == (whole.sums, whole.forwarded)
    assert account(forgetful, InStream()) == account(whole, InStream())


@given(st.lists(st.lists(parts, min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_no_interleaving_of_relays_and_no_repeat_of_records_changes_the_sums(
    relays: Sequence[Sequence[tuple[Part, ...]]], data: st.DataObject
) -> None:
    """Each request is of its own events or not, delivered, and written down once or more; its events are settled once."""
    lines: list[list[Record]] = []
    for relay, requests in enumerate(relays):
        line: list[Record] = []
        for index, each in enumerate(requests):
            request = f"{relay}-{index}"
            line += [Intent(request, str(relay), each), Settled(Outcome.DELIVERED, each, request)]
        lines.append([record for record in line for _ in range(data.draw(st.integers(1, 2)))])
    stream: list[Record] = []
    while any(lines):
        stream.append(data.draw(st.sampled_from([line for line in lines if line])).pop(0))
    ledger = fold(*stream)
    times = Counter(
        event
        for requests in relays
        for request in requests
        for event in {
            (one.subject, one.queue, number) for one in request for span in one.spans for number in range(*span)
        }
    )
    assert ledger.sums["delivered"] == len(times)
    repeats = sum(count - 1 for count in times.values())
    assert ledger.in_doubt >= repeats


class Kept:
    """What is kept of subjects, event by event: the bound of `accounting.MAX_KEPT`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.queues: list[tuple[str, str]] = []  # that of which was heard last comes last
        self.settled: dict[tuple[str, str], set[int]] = {}

    def size(self, key: tuple[str, str]) -> int:
        """Return what a queue counts: itself, and its runs of settled events but for the one that begins with the first."""
        events = self.settled[key]
        return 1 + sum(number - 1 not in events for number in events if number > 1)

    def apply(self, record: Settled) -> None:
        """Settle what the record settles, and forget what is too much."""
        for each in record.parts:
            key = each.subject, each.queue
            self.settled.setdefault(key, set()).update(number for span in each.spans for number in range(*span))
            self.queues = [*(other for other in self.queues if other != key), key]
            while sum(map(self.size, of := [other for other in self.queues if other[0] == each.subject])) > self.most:
                gone = key if self.size(key) > self.most else of[0]
                self.queues.remove(gone)
                del self.settled[gone]


@given(
    st.lists(st.builds(Settled, st.sampled_from(OUTCOMES), parts), max_size=20), st.integers(1, 6), st.integers(0, 20)
)
def test_what_is_forgotten_for_being_too_much_is_of_its_subject_wherever_a_snapshot_is_taken(
    stream: Sequence[Settled], most: int, taken_at: int
) -> None:
    naive, ledger = Kept(most), FleetLedger()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(accounting, "MAX_KEPT", most)
        for seq, record in enumerate(stream, 1):
            naive.apply(record)
            ledger.apply(record, seq, EPOCH + seq // 3)
            if seq == taken_at:
                again = FleetLedger.decode(ledger.encode())
                assert again is not None
                ledger = again
    assert [(key.subject, key.queue) for key in ledger.queues] == sorted(naive.queues)
    for key in ledger.queues:
        left = [number for span in ledger.unsettled(part(1, 40, key.queue, key.subject)) for number in range(*span)]
        assert left == [number for number in range(1, 40) if number not in naive.settled[key.subject, key.queue]]
    assert ledger.forwarded == ledger.sums.total()
