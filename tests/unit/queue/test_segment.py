"""What `agent.queue.segment` promises: damage stays local, and what goes is never more than what may go."""

import struct
import zlib
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.queue import segment
from agent.queue.cursor import Span
from agent.queue.record import HEADER_BYTES, MARKER, Frame, encode_frame
from agent.queue.segment import Damage, Gap, Scan, Segment

FRAMES = [encode_frame(41, 3, b"first"), encode_frame(44, 1, b""), encode_frame(45, 9, b"third" + MARKER)]
HEADER = segment.encode_header(41, 1_700_000_000.25)
LAST = encode_frame(54, 3, b"the last one")


def sizes(*numbers: int) -> list[Segment]:
    """Segments of these sizes, 100 items in each."""
    return [Segment(1 + 100 * index, size, None) for index, size in enumerate(numbers)]


def created(*times: float | None) -> list[Segment]:
    """Segments created at these times, 100 items in each."""
    return [Segment(1 + 100 * index, 10, time) for index, time in enumerate(times)]


# --- names and headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_seq", [1, 41, 10**18, 2**63 - 1])
def test_a_name_tells_the_first_number(first_seq: int) -> None:
    assert segment.parse_name(segment.name(first_seq)) == first_seq


def test_a_header_is_that_of_its_segment_alone() -> None:
    assert segment.is_header_of(HEADER + b"frames", 41)
    assert not segment.is_header_of(HEADER, 42)
    assert not segment.is_header_of(HEADER[:-1], 41)
    assert not segment.is_header_of(b"", 41)


def test_names_sort_as_their_numbers_do() -> None:
    numbers = [1, 9, 10, 99, 100, 10**18, 2**63 - 1]
    assert sorted(map(segment.name, numbers)) == list(map(segment.name, numbers))
    assert segment.name(41) == "00000000000000000041.seg"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".seg",
        "41.seg",
        "00000000000000000041",
        "00000000000000000041.seg.new",
        "00000000000000000041.SEG",
        "00000000000000000000.seg",
        "0000000000000000004x.seg",
        "-0000000000000000041.seg",
        "+0000000000000000041.seg",
        " 0000000000000000041.seg",
        "0000000000000000_041.seg",
        "٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٤١.seg",
        "²²²²²²²²²²²²²²²²²²²².seg",
        "000000000000000000041.seg",
        "09223372036854775808.seg",
        "99999999999999999999.seg",
        "cursor",
    ],
)
def test_other_files_are_no_segments(text: str) -> None:
    assert segment.parse_name(text) is None


def test_the_header_is_laid_out_as_in_the_readme() -> None:
    fields = struct.pack("<6sHQQ", b"AAQSEG", 1, 41, 1_700_000_000_250)
    assert fields + struct.pack("<I", zlib.crc32(fields)) == HEADER
    assert len(HEADER) == segment.HEADER_BYTES


def test_a_header_tells_when_the_segment_was_created() -> None:
    assert segment.decode_header(HEADER) == 1_700_000_000.25
    assert segment.decode_header(HEADER + b"frames") == 1_700_000_000.25


