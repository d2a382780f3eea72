"""The judge: from what clients, server, ledgers and dead letters say, whether the agent kept its promises.

Pure. It knows the protocol's promises and which faults there were. It must never know how the agent works.

What it can conclude, and what not:

- A durable client sends again what is not surely durable (see `Durable`), up to the end. So each of its events must have been
  taken by the server, or be a dead letter, which only a poisonous one may be. A client that asked for no acks may have lost any.
  Where an account is so slow that its queue is full, as many acknowledged ones may be missing as the ledger calls overflow.
- An event that was sent again may have been accepted twice, so `accepted` lies between what was acknowledged and what was
  sent, repeats included. A repeat by the agent is what the server took beyond what the ledgers call delivered.
- An account may have several destinations, by its names. A client knows which one it asked for: the ledger of each has at least
  what became durable there, and no more than was sent there and not denied.
- A repeat needs an answer that did not arrive: a batch in flight when the daemon was interrupted (killed, stopped, ended by
  its deadline), or one that the server took without a whole answer. A file system that failed also forgets the unsynced
  cursor, and with it what was delivered since the last segment was deleted: no more than two segments.
- What a client was told was dropped is in the ledger, unless the checkpoint could not be written either. What was denied is in
  none.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tests.soak.events import Id, is_poisonous
from tests.support.accounts import Ledger, holds

NAMED = 5
DENIED, OVERFLOW = "denied", "overflow"


@dataclass(frozen=True)
class Handed:
    """One client's account, and per event of it how often the server took it. `durable` clients know what was `acked`.

    `asked` says by destination, "" where rules alone decided, how many were `sent`, `durable`, and dropped for a reason.
    """

    number: int
    durable: bool
    sent: int
    acked: int
    resent: int
    dropped: int
    taken: bytes
    asked: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def times_taken(self, index: int) -> int:
        """Return how often the server took an event."""
        return self.taken[index] if index < len(self.taken) else 0

    @property
    def denied(self) -> int:
        """How many were denied, as it was told."""
        return sum(each.get(DENIED, 0) for each in self.asked.values())


@dataclass(frozen=True)
class Letter:
    """A dead letter: the event's number in the queue of a destination, and whose it is; None if nobody can have sent it."""

    seq: int
    event: Id | None
    destination: str = "default"


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
class Account:
    """An account of the API: the `ledgers` of its destinations by name, and its clients.

    The server took `taken_events`, repeats too, and `unanswered` requests without a whole answer. Only for `drop_reasons` may
    anything have been dropped.
    """

    name: str
    ledgers: Mapping[str, Ledger]
    clients: Sequence[Handed]
    letters: Sequence[Letter] = ()
    letters_discarded: int = 0
    taken_events: int = 0
    unanswered: int = 0
    drop_reasons: frozenset[str] = frozenset()

    @cached_property
    def dead(self) -> frozenset[Id]:
        """The events that are dead letters."""
        return frozenset(letter.event for letter in self.letters if letter.event is not None)

    @cached_property
    def ledger(self) -> Ledger:
        """The sum of its ledgers."""
        counts = Counter[str]()
        dropped = Counter[str]()
        for ledger in self.ledgers.values():
            counts.update({key: value for key, value in ledger.items() if key != "dropped"})
            dropped.update(ledger["dropped"])
        return {**counts, "dropped": dict(dropped)}

    @cached_property
    def missing(self) -> list[Id]:
        """The acknowledged events that neither arrived nor are dead letters."""
        events = ((client, Id(client.number, index)) for client in self.clients for index in range(client.acked))
        return [event for client, event in events if not self._is_accounted(client, event)]

    @property
    def lost(self) -> int:
        """How many of the missing no overflow explains."""
        return max(len(self.missing) - self._pushed_out, 0)

    @property
    def repeats(self) -> int:
        """Events that the server took again, as the ledgers tell."""
        return int(self.taken_events - self.ledger["delivered"])

    @property
    def _pushed_out(self) -> int:
        return int(self.ledger["dropped"].get(OVERFLOW, 0)) if OVERFLOW in self.drop_reasons else 0

    def _is_accounted(self, client: Handed, event: Id) -> bool:
        if is_poisonous(event.number):
            return event in self.dead
        return client.times_taken(event.number) > 0


@dataclass(frozen=True)
class Evidence:
    """Everything that the oracle looks at, after all has healed and the queues were flushed."""

    bounds: Bounds
    accounts: Sequence[Account]
    interruptions: int = 0
    disk_losses: int = 0
    checkpoints_failed: bool = False
    invented: Sequence[object] = ()
    violations: Sequence[str] = ()
    log_problems: Sequence[str] = ()
    peak_rss: int = 0
    most_new_files: int = 0
    last_new_files: int = 0

    def most_repeats(self, account: Account) -> int:
        """Return how many repeats of an account the faults explain: each of its destinations may have had some in flight."""
        per_interruption = self.bounds.concurrency * self.bounds.max_events
        per_loss = per_interruption + 2 * self.bounds.segment_events
        faults = self.interruptions * per_interruption + self.disk_losses * per_loss
        return len(account.ledgers) * faults + account.unanswered * self.bounds.max_events


