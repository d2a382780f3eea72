"""A flush of one session: its report is exact, whatever leaves the queue while the session's events are looked for."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import pytest

from agent.delivery.pipeline import Pipeline
from agent.delivery.policy import DeliverySettings
from agent.queue.maintenance.purge import purge
from agent.queue.search import Search
from agent.queue.store import Limits
from agent.runtime import Runtime
from tests.support import virtual_time
from tests.support.fake_transport import ACCEPTED, FakeTransport, reject
from tests.support.fault_filesystem import failing, no_errors
from tests.support.flushes import Asked, ask, begun, counts, flushable
from tests.support.pipelines import (
    DIRECTORY,
    Host,
    balanced,
    dead_letters,
    event,
    events,
    host,
    inline,
    submit_events,
)
from tests.support.stories import TRANSIENT

T = TypeVar("T")

pytestmark = pytest.mark.anyio

MINE = "my session"


@pytest.fixture(params=virtual_time.NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both backends, with a clock that jumps."""
    return virtual_time.backend(request.param)


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
    def runtime(self) -> Runtime:
        """What stands for threads, clocks and chance."""
        return Runtime(self._run_blocking, self.wall_clock, lambda: self.jitter)

    async def _run_blocking(self, call: Callable[[], T]) -> T:
        if isinstance(call, partial) and isinstance(getattr(call.func, "__self__", None), Search):
            self.searching.set()
            await self.go_on.wait()
        return await inline(call)


@asynccontextmanager
async def searched(transport: FakeTransport, limits: Limits) -> AsyncIterator[tuple[SearchedHost, Pipeline, Asked]]:
    """A pipeline with 40 events, 20 of them of the session, in several segments; a flush of it has just begun its search."""
    async with host() as plain:
        h = SearchedHost(plain.tasks, transport, limits=limits, settings=DeliverySettings(max_events=4))
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
    async with searched(transport, Limits(segment_bytes=600, history_bytes=1 << 20)) as (h, pipeline, flush):
        transport.release()
        await all_settled(pipeline)
        assert len(segments(h)) > 3
        assert not flush.ended.is_set()
        h.go_on.set()
        assert (await flush.answer()).report == counts(19, 0, 1)
        await pipeline.commit_once()
        assert len(segments(h)) == 1
        assert (await ask(pipeline, session=MINE)).report == counts(19, 0, 1)


async def test_a_sessions_report_is_of_what_left_before_a_restart_too() -> None:
    transport = FakeTransport(reject("bad0"))
    async with flushable(transport, limits=Limits(segment_bytes=200, history_bytes=1 << 20)) as (h, pipeline):
        for number in range(10):
            await submit_events(pipeline, [event(f"h{number}", MINE), event(f"o{number}")]).wait()
        await submit_events(pipeline, [event("bad0", MINE)]).wait()
        await all_settled(pipeline)
        assert len(segments(h)) < 3
        await h.kill()
        after = h.start()
        assert (await ask(after, session=MINE)).report == counts(10, 0, 1)
        transport.hold()
        await submit_events(after, [event("bad0", MINE), event("last", MINE)]).wait()
        assert (await ask(after, 1.0, session=MINE)).report == counts(10, 2, 1)


async def test_without_a_history_a_session_is_forgotten_with_its_segment() -> None:
    async with flushable(FakeTransport(), limits=Limits(segment_bytes=200)) as (h, pipeline):
        for number in range(10):
            await submit_events(pipeline, [event(f"h{number}", MINE)]).wait()
        await all_settled(pipeline)
        kept = len(segments(h))
        assert (await ask(pipeline, session=MINE)).report == counts(kept)
        assert kept < 3


async def test_what_is_purged_while_the_queue_is_searched_is_counted() -> None:
    transport = FakeTransport(lambda _c, _e: TRANSIENT)
    async with searched(transport, Limits(segment_bytes=600)) as (h, pipeline, flush):
        transport.release()
        assert (await purge(pipeline, 5.0)).purged == 40
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