@pytest.mark.parametrize("bit", range(segment.HEADER_BYTES * 8))
def test_a_header_with_a_flipped_bit_tells_nothing(bit: int) -> None:
    damaged = bytearray(HEADER)
    damaged[bit // 8] ^= 1 << bit % 8
    assert segment.decode_header(bytes(damaged)) is None


@pytest.mark.parametrize("length", range(segment.HEADER_BYTES))
def test_a_header_that_was_cut_short_tells_nothing(length: int) -> None:
    assert segment.decode_header(HEADER[:length]) is None


@pytest.mark.parametrize(("magic", "version"), [(b"AAQSEG", 2), (b"AAQSEG", 0), (b"OTHER!", 1)])
def test_a_foreign_header_whose_crc_holds_tells_nothing(magic: bytes, version: int) -> None:
    fields = struct.pack("<6sHQQ", magic, version, 41, 0)
    assert segment.decode_header(fields + struct.pack("<I", zlib.crc32(fields))) is None


# --- scan ---------------------------------------------------------------------------------------------------------


def frames_at(start: int, *encoded: bytes) -> list[Frame]:
    """What a scan should find of frames that stand one behind another."""
    found = []
    for data in encoded:
        first_seq, count = struct.unpack_from("<QI", data, 12)
        found.append(Frame(first_seq, count, data[HEADER_BYTES:], start + len(data)))
        start += len(data)
    return found


def test_a_scan_finds_every_frame() -> None:
    data = HEADER + b"".join(FRAMES)
    assert segment.scan(data, len(HEADER), whole=True) == Scan(frames_at(len(HEADER), *FRAMES), [], len(data))


@pytest.mark.parametrize("whole", [True, False])
def test_there_is_nothing_to_find_at_the_end(whole: bool) -> None:
    assert segment.scan(HEADER, len(HEADER), whole=whole) == Scan([], [], len(HEADER))
    assert segment.scan(b"", 0, whole=whole) == Scan([], [], 0)
    assert segment.scan(b"", 24, whole=whole) == Scan([], [], 24)


def test_a_scan_goes_on_at_the_next_frame_after_damage() -> None:
    one, two, three = FRAMES
    data = one[:-1] + b"\xff" + b"rubbish" + MARKER + two + b"\0" * 7 + three
    second = len(one) + 7 + len(MARKER)
    third = second + len(two) + 7
    assert segment.scan(data, 0, whole=True) == Scan(
        [*frames_at(second, two), *frames_at(third, three)],
        [Damage(0, second), Damage(second + len(two), third)],
        len(data),
    )


@pytest.mark.parametrize("rest", [LAST[:-1], LAST[:5], b"\0" * 50, b"x", MARKER * 9, LAST[:-1] + b"X" + LAST[:9]])
def test_what_follows_the_last_frame_is_left_to_the_caller(rest: bytes) -> None:
    assert segment.scan(FRAMES[0] + rest, 0, whole=True) == Scan(frames_at(0, FRAMES[0]), [], len(FRAMES[0]))


def test_a_part_of_a_segment_is_read_up_to_the_first_bytes_that_are_no_frame_yet() -> None:
    one, two, three = FRAMES
    stop = Scan(frames_at(0, one), [], len(one))
    assert segment.scan(one + two[:-1] + b"?" + three, 0, whole=False) == stop
    assert segment.scan(one + three[:-1], 0, whole=False) == stop
    assert segment.scan(one + b"rubbish" + two, 0, whole=False) == stop


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(b"".join(FRAMES))))
def test_reading_in_parts_finds_what_one_read_finds(cut: int) -> None:
    data = b"".join(FRAMES)
    part = segment.scan(data[:cut], 0, whole=False)
    rest = segment.scan(data, part.end, whole=True)
    assert part.damage == rest.damage == []
    assert part.frames + rest.frames == frames_at(0, *FRAMES)


class Edit(NamedTuple):
    """`removed` bytes at `at` give way to `inserted`."""

    at: int
    removed: int
    inserted: bytes

    def spoils(self, start: int, stop: int) -> bool:
        """Whether the edit changes bytes within [start, stop), or parts them."""
        return start < self.at + self.removed and self.at < stop if self.removed else start < self.at < stop


