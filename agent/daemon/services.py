"""The parts of a daemon as services. What they are made of knows nothing of daemons."""

from collections import Counter
from functools import partial
from socket import socket
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from agent.control.routes import Control
from agent.control.schema import HttpStatus, MetricsStatus, StatusReport
from agent.control.scrape import ScrapeListener
from agent.control.status import adoption_status
from agent.daemon.service import Apply, Service
from agent.daemon.settings import Settings
from agent.daemon.wiring import access_policies, adoption_policies
from agent.http import server
from agent.ingest.http_events import HttpListener
from agent.ingest.intake import Intake
from agent.ingest.stream import StreamListener
from agent.runtime import Runtime
from agent.spools.adoption import Adoption

READ_OUT_SECONDS = 5.0
HURRY_SECONDS = 0.5


class Listener(Protocol):
    """What takes events on a socket."""

    async def serve(self) -> None:
        """Take events until `close`, and then what clients had written before."""

    async def close(self) -> None:
        """Let clients write no more."""

    async def catch_up(self) -> None:
        """Return when everything that had been written before the call has been taken."""


class ListenerService(Service):
    """A listener. What clients had written when it is drained is read to its end, within READ_OUT_SECONDS at least.

    It is bounded by the sockets' buffers, and what is not read would be lost, so that even who waits no longer lets it go on for
    HURRY_SECONDS: only requests that take longer are cut off.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._reading = anyio.CancelScope()
        self._ended = anyio.Event()

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._serve)

    async def _serve(self) -> None:
        with self._reading:
            await self.listener.serve()
        self._ended.set()

    async def drain(self, seconds: float) -> None:
        self._reading.deadline = anyio.current_time() + max(seconds, READ_OUT_SECONDS)
        try:
            await self.listener.close()
            await self._ended.wait()
        finally:
            self._reading.deadline = min(self._reading.deadline, anyio.current_time() + HURRY_SECONDS)
            with anyio.CancelScope(shield=True):
                await self._ended.wait()


class StreamService(ListenerService):
    """The stream listener."""

    def __init__(self, listener: StreamListener) -> None:
        super().__init__(listener)
        self._stream = listener

    def describe(self, report: StatusReport) -> None:
        report.connections, report.evicted = self._stream.connections, self._stream.evicted


class HttpService(ListenerService):
    """The HTTP listener, at the path `socket` and the TCP address `address`, in front of `front`."""

    def __init__(
        self, listener: HttpListener, socket: str | None, address: str | None, front: "FrontService | None"
    ) -> None:
        super().__init__(listener)
        self._http = listener
        self._socket = socket
        self._address = address
        self._front = front

    def reload(self, new: Settings) -> Apply:
        return partial(self._http.reconfigure, access_policies(new))

    def describe(self, report: StatusReport) -> None:
        report.http = HttpStatus(
            socket=self._socket,
            listen=self._address,
            connections=self._http.connections,
            events=self._http.answered,
            front=self._front.answered() if self._front is not None else {},
            forwards=self._front is not None,
        )


class FrontService(Service):
    """The front: for each destination a proxy that the HTTP listener hands other requests to."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError."""
        self._answered: Counter[int] = Counter()
        from agent.http.proxy import Proxy  # here: a daemon without a front does not pay for the import

        self._open = partial(Proxy, answered=self._answered)
        self._proxies = {name: self._open(each.api.url) for name, each in settings.config.accounts.items()}
        self._tasks: TaskGroup | None = None

    async def forward(self, exchange: server.Exchange, destination: str) -> None:
        """Have a destination's API answer a request: see `Proxy.forward`."""
        await self._proxies[destination].forward(exchange)

    def answered(self) -> dict[int, int]:
        """Return how many requests were answered, by status."""
        return dict(self._answered)

    def start(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        for each in self._proxies.values():
            tasks.start_soon(each.run)

    def reload(self, new: Settings) -> Apply:
        urls = {name: each.api.url for name, each in new.config.accounts.items()}
        prepared = [each.prepare(urls[name]) for name, each in self._proxies.items() if name in urls]
        removed = self._proxies.keys() - urls.keys()
        added = {name: self._open(url) for name, url in urls.items() if name not in self._proxies}

        def take_over() -> None:
            for each in prepared:
                each()
            for name in removed:
                self._proxies.pop(name).retire()
            self._proxies |= added
            if self._tasks is not None:
                for proxy in added.values():
                    self._tasks.start_soon(proxy.run)

        return take_over

    async def close(self) -> None:
        for each in self._proxies.values():
            await each.aclose()


class IntakeService(Service):
    """Where all listeners submit what they take."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def reload(self, new: Settings) -> Apply:
        return partial(self._intake.reconfigure, new.config.routing)

    def describe(self, report: StatusReport) -> None:
        report.rejected, report.denied = self._intake.rejected, self._intake.denied


class AdoptionService(Service):
    """The adoption of spools."""

    def __init__(self, adoption: Adoption, runtime: Runtime) -> None:
        self._adoption = adoption
        self._runtime = runtime

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._adoption.run)

    def reload(self, new: Settings) -> Apply:
        return partial(self._adoption.reconfigure, adoption_policies(new, self._runtime))

    async def drain(self, seconds: float) -> None:
        self._adoption.stop(seconds)
        try:
            await self._adoption.ended.wait()
        finally:
            self._adoption.abort()
            with anyio.CancelScope(shield=True):
                await self._adoption.ended.wait()

    def describe(self, report: StatusReport) -> None:
        report.adopted = adoption_status(self._adoption.report())


class MetricsService(Service):
    """The metrics on the path `socket` and the TCP address `address`. They go on to the end, as the control socket does."""

    def __init__(self, listener: ScrapeListener, socket: str | None, address: str | None) -> None:
        self._listener = listener
        self._socket = socket
        self._address = address

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(self._listener.serve)

    def describe(self, report: StatusReport) -> None:
        report.metrics = MetricsStatus(self._socket, self._address, self._listener.connections)


class ControlService(Service):
    """The control socket. It answers until the daemon's tasks are cancelled, so that a shutdown can be watched."""

    def __init__(self, listening: socket, control: Control) -> None:
        self._listening = listening
        self._control = control

    def start(self, tasks: TaskGroup) -> None:
        tasks.start_soon(server.serve, self._listening, self._control.handle)
