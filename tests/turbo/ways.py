"""The ways from turbo to an API: alone, through the front of an agent that runs, and under `exec` with an agent of its own.

Each knows which events turbo has written whole, and when all of them have arrived.
"""

import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support import turbo
from tests.support.accounts import flushed
from tests.support.artifacts_api import ArtifactsApi
from tests.support.capture import CapturingServer
from tests.support.command import COMMAND, environment
from tests.support.daemon import Daemon, Sections
from tests.support.front import Front, front
from tests.support.monorepo import Monorepo
from tests.support.waiting import HUNG_AFTER, eventually

Events = Counter[str]
_OURS = "artifacts-agent: "
_PATIENT = ("--start-deadline", f"{HUNG_AFTER:g}s")  # on a busy machine the command would start without the agent
_DEAD_PROXY = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}  # nothing is to go through it


class Way(ABC):
    """A way to `api`. `directory` is its own."""

    def __init__(self, directory: Path, api: ArtifactsApi) -> None:
        directory.mkdir(parents=True)
        self.directory, self.api = directory, api

    @abstractmethod
    def build(self, monorepo: Monorepo, env: Mapping[str, str]) -> turbo.Run:
        """Build everything."""

    @abstractmethod
    def kill_amidst(self, monorepo: Monorepo, env: Mapping[str, str]) -> int:
        """Build everything that comes before the gate, SIGKILL turbo then, and return its exit code."""

    @abstractmethod
    def written(self) -> Events | None:
        """Return every event that turbo has written whole so far; None where nobody else takes them."""

    @abstractmethod
    def settle(self) -> None:
        """Return when nothing more is to come, the API being well."""


class Alone(Way):
    """turbo speaks to the API itself."""

    def build(self, monorepo: Monorepo, env: Mapping[str, str]) -> turbo.Run:
        """See `Way`."""
        return turbo.run(monorepo, self.api.url, env)

    def kill_amidst(self, monorepo: Monorepo, env: Mapping[str, str]) -> int:
        """See `Way`."""
        return _kill(monorepo, self.api.url, env, lambda: bool(self.api.posts()))

    def written(self) -> None:
        """See `Way`."""
        return

    def settle(self) -> None:
        """See `Way`."""
        eventually(lambda: self.api.connections, lambda count: count == 0)


class ThroughFront(Way):
    """turbo speaks to the front of an agent that runs."""

    def __init__(self, directory: Path, api: ArtifactsApi, agent: Front) -> None:
        super().__init__(directory, api)
        self._agent = agent

    def build(self, monorepo: Monorepo, env: Mapping[str, str]) -> turbo.Run:
        """See `Way`."""
        return turbo.run(monorepo, self._agent.handed.url, env)

    def kill_amidst(self, monorepo: Monorepo, env: Mapping[str, str]) -> int:
        """See `Way`."""
        return _kill(monorepo, self._agent.handed.url, env, lambda: bool(self._agent.handed.accepted()))

    def written(self) -> Events:
        """See `Way`."""
        return events_at(self._agent.handed)

    def settle(self) -> None:
        """See `Way`."""
        eventually(lambda: self._agent.handed.connections, lambda count: count == 0)
        self._agent.daemon.request("POST", "/resume").raise_for_status()
        assert flushed(self._agent.daemon), self._agent.daemon.status()


class UnderExec(Way):
    """`exec` runs turbo, with an agent that it starts; what that leaves is for another agent to adopt."""

    def __init__(self, directory: Path, api: ArtifactsApi) -> None:
        super().__init__(directory, api)
        self._spools, self._config = directory / "spools", directory / "config.toml"
        self._config.write_text(f'[queue]\nadopt = "{self._spools}"\n[batch]\nmax_delay = "50ms"\n')
        self._runs: list[Path] = []

    def build(self, monorepo: Monorepo, env: Mapping[str, str]) -> turbo.Run:
        """See `Way`."""
        return turbo.run(monorepo, self.api.url, {**self._env(), **env}, self._command())

    def kill_amidst(self, monorepo: Monorepo, env: Mapping[str, str]) -> int:
        """See `Way`; `exec` and its agent live on."""
        command = self._command()
        pid = self._runs[-1] / "pid"

        def kill(_: subprocess.Popen[str]) -> None:
            os.kill(int(pid.read_text()), signal.SIGKILL)

        code = _kill(monorepo, self.api.url, {**self._env(), **env}, lambda: bool(self.api.posts()), command, kill)
        return 128 - code if code > 128 else code

    def written(self) -> Events:
        """See `Way`."""
        lines = [line for run in self._runs for line in (run / "sent").read_text().splitlines()]
        return Counter(_text(event) for line in lines for event in json.loads(line))

    def settle(self) -> None:
        """See `Way`."""
        sections: Sections = {"api": {"slug": turbo.TEAM}, "queue": {"adopt": str(self._spools)}}
        with Daemon(self.directory / "next", self.api.url, sections):
            eventually(lambda: [*self._spools.glob("*")], lambda left: not left)

    def _env(self) -> dict[str, str]:
        ours = {"ARTIFACTS_AGENT_CONFIG": str(self._config), "STATE_DIRECTORY": str(self.directory), **_DEAD_PROXY}
        return {name: value for name, value in environment(ours).items() if name not in {"PATH", "HOME"}}

    def _command(self) -> list[str | Path]:
        run = self.directory / f"run{len(self._runs)}"
        run.mkdir()
        self._runs.append(run)
        return [*COMMAND, "exec", *_PATIENT, "--", sys.executable, "-m", "tests.turbo.relay", run]


WAYS = ("alone", "front", "exec")


@contextmanager
def way_of(name: str, directory: Path, api: ArtifactsApi) -> Iterator[Way]:
    """Yield one of WAYS."""
    match name:
        case "alone":
            yield Alone(directory, api)
        case "front":
            with front(directory / "agent", api.url) as agent:
                yield ThroughFront(directory / "way", api, agent)
        case _:
            yield UnderExec(directory, api)


def events_at(server: CapturingServer) -> Events:
    """Return every event that a server was sent."""
    return Counter(_text(event) for request in server.posts() for event in request.events)


def accepted_at(api: ArtifactsApi) -> Events:
    """Return every event that the API has accepted."""
    return Counter(_text(event) for event in api.accepted_events())


def lines_of(run: turbo.Run) -> list[str]:
    """Return what turbo printed, in no order, without times, addresses and what `exec` adds."""
    return sorted({_without_port(line) for line in run.lines if not line.startswith(_OURS)})


def _text(event: object) -> str:
    return json.dumps(event, sort_keys=True)


def _without_port(line: str) -> str:
    before, address, rest = line.partition("http://127.0.0.1:")
    return f"{before}{address}{rest.lstrip('0123456789')}"


def _kill(
    monorepo: Monorepo,
    url: str,
    env: Mapping[str, str],
    is_amidst: Callable[[], bool],
    within: list[str | Path] | tuple[()] = (),
    kill: Callable[[subprocess.Popen[str]], None] = subprocess.Popen.kill,
) -> int:
    """Kill turbo when its last task runs and events have arrived; return the exit code of the process that was started."""
    with turbo.running(monorepo, url, env, within) as process:
        eventually(monorepo.started.exists, bool)
        eventually(is_amidst, bool)
        kill(process)
        monorepo.open_gate()
        process.communicate()
    return process.returncode
