"""What `agent.queue.cursor` promises: every event is settled once, and the ledger adds up at every moment."""

import math
import struct
import zlib
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

from agent.queue.cursor import (
    SLOT_BYTES,
    Checkpoint,
    Cursor,
    CursorState,
    Ledger,
    Outcome,
    Pause,
    Run,
    Span,
    decode_slot,
    encode_slot,
)

PAUSE = Pause("blocked", "402 Payment Required", 1_700_000_000.0, 1_700_000_300.0, 1)
STATE = CursorState(5, 20, 1, [Span(7, 9), Span(12, 13)], {"delivered": 6, "corrupt": 1}, {"disk_full": 2}, PAUSE)
RETRIED = msgspec.structs.replace(STATE, retried=3)
PREFIX = struct.Struct("<4sHII")


def cursor_at(next_seq: int, *settled: tuple[int, int]) -> Cursor:
    """A cursor over the events before `next_seq`, of which some have been delivered."""
    cursor = Cursor()
    cursor.next_seq = next_seq
    cursor.settle([Span(*span) for span in settled], Outcome.DELIVERED)
    return cursor


def balance(ledger: Ledger) -> int:
    """What promise 3 says is zero."""
    settled = ledger.delivered + ledger.forwarded + ledger.dead_lettered + sum(ledger.dropped.values())
    return ledger.accepted - settled - ledger.queued


# --- settling -----------------------------------------------------------------------------------------------------


def test_a_new_cursor_has_nothing_to_tell() -> None:
    cursor = Cursor()
    assert (cursor.position, cursor.next_seq, cursor.queued, cursor.settled_beyond) == (1, 1, 0, 0)
    assert cursor.ledger() == Ledger(0, 0, 0, {}, 0)


def test_a_cursor_that_was_lost_begins_with_what_is_still_there() -> None:
    cursor = Cursor(41)
    cursor.next_seq = 51
    assert cursor.ledger() == Ledger(10, 0, 0, {}, 10)
    assert cursor.settle([Span(1, 45)], Outcome.DELIVERED) == 4
    assert cursor.ledger() == Ledger(10, 4, 0, {}, 6)


@pytest.mark.parametrize(
    ("settled", "position", "beyond"),
    [
        ([(1, 2)], 2, 0),
        ([(1, 11)], 11, 0),
        ([(2, 3)], 1, 1),
        ([(2, 3), (1, 2)], 3, 0),
        ([(3, 5), (7, 9)], 1, 2),
        ([(3, 5), (7, 9), (5, 7)], 1, 1),
        ([(3, 5), (7, 9), (1, 3)], 5, 1),
        ([(3, 5), (7, 9), (1, 8)], 9, 0),
        ([(3, 5), (4, 4)], 1, 1),
    ],
)
def test_the_position_is_the_first_event_that_is_not_settled(
    settled: list[tuple[int, int]], position: int, beyond: int
) -> None:
    cursor = cursor_at(11)
    for span in settled:
        cursor.settle([Span(*span)], Outcome.DELIVERED)
    assert (cursor.position, cursor.settled_beyond) == (position, beyond)


@pytest.mark.parametrize(
    ("asked", "unsettled"),
    [
        ((1, 20), [(3, 5), (8, 10), (12, 20)]),
        ((1, 3), []),
        ((0, 4), [(3, 4)]),
        ((5, 8), []),
        ((4, 9), [(4, 5), (8, 9)]),
        ((6, 11), [(8, 10)]),
        ((8, 9), [(8, 9)]),
        ((15, 25), [(15, 25)]),
        ((9, 9), []),
        ((2, 2), []),
    ],
)
def test_what_is_not_settled_of_a_span_is_told_exactly(
    asked: tuple[int, int], unsettled: list[tuple[int, int]]
) -> None:
    cursor = cursor_at(20, (1, 3), (5, 8), (10, 12))
    assert cursor.unsettled(Span(*asked)) == [Span(*span) for span in unsettled]


def test_an_event_is_settled_by_whatever_comes_first() -> None:
    cursor = cursor_at(11)
    assert cursor.settle([Span(3, 6)], Outcome.DEAD_LETTERED) == 3
    assert cursor.settle([Span(1, 9)], Outcome.OVERFLOW) == 5
    assert cursor.settle([Span(1, 9)], Outcome.DELIVERED) == 0
    assert cursor.ledger() == Ledger(10, 0, 3, {"overflow": 5}, 2)


