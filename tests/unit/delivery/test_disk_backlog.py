"""The backlog on disk: what is read, trimmed, split and given up, without a worker. Its contract is tested elsewhere."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest

from agent.delivery.batch_size import Size
from agent.delivery.batching import Batch, BatchOptions
from agent.delivery.disk_backlog import MAX_OPEN_SPANS, READ_ATTEMPTS, DiskBacklog
from agent.delivery.ready import MAX_HELD_BYTES, MAX_HELD_SPANS
from agent.events import Context, Event, decode_events, encode_events
from agent.queue.committer import Committer
from agent.queue.cursor import Outcome, Span
from agent.queue.dead_letters import DeadLetters
from agent.queue.log import Entry
from agent.queue.ownership import Exclusive, Inline
from agent.queue.record import Record, encode_record
from agent.queue.store import Limits
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.fault_filesystem import FaultFilesystem, no_errors
from tests.support.json_array import to_json_array
from tests.support.open_queue import OpenQueue
from tests.support.pipelines import DIRECTORY, EPOCH, PLAIN, events, inline, numbered

pytestmark = pytest.mark.anyio
T = TypeVar("T")


def limited(max_events: int, max_bytes: int = 1 << 20) -> Size:
    """A limit that is one of events, unless it says otherwise."""
    return Size(max_events, max_bytes)


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class Bench:
    """A store, and a backlog that reads it. The wall clock goes with the steady one; `threads` counts the blocking calls."""

    def __init__(self, options: BatchOptions | None = None, limits: Limits | None = None) -> None:
        self.fs = FaultFilesystem()
        self.limits = limits or Limits()
        self.threads = 0
        self.open(options or BatchOptions(max_delay=2.0))

    def open(self, options: BatchOptions) -> None:
        """Open the queue."""
        runtime = Runtime(self._run_blocking, lambda: self._now, lambda: 0.5)
        self.queue = OpenQueue(self.fs, DIRECTORY, self.limits)
        writer = Exclusive(self.queue.writer, lambda writer: writer.quarantined, self._run_blocking)
        self.committer = Committer(self.queue.store, writer, wall_clock=runtime.wall_clock)
        dead_letters = Inline(DeadLetters.beside(self.fs, DIRECTORY, self.limits))
        self.backlog = DiskBacklog(self.queue.store, writer, self.committer, dead_letters, options, runtime)

    def restart(self) -> None:
        """Open the same queue anew, as another process does."""
        self.queue.close()
        self.open(BatchOptions(max_delay=2.0))

    async def settle(self, batch: Batch) -> None:
        """Settle a batch as delivered, and commit that."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.backlog.settle, batch, Outcome.DELIVERED)
            await self.committer.commit_next()

    async def _run_blocking(self, call: Callable[[], T]) -> T:
        self.threads += 1
        return await inline(call)

    def enqueue(self, *names: str, context: Context = PLAIN) -> None:
        """Commit one record."""
        self.enqueue_payload(len(names), encode_record(Record(self._now, context, encode_events(events(*names)))))

    def enqueue_payload(self, count: int, payload: bytes) -> None:
        """Commit a frame with any payload."""
        assert self.queue.commit([Entry(count, payload)], self._now).append_error is None

    async def read_all(self, max_events: int = 100, max_bytes: int = 1 << 20) -> list[Batch]:
        """Read all there is and return the batches that are full."""
        found = []
        while True:
            if (batch := await self.backlog.next_batch(limited(max_events, max_bytes), at_once=False)) is not None:
                found.append(batch)
            elif self.backlog.due_at > anyio.current_time():
                return found

    async def batches(self, max_events: int = 100, max_bytes: int = 1 << 20) -> list[Batch]:
        """Read all there is and return it in batches, open ones too."""
        found = await self.read_all(max_events, max_bytes)
        while (batch := await self.backlog.next_batch(limited(max_events, max_bytes), at_once=True)) is not None:
            found.append(batch)
        return found

    @property
    def _now(self) -> float:
        return EPOCH + anyio.current_time()


def names(batch: Batch) -> list[str]:
    """Return the events' hashes."""
    return [event.hash for event in decode_events(batch.lines)]


async def test_what_is_settled_is_trimmed() -> None:
    bench = Bench()
    bench.enqueue(*numbered(10))
    bench.queue.cursor.settle([Span(1, 3), Span(5, 6), Span(9, 11)], Outcome.DELIVERED)
    (batch,) = await bench.batches()
    assert names(batch) == ["h2", "h3", "h5", "h6", "h7"]
    assert batch.spans == (Span(3, 5), Span(6, 9))


