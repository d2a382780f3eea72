"""Two destinations in one process on one disk: a death, or an error, at any call of one costs the other nothing.

The lives of both go on at a time, each with work of its own. At each call that either makes the process dies, and the power is
cut in turn, as in test_pipeline_crashes; then each of the two is recovered on a copy of the same disk, and held to everything
that its own witness saw, as if it had been alone: see there for what is sampled.

Then calls in one destination's directory fail, from each of them on for good, and the other is held to an account without a loss.
"""

import errno
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import anyio
import pytest

from agent.queue.store import Limits
from tests.contract.delivery.test_pipeline_crashes import at_fields, outcomes, sampled
from tests.contract.delivery.test_pipeline_errors import roll_and_deliver
from tests.support import profiles, virtual_time
from tests.support.afterlives import Death, live_on
from tests.support.fake_transport import FakeTransport
from tests.support.fault_runs import Fault, FaultRun, Work
from tests.support.lives import live_together
from tests.support.pipelines import Host, host, numbered, submit
from tests.support.workloads import WORKLOADS, Workload

WEB = Path("/queue/destinations/web/default")
PAIRS = [
    ("deliver_out_of_order", "deliver_one_by_one"),
    ("keep_dead_letters", "overflow"),
    ("meet_a_difficult_api", "expire"),
    ("fail_to_sync", "deliver_out_of_order"),
]

pytestmark = [pytest.mark.timeout(profiles.seconds(300)), pytest.mark.usefixtures("quiet")]


def named(name: str) -> Workload:
    """Return the workload of that name."""
    return next(each for each in WORKLOADS if each.name == name)


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_a_death_at_any_call_of_one_costs_the_other_nothing(names: tuple[str, str], report: list[str]) -> None:
    setups = [named(names[0]).setup, replace(named(names[1]).setup, directory=WEB)]
    moments = live_together(*zip((named(name).script for name in names), setups, strict=True))
    lives, deaths, seen = 0, 0, set[Path]()
    for place, moment in enumerate(moments):
        found = outcomes(moment, at_fields, place)
        seen |= {call.path.parent for call, _ in moment.calls}
        for number, remains in enumerate(found if profiles.is_nightly() else sampled(found, place)):
            for which, setup in enumerate(setups):
                death = Death(moment.of(which), remains)
                deaths += live_on(death, setup, seed=1000 * place + number, deaths=int(profiles.is_nightly()))
                lives += 1
    assert {setup.directory / "segments" for setup in setups} <= seen
    report.append(f"{' and '.join(names):42} {len(moments):5} moments, {lives:5} recoveries, {deaths:5} second deaths")


async def beside_one_that_fails(n: int, code: int) -> Fault:
    """Do whole work in default while every call in web's directory fails from the n-th on; return the fault."""
    async with host() as h:
        web = replace(h, directory=WEB, transport=FakeTransport())
        run = FaultRun(h, Work(roll_and_deliver, Limits(segment_bytes=400)))
        run.begin()
        web.start()
        h.fs.errors = fault = Fault(n, code, lasting=True, among=lambda _, path: path.is_relative_to(WEB))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work_on, web)
            await roll_and_deliver(run)
        assert not run.refused
        assert len(run.taken) == len(run.acked)
        assert await run.pipeline.healthy()
        run.heal()
        await web.stop()
        await run.check_end()
    return fault


async def work_on(failing: Host) -> None:
    """Submit and deliver, as far as the disk lets it."""
    for number in range(3):
        await submit(failing.pipeline, numbered(6, f"w{number}-")).wait()
        with anyio.move_on_after(2.0):
            await failing.pipeline.flush()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_errors_from_any_call_of_one_on_cost_the_other_nothing(code: int, report: list[str]) -> None:
    for n in count():
        if virtual_time.run("asyncio", partial(beside_one_that_fails, n, code)).at is None:
            break
    assert n > 30
    report.append(f"web fails with {errno.errorcode[code]} from each of {n} calls on")
