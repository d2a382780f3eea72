"""A flush against whatever can happen to a queue meanwhile: its report is of exactly the events accepted before it."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import anyio
import pytest

from agent.control_flush import VERDICT_HEADER, FlushRoute, Listener
from agent.delivery.letters import LetterSelection
from agent.delivery.policy import Settings
from agent.delivery.source import Options, Seams
from agent.events import Context
from agent.http_server import Request
from agent.pipeline import Pipeline
from agent.queue.search import Search
from agent.queue.store import Limits
from agent.upkeep import changes
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport, reject
from tests.support.fault_filesystem import failing, no_errors
from tests.support.pipelines import (
    DIRECTORY,
    Host,
    balanced,
    dead_letters,
    event,
    events,
    host,
    inline,
    numbered,
    submit,
    submit_events,
)
from tests.support.stories import BLOCKED, TRANSIENT

T = TypeVar("T")

pytestmark = pytest.mark.anyio

MINE = "my session"
EVERYTHING = LetterSelection()


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


class Answered(NamedTuple):
    """What a flush answered; `verdict` is what its exit code goes by."""

    status: int
    report: dict[str, Any]
    verdict: dict[str, Any]


def counts(delivered: int = 0, queued: int = 0, dead_lettered: int = 0, **dropped: int) -> dict[str, Any]:
    """Return a report."""
    return {"delivered": delivered, "queued": queued, "dead_lettered": dead_lettered, "dropped": dropped}


async def ask(
    pipeline: Pipeline,
    deadline: float = 60.0,
    listeners: Sequence[Listener] = (),
    hung_up: Callable[[], Awaitable[None]] = anyio.sleep_forever,
    session: str | None = None,
) -> Answered:
    """Ask for a flush."""
    ((method, path), route), *_ = FlushRoute([pipeline], listeners).routes().items()
    query = {"deadline": str(deadline)} | ({} if session is None else {"session": session})
    request = Request(method, path, query, {}, b"", hung_up)
    response = await route(request)
    value, headers = json.loads(response.body), dict(response.headers)
    return Answered(response.status, value, json.loads(headers.get(VERDICT_HEADER, "null")))


@dataclass
class Asked:
    """A flush that is under way; `answered` once it has ended."""

    answers: list[Answered] = field(default_factory=list)
    ended: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, pipeline: Pipeline, deadline: float, session: str | None) -> None:
        self.answers.append(await ask(pipeline, deadline, session=session))
        self.ended.set()

    async def answer(self) -> Answered:
        await self.ended.wait()
        return self.answers[0]


async def begun(host: Host, deadline: float = 60.0, session: str | None = None) -> Asked:
    """Begin a flush, and return when its barrier is there."""
    asked, watchers = Asked(), host.pipeline.store.cursor.watchers
    before = len(watchers)
    host.tasks.start_soon(asked.run, host.pipeline, deadline, session)
    while len(watchers) == before:
        await anyio.lowlevel.checkpoint()
    return asked


@asynccontextmanager
async def flushable(transport: FakeTransport, **settings: Any) -> AsyncIterator[tuple[Host, Pipeline]]:
    """A pipeline that delivers to `transport`."""
    async with host() as h:
        h.transport = transport
        for name, value in settings.items():
            setattr(h, name, value)
        yield h, h.start()


async def test_events_that_are_accepted_after_the_call_never_count_even_if_they_are_delivered_first() -> None:
    transport, slow, go_on = FakeTransport(), Context("SLOW"), anyio.Event()

    async def before(context: Context) -> None:
        if context == slow:
            await go_on.wait()

    transport.before = before
    async with flushable(transport, settings=Settings(max_events=5, concurrency=3)) as (h, pipeline):
        await submit(pipeline, numbered(100, "warm")).wait()
        await pipeline.flush()
        await submit(pipeline, numbered(5), slow).wait()
        flush = await begun(h)
        await submit(pipeline, numbered(30, "later")).wait()
        await transport.wait_until(lambda t: len(t.taken) == 130)
        assert not flush.ended.is_set()
        go_on.set()
        assert await flush.answer() == (200, counts(105), counts(5))
        assert pipeline.ledger().delivered == 135


async def test_a_flush_waits_for_no_batch_timer_and_the_timers_hold_again_after_it() -> None:
    transport = FakeTransport()
    async with flushable(transport, options=Options(max_delay=3600.0)) as (_, pipeline):
        for number in range(60):
            submit(pipeline, [f"h{number}"], Context(f"CI_{number}"))
        assert await ask(pipeline) == (200, counts(60), counts(60))
        assert anyio.current_time() < 1
        await submit(pipeline, ["after"]).wait()
        await anyio.sleep(3599)
        assert len(transport.taken) == 60
        await anyio.sleep(10)
        assert len(transport.taken) == 61


async def test_several_flushes_at_once_report_each_of_its_own_moment() -> None:
    transport = FakeTransport()
    transport.hold()
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        first = await begun(h)
        await submit(pipeline, numbered(4, "more")).wait()
        second = await begun(h)
        short = await begun(h, 1.0)
        assert await short.answer() == (504, counts(queued=7), counts(queued=7))
        transport.release()
        assert await first.answer() == (200, counts(3), counts(3))
        assert await second.answer() == (200, counts(7), counts(7))
        assert pipeline.store.cursor.watchers == []


async def test_a_pause_is_waited_out_and_what_it_keeps_is_reported_as_queued() -> None:
    transport = FakeTransport(lambda _c, _e: BLOCKED)
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        assert await ask(pipeline, 10.0) == (504, counts(queued=3), counts(queued=3))
        flush = await begun(h)
        await submit(pipeline, numbered(2, "more")).wait()
        transport.rule = lambda _c, _e: ACCEPTED
        pipeline.resume()
        assert await flush.answer() == (200, counts(3), counts(3))


async def test_a_batch_that_is_bisected_is_reported_event_by_event() -> None:
    transport = FakeTransport(reject("h3", "h50", "h99"))
    async with flushable(transport) as (_, pipeline):
        await submit(pipeline, numbered(100)).wait()
        assert await ask(pipeline) == (200, counts(97, 0, 3), counts(97, 0, 3))
        assert await ask(pipeline) == (200, counts(97, 0, 3), counts())


async def test_what_overflow_takes_of_the_events_before_is_reported_as_dropped() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    limits = Limits(segment_bytes=2048, max_bytes=8192)
    async with flushable(transport, limits=limits) as (h, pipeline):
        await submit(pipeline, numbered(10)).wait()
        flush = await begun(h)
        for number in range(30):
            await submit(pipeline, numbered(10, f"n{number}-")).wait()
        assert await flush.answer() == (200, counts(overflow=10), counts(overflow=10))
        assert pipeline.ledger().dropped["overflow"] > 10


async def test_what_expires_meanwhile_is_reported_as_dropped() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with flushable(transport, options=Options(max_age=10), limits=Limits(max_age=10)) as (h, pipeline):
        pipeline.pause()
        await submit(pipeline, numbered(3)).wait()
        flush = await begun(h)
        await anyio.sleep(8)
        await submit(pipeline, numbered(2, "young")).wait()
        await anyio.sleep(4)
        pipeline.resume()
        assert await flush.answer() == (200, counts(expired=3), counts(expired=3))


async def test_what_is_purged_meanwhile_is_reported_as_dropped() -> None:
    transport = FakeTransport()
    async with flushable(transport) as (h, pipeline):
        pipeline.pause()
        await submit(pipeline, numbered(3)).wait()
        flush = await begun(h)
        await submit(pipeline, numbered(2, "more")).wait()
        assert (await changes.purge(pipeline, 5.0)).purged == 5
        assert await flush.answer() == (200, counts(purged=3), counts(purged=3))


async def test_dead_letters_that_are_put_back_meanwhile_are_new_events() -> None:
    transport = FakeTransport(reject("h0", "h1"))
    async with flushable(transport) as (h, pipeline):
        await submit(pipeline, numbered(3)).wait()
        await pipeline.flush()
        transport.hold()
        await submit(pipeline, ["waits"]).wait()
        flush = await begun(h)
        assert (await changes.retry(pipeline, EVERYTHING)).retried == 2
        transport.rule = lambda _c, _e: ACCEPTED
        transport.release()
        assert await flush.answer() == (200, counts(2, 0, 2), counts(1))
        assert (await ask(pipeline))[:2] == (200, counts(4, 0, 2))
        assert balanced(pipeline)


async def test_a_crash_in_between_leaves_a_ledger_that_the_next_flush_reports_of() -> None:
    transport = FakeTransport(reject("h1"))
    async with flushable(transport, settings=Settings(max_events=2)) as (h, pipeline):
        await submit(pipeline, numbered(4)).wait()
        await pipeline.flush()
        transport.hold()
        await submit(pipeline, numbered(3, "more")).wait()
        await begun(h)
        await h.kill()
        transport.release()
        assert await ask(h.start()) == (200, counts(6, 0, 1), counts(3))


async def test_what_the_disk_refuses_of_the_events_before_is_reported_as_dropped() -> None:
    async with flushable(FakeTransport()) as (h, pipeline):
        h.fs.errors = failing("pwrite", 28)
        submit(pipeline, numbered(3))
        pipeline.shed(2)
        answered = await ask(pipeline)
        assert answered.report["dropped"] == {"stalled": 2, "disk_full": 3}
        assert answered.verdict["dropped"] == {"disk_full": 3}
        h.fs.errors = no_errors


class Deaf:
    """A listener that never catches up."""

    async def catch_up(self) -> None:
        await anyio.sleep_forever()


async def test_a_flush_that_could_not_take_what_was_written_does_not_say_that_all_has_left() -> None:
    async with flushable(FakeTransport()) as (_, pipeline):
        for session in (None, "s"):
            assert (await ask(pipeline, 5.0, [Deaf()], session=session)).status == 504


@pytest.mark.parametrize("session", [None, "s"])
async def test_a_client_that_hangs_up_ends_its_flush(session: str | None) -> None:
    transport = FakeTransport()
    transport.hold()
    async with flushable(transport) as (_, pipeline):
        await submit(pipeline, numbered(3)).wait()
        hung_up = anyio.Event()

        async def hang_up() -> None:
            await anyio.sleep(5)
            assert len(pipeline.store.cursor.watchers) == 1
            hung_up.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang_up)
            answered = await ask(pipeline, 3600.0, hung_up=hung_up.wait, session=session)
        assert answered.status == 408
        assert anyio.current_time() < 6
        assert pipeline.store.cursor.watchers == []


# --- One session ----------------------------------------------------------------------------------------------------


async def test_a_sessions_report_is_of_its_events_that_left_and_of_those_that_are_queued() -> None:
    transport = FakeTransport(reject("bad0", "bad1", "bad2"))
    async with flushable(transport) as (h, pipeline):
        submit_events(pipeline, [event("a", MINE), event("bad0", MINE), *events("b", "bad1"), event("c", MINE)])
        await pipeline.flush()
        transport.hold()
        submit_events(pipeline, [event(f"h{number}", MINE if number % 3 else "s") for number in range(30)])
        submit_events(pipeline, [event("bad2", MINE), event("d", MINE)])
        await pipeline.commit_once()
        flush = await begun(h, session=MINE)
        submit_events(pipeline, [event("too late", MINE)])
        assert (await ask(pipeline, 1.0, session=MINE))[:2] == (504, counts(2, 23, 1))
        transport.release()
        assert await flush.answer() == (200, counts(23, 0, 2), counts(23, 0, 2))
        assert await ask(pipeline, session="s") == (200, counts(11, 0, 1), counts(11, 0, 1))
        assert await ask(pipeline, session="nobody") == (200, counts(), counts())


@pytest.mark.parametrize("session", ["", '"', "a\\", "é🦀", '","source":"', "x" * 300, "a&b=c d%20+"])
async def test_a_session_is_found_whatever_it_is_called(session: str) -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with flushable(transport) as (_, pipeline):
        submit_events(pipeline, [event("a", session), event("b", session + "x"), event("c", session)])
        assert (await ask(pipeline, 1.0, session=session)).report == counts(queued=2)
        transport.rule = lambda _c, _e: ACCEPTED
        assert (await ask(pipeline, session=session)).report == counts(2)
        assert (await ask(pipeline, session=session)).report == counts(2)


@dataclass
class SearchedHost(Host):
    """A host on which a search waits, before its first segment, until `go_on` is set."""

    searching: anyio.Event = field(default_factory=anyio.Event)
    go_on: anyio.Event = field(default_factory=anyio.Event)

    @property
    def seams(self) -> Seams:
        """What stands for threads, clocks and chance."""
        return Seams(self._run_blocking, self.wall_clock, lambda: self.jitter)

    async def _run_blocking(self, call: Callable[[], T]) -> T:
        if isinstance(call, partial) and isinstance(getattr(call.func, "__self__", None), Search):
            self.searching.set()
            await self.go_on.wait()
        return await inline(call)


@asynccontextmanager
async def searched(transport: FakeTransport, limits: Limits) -> AsyncIterator[tuple[SearchedHost, Pipeline, Asked]]:
    """A pipeline with 40 events, 20 of them of the session, in several segments; a flush of it has just begun its search."""
    async with host() as plain:
        h = SearchedHost(plain.tasks, transport, limits=limits, settings=Settings(max_events=4))
        pipeline = h.start()
        transport.hold()
        for number in range(10):
            await submit_events(
                pipeline, [event(f"{number}-{each}", MINE if each % 2 else "s") for each in range(4)]
            ).wait()
        flush = await begun(h, session=MINE)
        await h.searching.wait()
        assert len(segments(h)) > 3
        yield h, pipeline, flush


def segments(host: Host) -> list[str]:
    """Return the names of the queue's segments."""
    return host.fs.names(DIRECTORY / "segments")