def test_spans_that_overlap_settle_an_event_once() -> None:
    cursor = cursor_at(11)
    assert cursor.settle([Span(3, 6), Span(5, 8), Span(3, 4)], Outcome.DELIVERED) == 5
    assert cursor.ledger() == Ledger(10, 5, 0, {}, 5)


def test_settling_nothing_leaves_no_trace() -> None:
    cursor = cursor_at(11)
    assert cursor.settle([], Outcome.EXPIRED) == cursor.settle([Span(4, 4)], Outcome.EXPIRED) == 0
    assert cursor.ledger().dropped == {}


def test_events_dropped_before_they_had_a_number_count_as_accepted() -> None:
    cursor = cursor_at(11)
    cursor.shed(4, Outcome.STALLED)
    cursor.shed(1, Outcome.STALLED)
    cursor.shed(2, Outcome.OVERFLOW)
    cursor.settle([Span(1, 4)], Outcome.OVERFLOW)
    assert cursor.ledger() == Ledger(17, 0, 0, {"stalled": 5, "overflow": 5}, 7)


def test_a_ledger_is_a_copy() -> None:
    cursor = cursor_at(11)
    cursor.shed(1, Outcome.STALLED)
    cursor.ledger().dropped["stalled"] = 99
    assert cursor.ledger().dropped == {"stalled": 1}


def test_a_checkpoint_of_an_earlier_version_lacks_what_was_added_and_an_earlier_daemon_ignores_it() -> None:
    state = msgspec.structs.replace(STATE, retried=3, runs=(Run(1, 65534), Run(5, None)))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(state))
    assert fields[7:] == [3, [[1, 65534], [5, None]]]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=CursorState) == state
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(fields[:7]), type=CursorState) == STATE
    earlier = msgspec.defstruct(
        "CursorState", [(f.name, f.type) for f in msgspec.structs.fields(CursorState)[:7]], array_like=True
    )
    assert msgspec.structs.asdict(msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=earlier)) == {
        name: value for name, value in msgspec.structs.asdict(STATE).items() if name not in {"retried", "runs"}
    }


def test_retries_survive_a_checkpoint_and_show_in_the_ledger() -> None:
    cursor = cursor_at(11)
    cursor.retried = 4
    assert Cursor.from_state(cursor.state()).ledger() == Ledger(10, 0, 0, {}, 10, 4)


def test_a_checkpoint_is_a_copy() -> None:
    cursor = cursor_at(11, (3, 4))
    state = cursor.state()
    cursor.settle([Span(6, 8)], Outcome.EXPIRED)
    cursor.shed(1, Outcome.STALLED)
    assert state == CursorState(1, 11, 1, [Span(3, 4)], {"delivered": 1}, {}, None)
    restored = Cursor.from_state(state)
    restored.settle([Span(1, 3)], Outcome.DELIVERED)
    assert state.settled == [Span(3, 4)]


spans = st.builds(lambda start, length: Span(start, start + length), st.integers(1, 60), st.integers(0, 12))
DROPS = [outcome for outcome in Outcome if outcome not in {"delivered", "forwarded", "dead_lettered"}]


