"""The judge: from what clients, server, ledger and dead letters say, whether the agent kept its promises.

Pure. It knows the protocol's promises and which faults there were. It must never know how the agent works.

What it can conclude, and what not:

- A durable client sends again what is not surely durable (see `Durable`), up to the end. So each of its events must have been
  taken by the server, or be a dead letter, which only a poisonous one may be. A client that asked for no acks may have lost any.
- An event that was sent again may have been accepted twice, so `accepted` lies between what was acknowledged and what was
  sent, repeats included. A repeat by the agent is what the server took beyond what the ledger calls delivered.
- A repeat needs an answer that did not arrive: a batch in flight when the daemon was interrupted (killed, stopped, ended by
  its deadline), or one that the server took without a whole answer. A file system that failed also forgets the unsynced
  cursor, and with it what was delivered since the last segment was deleted: no more than two segments.
- What a client was told was dropped is in the ledger, unless the checkpoint could not be written either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from tests.soak.events import Id, is_poisonous
from tests.support.accounts import Ledger, holds

NAMED = 5


@dataclass(frozen=True)
class Handed:
    """One client's account, and per event of it how often the server took it. `durable` clients know what was `acked`."""

    number: int
    durable: bool
    sent: int
    acked: int
    resent: int
    dropped: int
    taken: bytes

    def times_taken(self, index: int) -> int:
        """Return how often the server took an event."""
        return self.taken[index] if index < len(self.taken) else 0


@dataclass(frozen=True)
class Letter:
    """A dead letter: the event's number in the queue, and whose it is; None if nobody can have sent it."""

    seq: int
    event: Id | None


@dataclass(frozen=True)
class Bounds:
    """What may be: events and requests in flight, events in a segment, KiB of memory, files beyond those of the start.

    `last_files` counts those beyond when all clients have gone: the API's connections, segments, an answer under way.
    """

    max_events: int
    concurrency: int
    segment_events: int
    peak_rss: int = 200 * 1024
    new_files: int = 20
    last_files: int = 9


@dataclass(frozen=True)
class Evidence:
    """Everything that the oracle looks at, after all has healed and the queue was flushed."""

    bounds: Bounds
    ledger: Ledger
    clients: Sequence[Handed]
    letters: Sequence[Letter] = ()
    letters_discarded: int = 0
    taken_events: int = 0
    unanswered: int = 0
    interruptions: int = 0
    disk_losses: int = 0
    checkpoints_failed: bool = False
    drop_reasons: frozenset[str] = frozenset()
    invented: Sequence[object] = ()
    violations: Sequence[str] = ()
    log_problems: Sequence[str] = ()
    peak_rss: int = 0
    most_new_files: int = 0
    last_new_files: int = 0

    @cached_property
    def dead(self) -> frozenset[Id]:
        """The events that are dead letters."""
        return frozenset(letter.event for letter in self.letters if letter.event is not None)

    @property
    def repeats(self) -> int:
        """Events that the server took again, as the ledger tells."""
        return int(self.taken_events - self.ledger["delivered"])

    @property
    def most_repeats(self) -> int:
        """How many repeats the faults explain."""
        per_interruption = self.bounds.concurrency * self.bounds.max_events
        per_loss = per_interruption + 2 * self.bounds.segment_events
        lost_answers = self.unanswered * self.bounds.max_events
        return self.interruptions * per_interruption + lost_answers + self.disk_losses * per_loss


def judge(evidence: Evidence) -> list[str]:
    """Return every promise that was not kept, in words; empty if all were."""
    return [f"{check.__name__.strip('_')}: {problem}" for check in CHECKS for problem in check(evidence)]


def lost(evidence: Evidence) -> list[Id]:
    """Return the acknowledged events that neither arrived nor are dead letters."""
    events = (Id(each.number, index) for each in evidence.clients for index in range(each.acked))
    clients = {each.number: each for each in evidence.clients}
    return [event for event in events if not _accounted(clients[event.client], event, evidence)]


