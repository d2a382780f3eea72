"""The control socket's requests about what is in a queue, for the commands `queue` and `dead-letters`.

    GET  /queue                         JSON: see `browse.Listing`
    GET  /queue/events?from=1&limit=N   a page of queued events, `browse.EventPage`; go on from its `next` until that is null
    GET  /queue/verify                  `audit.Audit`
    POST /queue/repair                  `changes.Repaired`
    POST /queue/purge?deadline=SECONDS  `changes.Purged`; 504 if requests were under way until the deadline: nothing is purged
    GET  /dead-letters?from=0&limit=N   a page of letters, `letters.LetterPage`
    POST /dead-letters/retry            `changes.Retried`
    POST /dead-letters/purge            `changes.DeadLettersPurged`

What is meant, of events and of letters, is said in the query, or in a JSON object as the body of a POST: `session`, `source`,
`event`, `before` and `after` (seconds since the epoch); of letters also `status`, `message` and `numbers` (`1,2` or `[1,2]`).
Never in both: one of them would be overlooked, and more be meant than was said.

It knows requests and `agent.queue.maintenance`. It must never know files. What takes long runs in a thread; changes go one
after another.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import anyio
import msgspec

from agent.delivery.pipeline import Pipeline
from agent.errors import DeadlineError, StorageError
from agent.http.server import Request, Response
from agent.queue.dead_letters import weigh
from agent.queue.maintenance import changes
from agent.queue.maintenance.audit import audit
from agent.queue.maintenance.browse import MAX_PAGE_EVENTS, PAGE_EVENTS, EventFilter, event_page, list_segments
from agent.queue.maintenance.browse_dead_letters import PAGE_LETTERS, DeadLetterFilter, dead_letter_page
from agent.queue.snapshot import snapshot_of

DEFAULT_PURGE_DEADLINE = 60.0
MAX_DEADLINE = 86_400.0
_PAGING = ("from", "limit", "deadline")

S = TypeVar("S", bound=EventFilter)
Route = Callable[[Request], Awaitable[Response]]


class QueueRoutes:
    """Answers requests about the queue of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._changing = anyio.Lock()

    def routes(self) -> Mapping[tuple[str, str], Route]:
        """Return what is answered, by method and path."""
        routes: dict[tuple[str, str], Route] = {
            ("GET", "/queue"): self._list,
            ("GET", "/queue/events"): self._events,
            ("GET", "/queue/verify"): self._verify,
            ("POST", "/queue/repair"): self._repair,
            ("POST", "/queue/purge"): self._purge,
            ("GET", "/dead-letters"): self._letters,
            ("POST", "/dead-letters/retry"): self._retry,
            ("POST", "/dead-letters/purge"): self._purge_letters,
        }
        return {key: partial(_answer, route) for key, route in routes.items()}

    async def _list(self, _: Request) -> Response:
        queue = snapshot_of(self._pipeline.fs, self._pipeline.store)
        return await self._look(partial(list_segments, queue))

    async def _events(self, request: Request) -> Response:
        selection, start = _selection(request, EventFilter), _number(request, "from", 1)
        limit = _number(request, "limit", PAGE_EVENTS, MAX_PAGE_EVENTS)
        queue = snapshot_of(self._pipeline.fs, self._pipeline.store)
        return await self._look(partial(event_page, queue, selection, start, limit))

    async def _verify(self, _: Request) -> Response:
        pipeline = self._pipeline
        queue = snapshot_of(pipeline.fs, pipeline.store)
        slots = await pipeline.run_blocking(pipeline.store.slots)
        log, repeats = await pipeline.run_blocking(partial(pipeline.dead_letters.read, lambda *found: found))
        return await self._look(partial(audit, queue, slots, log, partial(weigh, repeats)))

    async def _repair(self, _: Request) -> Response:
        async with self._changing:
            return Response.json(await changes.repair(self._pipeline))

    async def _purge(self, request: Request) -> Response:
        deadline = _deadline(request)
        if _selection(request, EventFilter) != EventFilter():
            raise _BadRequestError(
                "a purge of the queue drops all that waits: it takes no selection, and nothing was purged"
            )
        async with self._changing:
            return Response.json(await changes.purge(self._pipeline, deadline))

    async def _letters(self, request: Request) -> Response:
        selection, start = _selection(request, DeadLetterFilter), _number(request, "from", 0)
        limit = _number(request, "limit", PAGE_LETTERS, MAX_PAGE_EVENTS)
        read = partial(
            self._pipeline.dead_letters.read,
            lambda log, repeats: dead_letter_page(log, repeats, selection, start, limit),
        )
        return await self._look(read)

    async def _look(self, call: Callable[[], object]) -> Response:
        """Answer with what a call that may take long returns; a page is large, so even its JSON is made in the thread."""
        return await self._pipeline.run_blocking(lambda: Response.json(call()))

    async def _retry(self, request: Request) -> Response:
        selection = _selection(request, DeadLetterFilter)
        async with self._changing:
            return Response.json(await changes.retry(self._pipeline, selection))

    async def _purge_letters(self, request: Request) -> Response:
        selection = _selection(request, DeadLetterFilter)
        async with self._changing:
            return Response.json(await changes.purge_dead_letters(self._pipeline, selection))


class _BadRequestError(Exception):
    """What the request asks for cannot be understood."""


async def _answer(route: Route, request: Request) -> Response:
    """Let an error that has a message be the answer."""
    try:
        return await route(request)
    except _BadRequestError as error:
        return Response.error(400, "bad_request", str(error))
    except DeadlineError as error:
        return Response.error(504, "deadline_passed", str(error))
    except StorageError as error:
        return Response.error(507, "storage_error", str(error))


def _selection(request: Request, kind: type[S]) -> S:
    wanted: dict[str, object] = {name: value for name, value in request.query.items() if name not in _PAGING}
    if wanted and request.body:
        names = ", ".join(wanted)
        raise _BadRequestError(f"the query ({names}) and the body both say what is meant: use one of the two")
    if "numbers" in request.query:
        wanted["numbers"] = request.query["numbers"].split(",")
    try:
        if request.body:
            return msgspec.json.decode(request.body, type=kind)
        return msgspec.convert(wanted, kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _BadRequestError(f"the selection is not understood: {error}") from error


def _number(request: Request, name: str, default: int, most: int = 2**63) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
        raise _BadRequestError(f"{name} is a whole number, at most {most}, not {text!r}")
    return int(text)


def _deadline(request: Request) -> float:
    try:
        deadline = float(request.query.get("deadline", DEFAULT_PURGE_DEADLINE))
    except ValueError:
        deadline = -1.0
    if not 0 <= deadline <= MAX_DEADLINE:
        raise _BadRequestError(f"deadline is a number of seconds from 0 to {MAX_DEADLINE:g}")
    return deadline
