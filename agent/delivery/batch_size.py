"""How large a batch may be: learned from what the server accepts and refuses, in events and in bytes. Pure.

A size is refused by a 413, by a connection that is cut in mid-upload, or by a 400 whose halves are both accepted. Whether it
was the number of events or of bytes, the server does not say: a refusal counts against both, unless as many were accepted
before; an acceptance clears what it contradicts.

    no refusal is known           the configured size
    refused, nothing accepted     half of what was refused, again and again
    accepted PATIENCE times       ask for the refused size once more: one 413 may have been an accident
    refused again                 bisect between what is accepted and what is refused, until they are close
    found                         stay there; ask for the refused size again after 2 min, 16 min, then every hour

Sizes above what is known to be good are tried by one request at a time: see `is_exploring`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

PATIENCE = 3
FIRST_WAIT = 120.0
MAX_WAIT = 3600.0
_GROWTH = 8
_CLOSE = 8  # found when what is refused is at most an eighth more than what is accepted
_NONE = 2**63


class Size(NamedTuple):
    """A number of events, and of bytes of their JSON array."""

    events: int
    bytes: int


_NOTHING, _UNKNOWN = Size(0, 0), Size(_NONE, _NONE)


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What is known of the sizes that the server takes.

    `good` is the largest size that was accepted, `bad` the smallest that was refused. `repeats` counts how often `bad` was
    asked for again and refused; it is asked for again at `ask_at`, on the steady clock. `streak` counts acceptances at the limit.
    """

    good: Size = _NOTHING
    bad: Size = _UNKNOWN
    repeats: int = 0
    ask_at: float = float("-inf")
    streak: int = 0
    message: str = ""

    @property
    def is_reduced(self) -> bool:
        """Whether a refusal is known."""
        return min(self.bad) < _NONE


def limit(state: BatchSize, most: Size, now: float) -> Size:
    """Return how large the next batch may be; `most` is the configured size, `now` on the steady clock."""
    if not state.is_reduced:
        return most
    return Size(*(max(1, min(size, top)) for size, top in zip(_wanted(state, now), most, strict=True)))


def is_exploring(state: BatchSize, now: float) -> bool:
    """Whether the limit is larger than what is known to be good, so that only one request at a time should find out."""
    if not state.is_reduced:
        return False
    wanted = zip(state.good, state.bad, _wanted(state, now), strict=True)
    return any(bad < _NONE and size > good for good, bad, size in wanted)


def _wanted(state: BatchSize, now: float) -> Size:
    """Return the limit before the configuration is looked at."""
    asks = now >= state.ask_at if state.repeats else state.streak >= PATIENCE
    wanted = []
    for good, bad, step in zip(state.good, state.bad, _steps(state), strict=True):
        if bad == _NONE:
            wanted.append(bad)
        elif not good:
            wanted.append(bad // 2)
        elif state.repeats and not _is_close(good, bad, step):
            wanted.append((good + bad) // 2)
        else:
            wanted.append(bad + max(bad // _CLOSE, step - 1) if asks else good)
    return Size(*wanted)


def _steps(state: BatchSize) -> Size:
    """Return the smallest differences that can be told: a batch is made of whole events, and does not fill its bytes."""
    return Size(1, 2 * state.good.bytes // max(state.good.events, 1))


def _is_close(good: int, bad: int, step: int) -> bool:
    return bad - good <= max(bad // _CLOSE, step)


def accepted(state: BatchSize, size: Size, most: Size, now: float) -> BatchSize:
    """Return the state after a batch of `size` was accepted."""
    good = Size(*map(max, state.good, size))
    if not state.is_reduced:
        return state if good == state.good else replace(state, good=good)
    bad = Size(*(_NONE if got >= refused else refused for got, refused in zip(size, state.bad, strict=True)))
    if min(bad) == _NONE:
        return BatchSize(good=good)
    filled = any(2 * got >= allowed for got, allowed in zip(size, limit(state, most, now), strict=True))
    return replace(state, good=good, bad=bad, streak=state.streak + filled)


def refused(state: BatchSize, size: Size, message: str, now: float) -> BatchSize:
    """Return the state after a batch of `size`, of more than one event, was refused; `message` says in which words."""
    blamed = [got > good for got, good in zip(size, state.good, strict=True)]
    if not any(blamed):  # as much was accepted before: the server has changed its mind, or it was an accident
        return BatchSize(bad=size, message=message)
    bad = Size(*(min(got, old) if is_it else old for got, old, is_it in zip(size, state.bad, blamed, strict=True)))
    asked_again = any(got >= old for got, old in zip(size, state.bad, strict=True))
    known = [each for each in zip(state.good, bad, _steps(state), strict=True) if each[1] < _NONE]
    found = state.repeats and all(_is_close(*each) for each in known)
    if not asked_again and not found:
        return replace(state, bad=bad, streak=0, message=message)
    wait = min(FIRST_WAIT * _GROWTH**state.repeats, MAX_WAIT)
    return replace(state, bad=bad, repeats=state.repeats + 1, ask_at=now + wait, streak=0, message=message)
