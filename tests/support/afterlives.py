"""What comes after a crash: another process starts on what is left, is held to the promises, works on, and may die as well."""

import random
from collections import Counter
from typing import NamedTuple

from agent.queue.cursor import Ledger
from tests.support.crash_model import RandomChooser
from tests.support.crash_outcomes import Remains
from tests.support.fault_filesystem import no_errors
from tests.support.lives import Life, Moment, Setup, disk_of, live
from tests.support.pipelines import dead_letters
from tests.support.settled_events import settled_events
from tests.support.witness import Witness
from tests.support.workloads import FAST

MOST_CHANGES = 60
"""About how often a life that comes after a crash changes the disk: the next death comes at one of these."""


class Death(NamedTuple):
    """How a process ended: `remains` is what a power cut left; None after a kill."""

    moment: Moment
    remains: Remains | None


def live_on(death: Death, setup: Setup, *, seed: int, deaths: int = 1) -> int:
    """Live on after a death, and after `deaths` more of them, at moments and with outcomes by chance; return how many came."""
    chance = random.Random(seed)
    moments = _afterlife(death, setup, watched=chance.randrange(MOST_CHANGES) if deaths else False)
    if not moments:
        return 0
    again = moments[0]
    if chance.randrange(3):
        again.disk.crash(RandomChooser(seed))
        again.witness.power_cuts += 1
    return 1 + live_on(Death(again, None), setup, seed=seed + 1, deaths=deaths - 1)


def _afterlife(death: Death, setup: Setup, *, watched: bool | int) -> list[Moment]:
    moment, witness = death.moment, death.moment.witness.copy()
    witness.deaths += 1
    if death.remains is None:
        disk = moment.disk.twin()
        disk.kill()
    else:
        disk = disk_of(death.remains, moment.disk.capacity)
        witness.power_cuts += 1
    disk.errors = no_errors
    return live(
        _Afterlife(),
        setup,
        disk=disk,
        witness=witness,
        clock=moment.clock,
        watched=watched,
    )


class _Afterlife:
    """The script: recover, work on, deliver everything, stop in order, and find the same ledger again."""

    async def __call__(self, life: Life) -> None:
        found = await self._recover(life)
        before = life.witness.copy()
        life.disk.capacity = None
        if life.witness.paused is not False:
            await life.resume()
        await life.submit(2)
        life.send(1, FAST)
        await life.submit(1)
        await life.pipeline.flush()
        self._check_accounts(life, found, before)
        await life.host.stop(1.0)
        await self._check_closed(life)

    async def _recover(self, life: Life) -> Ledger:
        pipeline = life.start()
        found = pipeline.ledger()
        settings = life.host.settings
        life.witness.check_recovered(found, in_flight=settings.max_events * settings.concurrency)
        if life.witness.paused is not None:
            assert ((await pipeline.status()).state == "paused") is life.witness.paused
        return found

    def _check_accounts(self, life: Life, found: Ledger, before: Witness) -> None:
        """Compare the ledger, from the start on, with what happened outside."""
        witness, ledger = life.witness, life.pipeline.ledger()
        witness.latest = max(witness.latest, life.host.wall_clock())
        delivered = [name for sent in life.transport.answered if sent.taken for name in sent.hashes]
        assert max(Counter(delivered).values(), default=0) <= 1, "an event was sent again without a reason"
        beaten = len(delivered) - (ledger.delivered - found.delivered)  # dropped while they were on their way
        assert 0 <= beaten <= sum(ledger.dropped.values()) - sum(found.dropped.values())
        assert ledger.accepted - found.accepted == witness.answers - before.answers
        assert ledger.dead_lettered - found.dead_lettered <= len(witness.refused)
        witness.check_end(ledger, dead_letters(life.disk, life.host.directory))

    async def _check_closed(self, life: Life) -> None:
        """Open the queue once more: nothing has changed, and nothing is left."""
        ledger = life.pipeline.ledger()
        again = life.host.open()
        assert again.ledger() == ledger
        assert ledger.queued == 0
        life.witness.check_end(ledger, dead_letters(life.disk, life.host.directory))
        await again.close()
        life.witness.check_settled(settled_events(life.disk, life.host.directory))
