"""What is proved at the end: the ledger's equation, and that the API has what the builds sent."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.events import Event
from agent.queue.cursor import Ledger
from agent.queue.dead_letters import DeadLetter


@dataclass(frozen=True)
class Evidence:
    """Both sides of the story: what the builds sent, what the agent says, what the API recorded and what is on disk.

    `readings` is how many times the ledger was read, and `unbalanced` how often its equation did not hold.
    """

    emitted: Counter[Event]
    poison: Event
    ledger: Ledger
    recorded: Counter[Event]
    dead_letters: Sequence[DeadLetter]
    readings: int
    unbalanced: int

    @property
    def expected(self) -> Counter[Event]:
        """What the API should have: everything but the poison."""
        return self.emitted - Counter([self.poison])

    @property
    def repeated(self) -> int:
        """How many events the API has more often than they were sent: a lost answer can do that."""
        return (self.recorded - self.expected).total()


def balances(ledger: Ledger) -> bool:
    """Tell whether accepted = delivered + dead_lettered + dropped + queued."""
    settled = ledger.delivered + ledger.dead_lettered + sum(ledger.dropped.values())
    return ledger.accepted == settled + ledger.queued


def equation(ledger: Ledger) -> str:
    """Return the ledger in one line."""
    return (
        f"accepted {ledger.accepted} = delivered {ledger.delivered} + dead_lettered {ledger.dead_lettered}"
        f" + dropped {sum(ledger.dropped.values())} + queued {ledger.queued}"
    )


def findings(evidence: Evidence) -> list[str]:
    """Return what was proved, a line each."""
    lines = [
        equation(evidence.ledger),
        f"The equation held in each of {evidence.readings} readings, before and after the kill.",
        f"Sent by the builds: {evidence.emitted.total()}. Recorded by the API: {evidence.recorded.total()}"
        + (f", of which {evidence.repeated} twice." if evidence.repeated else ", each exactly once."),
    ]
    for letter in evidence.dead_letters:
        event = letter.event
        lines += [f"Dead letter: {event.source} {event.event} {event.hash}", f"  the API: {letter.message}"]
    return lines


def problems(evidence: Evidence) -> list[str]:
    """Return what is not as promised, a line each; an empty list is the proof."""
    return list(_problems(evidence))


def _problems(evidence: Evidence) -> Iterator[str]:
    ledger, sent = evidence.ledger, evidence.emitted.total()
    expected = evidence.expected.total()
    if evidence.unbalanced:
        yield f"the ledger's equation did not hold in {evidence.unbalanced} of {evidence.readings} readings"
    if ledger.accepted != sent:
        yield f"the builds sent {sent} events and the agent accepted {ledger.accepted}"
    if ledger != Ledger(ledger.accepted, expected, sent - expected, {}, 0):
        yield f"the ledger should have delivered {expected}, dead_lettered {sent - expected} and nothing else"
    if missing := evidence.expected - evidence.recorded:
        yield f"the API lacks {missing.total()} events, the first of them {next(iter(missing))}"
    if foreign := set(evidence.recorded) - set(evidence.expected):
        yield f"the API has {len(foreign)} events that it should not have, the first of them {next(iter(foreign))}"
    if (letters := [letter.event for letter in evidence.dead_letters]) != [evidence.poison]:
        yield f"the dead letters should be the poison alone, and are {letters}"
