"""The daemon as a process, seen from outside: its configuration, its control socket, its end, and what it leaves on disk."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from agent.config import SOCKET_PATH_LIMIT
from agent.control.client import ControlClient
from agent.control.schema import DestinationStatus
from agent.errors import AgentError, NotRunningError
from agent.queue.dead_letters import DeadLetter, dead_letters_in, repeats_in
from agent.queue.filesystem import OsFilesystem
from agent.queue.snapshot import LogSnapshot

T = TypeVar("T")
Settings = Mapping[str, Mapping[str, object]]

TOKEN = "the-demo's-token"  # noqa: S105 - it opens the demo's own API and nothing else
STATUS_SECONDS = 5.0
STOP_SECONDS = 15.0

# What the user has set for another daemon, or for the way out to the internet, is not for this one.
_NOT_INHERITED = ("ARTIFACTS_AGENT_", "TURBO_", "NOTIFY_", "WATCHDOG_", "LISTEN_", "CREDENTIALS_")


class DemoError(AgentError):
    """The demo cannot go on: something is not as it should be. The message says what."""


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a temporary directory whose name leaves room for a socket's, and remove it with all that is in it."""
    parent = Path(tempfile.gettempdir())
    if len(os.fsencode(parent)) > SOCKET_PATH_LIMIT - len("/artifacts-demo-12345678/control.sock"):
        parent = Path("/tmp")  # noqa: S108 - the directory is made by mkdtemp, for this user alone
    with tempfile.TemporaryDirectory(prefix="artifacts-demo-", dir=parent) as path:
        yield Path(path)


def environment() -> dict[str, str]:
    """Return what the demo's processes see of this environment; their modules are the ones of this process."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_INHERITED) and not name.lower().endswith("_proxy")
    }
    return {**inherited, "PYTHONPATH": os.pathsep.join(sys.path)}


class AgentProcess:
    """One daemon on one directory; it may be started again after it was killed."""

    def __init__(self, directory: Path, api_url: str, more: Settings | None = None) -> None:
        """Write the configuration, with times that suit a viewer, and `more` of it."""
        self.stream = directory / "events.sock"
        self._directory = directory
        self._config = directory / "config.toml"
        self._log = directory / "log"
        self._process: anyio.abc.Process | None = None
        self._ending = False
        self._control = ControlClient(directory / "control.sock", STATUS_SECONDS)
        (directory / "token").touch(mode=0o600)
        (directory / "token").write_text(TOKEN)
        self._config.write_text(toml({**_settings(directory, api_url), **(more or {})}))

    async def start(self) -> None:
        """Start it; it is ready when `status` answers."""
        command = [sys.executable, "-P", "-m", "agent.cli", "run", "--config", str(self._config)]
        with self._log.open("ab") as log:
            # In a session of its own, a terminal's Ctrl-C is the demo's alone.
            self._process = await anyio.open_process(
                command,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=environment(),
                start_new_session=True,
            )
        self._ending = False

    async def status(self) -> DestinationStatus | None:
        """Return how it is doing; None while it is down. Raises DemoError if it has ended by itself."""
        if self._process is None:
            return None
        process = self._process
        try:
            report = await self._ask(self._control.status)
        except NotRunningError:
            if process is self._process and not self._ending and process.returncode is not None:
                raise DemoError(f"the agent ended by itself: {self._last_log_line()}") from None
            return None
        return next(iter(report.destinations.values()))

    async def resume(self) -> None:
        """Do what `artifacts-agent resume` does."""
        await self._ask(self._control.resume)

    async def kill(self) -> None:
        """SIGKILL; return when it has ended. Nothing happens if it is not running."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, as systemd does. Raises DemoError if it does not end in time, or not well."""
        with anyio.move_on_after(STOP_SECONDS) as scope:
            code = await self._end(signal.SIGTERM)
            if code != 0:
                raise DemoError(f"the agent ended with exit code {code}: {self._last_log_line()}")
        if scope.cancelled_caught:
            raise DemoError(f"the agent did not stop within {STOP_SECONDS:g} s")

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters; only once it has ended, because it is the one that owns the files."""
        fs, directory = OsFilesystem(), self._directory / "queue/default/dead-letters"
        log = LogSnapshot.read(fs, directory)
        return [each.dead_letter for each in dead_letters_in(log, repeats_in(log))]

    async def _ask(self, question: Callable[[], T]) -> T:
        """Ask in a thread, which may outlive a demo that ends meanwhile."""
        return await anyio.to_thread.run_sync(question, abandon_on_cancel=True)

    async def _end(self, number: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        self._ending = True
        if process.returncode is None:
            process.send_signal(number)
        code = await process.wait()
        self._process = None
        return code

    def _last_log_line(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip(" |") for line in reversed(lines) if any(map(str.isalpha, line))), "it said nothing")


def _settings(directory: Path, api_url: str) -> Settings:
    return {
        "api": {"url": api_url, "token_file": str(directory / "token")},
        "listen": {
            "stream": str(directory / "events.sock"),
            "datagram": str(directory / "datagram.sock"),
            "control": str(directory / "control.sock"),
        },
        "queue": {"directory": str(directory / "queue"), "max_bytes": "16MiB", "min_free_bytes": 0},
        "batch": {"max_events": 20, "max_delay": "200ms", "concurrency": 1},  # small: the queue is to drain visibly
        "retry": {"initial_delay": "200ms", "max_delay": "1s"},
        "pause": {"probe_interval": "60s"},  # longer than the demo: it is the operator who resumes
        "log": {"format": "json"},
    }


def toml(settings: Settings) -> str:
    """Return settings as a configuration file has them."""
    # A JSON string or number is the same in TOML.
    sections = (
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in settings.items()
    )
    return "\n".join(sections)
