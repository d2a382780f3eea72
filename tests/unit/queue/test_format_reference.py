"""The reference of the disk format, held against the code: its dumps are what the code writes, its limits are the code's."""

import re
import zlib
from pathlib import Path
from typing import Final

import msgpack
import msgspec
import pytest

from agent.events import Context, Event, encode_events
from agent.queue import cursor, record, segment
from agent.queue.cursor import SLOT_BYTES, SLOTS, Cursor, CursorState, Outcome, Pause, Span, decode_slot, encode_slot
from agent.queue.cursor_file import newest_in
from agent.queue.dead_letters import DeadLetter, DeadLetters, dead_letter_in
from agent.queue.filesystem import DIRECTORY_MODE, FILE_MODE, OsFilesystem
from agent.queue.log import Entry, Log
from agent.queue.quarantine import Quarantine
from agent.queue.record import Record, decode_record, encode_record
from agent.queue.snapshot import read_queue
from agent.queue.store import Limits
from tests.support.open_queue import OpenQueue

REFERENCE: Final = Path(record.__file__).with_name("FORMAT.md").read_text()
NOW: Final = 1750000000.5
CONTEXT: Final = Context("GITHUB_ACTIONS", 0)
EVENT: Final = Event("s-1", "LOCAL", "HIT", "115c7929ab9c479c", 514)
PAUSE: Final = Pause("operator", "paused", NOW, float("inf"), 0)
LETTER: Final = DeadLetter(3, NOW + 0.5, 400, "bad hash", CONTEXT, encode_events([EVENT]))

CURSOR_STATE: Final = CursorState(1, 2, 1, [], {}, {}, PAUSE)


def dump(name: str) -> bytes:
    """Return the bytes of one of the reference's dumps; each line must stand at the offset that it says."""
    (lines,) = re.findall(rf"<!-- dump: {name} -->\n```\n(.*?)\n```", REFERENCE, re.DOTALL)
    data = b""
    for line in lines.splitlines():
        offset, text = line[:4], line[6:53]
        assert int(offset, 16) == len(data), line
        data += bytes.fromhex(text)
    return data


def commit(queue: OpenQueue, events: list[Event]) -> None:
    """Append one record of these events, and write the checkpoint that belongs to it."""
    entries = [Entry(len(events), encode_record(Record(NOW, CONTEXT, encode_events(events))))] if events else []
    assert queue.commit(entries, NOW).checkpoint_error is None


def written_segment(directory: Path) -> bytes:
    """Return the segment of a new queue that got one event."""
    queue = OpenQueue(OsFilesystem(), directory, Limits(max_age=1e9))
    commit(queue, [EVENT])
    queue.close()
    return (directory / "segments" / "00000000000000000001.seg").read_bytes()


def written_record() -> bytes:
    """Return a record in which all is absent that can be."""
    return encode_record(Record(1.0, Context(), encode_events([Event("s", "REMOTE", "MISS", "h")])))


def written_slot(directory: Path) -> bytes:
    """Return the slot of a cursor's first checkpoint, after a commit whose own checkpoint did not come to it."""
    log = Log.recover(
        OsFilesystem(),
        directory / "segments",
        Quarantine(OsFilesystem(), directory / "quarantine"),
        segment_bytes=1 << 20,
    )
    log.append([Entry(4, encode_record(Record(NOW, CONTEXT, encode_events([EVENT] * 4))))], NOW)
    log.seal()
    queue = OpenQueue(OsFilesystem(), directory, Limits(max_age=1e9))
    queue.cursor.settle([Span(1, 2)], Outcome.DELIVERED)
    queue.cursor.settle([Span(3, 4)], Outcome.DEAD_LETTERED)
    queue.cursor.shed(2, Outcome.OVERFLOW)
    queue.cursor.pause = PAUSE
    commit(queue, [])
    data = (directory / "cursor").read_bytes()
    assert len(data) == SLOTS * SLOT_BYTES
    assert not any(data[:SLOT_BYTES])
    slot = data[SLOT_BYTES:]
    return slot[: 14 + int.from_bytes(slot[6:10], "little")]


