"""The control socket's requests about what is in one queue, for the commands `queue` and `dead-letters`.

`destination` in the query says whose queue it is; without it, it is that of DEFAULT.

A filter, of events or of dead letters, is given in the query, or in a JSON object as the body of a POST: `session`, `source`,
`event`, `before` and `after` (seconds since the epoch); of dead letters also `status`, `message` and `numbers` (`1,2` or
`[1,2]`). A filter in both is refused: one of them would be overlooked.

What takes long runs in a thread. Changes go one after another.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
import msgspec

from agent.control.selection import BadRequestError, selected_one
from agent.delivery.pipeline import Pipeline
from agent.http.server import Request, Response
from agent.queue.dead_letters import Repeats, weigh
from agent.queue.maintenance.audit import audit
from agent.queue.maintenance.browse import MAX_PAGE_EVENTS, PAGE_EVENTS, EventFilter, event_page, list_segments
from agent.queue.maintenance.browse_dead_letters import PAGE_DEAD_LETTERS, DeadLetterFilter, dead_letter_page
from agent.queue.maintenance.purge import purge, purge_dead_letters
from agent.queue.maintenance.repair import repair
from agent.queue.maintenance.retry import retry
from agent.queue.snapshot import LogSnapshot, snapshot_of
from agent.queue.writer import Writer

DEFAULT_PURGE_DEADLINE = 60.0
MAX_DEADLINE = 86_400.0
_OTHERS = ("destination", "from", "limit", "deadline")  # in a query, beside a filter

F = TypeVar("F", bound=EventFilter)


class QueueRoutes:
    """Answers requests about the queue of one of the pipelines, which are given by destination."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = pipelines
        self._changing: dict[str, anyio.Lock] = defaultdict(anyio.Lock)  # by destination

    def _pipeline(self, request: Request) -> Pipeline:
        return selected_one(request, self._pipelines)[1]

    @asynccontextmanager
    async def _to_change(self, request: Request) -> AsyncIterator[Pipeline]:
        name, pipeline = selected_one(request, self._pipelines)
        async with self._changing[name]:
            yield pipeline

    async def segments(self, request: Request) -> Response:
        """Return what the segments hold: `browse.Listing`."""
        pipeline = self._pipeline(request)
        queue = snapshot_of(pipeline.fs, pipeline.store)
        return await _look(pipeline, partial(list_segments, queue))

    async def events(self, request: Request) -> Response:
        """Return a page of queued events, `browse.EventPage`; go on from its `next` until that is null."""
        wanted, start = _filter(request, EventFilter), _number(request, "from", 1)
        limit = _number(request, "limit", PAGE_EVENTS, MAX_PAGE_EVENTS)
        pipeline = self._pipeline(request)
        queue = snapshot_of(pipeline.fs, pipeline.store)
        return await _look(pipeline, partial(event_page, queue, wanted, start, limit))

    async def verify(self, request: Request) -> Response:
        """Check the queue's files: `audit.Audit`."""
        pipeline = self._pipeline(request)
        queue = snapshot_of(pipeline.fs, pipeline.store)
        slots = await pipeline.writer.run(Writer.slots)
        log, repeats = await pipeline.dead_letters.run(lambda dead_letters: dead_letters.read(lambda *found: found))
        return await _look(pipeline, partial(audit, queue, slots, log, partial(weigh, repeats)))

    async def repair(self, request: Request) -> Response:
        """Account for all damage: `repair.Repaired`."""
        async with self._to_change(request) as pipeline:
            return Response.json(await repair(pipeline))

    async def purge(self, request: Request) -> Response:
        """Drop all that is queued: `purge.Purged`; 504 if requests were under way until the deadline: nothing is purged."""
        deadline = _deadline(request)
        if _filter(request, EventFilter) != EventFilter():
            raise BadRequestError(
                "a purge of the queue drops all that waits: it takes no selection, and nothing was purged"
            )
        async with self._to_change(request) as pipeline:
            return Response.json(await purge(pipeline, deadline))

    async def dead_letters(self, request: Request) -> Response:
        """Return a page of dead letters, `browse_dead_letters.DeadLetterPage`."""
        wanted, start = _filter(request, DeadLetterFilter), _number(request, "from", 0)
        limit = _number(request, "limit", PAGE_DEAD_LETTERS, MAX_PAGE_EVENTS)
        page: Callable[[LogSnapshot, Repeats], Response] = lambda log, repeats: Response.json(  # noqa: E731
            dead_letter_page(log, repeats, wanted, start, limit)
        )
        return await self._pipeline(request).dead_letters.run(lambda dead_letters: dead_letters.read(page))

    async def retry(self, request: Request) -> Response:
        """Put events of dead letters back into the queue: `retry.Retried`."""
        wanted = _filter(request, DeadLetterFilter)
        async with self._to_change(request) as pipeline:
            return Response.json(await retry(pipeline, wanted))

    async def purge_dead_letters(self, request: Request) -> Response:
        """Remove dead letters: `purge.DeadLettersPurged`."""
        wanted = _filter(request, DeadLetterFilter)
        async with self._to_change(request) as pipeline:
            return Response.json(await purge_dead_letters(pipeline, wanted))


async def _look(pipeline: Pipeline, call: Callable[[], object]) -> Response:
    """Answer with what a call that may take long returns; a page is large, so even its JSON is made in the thread."""
    return await pipeline.run_blocking(lambda: Response.json(call()))


def _filter(request: Request, kind: type[F]) -> F:
    given: dict[str, object] = {name: value for name, value in request.query.items() if name not in _OTHERS}
    if given and request.body:
        names = ", ".join(given)
        raise BadRequestError(f"the query ({names}) and the body both say what is meant: use one of the two")
    if "numbers" in request.query:
        given["numbers"] = request.query["numbers"].split(",")
    try:
        if request.body:
            return msgspec.json.decode(request.body, type=kind)
        return msgspec.convert(given, kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the selection is not understood: {error}") from error


def _number(request: Request, name: str, default: int, most: int = 2**63) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise BadRequestError(f"{name} is a whole number, at most {most}, not {text!r}")
    return int(text)


def _deadline(request: Request) -> float:
    try:
        deadline = float(request.query.get("deadline", DEFAULT_PURGE_DEADLINE))
    except ValueError:
        deadline = -1.0
    if not 0 <= deadline <= MAX_DEADLINE:
        raise BadRequestError(f"deadline is a number of seconds from 0 to {MAX_DEADLINE:g}")
    return deadline
