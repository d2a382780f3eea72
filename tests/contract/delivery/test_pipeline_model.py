"""A whole pipeline, at random: clients, an API, operators, clocks, faults of the disk and deaths in the middle of anything.

Each rule only notes its step; the story is told at the end, in one event loop whose time is virtual. So a failure shrinks as a
list of steps, and is told again exactly. tests.support.witness says what it is held to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support import profiles, virtual_time
from tests.support.fault_filesystem import When
from tests.support.pipelines import DIRECTORY
from tests.support.stories import CODES, CONTEXTS, SETUPS, STATUSES, VERDICTS, Step, Story

SEEDS = st.integers(0, 1000)
CALLS = st.integers(0, 40)
COUNTS = st.integers(1, 12)
CONTEXT = st.integers(0, len(CONTEXTS) - 1)
SCRIPTS = st.lists(st.sampled_from(range(len(VERDICTS))), min_size=1, max_size=6)
SECONDS = st.sampled_from([0.0, 0.5, 3.0, 40.0, 400.0])
DAY = 86400.0


class PipelineMachine(RuleBasedStateMachine):
    """Notes a story, and tells it."""

    backend: ClassVar[str]
    directories: ClassVar[Sequence[Path]] = (DIRECTORY,)

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.setup = 0

    @initialize(setup=st.integers(0, len(SETUPS) - 1))
    def configure(self, setup: int) -> None:
        self.setup = setup

    @rule(count=COUNTS, context=CONTEXT)
    def submit(self, count: int, context: int) -> None:
        self.steps.append(("submit", count, context))

    @rule(count=st.integers(1, 3), context=CONTEXT)
    def send(self, count: int, context: int) -> None:
        self.steps.append(("send", count, context))

    @rule(verdicts=SCRIPTS)
    def script(self, verdicts: list[int]) -> None:
        self.steps.append(("script", verdicts))

    @rule(verdicts=SCRIPTS, count=COUNTS, context=CONTEXT, seconds=SECONDS)
    def deliver(self, verdicts: list[int], count: int, context: int, seconds: float) -> None:
        """Have something delivered in spite of what was before: else most stories are about queues that stand still."""
        quiet: list[Step] = [("heal",), ("make_room",), ("release",), ("resume",)]
        self.steps += [*quiet, ("script", verdicts), ("submit", count, context), ("sleep", seconds)]

    @rule(status=st.integers(0, len(STATUSES) - 1))
    def answer_probes(self, status: int) -> None:
        self.steps.append(("status", status))

    @rule(seconds=SECONDS)
    def sleep(self, seconds: float) -> None:
        self.steps.append(("sleep", seconds))

    @rule(seconds=st.sampled_from([-3 * DAY, -2000.0, -1.0, 1.0, 2000.0, 3 * DAY]))
    def jump(self, seconds: float) -> None:
        self.steps.append(("jump", seconds))

    @rule(name=st.sampled_from(["hold", "release", "pause", "resume", "reconfigure", "restart", "kill"]))
    def act(self, name: str) -> None:
        self.steps.append((name,))

    @rule(seed=SEEDS)
    def cut_power(self, seed: int) -> None:
        self.steps.append(("cut_power", seed))

    @rule(calls=CALLS, when=st.sampled_from(["before", "after"]), seed=SEEDS, power=st.booleans(), midway=st.booleans())
    def crash(self, calls: int, when: When, seed: int, *, power: bool, midway: bool) -> None:
        self.steps.append(("crash", calls, when, seed, power, midway))

    @rule(calls=CALLS, code=st.sampled_from(CODES), seed=SEEDS, lasting=st.booleans())
    def fail(self, calls: int, code: int, seed: int, *, lasting: bool) -> None:
        self.steps.append(("fail", calls, code, seed, lasting))

    @rule(room=st.integers(0, 2000))
    def fill(self, room: int) -> None:
        self.steps.append(("fill", room))

    @rule(name=st.sampled_from(["heal", "make_room"]))
    def repair(self, name: str) -> None:
        self.steps.append((name,))

    def teardown(self) -> None:
        story = Story(SETUPS[self.setup], self.directories)
        virtual_time.run(self.backend, lambda: story.tell(self.steps))


class OnAsyncio(PipelineMachine):
    """With the event loop of production."""

    backend = "asyncio"


class OnTrio(PipelineMachine):
    """With the other one."""

    backend = "trio"


class WithTwoDestinations(PipelineMachine):
    """Two pipelines in each process, on one disk: the one whose turn it is not loses nothing by what happens to the other."""

    backend = "asyncio"
    directories = (DIRECTORY, Path("/queue/destinations/web/default"))

    @rule(index=st.integers(0, 1))
    def turn(self, index: int) -> None:
        self.steps.append(("turn", index))


EXAMPLES, STEPS = (5000, 80) if profiles.is_nightly() else (100, 30)


def case(machine: type[PipelineMachine]) -> Any:
    """Return the machine's test, as long as the profile wants it."""
    test = pytest.mark.timeout(profiles.seconds(300))(pytest.mark.usefixtures("quiet")(machine.TestCase))
    test.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return test


TestOnAsyncio = case(OnAsyncio)
TestOnTrio = case(OnTrio)
TestWithTwoDestinations = case(WithTwoDestinations)
