"""Single events that the API refused: they wait here until they are tried again, since a refusal may be an accident."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from agent.delivery.batching import Batch, Suspicion

MAX_SUSPECTS = 64
_NEVER = float("inf")


class _Suspect(NamedTuple):
    batch: Batch
    due_at: float


class Suspects:
    """The events that were set aside. They are few: at MAX_SUSPECTS no new batch should be begun before one has been tried.

    `refused` has the latest refused events, up to MAX_SUSPECTS, those that were given up among them; an acceptance empties it.
    """

    def __init__(self) -> None:
        self._waiting: list[_Suspect] = []
        self._accepted = 0
        self._refused: deque[Batch] = deque(maxlen=MAX_SUSPECTS)

    @property
    def refused(self) -> Sequence[Batch]:
        """See the class."""
        return [*(each.batch for each in self._waiting), *self._refused]

    @property
    def is_full(self) -> bool:
        """Whether one should be tried before anything else."""
        return len(self._waiting) >= MAX_SUSPECTS

    def note_acceptance(self) -> None:
        """Say that a batch was accepted: the API accepts others than those that wait here."""
        self._accepted += 1
        self._refused.clear()

    def note_refusal(self, batch: Batch) -> None:
        """Say that a single event was refused."""
        self._refused.append(batch)

    def set_aside(self, batch: Batch, due_at: float) -> None:
        """Keep an event that was refused; it may be tried again at `due_at` on the steady clock."""
        suspicion = Suspicion(batch.refusals + 1, self._accepted)
        self._waiting.append(_Suspect(replace(batch, suspicion=suspicion), due_at))

    def put_back(self, batch: Batch, now: float) -> None:
        """Take an event back that was taken, but not sent, or whose answer does not count."""
        self._waiting.append(_Suspect(batch, now))

    def due_at(self, *, alone: bool) -> float:
        """Return when the next one may be tried: after others were accepted, or `alone`, because there are no others."""
        return min((each.due_at for each in self._eligible(alone=alone)), default=_NEVER)

    def take(self, *, alone: bool) -> Batch:
        """Take the one that is due first."""
        first = min(self._eligible(alone=alone), key=lambda each: each.due_at)
        self._waiting.remove(first)
        return first.batch

    def clear(self) -> None:
        """Forget those that wait here."""
        self._waiting.clear()

    def _eligible(self, *, alone: bool) -> list[_Suspect]:
        return [each for each in self._waiting if alone or self._is_confirmed(each.batch)]

    def _is_confirmed(self, batch: Batch) -> bool:
        return batch.suspicion is not None and batch.suspicion.accepted_before < self._accepted