def judge(evidence: Evidence) -> list[str]:
    """Return every promise that was not kept, in words; empty if all were."""
    of_all = [f"{check.__name__.strip('_')}: {problem}" for check in CHECKS for problem in check(evidence)]
    of_each = [
        f"{check.__name__.strip('_')}: {account.name}: {problem}"
        for account in evidence.accounts
        for check in ACCOUNT_CHECKS
        for problem in check(evidence, account)
    ]
    return of_each + of_all


def _nothing_is_lost(_: Evidence, account: Account) -> Iterator[str]:
    if account.lost:
        yield f"{account.lost} acknowledged events, such as {account.missing[:NAMED]}"
    yield from (f"client {c.number} has {c.sent - c.acked} without ack" for c in account.clients if _is_owed_acks(c))


def _is_owed_acks(client: Handed) -> bool:
    return client.durable and client.acked != client.sent


def _nothing_is_made_up(_: Evidence, account: Account) -> Iterator[str]:
    sent = {client.number: client.sent for client in account.clients}
    yield from (
        f"client {c.number} sent {c.sent}, {len(c.taken)} came" for c in account.clients if len(c.taken) > c.sent
    )
    for letter in account.letters:
        if letter.event is None or letter.event.number >= sent.get(letter.event.client, 0):
            yield f"dead letter {letter}"


def _only_bad_events_are_refused(_: Evidence, account: Account) -> Iterator[str]:
    yield from (f"{event} is a dead letter" for event in account.dead if not is_poisonous(event.number))
    if account.letters_discarded:
        yield f"{account.letters_discarded} dead letters were discarded"
    numbers = Counter(name for name, _ in {(letter.destination, letter.seq) for letter in account.letters})
    for name, ledger in account.ledgers.items():
        if numbers[name] != ledger["dead_lettered"]:
            yield f"{numbers[name]} dead letters in {name}, and the ledger says {ledger['dead_lettered']}"


def _the_ledger_is_exact(evidence: Evidence, account: Account) -> Iterator[str]:
    for name, ledger in account.ledgers.items():
        if not holds(ledger) or ledger["queued"]:
            yield f"{name}: {ledger}"
    clients = account.clients
    least, most = sum(c.acked for c in clients), sum(c.sent + c.resent - c.denied for c in clients)
    yield from _is_within("", account.ledger, least, most)
    told = sum(c.dropped - c.denied for c in clients)
    dropped = sum(account.ledger["dropped"].values())
    if told > dropped and not evidence.checkpoints_failed:
        yield f"clients were told of {told} drops, the ledger says {dropped}"
    for name, asked in _asked(account).items():
        ledger = account.ledgers.get(name, {"accepted": 0, "dropped": {}})
        yield from _is_within(f"{name}: ", ledger, asked["durable"], asked["sent"] - asked[DENIED])
        for reason in asked.keys() - {"sent", "durable", DENIED}:
            if asked[reason] > ledger["dropped"].get(reason, 0) and not evidence.checkpoints_failed:
                yield f"{name}: {asked[reason]} were dropped as {reason}, the ledger says {ledger['dropped']}"


def _is_within(where: str, ledger: Ledger, least: int, most: int) -> Iterator[str]:
    if not least <= ledger["accepted"] <= most:
        yield f"{where}accepted {ledger['accepted']}, not from {least} to {most}"


def _asked(account: Account) -> dict[str, Counter[str]]:
    """Return what all clients know of each destination that they asked for by name."""
    asked: dict[str, Counter[str]] = {}
    for client in account.clients:
        for name, counts in client.asked.items():
            asked.setdefault(name, Counter()).update(counts)
    asked.pop("", None)
    return asked


def _drops_have_reasons(_: Evidence, account: Account) -> Iterator[str]:
    for reason in account.ledger["dropped"].keys() - account.drop_reasons:
        yield f"{account.ledger['dropped'][reason]} as {reason}, which no fault explains"


def _repeats_are_bounded(evidence: Evidence, account: Account) -> Iterator[str]:
    if not 0 <= account.repeats <= evidence.most_repeats(account):
        yield f"{account.repeats}, not from 0 to {evidence.most_repeats(account)}"


def _nothing_comes_from_nobody(evidence: Evidence) -> Iterator[str]:
    yield from (f"the server received {each}" for each in evidence.invented)


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


ACCOUNT_CHECKS: Sequence[Callable[[Evidence, Account], Iterator[str]]] = (
    _nothing_is_lost,
    _nothing_is_made_up,
    _only_bad_events_are_refused,
    _the_ledger_is_exact,
    _drops_have_reasons,
    _repeats_are_bounded,
)
CHECKS: Sequence[Callable[[Evidence], Iterator[str]]] = (
    _nothing_comes_from_nobody,
    _requests_keep_the_contract,
    _the_log_is_clean,
    _resources_are_bounded,
)
