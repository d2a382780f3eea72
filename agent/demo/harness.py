"""The running parts together, and the ways to wait for them and to show them."""

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

import anyio
import msgspec

from agent.control.schema import DestinationStatus
from agent.demo import recording, report
from agent.demo.agent_process import AgentProcess, DemoError, environment
from agent.demo.api import ApiState, DemoApi
from agent.demo.build import BuildOutcome
from agent.demo.view import DemoView, Snapshot
from agent.events import Event
from agent.queue.cursor import Ledger

WAIT_SECONDS = 20.0
REFRESH_SECONDS = 0.1
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """How long things take, in seconds: a build, a pause for the reader, an answer of the API, its Retry-After."""

    build: float
    read: float
    answer: float
    retry_after: int


READABLE = Timing(build=1.0, read=0.7, answer=0.1, retry_after=2)
FAST = Timing(build=0.2, read=0.0, answer=0.0, retry_after=1)


class Harness:
    """The agent, the API and the builds, for a scenario. `say` shows a line."""

    def __init__(self, agent: AgentProcess, api: DemoApi, view: DemoView, timing: Timing, directory: Path) -> None:
        self.agent = agent
        self.api = api
        self.timing = timing
        self.say = view.say
        self.emitted: Counter[Event] = Counter()
        self.readings = 0
        self.unbalanced = 0
        self._view = view
        self._directory = directory
        self._recording = recording.load()

    async def heading(self, number: str, title: str) -> None:
        """Announce a step, and let it be read."""
        self._view.heading(number, title)
        await self.pause_for_reader()

    async def pause_for_reader(self) -> None:
        """Give the reader time."""
        await anyio.sleep(self.timing.read)

    # The agent

    async def watch(self) -> None:
        """Keep what is shown up to date, until cancelled."""
        while True:
            await self._refresh()
            await anyio.sleep(REFRESH_SECONDS)

    async def wait_for(self, what: str, holds: Callable[[DestinationStatus], bool]) -> DestinationStatus:
        """Return the first status that is so. Raises DemoError if it takes too long, or events are dropped."""
        status = None
        with anyio.move_on_after(WAIT_SECONDS):
            while (status := await self._refresh()) is None or not holds(status):
                if status is not None and status.ledger.dropped:
                    raise DemoError(
                        f"the agent dropped events, which nothing here should make it do: {status.ledger.dropped}"
                    )
                await anyio.sleep(POLL_SECONDS)
            return status
        last = "no answer" if status is None else f"{status.state}, {report.equation(status.ledger)}"
        raise DemoError(f"the agent is not {what} after {WAIT_SECONDS:g} s: {last}")

    async def all_accepted(self) -> Ledger:
        """Wait until the agent has everything that was emitted on disk."""
        total = self.emitted.total()
        return (await self.wait_for("done with accepting", lambda status: status.ledger.accepted == total)).ledger

    async def drained(self) -> Ledger:
        """Wait until everything that was emitted has left the queue, and delivery is well."""
        await self.all_accepted()
        status = await self.wait_for("drained", lambda status: status.state == "running" and status.ledger.queued == 0)
        return status.ledger

    async def _refresh(self) -> DestinationStatus | None:
        status = await self.agent.status()
        if status is not None:
            self.readings += 1
            self.unbalanced += not report.balances(status.ledger)
        self._view.show(Snapshot(status, self._describe_api()))
        return status

    def _describe_api(self) -> str:
        answers = {
            ApiState.HEALTHY: "answers 200" if self.api.poison is None else "answers 200, or 400 to the poison",
            ApiState.DOWN: f"answers 503, Retry-After: {self.timing.retry_after}",
            ApiState.BLOCKED: "answers 402",
        }[self.api.state]
        return f"{answers}; has {self.api.recorded.total()} events from {self.api.accepted} requests"

    # The builds

    async def builds(self, names: Sequence[str], *, seconds: float | None = None) -> None:
        """Run a process for each of these recorded runs, at the same time, and say how long they had to wait."""
        outcomes: list[BuildOutcome] = []
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(self._build, name, self.timing.build if seconds is None else seconds, outcomes)
        unsent = sum(outcome.unsent for outcome in outcomes)
        if unsent or len(outcomes) < len(names):
            failed = len(names) - len(outcomes)
            raise DemoError(f"{unsent} events could not be handed over to the agent, and {failed} builds failed")
        milliseconds = [call / 1e6 for outcome in outcomes for call in outcome.nanoseconds]
        self.say(
            f"{len(names)} builds sent {len(milliseconds)} events:"
            f" {statistics.median(milliseconds):.3f} ms a call (median), {max(milliseconds):.2f} ms the slowest."
        )

    def recorded_event(self, names: Sequence[str], artifact: str) -> Event:
        """Return the first event of these runs that is about an artifact with that hash."""
        return next(event for name in names for event in self._recording[name].events if event.hash == artifact)

    async def _build(self, name: str, seconds: float, outcomes: list[BuildOutcome]) -> None:
        command = [sys.executable, "-P", "-m", "agent.demo.build", str(self.agent.stream), name, f"{seconds}"]
        done = await anyio.run_process(
            command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=DEVNULL,
            check=False,
            cwd=self._directory,
            env=environment(),
            start_new_session=True,
        )
        if done.returncode == 0:
            outcomes.append(msgspec.json.decode(done.stdout, type=BuildOutcome))
            self.emitted.update(self._recording[name].events)
