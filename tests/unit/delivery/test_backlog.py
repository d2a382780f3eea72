"""Where batches come from: what is read, trimmed, split, put back and forgotten, without a worker."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from agent.delivery.backlog import MAX_HELD_BYTES, MAX_HELD_SPANS, READ_ATTEMPTS, BatchOptions, DiskBacklog
from agent.delivery.batching import Batch
from agent.events import Context, Event, decode_events, encode_events, to_json_array
from agent.queue.cursor import Outcome, Span
from agent.queue.log import Entry
from agent.queue.ownership import Inline
from agent.queue.record import Record, encode_record
from agent.queue.store import Limits
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.fault_filesystem import FaultFilesystem, no_errors
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import DIRECTORY, EPOCH, PLAIN, events, inline, numbered

pytestmark = pytest.mark.anyio


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class Bench:
    """A store, and a source that reads it. The wall clock goes with the steady one."""

    def __init__(self, options: BatchOptions | None = None, limits: Limits | None = None) -> None:
        self.fs = FaultFilesystem()
        self.queue = OpenQueue(self.fs, DIRECTORY, limits or Limits())
        self.source = self.new_source(options or BatchOptions(max_delay=2.0))

    def new_source(self, options: BatchOptions) -> DiskBacklog:
        """Return another source of the same store."""
        return DiskBacklog(
            self.queue.store,
            Inline(self.queue.writer),
            options,
            Runtime(inline, lambda: EPOCH + anyio.current_time(), lambda: 0.5),
        )

    def restart(self) -> None:
        """Open the same queue anew, as another process does."""
        self.queue.close()
        self.queue = OpenQueue(self.fs, DIRECTORY, Limits())
        self.source = self.new_source(BatchOptions(max_delay=2.0))

    def enqueue(self, *names: str, context: Context = PLAIN) -> None:
        """Commit one record."""
        self.enqueue_payload(len(names), encode_record(Record(self._now, context, encode_events(events(*names)))))

    def enqueue_payload(self, count: int, payload: bytes) -> None:
        """Commit a frame with any payload."""
        assert self.queue.commit([Entry(count, payload)], self._now).append_error is None

    async def batches(self, max_events: int = 100) -> list[Batch]:
        """Read all there is and return it in batches, open ones too."""
        while await self.source.read(max_events):
            pass
        self.source.close_due(anyio.current_time(), at_once=True)
        return self.take(max_events)

    def take(self, max_events: int = 100) -> list[Batch]:
        """Return the batches that are ready."""
        found = []
        while (batch := self.source.next_batch(max_events)) is not None:
            found.append(batch)
        return found

    @property
    def _now(self) -> float:
        return EPOCH + anyio.current_time()


def names(batch: Batch) -> list[str]:
    """Return the events' hashes."""
    return [event.hash for event in decode_events(batch.lines)]


async def test_events_come_once_in_order_with_their_numbers() -> None:
    bench = Bench()
    bench.enqueue(*numbered(5))
    bench.enqueue(*numbered(5, "later"))
    (batch,) = await bench.batches()
    assert names(batch) == numbered(5) + numbered(5, "later")
    assert batch.spans == (Span(1, 11),)
    assert await bench.batches() == []


async def test_what_is_settled_is_trimmed() -> None:
    bench = Bench()
    bench.enqueue(*numbered(10))
    bench.queue.cursor.settle([Span(1, 3), Span(5, 6), Span(9, 11)], Outcome.DELIVERED)
    (batch,) = await bench.batches()
    assert names(batch) == ["h2", "h3", "h5", "h6", "h7"]
    assert batch.spans == (Span(3, 5), Span(6, 9))


async def test_after_forget_reading_begins_at_the_cursor_with_nothing_skipped_or_repeated() -> None:
    bench = Bench()
    bench.enqueue(*numbered(10))
    await bench.source.read(3)
    first = bench.source.next_batch(3)
    assert first is not None
    bench.queue.cursor.settle(first.spans, Outcome.DELIVERED)
    bench.source.forget()
    later = await bench.batches(3)
    assert names(first) + [name for batch in later for name in names(batch)] == numbered(10)


async def test_batches_that_come_back_are_next_the_oldest_first() -> None:
    bench = Bench()
    bench.enqueue(*numbered(9))
    await bench.source.read(3)
    first, second = bench.source.next_batch(3), bench.source.next_batch(3)
    assert first is not None
    assert second is not None
    bench.source.put_back(first)
    bench.source.put_back(*second.split())
    assert [names(batch) for batch in bench.take()] == [["h0", "h1", "h2"], ["h3", "h4"], ["h5"], ["h6", "h7", "h8"]]


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_a_smaller_limit_splits_what_is_ready(limit: int) -> None:
    bench = Bench()
    bench.enqueue(*numbered(20))
    await bench.source.read(20)
    found = bench.take(limit)
    assert all(0 < batch.event_count <= limit for batch in found)
    assert [name for batch in found for name in names(batch)] == numbered(20)
    assert [seq for batch in found for span in batch.spans for seq in range(*span)] == list(range(1, 21))