@st.composite
def damaged_frames(draw: st.DrawFn) -> tuple[bytes, list[bytes], list[tuple[int, bytes]]]:
    """Damaged bytes, the frames that they were made of, and those frames that no edit has touched, with their ends."""
    payloads = st.lists(st.binary(max_size=20) | st.just(MARKER), max_size=3).map(b"".join)
    frames, seq = [], draw(st.integers(1, 2**40))
    for payload in draw(st.lists(payloads, min_size=1, max_size=6)):
        frames.append(encode_frame(seq, 2, payload))
        seq += 2
    data, cursor, edits = b"".join(frames), 0, []
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(cursor, len(data)))
        removed = draw(st.integers(0, min(60, len(data) - at)))
        edits.append(Edit(at, removed, draw(st.binary(max_size=30) | st.just(MARKER) | st.just(bytes(removed)))))
        cursor = at + removed + 1
        if cursor > len(data):
            break
    untouched, start = [], 0
    for frame in frames:
        stop = start + len(frame)
        if not any(edit.spoils(start, stop) for edit in edits):
            moved = sum(len(edit.inserted) - edit.removed for edit in edits if edit.at + edit.removed <= start)
            untouched.append((stop + moved, frame))
        start = stop
    for edit in reversed(edits):
        data = data[: edit.at] + edit.inserted + data[edit.at + edit.removed :]
    return data, frames, [(stop, frame) for stop, frame in untouched if not _is_overlapped(data, stop, frame, frames)]


def _is_overlapped(data: bytes, stop: int, frame: bytes, frames: list[bytes]) -> bool:
    """Whether damage before a frame left one that is whole again by the first bytes of this one: then it comes first."""
    start = stop - len(frame)
    return any(-1 < data.find(other, max(start - len(other) + 1, 0), stop) < start for other in frames)


@settings(max_examples=300, deadline=None)
@given(damaged_frames())
def test_every_frame_that_damage_has_not_touched_is_found_and_all_the_rest_is_told(
    damaged: tuple[bytes, list[bytes], list[tuple[int, bytes]]],
) -> None:
    data, frames, untouched = damaged
    found = segment.scan(data, 0, whole=True)
    spans = [(frame.end - HEADER_BYTES - len(frame.payload), frame.end) for frame in found.frames]
    assert {(end, frame) for end, frame in untouched} <= {(stop, data[start:stop]) for start, stop in spans}
    assert all(data[start:stop] in frames for start, stop in spans)
    covered = sorted([*spans, *found.damage])
    assert [start for start, _ in covered] == [0, *(stop for _, stop in covered)][: len(covered)]
    assert (covered[-1][1] if covered else 0) == found.end


# --- what the bytes mean ------------------------------------------------------------------------------------------

ALL = b"".join(FRAMES)
ENDS = [len(b"".join(FRAMES[:count])) for count in range(4)]
ROT = b"rot" * 9


def meaning(
    data: bytes, limit: int | None = 54, expected: int = 41, *, whole: bool = True
) -> list[int | tuple[int, int]]:
    """Return the first numbers of the frames that count, and of gaps where they start and stop."""
    found = segment.interpret(data, 0, expected, limit, whole=whole)
    return [item.first_seq if isinstance(item, Frame) else (item.span.start, item.span.stop) for item in found.items]


@pytest.mark.parametrize(
    ("data", "items"),
    [
        pytest.param(ALL, [41, 44, 45], id="whole"),
        pytest.param(FRAMES[0] + FRAMES[2], [41, (44, 45), 45], id="a frame is missing"),
        pytest.param(FRAMES[0] + ROT + FRAMES[2], [41, (44, 45), 45], id="a frame is damaged"),
        pytest.param(ROT + ALL, [41, 44, 45], id="bytes between frames"),
        pytest.param(ALL[: ENDS[2]] + ROT, [41, 44, (45, 54)], id="the last one is damaged"),
        pytest.param(ALL[: ENDS[1]], [41, (44, 54)], id="the end is gone"),
        pytest.param(b"", [(41, 54)], id="nothing is there"),
        pytest.param(ALL + LAST, [41, 44, 45], id="a leftover"),
        pytest.param(FRAMES[0] + FRAMES[1] + FRAMES[0] + FRAMES[2], [41, 44, 45], id="a frame comes twice"),
    ],
)
def test_every_number_is_accounted_for_once(data: bytes, items: list[int | tuple[int, int]]) -> None:
    assert meaning(data) == items
    found = segment.interpret(data, 0, 41, 54, whole=True)
    assert found.next_seq == 54


