"""What `agent.queue.record` promises: a frame that is read is the frame that was written, whatever became of its bytes."""

import struct
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.events import Context, Event, decode_events, encode_events
from agent.queue.record import (
    HEADER_BYTES,
    MARKER,
    MAX_PAYLOAD_BYTES,
    Corrupt,
    Frame,
    Record,
    Torn,
    claimed_numbers,
    decode_frame,
    decode_record,
    encode_frame,
    encode_record,
    holds,
    record_in,
)

PAYLOAD = b"some payload"
FRAME = encode_frame(41, 3, PAYLOAD)
RECORD = Record(
    1_700_000_000.25,
    Context("VERCEL", 0),
    encode_events([Event("s", "LOCAL", "HIT", "h", 7), Event("s", "REMOTE", "MISS", "i")]),
)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# --- frames -------------------------------------------------------------------------------------------------------


def test_the_layout_is_the_one_in_the_readme() -> None:
    crc = zlib.crc32(struct.pack("<QI", 41, 3) + PAYLOAD)
    assert struct.pack("<4sIIQI", b"\xa4\xec\xe5R", len(PAYLOAD), crc, 41, 3) + PAYLOAD == FRAME
    assert HEADER_BYTES == 24


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 2**63 - 2**32),
    st.integers(1, 2**32 - 1),
    st.binary(max_size=200),
    st.binary(max_size=50),
    st.binary(max_size=50),
)
def test_a_frame_is_read_as_it_was_written_wherever_it_stands(
    first_seq: int, count: int, payload: bytes, before: bytes, after: bytes
) -> None:
    data = before + encode_frame(first_seq, count, payload) + after
    end = len(data) - len(after)
    assert decode_frame(data, len(before)) == Frame(first_seq, count, payload, end)


def test_a_frame_knows_the_number_that_follows_it() -> None:
    assert Frame(41, 3, b"", 0).next_seq == 44


@pytest.mark.parametrize("bit", range(len(FRAME) * 8))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    followed = flipped(FRAME, bit) + encode_frame(44, 1, b"next") * 3
    assert isinstance(decode_frame(flipped(FRAME, bit), 0), Torn | Corrupt)
    assert isinstance(decode_frame(followed, 0), Torn | Corrupt)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_run_of_changed_bytes_goes_unnoticed(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(FRAME) - 1))
    length = data.draw(st.integers(1, len(FRAME) - start))
    other = data.draw(
        st.binary(min_size=length, max_size=length).filter(lambda new: new != FRAME[start : start + length])
    )
    changed = FRAME[:start] + other + FRAME[start + length :]
    assert isinstance(decode_frame(changed, 0), Torn | Corrupt)


@pytest.mark.parametrize("length", range(len(FRAME)))
def test_a_frame_that_was_cut_short_is_torn(length: int) -> None:
    assert decode_frame(FRAME[:length], 0) == Torn()
    assert decode_frame(b"before" + FRAME[:length], 6) == Torn()


@pytest.mark.parametrize("rest", [b"\0", b"x" * 5, MARKER[1:], MARKER[:2] + b"x", b"\0" * 100, b"x" * 100])
def test_bytes_that_no_frame_begins_with_are_corrupt_even_if_they_are_few(rest: bytes) -> None:
    assert decode_frame(rest, 0) == Corrupt()


@pytest.mark.parametrize("length", [MAX_PAYLOAD_BYTES + 1, 2**31, 2**32 - 1])
def test_an_absurd_length_is_not_believed(length: int) -> None:
    damaged = FRAME[:4] + struct.pack("<I", length) + FRAME[8:]
    assert decode_frame(damaged, 0) == Corrupt()


def test_a_length_up_to_the_cap_is_waited_for() -> None:
    begun = MARKER + struct.pack("<I", MAX_PAYLOAD_BYTES) + FRAME[8:]
    assert decode_frame(begun, 0) == Torn()


def test_a_payload_that_a_reader_would_refuse_is_not_written() -> None:
    largest = encode_frame(1, 1, bytes(MAX_PAYLOAD_BYTES))
    assert isinstance(decode_frame(largest, 0), Frame)
    with pytest.raises(ValueError, match=r"4194305 bytes; a frame takes 4194304"):
        encode_frame(1, 1, bytes(MAX_PAYLOAD_BYTES + 1))


# --- what a damaged frame still tells -----------------------------------------------------------------------------