def _accounted(client: Handed, event: Id, evidence: Evidence) -> bool:
    if is_poisonous(event.number):
        return event in evidence.dead
    return client.times_taken(event.number) > 0


def _nothing_is_lost(evidence: Evidence) -> Iterator[str]:
    missing = lost(evidence)
    if missing:
        yield f"{len(missing)} acknowledged events, such as {missing[:NAMED]}"
    yield from (f"client {c.number} has {c.sent - c.acked} without ack" for c in evidence.clients if _is_owed_acks(c))


def _is_owed_acks(client: Handed) -> bool:
    return client.durable and client.acked != client.sent


def _nothing_is_made_up(evidence: Evidence) -> Iterator[str]:
    sent = {client.number: client.sent for client in evidence.clients}
    yield from (f"the server received {each}" for each in evidence.invented)
    yield from (
        f"client {c.number} sent {c.sent}, {len(c.taken)} came" for c in evidence.clients if len(c.taken) > c.sent
    )
    for letter in evidence.letters:
        if letter.event is None or letter.event.number >= sent.get(letter.event.client, 0):
            yield f"dead letter {letter}"


def _only_bad_events_are_refused(evidence: Evidence) -> Iterator[str]:
    yield from (f"{event} is a dead letter" for event in evidence.dead if not is_poisonous(event.number))
    if evidence.letters_discarded:
        yield f"{evidence.letters_discarded} dead letters were discarded"
    numbers = len({letter.seq for letter in evidence.letters})
    if numbers != evidence.ledger["dead_lettered"]:
        yield f"{numbers} dead letters, and the ledger says {evidence.ledger['dead_lettered']}"


def _the_ledger_is_exact(evidence: Evidence) -> Iterator[str]:
    ledger, clients = evidence.ledger, evidence.clients
    if not holds(ledger) or ledger["queued"]:
        yield f"{ledger}"
    least, most = sum(c.acked for c in clients), sum(c.sent + c.resent for c in clients)
    if not least <= ledger["accepted"] <= most:
        yield f"accepted {ledger['accepted']}, not from {least} to {most}"
    told, dropped = sum(c.dropped for c in clients), sum(ledger["dropped"].values())
    if told > dropped and not evidence.checkpoints_failed:
        yield f"clients were told of {told} drops, the ledger says {dropped}"


def _drops_have_reasons(evidence: Evidence) -> Iterator[str]:
    for reason in evidence.ledger["dropped"].keys() - evidence.drop_reasons:
        yield f"{evidence.ledger['dropped'][reason]} as {reason}, which no fault explains"


def _repeats_are_bounded(evidence: Evidence) -> Iterator[str]:
    if not 0 <= evidence.repeats <= evidence.most_repeats:
        yield f"{evidence.repeats}, not from 0 to {evidence.most_repeats}"


def _requests_keep_the_contract(evidence: Evidence) -> Iterator[str]:
    yield from evidence.violations[:NAMED]


def _the_log_is_clean(evidence: Evidence) -> Iterator[str]:
    yield from evidence.log_problems[:NAMED]


def _resources_are_bounded(evidence: Evidence) -> Iterator[str]:
    if evidence.peak_rss > evidence.bounds.peak_rss:
        yield f"{evidence.peak_rss} KiB of memory, more than {evidence.bounds.peak_rss}"
    if evidence.most_new_files > evidence.bounds.new_files:
        yield f"{evidence.most_new_files} files more than at the start, not {evidence.bounds.new_files}"
    if evidence.last_new_files > evidence.bounds.last_files:
        yield f"{evidence.last_new_files} files more at the end than at the start, not {evidence.bounds.last_files}"


CHECKS: Sequence[Callable[[Evidence], Iterator[str]]] = (
    _nothing_is_lost,
    _nothing_is_made_up,
    _only_bad_events_are_refused,
    _the_ledger_is_exact,
    _drops_have_reasons,
    _repeats_are_bounded,
    _requests_keep_the_contract,
    _the_log_is_clean,
    _resources_are_bounded,
)
