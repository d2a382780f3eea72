"""Who saw what from outside: every event that was submitted, acknowledged, taken by the API or refused by it, across crashes.

A queue is judged by its ledger, its dead letters and what it delivers, and by nothing inside of the agent.

What it holds a pipeline to, with `sync = "commit"`:

- an event that was acknowledged was taken by the API, or is a dead letter, or is still queued, or was dropped because of a limit
  that says so; an event that came with an error is counted by its reason;
- what the API gets was submitted, once, with this content and context; a dead letter was refused by the API on its own;
- the ledger's identity holds at every moment. After a kill `accepted` is at least what was answered, after a power cut at least
  what was acknowledged, and never more than what was submitted (an event that was refused with an error may come back after a
  power cut, and then counts again);
- from one start to the next, every count in the ledger is exactly what happened outside;
- where no power was cut, a death has events sent again that were on their way, and no others;
- a pause, or the end of one, is there after a crash once it was durable.
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.delivery.transport import Kind
from agent.events import Context
from agent.queue.cursor import Ledger, Outcome
from agent.queue.dead_letters import DeadLetter
from tests.support.fake_transport import Sent
from tests.support.pipelines import event


class Submitted(NamedTuple):
    """When (seconds since the epoch) and by whom an event was submitted."""

    at: float
    context: Context


class Bounds(NamedTuple):
    """What may be dropped without a fault: how many events at least the queue keeps, and for how many seconds.

    `letters` is how many of the youngest dead letters are never discarded.
    """

    kept: float = float("inf")
    age: float = float("inf")
    letters: float = float("inf")


@dataclass
class Witness:
    """All facts, in dictionaries in the order in which they became known; `version` grows with each of them."""

    bounds: Bounds = field(default_factory=Bounds)
    poison: frozenset[str] = frozenset()
    submitted: dict[str, Submitted] = field(default_factory=dict)
    acked: dict[str, None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    rotten: set[str] = field(default_factory=set)
    lost_answers: int = 0
    deaths: int = 0
    power_cuts: int = 0
    faults: int = 0
    paused: bool | None = False
    latest: float = 0.0
    version: int = 0

    def copy(self) -> "Witness":
        """Return what is known now."""
        twin = copy.copy(self)
        for name in ("submitted", "acked", "failed", "taken", "refused", "rotten"):
            setattr(twin, name, getattr(self, name).copy())
        return twin

    @property
    def answers(self) -> int:
        """How many events the agent has said something of."""
        return len(self.acked) + len(self.failed)

    # What becomes known

    def submits(self, names: Iterable[str], context: Context, at: float) -> None:
        """Note that the agent is given these events now."""
        self.submitted |= dict.fromkeys(names, Submitted(at, context))
        self.version += 1

    def answered(self, names: Collection[str], refused: Outcome | None) -> None:
        """Note what the agent says of them."""
        if refused is None:
            self.acked |= dict.fromkeys(names)
        else:
            self.failed |= dict.fromkeys(names, str(refused))
        self.version += 1

    def receives(self, sent: Sent) -> None:
        """Note an answer of the API; what it gets must be what was submitted."""
        assert {self.submitted[name].context for name in sent.hashes} == {sent.context}
        assert list(sent.events) == [event(name) for name in sent.hashes], "an event was changed"
        assert len(set(sent.hashes)) == len(sent.hashes), "an event is twice in a batch"
        if sent.taken:
            self.taken.update(sent.hashes)
            self.lost_answers += len(sent.events) if sent.kind is not Kind.ACCEPTED else 0
        if sent.kind in {Kind.REJECTED, Kind.TOO_LARGE} and len(sent.events) == 1:
            self.refused.append(sent.hashes[0])
        self.version += 1

    def pauses(self, *, durably: bool | None) -> None:
        """Note whether delivery is to be found paused by an operator after a crash; None if that is not certain."""
        self.paused = durably
        self.version += 1

    # What must be true

    def check_recovered(self, ledger: Ledger, *, in_flight: int) -> None:
        """Hold the ledger of a pipeline that was just opened, after a kill or a power cut, to what is known.

        `in_flight` is how many events may be under way to the API at once.
        """
        killed = not self.power_cuts and not self.faults
        check_identity(ledger)
        assert ledger.accepted >= len(self.acked) + (len(self.failed) if killed else 0), (ledger, len(self.acked))
        assert ledger.accepted <= len(self.submitted) + len(self.failed), (ledger, len(self.submitted))
        assert ledger.delivered <= len(self.taken)
        in_doubt = len(self.submitted) - len(self.acked) if self.power_cuts or self.faults else 0
        assert ledger.dropped.get("corrupt", 0) <= in_doubt + len(self.rotten), ledger
        if not self.power_cuts:
            to_repeat = len(self.taken) - ledger.delivered - sum(ledger.dropped.values())
            assert to_repeat <= self.lost_answers + self.deaths * in_flight, f"{to_repeat} events will be sent again"
        open_ends = [name for name in self.acked if name not in self.taken and name not in self.refused]
        dropped = sum(ledger.dropped.values())
        assert ledger.queued + dropped >= len(open_ends), f"{open_ends} are gone: {ledger}"

    def check_end(self, ledger: Ledger, letters: Collection[DeadLetter]) -> None:
        """Hold a queue that has been delivered, and its dead letters, to the promises."""
        check_identity(ledger)
        assert ledger.queued == 0
        self._check_letters(letters, ledger)
        missing = self.missing(letters)
        self._check_drops(missing, ledger)

    def check_settled(self, ends: Iterable[tuple[str, str]]) -> None:
        """Hold what the disk says became of each settled event to what is known."""
        for name, outcome in ends:
            if outcome == Outcome.DELIVERED:
                assert name in self.taken, f"{name} seems delivered"
            elif outcome == Outcome.DEAD_LETTERED:
                assert name in self.refused, f"{name} seems dead-lettered"

    def missing(self, letters: Collection[DeadLetter]) -> list[str]:
        """Return which acknowledged events neither the API nor a dead letter has, oldest first."""
        kept = {letter.event.hash for letter in letters}
        if len(self.refused) > self.bounds.letters:  # a letter that a crash had written twice makes room as well
            younger = int(self.bounds.letters)
            kept |= set(self.refused[:-younger]) - set(self.refused[-younger:])
        return [name for name in self.acked if name not in self.taken and name not in kept]

    def _check_letters(self, letters: Collection[DeadLetter], ledger: Ledger) -> None:
        for letter in letters:
            name = letter.event.hash
            assert name in self.refused, f"{name} is a dead letter and was not refused"
            assert (letter.event, letter.context) == (event(name), self.submitted[name].context)
        assert ledger.dead_lettered <= len(self.refused)
        if len(self.refused) <= self.bounds.letters:
            assert ledger.dead_lettered <= len({letter.event.hash for letter in letters})

    def _check_drops(self, missing: list[str], ledger: Ledger) -> None:
        """Every missing event must be old enough, or so far from the youngest that the queue was full."""
        age = {name: len(self.acked) - place for place, name in enumerate(self.acked)}
        expired = [name for name in missing if self.submitted[name].at < self.latest - self.bounds.age]
        overflown = [name for name in missing if age[name] > self.bounds.kept]
        unexplained = set(missing) - set(expired) - set(overflown) - self.rotten
        assert not unexplained, f"{sorted(unexplained)} are gone: {ledger}"
        reasons = {
            Outcome.EXPIRED: bool(expired),
            Outcome.OVERFLOW: bool(overflown),
            Outcome.CORRUPT: bool(self.rotten),
        }
        dropped = sum(ledger.dropped.get(reason, 0) for reason, allowed in reasons.items() if allowed)
        assert dropped >= len(missing), f"{missing} are not accounted for: {ledger}"


def check_identity(ledger: Ledger) -> None:
    """Hold a ledger to promise 3."""
    settled = ledger.delivered + ledger.forwarded + ledger.dead_lettered + sum(ledger.dropped.values())
    assert ledger.accepted == settled + ledger.queued, ledger
    assert min(ledger.queued, ledger.delivered, ledger.dead_lettered, *ledger.dropped.values(), 0) == 0, ledger
