"""The page's server: one page, for GET and HEAD. Nothing that it is asked changes anything."""

import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from agent.cli.views.report_page import POLICY
from agent.cli.views.web_page import View, page, problem_page, refresh_seconds
from agent.cli.web.access import refusal
from agent.cli.web.questions import BadQuestionError, asked_in, period_of
from agent.cli.web.remembered import BusyError, Remembered
from agent.cli.web.usage import Usage
from agent.control.client import ControlClient
from agent.control.schema import StatusReport
from agent.errors import AgentError
from agent.http.server import Exchange, Head, Response, Server
from agent.ingest.sockets import BoundSocket
from agent.secret import Secret

MAX_CONNECTIONS = 32
STATUS_FRESH_SECONDS = 1.0
STATUS_SECONDS = 0.8
"""How long an answer of the daemon is waited for."""

_HEADERS = (
    ("content-security-policy", f"{POLICY}; frame-ancestors 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
)
_TITLES = {
    400: "The request is wrong",
    401: "The page needs its token",
    403: "The page is not shown here",
    404: "There is no such page",
    405: "The page can only be looked at",
    503: "Too much is asked for at one time",
}


class PageServer:
    """Answers requests; `token` is what they have to have, None for the browsers of this machine."""

    def __init__(
        self, usage: Usage, status: Remembered[StatusReport | str], token: Secret | None, now: Callable[[], float]
    ) -> None:
        self._usage = usage
        self._status = status
        self._token = token
        self._now = now

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        if exchange.head.length != 0:
            exchange.end_after_answer()  # nobody reads the body
        await exchange.answer(await self.answer(exchange.head))

    async def answer(self, head: Head) -> Response:
        """Return the answer to a request, of which only the head counts."""
        if (refused := refusal(head.headers, self._token)) is not None:
            return _problem(refused.status, refused.message, *refused.headers)
        if head.path != "/":
            return _problem(404, f"There is no {head.path}, only /.")
        if head.method not in {"GET", "HEAD"}:
            return _problem(405, "It takes GET and HEAD.", ("allow", "GET, HEAD"))
        try:
            return await self._page(head)
        except BadQuestionError as error:
            return _problem(400, str(error))
        except BusyError:
            return _problem(503, "Ask again in a moment.", ("retry-after", "5"))

    async def _page(self, head: Head) -> Response:
        asked, now = asked_in(head.query), self._now()
        period = period_of(asked, now)
        counted, status = None, None

        async def ask_daemon() -> None:
            nonlocal status
            status = await self._status.get(STATUS_SECONDS)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_daemon)
            counted = await self._usage.get(period)
        view = View(asked, counted, self._usage.folding, status, now)
        seconds = refresh_seconds(view)
        return _html(200, page(view), *([("refresh", str(seconds))] if seconds else []))


def _problem(status: int, message: str, *headers: tuple[str, str]) -> Response:
    return _html(status, problem_page(_TITLES[status], message), *headers)


def _html(status: int, text: str, *headers: tuple[str, str]) -> Response:
    return Response(status, text.encode(), "text/html; charset=utf-8", [*_HEADERS, *headers])


def run(
    bound: BoundSocket,
    directory: Path,
    control: Path,
    fold_command: Sequence[str],
    token: Secret | None,
    announce: Callable[[], None],
) -> None:
    """Serve the page of a queue directory on a socket until SIGINT or SIGTERM; `announce` is called before the first answer."""
    anyio.run(_serve, bound, directory, ControlClient(control, STATUS_SECONDS), fold_command, token, announce)


async def _serve(
    bound: BoundSocket,
    directory: Path,
    control: ControlClient,
    fold_command: Sequence[str],
    token: Secret | None,
    announce: Callable[[], None],
) -> None:
    def ask() -> StatusReport | str:
        try:
            return control.status()
        except AgentError as error:
            return str(error)

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        announce()
        async with anyio.create_task_group() as tasks:
            usage = Usage(directory, fold_command, tasks, time.time)
            find = partial(anyio.to_thread.run_sync, ask, abandon_on_cancel=True)
            pages = PageServer(usage, Remembered(find, STATUS_FRESH_SECONDS, tasks), token, time.time)
            tasks.start_soon(usage.fold_regularly)
            tasks.start_soon(Server(MAX_CONNECTIONS).serve, bound.socket, pages.handle)
            async for _ in signals:
                tasks.cancel_scope.cancel()
