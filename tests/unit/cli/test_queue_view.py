"""What `queue` and `dead-letters` show to people: everything that matters, in lines that fit, and nothing that moves a cursor."""

import io

import pytest
from rich.console import Console, RenderableType

from agent.cli.views.dead_letters import letter_lines, letter_table
from agent.cli.views.queue import audit_lines, listing_screen, purge_lines, purge_question, repair_lines
from agent.events import Event
from agent.queue.cursor import Ledger
from agent.queue.maintenance.audit import Audit, Finding
from agent.queue.maintenance.browse import Listing, Origin, SegmentReport
from agent.queue.maintenance.browse_dead_letters import ListedDeadLetter
from agent.queue.maintenance.purge import Purged
from agent.queue.maintenance.repair import Repaired

NOW = 1_750_000_000.0
AT = "2025-06-15T15:04:00.000Z"  # 2 min 40 s before
NOTHING = Ledger(0, 0, 0, {}, 0)
SEGMENT = SegmentReport("00000000000000000001.seg", 1, 2, 1500, 1400, 1536, AT, AT, 0, 0, None)


def shown(renderable: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def listing(*segments: SegmentReport, queued: int = 1400, unreadable: int = 0) -> Listing:
    return Listing(list(segments), 2, 1500, queued, 1536, 0, unreadable, NOTHING)


def changed(segment: SegmentReport, **changes: object) -> SegmentReport:
    fields = {name: getattr(segment, name) for name in segment.__struct_fields__} | changes
    return SegmentReport(**fields)


def test_a_segment_is_one_line_and_the_totals_are_another() -> None:
    text = shown(listing_screen(listing(SEGMENT), NOW))
    (line,) = [line for line in text.splitlines() if line.startswith("0000")]
    assert line.split() == [
        "00000000000000000001.seg",
        "2",
        "1,500",
        "1,400",
        *(["2", "min", "40", "s"] * 2),
        "1.5",
        "KiB",
    ]
    assert "1,400 events queued; 1 segment with 2 records of 1,500 events, 1.5 KiB" in text


def test_an_empty_queue_has_no_table() -> None:
    text = shown(listing_screen(Listing([], 0, 0, 0, 0, 0, 0, NOTHING), NOW))
    assert text.strip() == "0 events queued; 0 segments with 0 records of 0 events, 0 B"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"damaged": 1200, "unreadable": 3}, "1,200 bytes, 3 queued events in them"),
        ({"damaged": 1200}, "1,200 bytes"),
        ({"unreadable": 3}, "3 missing"),
        ({"problem": "Permission denied"}, "cannot be read: Permission denied"),
    ],
)
def test_damage_is_shown_with_its_segment_and_says_what_to_do(changes: dict[str, object], said: str) -> None:
    text = shown(listing_screen(listing(changed(SEGMENT, **changes), unreadable=3), NOW), 160)
    assert said in text
    assert "3 queued events cannot be read: `artifacts-agent queue verify` says why" in text


def test_problems_come_first_and_have_a_price_and_a_remedy() -> None:
    problem = Finding("segments/1.seg", 4096, "7 damaged bytes", 1, "repair it")
    letter = Finding("dead-letters/1.seg", None, "gone", 2)
    note = Finding("cursor.new", None, "left over")
    found = Audit(False, 1, 2, 3, 4, [problem, letter], [note], NOTHING)
    assert list(audit_lines(found)) == [
        "problem  segments/1.seg, offset 4,096: 7 damaged bytes",
        "         costs: 1 queued event",
        "         to do: repair it",
        "problem  dead-letters/1.seg: gone",
        "         costs: 2 dead letters",
        "note     cursor.new: left over",
        "2 problems in 1 segment, 2 records, 3 events, 4 dead letters",
    ]


def test_a_repair_says_what_it_did_and_only_that() -> None:
    nothing = "no damage was found outside the cursor, which is always written anew"
    assert list(repair_lines(Repaired(0, 0, 0, 0, [], []))) == [nothing]
    assert list(repair_lines(Repaired(3, 1, 2, 1, ["cursor.new"], [".", "cursor"]))) == [
        "restored the permissions of the queue's directory, cursor",
        "copied 1 damaged piece to quarantine",
        "could not copy 2 damaged pieces to quarantine: it is full, or the disk refused the write",
        "counted 3 events as dropped: corrupt",
        "removed 1 damaged dead letter",
        "removed cursor.new, left by interrupted writes",
        "wrote the cursor anew",
    ]


def test_a_purge_asks_with_the_count_and_the_age_and_says_what_it_did() -> None:
    question = purge_question(listing(SEGMENT), NOW)
    assert question.startswith("Drop 1,400 queued events, up to 2 min 40 s old, for good?")
    assert purge_question(listing(queued=1), NOW).startswith("Drop 1 queued event for good?")
    assert list(purge_lines(Purged(1, 512, "no room"))) == [
        "1 event dropped: purged; 512 B freed",
        "more space is freed later: no room",
    ]


LETTER = ListedDeadLetter(
    7, AT, 400, "400: \x1b[2Jno\n" * 3, Origin("VERCEL", 0), Event("s" * 36, "LOCAL", "HIT", "h" * 16, 7)
)


def test_a_letter_cannot_move_the_cursor_and_leaves_room_for_its_message() -> None:
    text = shown(letter_table([LETTER], narrow=True), 100)
    assert "\x1b" not in text
    assert "400: \\x1b[2J" in text
    assert "s" * 36 in shown(letter_table([LETTER], narrow=False), 300)
    assert shown(letter_table([], narrow=True)).strip() == "No dead letters."
    lines = list(letter_lines(LETTER))
    assert [line.split()[0] for line in lines][:4] == ["seq", "refused", "status", "message"]
    assert lines[-1].split() == ["duration", "7"]


def test_what_is_not_known_of_a_letter_is_said() -> None:
    bare = ListedDeadLetter(7, AT, None, "no", Origin(None, None), Event("s", "LOCAL", "MISS", "h"))
    assert {"status       none", "ci           none", "interactive  not said"} <= set(letter_lines(bare))