def test_a_gap_tells_which_bytes_are_in_its_place() -> None:
    data = FRAMES[0] + ROT + FRAMES[2]
    found = segment.interpret(data, 0, 41, 54, whole=True)
    assert found.items[1] == Gap(Span(44, 45), ENDS[1], ENDS[1] + len(ROT))
    assert found.damage == [Damage(ENDS[1], ENDS[1] + len(ROT))]
    found = segment.interpret(FRAMES[0], 0, 41, 54, whole=True)
    assert found.items[1] == Gap(Span(44, 54), ENDS[1], ENDS[1])


@pytest.mark.parametrize("limit", [45, 53])
def test_a_frame_that_reaches_beyond_the_limit_is_a_leftover(limit: int) -> None:
    assert meaning(ALL, limit) == [41, 44, *([(45, limit)] if limit > 45 else [])]


@pytest.mark.parametrize(("expected", "items"), [(42, [41, 44]), (44, [44]), (45, [])])
def test_a_reader_that_begins_within_a_segment_gets_what_it_has_not_had(expected: int, items: list[int]) -> None:
    assert meaning(ALL, 45, expected) == items


def test_what_follows_the_last_number_of_a_segment_is_no_damage() -> None:
    """It is left of a write that failed, and was done again in the next segment."""
    leftovers = ROT + LAST + ROT
    found = segment.interpret(ALL + leftovers, 0, 41, 54, whole=True)
    assert (found.damage, found.leftover) == ([], len(leftovers))
    found = segment.interpret(ROT + ALL + leftovers, 0, 41, 54, whole=True)
    assert (found.damage, found.leftover) == ([Damage(0, len(ROT))], len(leftovers))


def test_damage_before_a_leftover_counts_as_long_as_numbers_are_missing() -> None:
    found = segment.interpret(FRAMES[0] + ROT + LAST, 0, 41, 54, whole=True)
    assert found.damage == [Damage(ENDS[1], ENDS[1] + len(ROT))]
    assert (found.items[1:], found.leftover) == ([Gap(Span(44, 54), ENDS[1], ENDS[1] + len(ROT) + len(LAST))], 0)


def test_of_a_part_of_a_segment_nothing_is_given_up_yet() -> None:
    data = ALL[: ENDS[2] + 5]
    assert meaning(data, whole=False) == [41, 44]
    found = segment.interpret(data, 0, 41, 54, whole=False)
    assert (found.damage, found.end, found.next_seq) == ([], ENDS[2], 45)


def test_where_the_end_is_looked_for_nothing_is_missing_at_the_end() -> None:
    assert meaning(ALL[: ENDS[2]] + ROT, None) == [41, 44]
    found = segment.interpret(ALL[: ENDS[2]] + ROT, 0, 41, None, whole=True)
    assert (found.next_seq, found.damage) == (45, [Damage(ENDS[2], ENDS[2] + len(ROT))])


# --- the end of a segment -----------------------------------------------------------------------------------------


def changed(part: slice, value: bytes) -> bytes:
    data = bytearray(LAST)
    data[part] = value
    return bytes(data)


BAD_PAYLOAD = changed(slice(-1, None), b"X")
LONGER = changed(slice(4, 8), struct.pack("<I", 500))


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0" * 100, LAST[:1], LAST[:HEADER_BYTES], LAST[:-1], LONGER])
def test_a_write_that_was_cut_short_is_torn(tail: bytes) -> None:
    assert segment.is_torn(tail)


@pytest.mark.parametrize(
    "tail", [b"x", BAD_PAYLOAD, BAD_PAYLOAD + b"more", b"\0" * 8 + LAST[:-1], b"\0" * 30 + b"\x01"]
)
def test_other_bytes_at_the_end_are_damage(tail: bytes) -> None:
    assert not segment.is_torn(tail)


