"""What the demo shows, in its order. Read it from top to bottom: it is the agent's promises as a story."""

import anyio

from agent.demo.api import ApiState
from agent.demo.harness import Harness
from agent.demo.report import Evidence

# The recorded runs that are replayed in each step.
ALL_IS_WELL = ("github", "jenkins", "cold-25", "cold-14")
IN_THE_OUTAGE = ("buildkite", "warm-25", "cold-12", "warm-5")
WHILE_BLOCKED = ("gitlab", "cold-50", "remote-5")
WITH_POISON = ("vercel", "local-12", "cold-5", "remote-only-5")

# In the last step, one event has this hash.
POISON = "3b6f49be750b0999"


async def play(harness: Harness) -> Evidence:
    """Play all steps, and return what they prove. Raises DemoError if something is not as it should be."""
    await all_is_well(harness)
    await outage(harness)
    await blocked_account(harness)
    await kill(harness)
    await resume(harness)
    await poison(harness)
    return await the_end(harness)


async def all_is_well(harness: Harness) -> None:
    """Events pass through."""
    await harness.heading("1/6", "Builds report cache hits and misses; the agent delivers them in batches.")
    await harness.agent.start()
    await harness.wait_for("running", lambda status: status.state == "running")
    await harness.builds(ALL_IS_WELL)
    ledger = await harness.drained()
    harness.say(f"All {ledger.delivered} events were delivered, in {harness.api.accepted} requests.")
    await harness.pause_for_reader()


async def outage(harness: Harness) -> None:
    """The API is away; the agent waits as long as it was told, and no build waits at all."""
    seconds = harness.timing.retry_after
    await harness.heading("2/6", f"The API is down (503, Retry-After: {seconds}). The builds notice nothing.")
    harness.api.state = ApiState.DOWN
    refused = harness.api.refused
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(harness.builds, IN_THE_OUTAGE)
        status = await harness.wait_for("backing off", lambda status: status.state == "backing_off")
        harness.say(f"{status.state}: {status.reason}", "yellow")
    ledger = await harness.all_accepted()
    harness.api.state = ApiState.HEALTHY
    requests = harness.api.refused - refused
    harness.say(
        f"{ledger.queued} events wait on disk; the API was asked {'once' if requests == 1 else f'{requests} times'}."
    )
    ledger = await harness.drained()
    harness.say(f"It is back: {ledger.delivered} events delivered so far, none lost.")
    await harness.pause_for_reader()


async def blocked_account(harness: Harness) -> None:
    """Delivery pauses, and the queue grows."""
    await harness.heading("3/6", "The account is blocked (402). Delivery pauses; events wait on disk.")
    harness.api.state = ApiState.BLOCKED
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(harness.builds, WHILE_BLOCKED)
        status = await harness.wait_for("paused", lambda status: status.state == "paused")
        harness.say(f"{status.state}: {status.reason}", "magenta")
    ledger = await harness.all_accepted()
    harness.say(f"{ledger.queued} events are waiting.")
    await harness.pause_for_reader()


async def kill(harness: Harness) -> None:
    """What was accepted outlives the process, and so does the pause."""
    await harness.heading("4/6", "kill -9, with all of these undelivered. Then the agent is started again.")
    before = await harness.all_accepted()
    await harness.agent.kill()
    harness.say("Killed.", "red")
    await harness.pause_for_reader()
    await harness.agent.start()
    status = await harness.wait_for("back", lambda status: status.ledger.accepted > 0)
    lost = before.queued - status.ledger.queued
    harness.say(f"Back, and still {status.state}: {status.ledger.queued} events waiting, {lost} lost.")
    await harness.pause_for_reader()


async def resume(harness: Harness) -> None:
    """An operator ends the pause."""
    await harness.heading("5/6", "The bill is paid, and somebody runs `artifacts-agent resume`.")
    harness.api.state = ApiState.HEALTHY
    await harness.agent.resume()
    ledger = await harness.drained()
    harness.say(f"The queue is empty: {ledger.delivered} events delivered so far.")
    await harness.pause_for_reader()


async def poison(harness: Harness) -> None:
    """Only the bad event is given up."""
    await harness.heading("6/6", "One event is poison: any batch that holds it is answered with 400.")
    harness.api.poison = POISON
    refused = harness.api.refused
    await harness.builds(WITH_POISON, seconds=0)  # a burst, so that the poison has company in its batch
    ledger = await harness.drained()
    harness.say(
        f"After {harness.api.refused - refused} refusals of ever smaller batches, one event became a dead letter.",
        "red",
    )
    harness.say(f"All others were delivered: {ledger.delivered} in total.")
    await harness.pause_for_reader()


async def the_end(harness: Harness) -> Evidence:
    """Stop the agent in the way systemd does, and gather what there is to compare."""
    ledger = await harness.drained()
    await harness.agent.stop()
    return Evidence(
        emitted=harness.emitted,
        poison=harness.recorded_event(WITH_POISON, POISON),
        ledger=ledger,
        recorded=harness.api.recorded,
        dead_letters=harness.agent.dead_letters(),
        readings=harness.readings,
        unbalanced=harness.unbalanced,
    )