class CursorModel(RuleBasedStateMachine):
    """A cursor beside a plain dict from each number to what became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.cursor = Cursor()
        self.fates: dict[int, Outcome | None] = {}
        self.shed: Counter[Outcome] = Counter()

    @rule(count=st.integers(0, 15))
    def become_durable(self, count: int) -> None:
        for seq in range(self.cursor.next_seq, self.cursor.next_seq + count):
            self.fates[seq] = None
        self.cursor.next_seq += count

    @rule(wanted=st.lists(spans, max_size=4), outcome=st.sampled_from(Outcome))
    def settle(self, wanted: list[Span], outcome: Outcome) -> None:
        existing = [Span(span.start, min(span.stop, self.cursor.next_seq)) for span in wanted]
        fresh = {seq for span in existing for seq in range(*span) if self.fates[seq] is None}
        assert self.cursor.settle(existing, outcome) == len(fresh)
        self.fates |= dict.fromkeys(fresh, outcome)

    @rule(count=st.integers(1, 9), reason=st.sampled_from(DROPS))
    def drop_before_it_has_a_number(self, count: int, reason: Outcome) -> None:
        self.cursor.shed(count, reason)
        self.shed[reason] += count

    @rule(generation=st.integers(0, 2**63 - 2))
    def restart(self, generation: int) -> None:
        before = self.cursor.ledger()
        checkpoint = decode_slot(encode_slot(generation, self.cursor.state()).ljust(SLOT_BYTES, b"\0"))
        assert checkpoint is not None
        assert checkpoint.generation == generation
        self.cursor = Cursor.from_state(checkpoint.state)
        assert self.cursor.ledger() == before

    @rule(span=spans)
    def ask_what_is_left(self, span: Span) -> None:
        parts = self.cursor.unsettled(span)
        assert all(part.length > 0 for part in parts)
        assert [seq for part in parts for seq in range(*part)] == [
            seq for seq in range(*span) if self.fates.get(seq) is None
        ]

    @invariant()
    def the_ledger_is_what_became_of_the_events(self) -> None:
        counts = Counter(fate for fate in self.fates.values() if fate is not None) + self.shed
        delivered, dead_lettered = counts.pop(Outcome.DELIVERED, 0), counts.pop(Outcome.DEAD_LETTERED, 0)
        forwarded = counts.pop(Outcome.FORWARDED, 0)
        queued = sum(fate is None for fate in self.fates.values())
        accepted = len(self.fates) + self.shed.total()
        dropped = {reason.value: count for reason, count in counts.items()}
        assert self.cursor.ledger() == Ledger(accepted, delivered, dead_lettered, dropped, queued, 0, forwarded)
        assert balance(self.cursor.ledger()) == 0

    @invariant()
    def the_position_is_the_first_that_is_left(self) -> None:
        left = [seq for seq, fate in self.fates.items() if fate is None]
        assert self.cursor.position == min(left, default=self.cursor.next_seq)
        assert self.cursor.settled_beyond <= len(left)


CursorModel.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_a_cursor_agrees_with_a_table_of_every_events_fate = CursorModel.TestCase


# --- slots --------------------------------------------------------------------------------------------------------


def slot_of(body: bytes, *, marker: bytes = b"AAQC", version: int = 1, length: int | None = None) -> bytes:
    """A slot whose CRC holds."""
    return PREFIX.pack(marker, version, len(body) if length is None else length, zlib.crc32(body)) + body


def test_the_layout_of_a_slot_is_the_one_in_the_readme() -> None:
    body = struct.pack("<Q", 7) + msgspec.msgpack.encode(STATE)
    assert encode_slot(7, STATE) == slot_of(body)


@pytest.mark.parametrize("generation", [0, 1, 2**63 - 2])
def test_a_slot_is_read_as_it_was_written(generation: int) -> None:
    slot = encode_slot(generation, STATE)
    assert decode_slot(slot) == Checkpoint(generation, STATE)
    assert decode_slot(slot.ljust(SLOT_BYTES, b"\0")) == Checkpoint(generation, STATE)


def test_a_slot_that_was_written_over_a_longer_one_is_read_as_it_was_written() -> None:
    shorter, longer = encode_slot(2, replace(STATE, pause=None)), encode_slot(1, STATE)
    assert len(shorter) < len(longer)
    assert decode_slot(shorter + longer[len(shorter) :]) == Checkpoint(2, replace(STATE, pause=None))


@pytest.mark.parametrize("bit", range(len(encode_slot(7, STATE)) * 8))
def test_a_slot_with_a_flipped_bit_holds_no_checkpoint(bit: int) -> None:
    damaged = bytearray(encode_slot(7, STATE).ljust(SLOT_BYTES, b"\0"))
    damaged[bit // 8] ^= 1 << bit % 8
    assert decode_slot(bytes(damaged)) is None


@pytest.mark.parametrize("length", range(len(encode_slot(7, RETRIED))))
def test_a_slot_that_was_written_in_part_holds_no_checkpoint(length: int) -> None:
    begun = encode_slot(7, RETRIED)[:length]
    assert decode_slot(begun) is None
    assert decode_slot(begun.ljust(SLOT_BYTES, b"\0")) is None


def test_a_slot_of_which_only_zeros_are_missing_is_whole_where_there_are_zeros() -> None:
    state = replace(STATE, runs=(Run(1, 0),))
    begun = encode_slot(7, state)[:-1]
    assert decode_slot(begun) is None
    assert decode_slot(begun.ljust(SLOT_BYTES, b"\0")) == Checkpoint(7, state)


@pytest.mark.parametrize("cut", range(len(encode_slot(7, STATE)) + 1))
def test_a_slot_torn_between_two_checkpoints_holds_one_of_them_or_none(cut: int) -> None:
    older, newer = Checkpoint(5, replace(STATE, position=6)), Checkpoint(7, STATE)
    old, new = encode_slot(*older), encode_slot(*newer)
    assert decode_slot(new[:cut] + old[cut:]) in (None, older, newer)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(SLOT_BYTES), id="a new file"),
        pytest.param(slot_of(struct.pack("<Q", 1) + msgspec.msgpack.encode(STATE), marker=b"AAQD"), id="marker"),
        pytest.param(slot_of(struct.pack("<Q", 1) + msgspec.msgpack.encode(STATE), version=2), id="another version"),
        pytest.param(slot_of(b"x" * 7) + bytes(9), id="no room for a generation"),
        pytest.param(slot_of(b"", length=0) + bytes(9), id="an empty body"),
        pytest.param(slot_of(struct.pack("<Q", 1)), id="no state"),
        pytest.param(slot_of(struct.pack("<Q", 1) + b"\xc1"), id="no msgpack"),
        pytest.param(slot_of(struct.pack("<Q", 1) + msgspec.msgpack.encode([1, 2, 3])), id="another state"),
        pytest.param(
            slot_of(
                struct.pack("<Q", 1)
                + msgspec.msgpack.encode([1, 2, 1, [], {}, {}, None]).replace(b"\x80", b"\x81\xa1\xff\x01", 1)
            ),
            id="a reason that is not UTF-8",
        ),
    ],
)
def test_a_slot_with_anything_else_holds_no_checkpoint(data: bytes) -> None:
    assert decode_slot(data) is None


def test_a_state_that_outgrows_a_slot_is_refused_rather_than_cut() -> None:
    settled = [Span(2**40 + 2 * index, 2**40 + 2 * index + 1) for index in range(2000)]
    with pytest.raises(ValueError, match=rf"a checkpoint has \d+ bytes; a slot takes {SLOT_BYTES}"):
        encode_slot(1, replace(STATE, settled=settled))


def test_the_largest_state_that_fits_is_read_again() -> None:
    def with_message(length: int) -> CursorState:
        return replace(STATE, pause=replace(PAUSE, message="x" * length))

    largest = 1000 + SLOT_BYTES - len(encode_slot(1, with_message(1000)))
    slot = encode_slot(1, with_message(largest))
    assert len(slot) == SLOT_BYTES
    assert decode_slot(slot) == Checkpoint(1, with_message(largest))
    with pytest.raises(ValueError, match="a checkpoint has"):
        encode_slot(1, with_message(largest + 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": 0},
        {"position": STATE.next_seq + 1},
        {"position": STATE.origin - 1},
        {"next_seq": 2**63},
        {"settled": STATE.settled[::-1]},
        {"settled": [Span(STATE.position, STATE.position + 1)]},
        {"settled": [Span(STATE.next_seq, STATE.next_seq + 1)]},
        {"settled": [Span(STATE.position + 1, STATE.position + 1)]},
        {"counts": {}},
        {"counts": {**STATE.counts, "new": 1}},
        {"counts": {**STATE.counts, "expired": -1, "new": STATE.counts.get("expired", 0) + 1}},
        {"shed": {"stalled": -1}},
        {"retried": -1},
        {"pause": Pause("blocked", "", math.nan, 1.0, 0)},
        {"pause": Pause("blocked", "", 1e300, 1.0, 0)},
        {"pause": Pause("blocked", "", 1.0, -math.inf, 0)},
        {"pause": Pause("blocked", "", 1.0, 1e300, 0)},
        {"pause": Pause("blocked", "", 1.0, 1.0, -1)},
    ],
    ids=str,
)
def test_a_state_that_no_queue_can_be_in_is_no_checkpoint(changes: dict[str, Any]) -> None:
    """Its CRC holds, but to go on with it would break the ledger, or the answer to the next question for the status."""
    assert decode_slot(encode_slot(7, replace(STATE, **changes))) is None


def test_a_pause_without_end_is_a_possible_state() -> None:
    operators = replace(STATE, pause=Pause("operator", "paused by an operator", 1.0, math.inf, 0))
    assert decode_slot(encode_slot(7, operators)) == Checkpoint(7, operators)


@pytest.mark.parametrize("generation", [2**63 - 1, 2**64 - 1])
def test_a_generation_that_none_can_follow_is_no_checkpoint(generation: int) -> None:
    """The next one could not be written, and the daemon would end."""
    assert decode_slot(encode_slot(generation, STATE)) is None
