"""A pause on two clocks: `Paused` is of this process, on its steady clock; `Pause` is written down, on the wall clock."""

from dataclasses import replace
from typing import Final

from agent.delivery.policy import DeliverySettings, DeliveryState, Paused, Reason
from agent.queue.cursor import Pause

_REASONS: Final = frozenset(Reason)


def is_known(pause: Pause) -> bool:
    """Whether this version knows the reason of a pause that was written down."""
    return pause.reason in _REASONS


def to_remember(state: DeliveryState, before: Pause | None, *, now: float, wall_clock: float) -> Pause | None:
    """Return what to write down of a state; a pause that goes on began when the one `before` did. `now` is the steady clock's."""
    if (paused := state.paused) is None:
        return None
    since = before.since if before is not None else wall_clock
    return Pause(paused.reason, paused.message, since, wall_clock + paused.until - now, state.probes)


def paused_by(
    state: DeliveryState, pause: Pause, settings: DeliverySettings, *, now: float, wall_clock: float
) -> DeliveryState:
    """Return the state with a pause that was written down. `now` is the steady clock's."""
    wait = pause.probe_at - wall_clock
    if pause.reason != Reason.OPERATOR:
        # A clock that was set back must not make it wait longer than it ever should.
        wait = min(max(wait, 0.0), settings.max_probe_interval)
    reason = Reason(pause.reason) if is_known(pause) else Reason.BLOCKED
    paused = Paused(reason, pause.message, now + wait)
    return replace(state, paused=paused, doubt=None, probes=pause.probes, slots=1, failures=0)