def written_letter(directory: Path) -> bytes:
    """Return the payload of the only dead letter of a directory."""
    letters = DeadLetters(OsFilesystem(), directory, segment_bytes=1000, max_bytes=1000)
    letters.append(LETTER, NOW)
    letters.close()
    data = (directory / "00000000000000000001.seg").read_bytes()
    return data[segment.HEADER_BYTES + record.HEADER_BYTES :]


def test_the_dump_of_a_segment_is_what_the_code_writes(tmp_path: Path) -> None:
    assert dump("segment") == written_segment(tmp_path / "queue")


def test_the_dump_of_a_record_without_optional_fields_is_what_the_code_writes() -> None:
    assert dump("record") == written_record()


def test_the_dump_of_a_slot_is_what_the_code_writes(tmp_path: Path) -> None:
    assert dump("slot") == written_slot(tmp_path / "queue")


def test_the_dump_of_a_dead_letter_is_what_the_code_writes(tmp_path: Path) -> None:
    assert dump("dead letter") == written_letter(tmp_path / "dead-letters")


def test_the_dumps_have_the_documented_shapes_for_an_independent_msgpack() -> None:
    event = b'{"sessionId":"s-1","source":"LOCAL","event":"HIT","hash":"115c7929ab9c479c","duration":514}\n'
    bare = b'{"sessionId":"s","source":"REMOTE","event":"MISS","hash":"h"}\n'
    assert msgpack.unpackb(dump("segment")[52:]) == [NOW, ["GITHUB_ACTIONS", 0, None], event]
    assert msgpack.unpackb(dump("record")) == [1.0, [None, None, None], bare]
    assert msgpack.unpackb(dump("dead letter")) == [3, NOW + 0.5, 400, "bad hash", ["GITHUB_ACTIONS", 0, None], event]
    pause = ["operator", "paused", NOW, float("inf"), 0]
    counts = {"delivered": 1, "dead_lettered": 1}
    assert msgpack.unpackb(dump("slot")[22:])[:7] == [2, 5, 1, [[3, 4]], counts, {"overflow": 2}, pause]


def test_the_ledger_of_the_dumped_slot_is_the_one_that_the_reference_computes() -> None:
    checkpoint = decode_slot(dump("slot"))
    assert checkpoint is not None
    ledger = Cursor.from_state(checkpoint.state).ledger()
    assert (ledger.accepted, ledger.delivered, ledger.dead_lettered, ledger.queued) == (6, 1, 1, 2)
    assert ledger.dropped == {"overflow": 2}


@pytest.mark.parametrize(
    ("what", "size"),
    [
        ("segment, at most", segment.MAX_BYTES),
        ("segment header", segment.HEADER_BYTES),
        ("frame header", record.HEADER_BYTES),
        ("payload of a frame, at most", record.MAX_PAYLOAD_BYTES),
        ("cursor slot", SLOT_BYTES),
        ("cursor file", SLOTS * SLOT_BYTES),
    ],
)
def test_the_limits_are_those_of_the_code(what: str, size: int) -> None:
    assert f"| {what} | {size} |" in REFERENCE


def test_checksum_marker_modes_and_reasons_are_those_of_the_code() -> None:
    assert f"`{zlib.crc32(b'123456789'):08x}`" in REFERENCE
    assert f"`{record.MARKER.hex(' ')}`" in REFERENCE
    assert f"Directories have mode 0{DIRECTORY_MODE:o}, files 0{FILE_MODE:o}" in REFERENCE
    assert [f"`{reason}`" for reason in cursor.DROP_REASONS if f"`{reason}`" not in REFERENCE] == []


