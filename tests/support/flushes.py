"""Flushes of a pipeline in memory: asked for as the control socket is, at once or while something else happens."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import anyio

from agent.control.flush_routes import CatchUp, FlushRoute
from agent.control.schema import VERDICT_HEADER
from agent.delivery.pipeline import Pipeline
from agent.http.server import Request
from tests.support.fake_transport import FakeTransport
from tests.support.pipelines import Host, host


class Answered(NamedTuple):
    """What a flush answered; `verdict` is what its exit code goes by, but for what it says of why delivery is held up."""

    status: int
    report: dict[str, Any]
    verdict: dict[str, Any] | None


class Ended(NamedTuple):
    """How a flush ended: its status, how many events were queued, why delivery was held up, and after how many seconds."""

    status: int
    queued: int
    held_up: str | None
    seconds: float


def counts(delivered: int = 0, queued: int = 0, dead_lettered: int = 0, **dropped: int) -> dict[str, Any]:
    """Return a report."""
    return {"delivered": delivered, "queued": queued, "dead_lettered": dead_lettered, "dropped": dropped}


async def ask(
    pipeline: Pipeline,
    deadline: float = 60.0,
    listeners: Sequence[CatchUp] = (),
    hung_up: Callable[[], Awaitable[None]] = anyio.sleep_forever,
    session: str | None = None,
) -> Answered:
    """Ask for a flush."""
    query = {"deadline": str(deadline)} | ({} if session is None else {"session": session})
    request = Request("POST", "/flush", query, {}, hung_up=hung_up)
    response = await FlushRoute({"default": pipeline}, listeners).flush(request)
    value, verdict = json.loads(response.body), json.loads(dict(response.headers).get(VERDICT_HEADER, "{}"))
    verdict.pop("held_up", None)
    return Answered(response.status, value, verdict or None)


async def ended(pipeline: Pipeline, query: Mapping[str, str] = {}) -> Ended:
    """Ask for a flush of a minute at most, and return how it ended."""
    began = anyio.current_time()
    request = Request("POST", "/flush", {"deadline": "60", **query}, {})
    response = await FlushRoute({"default": pipeline}, []).flush(request)
    held_up = json.loads(dict(response.headers)[VERDICT_HEADER]).get("held_up")
    return Ended(response.status, json.loads(response.body)["queued"], held_up, anyio.current_time() - began)


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