@pytest.mark.parametrize("opened_at", [0.1, 0.3, 0.7, 1.1, 234567.891])
async def test_a_batch_is_ready_at_the_moment_that_due_at_names(opened_at: float) -> None:
    bench = Bench(BatchOptions(max_delay=2.0))
    bench.enqueue("h0")
    await anyio.sleep_until(opened_at)
    await bench.source.read(100)
    due = bench.source.due_at
    assert due == pytest.approx(opened_at + 2.0)
    assert not bench.source.close_due(due - 0.01, at_once=False)
    assert bench.source.close_due(due, at_once=False)
    assert bench.source.due_at == float("inf")


async def test_what_is_too_old_is_settled_as_expired_and_counted() -> None:
    bench = Bench(BatchOptions(max_age=10))
    bench.enqueue(*numbered(3))
    await anyio.sleep(11)
    bench.enqueue("young")
    assert [names(batch) for batch in await bench.batches()] == [["young"]]
    assert bench.queue.cursor.ledger().dropped == {"expired": 3}
    assert bench.source.settled == 3


FIVE = encode_events(events("a", "b", "c", "d", "e"))
NOT_FIVE = {
    "fewer lines": encode_events(events("a", "b")),
    "more lines": FIVE + encode_events(events("f")),
    "no lines": b"",
    "no last line end": FIVE[:-1],
    "more behind the last line end": FIVE + b"{}",
}


def record(lines: bytes) -> bytes:
    """Return a record with any text as its lines, as bytes."""
    return encode_record(Record(EPOCH, PLAIN, lines))


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", *(pytest.param(record(lines), id=name) for name, lines in NOT_FIVE.items())]
)
async def test_a_frame_that_is_no_record_is_settled_as_corrupt_and_kept(payload: bytes) -> None:
    bench = Bench()
    bench.enqueue("before")
    bench.enqueue_payload(5, payload)
    bench.restart()
    bench.enqueue("after")
    assert [names(batch) for batch in await bench.batches()] == [["before", "after"]]
    assert bench.queue.cursor.ledger().dropped == {"corrupt": 5}
    assert bench.source.settled == 5
    (kept,) = [path for path in bench.fs.paths() if path.parent.name == "quarantine"]
    assert bench.fs.read_bytes(kept) == payload


async def test_a_gap_is_settled_as_corrupt() -> None:
    bench = Bench(limits=Limits(segment_bytes=200))
    for number in range(3):
        bench.enqueue(*numbered(3, f"n{number}-"))
    second = sorted(path for path in bench.fs.paths() if path.parent.name == "segments")[1]
    bench.fs.unlink(second)
    (batch,) = await bench.batches()
    assert names(batch) == numbered(3, "n0-") + numbered(3, "n2-")
    assert bench.queue.cursor.ledger().dropped == {"corrupt": 3}


@pytest.mark.parametrize(("code", "lost"), [(errno.EIO, True), (errno.EMFILE, False), (errno.EACCES, False)])
async def test_only_what_the_disk_says_is_damaged_is_given_up(code: int, lost: bool) -> None:
    bench = Bench()
    bench.enqueue(*numbered(3))
    bench.fs.errors = _unreadable(code)
    for _ in range(3 * READ_ATTEMPTS):
        more = await bench.source.read(100)
        assert more or lost
    assert bench.queue.cursor.ledger().dropped == ({"corrupt": 3} if lost else {})
    bench.fs.errors = no_errors
    assert [names(batch) for batch in await bench.batches()] == ([] if lost else [numbered(3)])


async def test_contexts_that_take_turns_hold_a_bounded_number_of_spans() -> None:
    bench = Bench(BatchOptions(max_delay=1e9))
    for number in range(4 * MAX_HELD_SPANS):
        bench.enqueue(f"h{number}", context=Context("AB"[number % 2]))
    while await bench.source.read(10**6):
        pass
    found = bench.take(10**6)
    assert all(len(batch.spans) <= MAX_HELD_SPANS for batch in found)
    assert sum(batch.event_count for batch in found) >= 3 * MAX_HELD_SPANS