async def test_nothing_to_read_takes_no_trip_to_a_thread() -> None:
    bench = Bench(BatchOptions(max_delay=60.0))
    assert await bench.backlog.next_batch(limited(100), at_once=False) is None
    assert bench.threads == 0
    bench.enqueue(*numbered(3))
    open_files = bench.fs.open_files
    for _ in range(3):
        assert await bench.backlog.next_batch(limited(100), at_once=False) is None
    assert await bench.backlog.next_batch(limited(100), at_once=True) is not None
    assert bench.threads == 1
    assert bench.fs.open_files == open_files


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_a_smaller_limit_splits_what_is_ready(limit: int) -> None:
    bench = Bench()
    bench.enqueue(*numbered(20))
    whole = await bench.backlog.next_batch(limited(20), at_once=True)
    assert whole is not None
    bench.backlog.put_back(whole)
    found = await bench.batches(limit)
    assert all(0 < batch.event_count <= limit for batch in found)
    assert [name for batch in found for name in names(batch)] == numbered(20)
    assert [seq for batch in found for span in batch.spans for seq in range(*span)] == list(range(1, 21))


@pytest.mark.parametrize("opened_at", [0.1, 0.3, 0.7, 1.1, 234567.891])
async def test_a_batch_is_ready_at_the_moment_that_due_at_names(opened_at: float) -> None:
    bench = Bench(BatchOptions(max_delay=2.0))
    bench.enqueue("h0")
    await anyio.sleep_until(opened_at)
    assert await bench.backlog.next_batch(limited(100), at_once=False) is None
    due = bench.backlog.due_at
    assert due == pytest.approx(opened_at + 2.0)
    await anyio.sleep_until(due - 0.01)
    assert await bench.backlog.next_batch(limited(100), at_once=False) is None
    await anyio.sleep_until(due)
    assert await bench.backlog.next_batch(limited(100), at_once=False) is not None
    assert bench.backlog.due_at == float("inf")


async def test_what_is_too_old_is_settled_as_expired_and_counted() -> None:
    bench = Bench(BatchOptions(max_age=10))
    bench.enqueue(*numbered(3))
    await anyio.sleep(11)
    bench.enqueue("young")
    assert [names(batch) for batch in await bench.batches()] == [["young"]]
    assert bench.queue.cursor.ledger().dropped == {"expired": 3}


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
        assert await bench.backlog.next_batch(limited(100), at_once=True) is None
        assert lost or bench.backlog.due_at <= anyio.current_time()
    assert (bench.backlog.storage_error is None) == lost
    assert bench.queue.cursor.ledger().dropped == ({"corrupt": 3} if lost else {})
    bench.fs.errors = no_errors
    assert [names(batch) for batch in await bench.batches()] == ([] if lost else [numbered(3)])


async def test_contexts_that_take_turns_hold_a_bounded_number_of_spans() -> None:
    bench = Bench(BatchOptions(max_delay=1e9))
    for number in range(4 * MAX_HELD_SPANS):
        bench.enqueue(f"h{number}", context=Context("AB"[number % 2]))
    taken = 0
    while (batch := await bench.backlog.next_batch(limited(10**6), at_once=False)) or bench.backlog.due_at < 0:
        if batch is not None:
            assert len(batch.spans) <= MAX_HELD_SPANS
            taken += batch.event_count
            await bench.settle(batch)
    assert taken >= 3 * MAX_HELD_SPANS


async def test_however_many_contexts_take_turns_what_is_held_open_is_bounded() -> None:
    bench = Bench(BatchOptions(max_delay=1e9))
    for number in range(40):
        bench.enqueue("x" * 200_000, context=Context(str(number)))
    ready = await bench.read_all(10**6, MAX_HELD_BYTES)
    assert sum(len(batch.lines) for batch in ready) >= MAX_HELD_BYTES
    held = await bench.batches(10**6, MAX_HELD_BYTES)
    assert 0 < sum(len(batch.lines) for batch in held) <= MAX_HELD_BYTES
    assert bench.queue.cursor.queued == 40


async def test_a_batch_of_many_spans_is_split_and_sent_alone_while_a_checkpoint_could_not_list_more() -> None:
    bench = Bench(BatchOptions(max_delay=1e9))
    bench.enqueue(*numbered(2 * MAX_OPEN_SPANS + 2))
    bench.queue.cursor.settle([Span(seq, seq + 1) for seq in range(2, 2 * MAX_OPEN_SPANS + 2, 2)], Outcome.DELIVERED)
    first = await bench.backlog.next_batch(limited(10**6), at_once=True)
    assert first is not None
    assert await bench.backlog.next_batch(limited(10**6), at_once=True) is None
    assert bench.backlog.due_at == float("inf")
    await bench.settle(first)
    found = [first, *await bench.batches(10**6)]
    assert all(len(batch.spans) <= MAX_HELD_SPANS for batch in found)
    assert sum(batch.event_count for batch in found) == MAX_OPEN_SPANS + 2


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
    bench = Bench()
    for number in range(30):
        bench.enqueue(*("x" * (number * 7 % 50) for _ in range(number % 5 + 1)))
    found = await bench.batches(max_events, 1000)
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