def slot_of(state: object) -> bytes:
    """Return a slot with any msgpack as its state."""
    body = (1).to_bytes(8, "little") + msgspec.msgpack.encode(state)
    return b"AAQC\x01\0" + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def test_more_elements_and_other_reasons_in_a_checkpoint_are_compatible() -> None:
    counts = {"delivered": 1, "a reason of tomorrow": 2}
    pause = ["blocked", "402", 1.0, 2.0, 3, "more"]
    checkpoint = decode_slot(slot_of([4, 9, 1, [], counts, {}, pause, 0, [], "more"]))
    assert checkpoint is not None
    assert checkpoint.state == CursorState(4, 9, 1, [], counts, {}, Pause("blocked", "402", 1.0, 2.0, 3))


def test_a_checkpoint_without_one_of_the_first_seven_elements_is_none() -> None:
    assert decode_slot(slot_of([4, 9, 1, [], {}, {}])) is None


def test_a_slot_of_another_version_is_not_valid() -> None:
    slot = bytearray(encode_slot(1, CURSOR_STATE))
    assert decode_slot(bytes(slot)) is not None
    slot[4] = 2
    assert decode_slot(bytes(slot)) is None


@pytest.mark.parametrize(
    "changed",
    [
        {0: True},
        {0: 4.0},
        {3: [[5, 6, 7]]},
        {4: {b"delivered": 3}},
        {4: {"delivered": 3.0}},
        {6: ["operator", "paused", NOW, NOW]},
        {6: ["a reason of tomorrow", "paused", -1.0, NOW, 0]},
        {7: None},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_shape_is_none(changed: dict[int, object]) -> None:
    good: list[object] = [4, 9, 1, [], {"delivered": 3}, {}, None, 0]
    assert decode_slot(slot_of(good)) is not None
    assert decode_slot(slot_of([changed.get(index, value) for index, value in enumerate(good)])) is None


def test_of_two_slots_with_the_same_generation_the_first_counts() -> None:
    newest = newest_in([encode_slot(7, CURSOR_STATE), encode_slot(7, CursorState(2, 2, 2, [], {}, {}, None))])
    assert newest is not None
    assert newest.state == CURSOR_STATE


def test_a_name_that_is_no_file_says_nothing_of_the_numbers(tmp_path: Path) -> None:
    (tmp_path / "segments" / segment.name(7)).mkdir(parents=True)
    found = read_queue(OsFilesystem(), tmp_path)
    assert (found.cursor.position, found.cursor.next_seq, found.cursor.ledger().accepted) == (1, 1, 0)


DEEP: Final = b"\x91" * 10_000 + b"\xc0"


def test_what_is_nested_too_deeply_is_of_another_shape() -> None:
    state = b"\x99" + msgpack.packb([4, 9, 1, [], {"delivered": 3}, {}, None, 0])[1:] + DEEP
    assert decode_slot(slot_of(msgspec.Raw(state))) is None
    context = b"\x93\xc0\xc0" + DEEP
    with pytest.raises(msgspec.DecodeError):
        decode_record(b"\x93" + msgpack.packb(1.0) + context + msgpack.packb(LINE))
    letter = b"\x96" + msgpack.packb([1, 1.0, None, "m"])[1:] + context + msgpack.packb(LINE)
    assert dead_letter_in(record.Frame(1, 1, letter, 0)) is None


LINE: Final = b'{"sessionId":"s","source":"LOCAL","event":"HIT","hash":"h"}\n'


@pytest.mark.parametrize("context", [[], ["ci"], ["ci", 1], ["ci", 1, "more"]])
def test_a_context_may_have_fewer_elements_or_more(context: list[object]) -> None:
    found = decode_record(msgpack.packb([1, context, LINE])).context
    assert [found.ci, found.interactive] == [*context, None, None][:2]


@pytest.mark.parametrize(
    "payload",
    [
        [1.0, [None, None], LINE, "more"],
        [1.0, [None, None]],
        [1.0, [None, None], [LINE]],
        [1.0, [None, None], LINE.decode()],
    ],
    ids=["another element", "an element too few", "an array of lines", "lines as a string"],
)
def test_a_record_of_another_shape_is_refused_as_a_whole(payload: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_record(msgpack.packb(payload))