def test_a_damaged_frame_still_says_which_numbers_it_had() -> None:
    assert claimed_numbers(b"before" + flipped(FRAME, len(FRAME) * 8 - 1), 6) == (41, 3)


@pytest.mark.parametrize("length", [0, HEADER_BYTES - 1])
def test_bytes_without_a_whole_header_say_no_numbers(length: int) -> None:
    assert claimed_numbers(FRAME[:length], 0) is None


@pytest.mark.parametrize(
    "part", [slice(0, 4), slice(4, 8), slice(12, 20), slice(20, 24)], ids=["marker", "length", "seq", "count"]
)
def test_a_payload_that_holds_is_recognized_in_spite_of_its_header(part: slice) -> None:
    damaged = bytearray(FRAME)
    damaged[part] = bytes(byte ^ 0xFF for byte in FRAME[part])
    assert holds(bytes(damaged), 41, 3)


def test_a_payload_holds_for_its_own_numbers_and_bytes_only() -> None:
    assert holds(FRAME, 41, 3)
    assert not holds(FRAME, 40, 3)
    assert not holds(FRAME, 41, 4)
    assert not holds(FRAME + b"\0", 41, 3)
    assert not holds(FRAME[:-1], 41, 3)
    assert not holds(flipped(FRAME, HEADER_BYTES * 8), 41, 3)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_no_text_holds_the_marker_so_none_can_be_taken_for_a_frame(before: bytes, after: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        (before + MARKER + after).decode()


@pytest.mark.parametrize(("first_seq", "count"), [(0, 1), (1, 0), (2**63 - 1, 1), (2**64 - 1, 2**32 - 1)])
def test_numbers_that_no_item_can_have_make_no_frame(first_seq: int, count: int) -> None:
    """A frame of nothing would have delivery divide by zero; one of too many would use up all numbers there are."""
    numbers = struct.pack("<QI", first_seq, count)
    data = struct.pack("<4sII", MARKER, 3, zlib.crc32(numbers + b"abc")) + numbers + b"abc"
    assert decode_frame(data, 0) == Corrupt()
    with pytest.raises(ValueError, match=f"a frame of {count} items from number {first_seq} on is none"):
        encode_frame(first_seq, count, b"abc")


# --- records ------------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD


def test_a_record_keeps_context_and_absence_apart_from_zero() -> None:
    for context in (Context(), Context("X"), Context(None, 0), Context(None, 1)):
        assert decode_record(encode_record(Record(0.0, context, b""))).context == context
    assert decode_events(decode_record(encode_record(RECORD)).lines)[1].duration is msgspec.UNSET


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        encode_record(RECORD)[:-1],
        encode_record(RECORD) + b"x",
        msgspec.msgpack.encode([1.0]),
        msgspec.msgpack.encode([1.0, ["x\n", 0], b""]),
        msgspec.msgpack.encode([1.0, [None, 2], b""]),
        msgspec.msgpack.encode([1.0, [None, None]]),
        msgspec.msgpack.encode([1.0, [None, None], []]),
        msgspec.msgpack.encode([1.0, [None, None], None]),
        msgspec.msgpack.encode([1.0, [None, None], [{"hash": "h"}]]),
        msgspec.msgpack.encode([1.0, [None, None], b"", "more"]),
        b"\x93\xcb" + struct.pack(">d", 1.0) + b"\x94\xc0\xc0\xc0" + b"\x91" * 100_000 + b"\xc0\xc4\x00",
    ],
)
def test_bytes_that_are_no_record_are_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_record(payload)


# --- what a frame carries -----------------------------------------------------------------------------------------


def framed(payload: bytes, count: int) -> Frame:
    frame = decode_frame(b"before" + encode_frame(41, count, payload), 6)
    assert isinstance(frame, Frame)
    return frame


def test_a_frame_knows_where_it_begins_and_gives_its_record() -> None:
    frame = framed(encode_record(RECORD), 2)
    assert (frame.start, frame.next_seq) == (6, 43)
    assert record_in(frame) == RECORD


@pytest.mark.parametrize(
    ("payload", "count"),
    [(encode_record(RECORD), 3), (encode_record(RECORD)[:-1], 2), (b"", 1), (b"\x93\x00\xa1\xff\x90", 1)],
    ids=["another count", "cut short", "empty", "no UTF-8"],
)
def test_a_frame_that_holds_other_things_than_it_says_gives_no_record(payload: bytes, count: int) -> None:
    assert record_in(framed(payload, count)) is None
