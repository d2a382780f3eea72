"""Records out of blocks: small ones share one, contexts do not, and nothing changes its place among its own."""

from agent.events import Block, Context
from agent.queue.grouping import RECORD_BYTES, Submitted, entries_of
from agent.queue.record import HEADER_BYTES, Record, decode_record

ONE, OTHER = Context("ONE", 0), Context("OTHER")
NOW = 1000.5


def submitted(text: str, context: Context = ONE, owner: int = 0, *, retried: bool = False) -> Submitted:
    """Return a block of as many events as the text has letters."""
    return Submitted((Block(context, len(text), text.encode()),), owner, retried=retried)


def found(*blocks: Submitted) -> list[tuple[int, Record, bool]]:
    """Return the counts, the records and whether they are retried."""
    return [(entry.item_count, decode_record(entry.payload), entry.retried) for entry in entries_of(blocks, NOW)]


def test_small_blocks_of_a_context_share_a_record_and_keep_their_order() -> None:
    blocks = submitted("ab"), submitted("x", OTHER), submitted("c"), submitted("yz", OTHER), submitted("d")
    assert found(*blocks) == [(4, Record(NOW, ONE, b"abcd"), False), (3, Record(NOW, OTHER, b"xyz"), False)]


def test_contexts_that_say_the_same_are_one() -> None:
    assert found(submitted("a"), submitted("b", Context("ONE", 0))) == [(2, Record(NOW, ONE, b"ab"), False)]


def test_what_comes_back_from_dead_letters_is_kept_apart() -> None:
    again = submitted("b", retried=True)
    assert found(submitted("a"), again) == [(1, Record(NOW, ONE, b"a"), False), (1, Record(NOW, ONE, b"b"), True)]


def test_what_different_owners_send_is_kept_apart() -> None:
    entries = entries_of([submitted("a", owner=1), submitted("b", owner=2), submitted("c", owner=1)], NOW)
    assert [(entry.owner, decode_record(entry.payload).lines) for entry in entries] == [(1, b"ac"), (2, b"b")]


def test_the_size_of_what_is_submitted_is_not_below_what_it_takes() -> None:
    longest = Context("C" * 50, 1)
    for text in ("a", "x" * 300, "x" * 70_000):
        (entry,) = entries_of([submitted(text, longest)], NOW)
        assert 0 <= submitted(text, longest).size - HEADER_BYTES - len(entry.payload) < 50


def test_a_record_grows_up_to_its_limit() -> None:
    half = "x" * (RECORD_BYTES // 2)
    assert [count for count, _, _ in found(*[submitted(half)] * 5)] == [2 * len(half), 2 * len(half), len(half)]
    assert [count for count, _, _ in found(submitted("y"), submitted(half), submitted(half))] == [
        len(half) + 1,
        len(half),
    ]


def test_a_block_that_is_larger_stays_whole() -> None:
    large = "x" * (RECORD_BYTES + 1)
    assert [count for count, _, _ in found(submitted("a"), submitted(large), submitted("b"))] == [1, len(large), 1]


def test_of_nothing_comes_nothing() -> None:
    assert entries_of([], NOW) == []