async def test_however_many_contexts_take_turns_what_is_held_open_is_bounded() -> None:
    bench = Bench(BatchOptions(max_delay=1e9, max_bytes=MAX_HELD_BYTES))
    for number in range(40):
        bench.enqueue("x" * 200_000, context=Context(str(number)))
    while await bench.source.read(10**6):
        pass
    ready = bench.take(10**6)
    assert sum(len(batch.lines) for batch in ready) >= MAX_HELD_BYTES
    assert bench.source.close_due(anyio.current_time(), at_once=True)
    assert sum(len(batch.lines) for batch in bench.take(10**6)) <= MAX_HELD_BYTES
    assert bench.queue.cursor.queued == 40


async def test_a_batch_of_many_spans_is_split() -> None:
    bench = Bench(BatchOptions(max_delay=1e9))
    bench.enqueue(*numbered(2400))
    bench.queue.cursor.settle([Span(seq, seq + 1) for seq in range(2, 2400, 2)], Outcome.DELIVERED)
    found = await bench.batches(10**6)
    assert sum(batch.event_count for batch in found) == 1201
    assert all(len(batch.spans) <= MAX_HELD_SPANS for batch in found)


async def test_split_sessions_gives_each_session_its_own_batches() -> None:
    bench = Bench(BatchOptions(split_sessions=True))
    mixed = [each.__class__(f"s{n % 2}", "LOCAL", "HIT", each.hash, 0) for n, each in enumerate(events(*numbered(6)))]
    bench.enqueue_payload(6, encode_record(Record(EPOCH, PLAIN, encode_events(mixed))))
    found = await bench.batches()
    assert [names(batch) for batch in found] == [["h0", "h2", "h4"], ["h1", "h3", "h5"]]
    assert found[0].spans == (Span(1, 2), Span(3, 4), Span(5, 6))


async def test_split_sessions_gives_events_the_numbers_and_the_bytes_that_they_have() -> None:
    bench = Bench(BatchOptions(split_sessions=True))
    mixed = [Event(session, "REMOTE", "MISS", name, 1.5) for session, name in ("a1", "a2", "b3", "ü4", "a5", "a6")]
    bench.enqueue_payload(6, record(encode_events(mixed)))
    bench.queue.cursor.settle([Span(2, 3), Span(5, 6)], Outcome.DELIVERED)
    found = await bench.batches()
    assert [(batch.spans, batch.lines) for batch in found] == [
        ((Span(1, 2), Span(6, 7)), encode_events([mixed[0], mixed[5]])),
        ((Span(3, 4),), encode_events([mixed[2]])),
        ((Span(4, 5),), encode_events([mixed[3]])),
    ]


@pytest.mark.parametrize("max_events", [1, 3, 100])
async def test_no_body_is_larger_than_max_bytes(max_events: int) -> None:
    bench = Bench(BatchOptions(max_bytes=1000))
    for number in range(30):
        bench.enqueue(*("x" * (number * 7 % 50) for _ in range(number % 5 + 1)))
    found = await bench.batches(max_events)
    assert all(len(to_json_array(batch.lines)) <= 1000 for batch in found)
    assert sum(batch.event_count for batch in found) == bench.queue.cursor.queued


FOREIGN = [
    pytest.param(b"\n\n\n", id="blank lines"),
    pytest.param(b"x\n\xff\n\0\n", id="not JSON"),
    pytest.param(b"[]\n{}\nnull\n", id="not events"),
    pytest.param(encode_events(events("a", "b")) + b"\n", id="fewer events than lines"),
    pytest.param(encode_events(events("a")) * 2 + encode_events(events("b")).rstrip() * 2 + b"\n", id="more events"),
    pytest.param(encode_events(events("a", "b"))[:-2] + b"\n}\n", id="an event on two lines"),
    pytest.param(b"\r" * 10 + b"\n\n\n", id="other line ends"),
]


@pytest.mark.parametrize("split_sessions", [False, True])
@pytest.mark.parametrize("lines", FOREIGN)
async def test_whatever_text_a_record_holds_each_of_its_lines_is_sent_once_with_its_number(
    lines: bytes, split_sessions: bool
) -> None:
    bench = Bench(BatchOptions(split_sessions=split_sessions))
    bench.enqueue("before")
    bench.enqueue_payload(3, record(lines))
    bench.enqueue("after")
    found = await bench.batches()
    assert sorted(seq for batch in found for span in batch.spans for seq in range(*span)) == [1, 2, 3, 4, 5]
    sent = {batch.spans[0].start: batch for batch in found}
    assert all(batch.lines.count(b"\n") == batch.event_count for batch in found)
    assert b"".join(sent[seq].lines for seq in sorted(sent)).count(lines) == 1


def _unreadable(code: int) -> Callable[[str, Path], OSError | None]:
    def rule(operation: str, path: Path) -> OSError | None:
        return OSError(code, "no") if operation in {"open", "pread"} and path.parent.name == "segments" else None

    return rule