async def all_settled(pipeline: Pipeline) -> None:
    """Return when nothing is queued, and that is committed."""
    await pipeline.flush()
    await pipeline.commit_once()


async def test_what_is_delivered_while_the_queue_is_searched_is_counted_once() -> None:
    transport = FakeTransport(reject("3-1", "5-0"))
    async with searched(transport, Limits(segment_bytes=600)) as (h, pipeline, flush):
        transport.release()
        await all_settled(pipeline)
        assert len(segments(h)) > 3
        assert not flush.ended.is_set()
        h.go_on.set()
        assert (await flush.answer()).report == counts(19, 0, 1)
        await pipeline.commit_once()
        assert len(segments(h)) == 1
        assert (await ask(pipeline, session=MINE)).report == counts(19, 0, 1)


async def test_what_is_purged_while_the_queue_is_searched_is_counted() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with searched(transport, Limits(segment_bytes=600)) as (h, pipeline, flush):
        transport.release()
        assert (await changes.purge(pipeline, 5.0)).purged == 40
        h.go_on.set()
        assert (await flush.answer()).report == counts(purged=20)
        await pipeline.commit_once()
        assert len(segments(h)) == 1


async def test_a_search_keeps_no_room_that_a_full_disk_needs() -> None:
    transport = FakeTransport()
    async with searched(transport, Limits(segment_bytes=600, min_free_bytes=1)) as (h, pipeline, flush):
        transport.release()
        await all_settled(pipeline)
        h.fs.capacity = 0
        await pipeline.commit_once()
        h.fs.capacity = None
        assert len(segments(h)) == 1
        h.go_on.set()
        assert (await flush.answer()).status == 200
        assert balanced(pipeline)


