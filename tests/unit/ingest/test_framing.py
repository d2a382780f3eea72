"""What `agent.ingest.framing` promises: the same lines however reads cut the stream, and bounded memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ingest.framing import LineFramer, Lines

MAX = 8
LONGEST = b"x" * MAX
TOO_LONG = b"x" * (MAX + 1)


def framed(*chunks: bytes) -> tuple[list[bytes], int]:
    """The lines of a stream that comes in these chunks, and how many were too long."""
    framer = LineFramer(MAX)
    found = [*(framer.feed(chunk) for chunk in chunks), framer.end()]
    lines = b"".join(each.block for each in found).split(b"\n")
    return lines, sum(each.oversized for each in found)


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


@pytest.mark.parametrize(
    ("chunks", "returned"),
    [
        pytest.param([b"a\n"], [b"a\n"], id="a line"),
        pytest.param([b"a\nb\n"], [b"a\nb\n"], id="two lines at once"),
        pytest.param([b"a", b"b\n"], [b"", b"ab\n"], id="a line in two reads"),
        pytest.param([b"a\nb", b"c\nd"], [b"a\n", b"bc\n"], id="reads that end within lines"),
        pytest.param([b"a", b"\n"], [b"", b"a\n"], id="the line end comes alone"),
        pytest.param([b"\n\n"], [b"\n\n"], id="blank lines are kept: they count"),
        pytest.param([b"a\r\n"], [b"a\r\n"], id="CRLF is not its business"),
        pytest.param([b""], [b""], id="an empty read"),
        pytest.param([LONGEST, b"\n"], [b"", LONGEST + b"\n"], id="a line as long as it may be"),
    ],
)
def test_a_read_returns_the_lines_that_it_completes(chunks: list[bytes], returned: list[bytes]) -> None:
    framer = LineFramer(MAX)
    assert [framer.feed(chunk) for chunk in chunks] == [Lines(block, 0) for block in returned]


@pytest.mark.parametrize("size", [1, 3, MAX - 1, MAX])
@pytest.mark.parametrize("long", [TOO_LONG, TOO_LONG * 2, TOO_LONG * 100])
def test_a_line_that_is_too_long_is_skipped_and_counted_once(long: bytes, size: int) -> None:
    assert framed(*cut(b"a\n" + long + b"\nb\n", size)) == ([b"a", b"b", b""], 1)


def test_each_line_that_is_too_long_counts() -> None:
    stream = TOO_LONG + b"\n" + TOO_LONG + b"\n\n" + LONGEST + b"\n" + TOO_LONG
    assert framed(*cut(stream, MAX)) == ([b"", LONGEST, b""], 3)


def test_a_line_is_too_long_as_soon_as_its_bytes_say_so() -> None:
    framer = LineFramer(MAX)
    assert framer.feed(LONGEST) == Lines(b"", 0)
    assert framer.feed(b"x") == Lines(b"", 1)
    assert framer.feed(LONGEST) == Lines(b"", 0)
    assert framer.feed(b"x\nabc") == Lines(b"", 0)
    assert framer.end() == Lines(b"abc", 0)


def test_an_unterminated_last_line_is_still_a_line() -> None:
    assert framed(b"a\nb") == ([b"a", b"b"], 0)


@pytest.mark.parametrize("chunks", [[], [b"a\n"], [LONGEST, b"x"]])
def test_there_is_no_last_line_after_a_line_end_or_within_a_line_that_is_skipped(chunks: list[bytes]) -> None:
    framer = LineFramer(MAX)
    for chunk in chunks:
        framer.feed(chunk)
    assert framer.end() == Lines(b"", 0)


@pytest.mark.parametrize("before", [b"abc", LONGEST + b"x"])
def test_after_the_end_a_new_stream_begins(before: bytes) -> None:
    framer = LineFramer(MAX)
    for chunk in cut(before, MAX):
        framer.feed(chunk)
    framer.end()
    assert framer.feed(b"d\n") == Lines(b"d\n", 0)


streams = st.lists(st.binary(max_size=3 * MAX) | st.sampled_from([b"", LONGEST, TOO_LONG]), max_size=10).map(b"\n".join)


@st.composite
def chunked_streams(draw: st.DrawFn) -> list[bytes]:
    left, chunks = draw(streams), []
    while left:
        size = draw(st.integers(1, MAX))
        chunks.append(left[:size])
        left = left[size:]
    return chunks


@settings(max_examples=300, deadline=None)
@given(chunked_streams())
def test_any_chunks_give_the_lines_that_one_split_gives(chunks: list[bytes]) -> None:
    lines = b"".join(chunks).split(b"\n")
    kept = [line for line in lines if len(line) <= MAX]
    if lines and len(lines[-1]) > MAX:
        kept.append(b"")  # what `framed` makes of a block that ends with a line end
    assert framed(*chunks) == (kept, len([line for line in lines if len(line) > MAX]))


@settings(max_examples=100, deadline=None)
@given(chunked_streams())
def test_between_reads_no_more_is_held_than_one_line(chunks: list[bytes]) -> None:
    for count in range(len(chunks) + 1):
        framer, returned = LineFramer(MAX), 0
        for chunk in chunks[:count]:
            returned += len(framer.feed(chunk).block)
        held = framer.end().block
        assert len(held) <= MAX
        assert b"\n" not in held
        assert returned + len(held) <= sum(map(len, chunks[:count]))