@pytest.mark.parametrize(
    ("tail", "count"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"\0" * 100, 0, id="zeros"),
        pytest.param(LAST[: HEADER_BYTES - 1], 0, id="no whole header"),
        pytest.param(LAST[:-1], 0, id="torn"),
        pytest.param(BAD_PAYLOAD, 3, id="payload damaged"),
        pytest.param(changed(slice(8, 12), b"XXXX"), 3, id="CRC damaged"),
        pytest.param(changed(slice(4), b"XXXX"), 3, id="marker damaged"),
        pytest.param(LONGER, 3, id="length damaged, and longer than what there is"),
        pytest.param(changed(slice(4, 8), b"\0\0\0\0"), 3, id="length damaged, and shorter"),
        pytest.param(changed(slice(12, 20), b"\xff" * 8), 3, id="first number damaged"),
        pytest.param(
            changed(slice(4, 20), LAST[4:12].replace(b"\0", b"\x01", 1) + b"\xff" * 8), 3, id="length and number"
        ),
        pytest.param(BAD_PAYLOAD + LAST[:9], 3, id="payload damaged, a torn write behind it"),
        pytest.param(changed(slice(20, 24), b"\0\0\0\0"), 0, id="count damaged: zero"),
        pytest.param(changed(slice(20, 24), b"\xff" * 4), 0, id="count damaged: absurd"),
        pytest.param(encode_frame(55, 3, b"x")[:-1] + b"y", 0, id="another number"),
        pytest.param(b"rubbish" * 20, 0, id="rubbish"),
    ],
)
def test_a_complete_frame_at_the_end_is_accounted_for_in_spite_of_damage(tail: bytes, count: int) -> None:
    assert segment.claimed_count(tail, 54) == count


# --- what may go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "count"), [(0, 0), (1, 0), (100, 0), (101, 1), (200, 1), (201, 2), (300, 2), (301, 3), (9999, 3)]
)
def test_a_segment_may_go_when_the_next_one_begins_at_or_before_the_position(position: int, count: int) -> None:
    assert segment.deletable(sizes(1, 1, 1, 1), position) == count


def test_the_last_segment_may_never_go() -> None:
    assert segment.deletable([], 9999) == 0
    assert segment.deletable(sizes(1), 9999) == 0
    assert segment.expired_before(created(1.0), 9999, 0) == 0
    assert segment.overflow_before(sizes(10), 9999) == 0


@pytest.mark.parametrize(
    ("enqueued_before", "position"), [(14, 0), (15, 101), (24, 101), (25, 201), (34, 201), (9999, 201)]
)
def test_a_segment_expires_when_even_the_last_that_it_may_have_taken_is_old_enough(
    enqueued_before: float, position: int
) -> None:
    assert segment.expired_before(created(10, 20, 30), enqueued_before, 5) == position


def test_a_clock_that_was_set_back_for_a_while_expires_nothing_that_was_there_before() -> None:
    assert segment.expired_before(created(100, 10, 11, 100), 50, 5) == 0


@pytest.mark.parametrize(
    ("times", "position"),
    [
        ((None, None, None), 0),
        ((10, None, 20), 101),
        ((10, 20, None), 201),
        ((None, 20, None, 40), 201),
        ((None, 40, 10), 0),
        ((), 0),
    ],
)
def test_a_segment_of_unknown_age_goes_with_the_next_one_whose_age_is_known(
    times: tuple[float | None, ...], position: int
) -> None:
    assert segment.expired_before(created(*times), 30, 0) == position


@pytest.mark.parametrize(
    ("excess", "position"),
    [(-5, 0), (0, 0), (1, 101), (10, 101), (11, 201), (30, 201), (31, 301), (9999, 301)],
)
def test_no_more_segments_go_than_make_enough_room(excess: int, position: int) -> None:
    assert segment.overflow_before(sizes(10, 20, 30, 40), excess) == position