async def test_a_session_is_searched_for_even_after_the_deadline() -> None:
    async with searched(FakeTransport(), Limits(segment_bytes=600)) as (h, pipeline, _):
        flush = await begun(h, 0.5, session="s")
        await anyio.sleep(10)
        assert not flush.ended.is_set()
        h.go_on.set()
        assert (await flush.answer())[:2] == (504, counts(queued=20))
        assert pipeline.store.readers == set()


async def test_a_search_that_finds_no_free_descriptor_says_so() -> None:
    async with searched(FakeTransport(), Limits(segment_bytes=600)) as (h, pipeline, flush):
        h.fs.errors = failing("open", 24)
        h.go_on.set()
        answered = await flush.answer()
        h.fs.errors = no_errors
        assert answered.status == 507
        assert "cannot be read" in answered.report["error"]["message"]
        assert pipeline.store.readers == set()


async def test_events_that_cannot_be_read_are_no_sessions() -> None:
    async with searched(FakeTransport(), Limits(segment_bytes=600)) as (h, _, flush):
        h.fs.flip(DIRECTORY / "segments" / segments(h)[1], 70, 1)
        h.go_on.set()
        h.transport.release()  # type: ignore[attr-defined]
        answered = await flush.answer()
        assert answered.report["delivered"] in {16, 18}
        assert (answered.status, answered.report["queued"]) == (200, 0)
        assert dead_letters(h.fs) == []
