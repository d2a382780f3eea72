"""Who may put how much into a queue: fair shares by user from half of its size on, and whose events may make room for whose.

An owner is the user that sent events, by its uid. While the queue is at most half full everybody is let in. From there on nobody
may hold more of the queue than a share: its size is divided among the owners that have sent something lately, by their weights,
mostly 1 each. Who is alone has all of it. Events that are in the queue make room for later ones of the same owner at most, and
never for another one's.

Of the segments that a restart finds only this is known: which of them are of one owner alone, see `Run`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from agent.queue.cursor import MAX_RUNS, Outcome, Run

UNNAMED = 0xFFFF_FFFF
"""The owner of what comes from those whom the kernel does not name: the clients over TCP, all together. It is nobody's uid."""
NOBODY = -1
"""The owner of dead letters that come back, and of what was found and may be anybody's: nothing makes room in its place."""
SENDING_SECONDS = 600.0
"""How long an owner that has sent something counts among those that do."""


class Claim(Protocol):
    """Bytes that an owner wants to put into the queue, all or none; what is `retried` has its place elsewhere until it is in."""

    @property
    def owner(self) -> int:
        """The uid."""

    @property
    def size(self) -> int:
        """At most so many bytes."""

    @property
    def retried(self) -> bool:
        """Whether it comes back from dead letters."""


class Part(NamedTuple):
    """A segment that is in use: its size, and how many of its bytes each owner holds."""

    size: int
    held: Mapping[int, int]

    def is_of(self, owner: int) -> bool:
        """Tell whether nobody else has events in it."""
        return self.held.keys() <= {owner}


class Occupancy(NamedTuple):
    """A queue at one moment: the segments in use, oldest first, of `max_bytes` in all.

    `shares` says of each owner that sends how many bytes it may hold, and `replaceable` how many of the oldest segments may make
    room for what comes.
    """

    max_bytes: int
    parts: Sequence[Part]
    shares: Mapping[int, int]
    replaceable: int


class Admission(NamedTuple):
    """Why each claim is refused, None for those that are let in, and how many of the oldest segments have to go for them."""

    refused: list[Outcome | None]
    replaced: int


def admit(claims: Iterable[Claim], queue: Occupancy) -> Admission:
    """Decide about claims in the order they came; the owner of each has a share, but for what is retried."""
    refused: list[Outcome | None] = []
    used, held, replaced = 0, dict[int, int](), 0
    for part in queue.parts:
        used += part.size
        for owner, size in part.held.items():
            held[owner] = held.get(owner, 0) + size
    for claim in claims:
        owner, size, reason = claim.owner, claim.size, None
        if used + size > queue.max_bytes // 2:
            if len(queue.shares) > 1 and not claim.retried and held.get(owner, 0) + size > queue.shares[owner]:
                reason = Outcome.QUOTA
            elif used + size > queue.max_bytes:
                last = queue.replaceable if not claim.retried else replaced
                gone = _making_room(queue.parts[replaced:last], owner, used + size - queue.max_bytes)
                reason = None if gone else Outcome.OVERFLOW
                replaced += len(gone)
                used -= sum(part.size for part in gone)
                held[owner] = held.get(owner, 0) - sum(part.held.get(owner, 0) for part in gone)
        if reason is None:
            used += size
            held[owner] = held.get(owner, 0) + size
        refused.append(reason)
    return Admission(refused, replaced)


def _making_room(parts: Sequence[Part], owner: int, excess: int) -> Sequence[Part]:
    """Return the fewest of the oldest segments whose end frees `excess` bytes; none if they are not all of the owner alone."""
    for count, part in enumerate(parts, 1):
        if not part.is_of(owner):
            break
        excess -= part.size
        if excess <= 0:
            return parts[:count]
    return ()


class SharedDisk:
    """What several queues may use together: each an equal part, and never more than the others leave of it.

    They leave less than a part only after another one has joined, until what they hold beyond their parts has gone: where old
    events may go, that is at the next commit of each.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used: dict[object, int] = {}

    def use(self, queue: object, used: int) -> None:
        """Say how many bytes a queue uses now; with the first time it joins."""
        self._used[queue] = used

    def leave(self, queue: object) -> None:
        """Leave the part of a queue that is closed to the others."""
        del self._used[queue]

    @property
    def part(self) -> int:
        """How many bytes are for each queue."""
        return self._total // len(self._used)

    def bound(self, queue: object) -> int:
        """Return how many bytes a queue that has joined may use."""
        others = sum(self._used.values()) - self._used[queue]
        return min(self.part, self._total - others)


class Senders:
    """Which owners have sent something lately; `last` says when, in seconds by whatever clock, and with which weight."""

    def __init__(self, found: Collection[int]) -> None:
        """Owners that were `found` in the queue, NOBODY too, count as if they sent something when time is first told."""
        self.found = found
        self.last: dict[int, tuple[float, int]] = {}

    def shares(self, max_bytes: int, now: float) -> dict[int, int]:
        """Share bytes out among them, and forget the others."""
        if self.found:
            self.last = dict.fromkeys(self.found, (now, 1)) | self.last
            self.found = ()
        self.last = {owner: each for owner, each in self.last.items() if abs(now - each[0]) <= SENDING_SECONDS}
        total = sum(weight for _, weight in self.last.values())
        return {owner: max_bytes * weight // total for owner, (_, weight) in self.last.items()}


# Runs: what a checkpoint remembers.


def owner_of(runs: Sequence[Run], first_seq: int) -> int:
    """Return who alone has events in the segment that begins with this number; NOBODY if there are several, or it is unknown."""
    found = NOBODY
    for run in runs:
        if run.first_seq > first_seq:
            break
        found = NOBODY if run.owner is None else run.owner
    return found


def runs_with(runs: tuple[Run, ...], first_seq: int, owners: Collection[int], *, begun: bool) -> tuple[Run, ...]:
    """Return the runs after `owners`, at least one, have got events into the last segment.

    It had none before if it is `begun` with them.
    """
    sole = None if len(owners) > 1 or NOBODY in owners else next(iter(owners))
    if runs and runs[-1].owner == sole and runs[-1].first_seq <= first_seq:
        return runs  # as nearly always
    if not begun and owner_of(runs, first_seq) != sole:
        sole = None
    return _joined([*(run for run in runs if run.first_seq < first_seq), Run(first_seq, sole)])


def runs_from(runs: tuple[Run, ...], first_seq: int) -> tuple[Run, ...]:
    """Return the runs without those of segments that are gone: the first one that is left begins with this number."""
    return runs[sum(later.first_seq <= first_seq for later in runs[1:]) :]


def runs_until(runs: tuple[Run, ...], first_seq: int) -> tuple[Run, ...]:
    """Return the runs with nothing known of the segment that begins with this number, and of those after it."""
    return _joined([*(run for run in runs if run.first_seq < first_seq), Run(first_seq, None)])


def _joined(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Let neighbours of one owner be one, and keep the last MAX_RUNS: of what is before the first one nothing is known."""
    joined: list[Run] = []
    for run in runs:
        if run.owner != (joined[-1].owner if joined else None):
            joined.append(run)
    return tuple(joined[-MAX_RUNS:])
