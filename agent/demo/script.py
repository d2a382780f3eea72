"""What the demo shows, in its order. Read it from top to bottom: it is the agent's promises as a story.

It knows the stage. It must never know processes, sockets or terminals.
"""

import anyio

from agent.demo.api import Mood
from agent.demo.report import Evidence
from agent.demo.stage import Stage

# The recorded runs that are replayed in each act.
ALL_IS_WELL = ("github", "jenkins", "cold-25", "cold-14")
IN_THE_OUTAGE = ("buildkite", "warm-25", "cold-12", "warm-5")
WHILE_BLOCKED = ("gitlab", "cold-50", "remote-5")
WITH_POISON = ("vercel", "local-12", "cold-5", "remote-only-5")

# In the last act, one event has this hash.
POISON = "3b6f49be750b0999"


async def play(stage: Stage) -> Evidence:
    """Play all acts, and return what they prove. Raises DemoError if something is not as it should be."""
    await all_is_well(stage)
    await outage(stage)
    await blocked_account(stage)
    await kill(stage)
    await resume(stage)
    await poison(stage)
    return await the_end(stage)


async def all_is_well(stage: Stage) -> None:
    """Events pass through."""
    await stage.act("1/6", "Builds report cache hits and misses; the agent delivers them in batches.")
    await stage.agent.start()
    await stage.until("running", lambda status: status.state == "running")
    await stage.builds(ALL_IS_WELL)
    ledger = await stage.drained()
    stage.say(f"All {ledger.delivered} events were delivered, in {stage.api.accepted} requests.")
    await stage.let_read()


async def outage(stage: Stage) -> None:
    """The API is away; the agent waits as long as it was told, and no build waits at all."""
    seconds = stage.pace.retry_after
    await stage.act("2/6", f"The API is down (503, Retry-After: {seconds}). The builds notice nothing.")
    stage.api.mood = Mood.DOWN
    refused = stage.api.refused
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.builds, IN_THE_OUTAGE)
        status = await stage.until("backing off", lambda status: status.state == "backing_off")
        stage.say(f"{status.state}: {status.reason}", "yellow")
    ledger = await stage.all_accepted()
    stage.api.mood = Mood.WELL
    requests = stage.api.refused - refused
    stage.say(
        f"{ledger.queued} events wait on disk; the API was asked {'once' if requests == 1 else f'{requests} times'}."
    )
    ledger = await stage.drained()
    stage.say(f"It is back: {ledger.delivered} events delivered so far, none lost.")
    await stage.let_read()


async def blocked_account(stage: Stage) -> None:
    """Delivery pauses, and the queue grows."""
    await stage.act("3/6", "The account is blocked (402). Delivery pauses; events wait on disk.")
    stage.api.mood = Mood.BLOCKED
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.builds, WHILE_BLOCKED)
        status = await stage.until("paused", lambda status: status.state == "paused")
        stage.say(f"{status.state}: {status.reason}", "magenta")
    ledger = await stage.all_accepted()
    stage.say(f"{ledger.queued} events are waiting.")
    await stage.let_read()


async def kill(stage: Stage) -> None:
    """What was accepted outlives the process, and so does the pause."""
    await stage.act("4/6", "kill -9, with all of these undelivered. Then the agent is started again.")
    before = await stage.all_accepted()
    await stage.agent.kill()
    stage.say("Killed.", "red")
    await stage.let_read()
    await stage.agent.start()
    status = await stage.until("back", lambda status: status.ledger.accepted > 0)
    lost = before.queued - status.ledger.queued
    stage.say(f"Back, and still {status.state}: {status.ledger.queued} events waiting, {lost} lost.")
    await stage.let_read()


async def resume(stage: Stage) -> None:
    """An operator ends the pause."""
    await stage.act("5/6", "The bill is paid, and somebody runs `artifacts-agent resume`.")
    stage.api.mood = Mood.WELL
    await stage.agent.resume()
    ledger = await stage.drained()
    stage.say(f"The queue is empty: {ledger.delivered} events delivered so far.")
    await stage.let_read()


async def poison(stage: Stage) -> None:
    """Only the bad event is given up."""
    await stage.act("6/6", "One event is poison: any batch that holds it is answered with 400.")
    stage.api.poison = POISON
    refused = stage.api.refused
    await stage.builds(WITH_POISON, seconds=0)  # a burst, so that the poison has company in its batch
    ledger = await stage.drained()
    stage.say(
        f"After {stage.api.refused - refused} refusals of ever smaller batches, one event became a dead letter.",
        "red",
    )
    stage.say(f"All others were delivered: {ledger.delivered} in total.")
    await stage.let_read()


async def the_end(stage: Stage) -> Evidence:
    """Stop the agent in the way systemd does, and gather what there is to compare."""
    ledger = await stage.drained()
    await stage.agent.stop()
    return Evidence(
        emitted=stage.emitted,
        poison=stage.recorded_event(WITH_POISON, POISON),
        ledger=ledger,
        recorded=stage.api.recorded,
        dead_letters=stage.agent.dead_letters(),
        readings=stage.readings,
        unbalanced=stage.unbalanced,
    )
