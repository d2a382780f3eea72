"""What to do about an answer: (state, verdict, size, now) → (action, state), all frozen values.

Times are in seconds: `now` is the steady clock's, delays are relative. The table, as code:

    ACCEPTED       settle as delivered; the streak of rejections ends; concurrency steps up; so large a batch may be
    TRANSIENT      try the same batch again, after a full-jitter exponential delay, never sooner than the server said
    REJECTED       split; a single event is set aside, and tried again later over another connection, when others have been
                   accepted or nothing else waits: refused again, it is a dead letter. Too many in a row: doubt
    TOO_LARGE      as REJECTED, and remember the size, unless it was a single event
    CUT_OFF        split, remember the size, and try again as after TRANSIENT: a single event is never dropped for it
    BLOCKED        pause, and probe until it is over
    MISCONFIGURED  pause, and probe: a wrong URL must not cost events

In doubt, samples from elsewhere are sent. One that is accepted shows that the events were to blame, and delivery goes on; if
all are refused, it is not the events but a header, a schema or a credential: pause, and probe with a sample.

Each event that is accepted after it was refused shows that a refusal may be an accident: others are tried once more then.

How large batches may be follows from the remembered sizes: see `agent.delivery.batch_size`.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, NamedTuple

from agent.delivery import batch_size
from agent.delivery.batch_size import BatchSize, Size
from agent.delivery.transport import Kind, Verdict

MAX_RETRY_AFTER = 86_400.0
MAX_SAMPLES = 3
MAX_REFUSALS = 8
_NEVER = float("inf")


class Action(StrEnum):
    """What to do with a batch."""

    SETTLE = "settle"
    RETRY = "retry"
    SPLIT = "split"
    SET_ASIDE = "set_aside"  # a single event that was refused: try it again later, see `may_try_again_at`
    DEAD_LETTER = "dead_letter"
    RETURN = "return"  # leave it in the queue: delivery pauses


class Reason(StrEnum):
    """Why delivery is paused."""

    BLOCKED = "blocked"
    MISCONFIGURED = "misconfigured"
    REJECTIONS = "rejections"
    OPERATOR = "operator"


_PAUSES = {Kind.BLOCKED: Reason.BLOCKED, Kind.MISCONFIGURED: Reason.MISCONFIGURED}


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """The configuration that decisions depend on. Delays are in seconds; the sizes are those of a batch."""

    max_events: int = 1000
    max_bytes: int = 960 * 1024
    concurrency: int = 4
    initial_delay: float = 1.0
    max_delay: float = 300.0
    probe_interval: float = 300.0
    max_probe_interval: float = 3600.0
    rejections_in_a_row: int = 20
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Paused:
    """Delivery stands still. `until` is when to probe, on the steady clock; an operator's pause is never probed."""

    reason: Reason
    message: str
    until: float = _NEVER


class Doubt(NamedTuple):
    """Too many events in a row were rejected, the last one with `message`; `samples` is how many samples were, too."""

    message: str
    samples: int = 0


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """How delivery is doing. Nothing is sent before `retry_at`; `not_before` is the part of it that the server asked for.

    `rejections` counts refusals of single events in a row, `mistakes` those that were shown to be accidents.
    """

    failures: int = 0
    failing_since: float | None = None  # since the first of these failures
    retry_at: float = float("-inf")
    not_before: float = float("-inf")
    last_failure: str = ""
    rejections: int = 0
    doubt: Doubt | None = None
    mistakes: int = 0
    probes: int = 0
    slots: int = 1
    sizes: BatchSize = field(default_factory=BatchSize)
    paused: Paused | None = None


class Decision(NamedTuple):
    """A decision about one batch, and the state after it."""

    action: Action
    state: DeliveryState


def decide(
    state: DeliveryState,
    verdict: Verdict,
    size: Size,
    *,
    refusals: int = 0,
    now: float,
    jitter: float,
    settings: DeliverySettings,
) -> Decision:
    """Decide about a batch of that size. `jitter` is a random number in [0, 1).

    `refusals` is how often a single event was refused before. An answer that comes in after delivery has paused changes nothing
    of the pause.
    """
    if state.paused is not None:
        return Decision(Action.SETTLE if verdict.kind is Kind.ACCEPTED else Action.RETURN, state)
    match verdict.kind:
        case Kind.ACCEPTED:
            sizes = batch_size.accepted(state.sizes, size, _most(settings), now)
            mistakes = min(state.mistakes + (refusals > 0), MAX_REFUSALS)
            return Decision(Action.SETTLE, _after_success(state, sizes, mistakes, settings, now))
        case Kind.TRANSIENT:
            return Decision(Action.RETRY, back_off(state, verdict, now=now, jitter=jitter, settings=settings))
        case Kind.CUT_OFF:
            smaller = size_refused(state, size, verdict.message, now=now, settings=settings)
            action = Action.SPLIT if size.events > 1 else Action.RETRY
            return Decision(action, back_off(smaller, verdict, now=now, jitter=jitter, settings=settings))
        case Kind.TOO_LARGE:
            smaller = size_refused(state, size, verdict.message, now=now, settings=settings)
            return _after_rejection(smaller, verdict, size.events, refusals, now=now, settings=settings)
        case Kind.REJECTED:
            return _after_rejection(state, verdict, size.events, refusals, now=now, settings=settings)
    reason = _PAUSES[verdict.kind]
    return Decision(Action.RETURN, pause(state, reason, verdict.message, now=now, jitter=jitter, settings=settings))


def may_try_again_at(refusals: int, refused_at: float, settings: DeliverySettings) -> float:
    """Return when a single event may be tried again that was refused so often, the last time at `refused_at`."""
    return refused_at + settings.initial_delay * 2.0 ** (refusals - 1)


def decide_late(state: DeliveryState, verdict: Verdict, *, now: float) -> Decision:
    """Decide about a batch that was sent with an earlier configuration: only what the API took, and asked for, still counts."""
    if verdict.kind is Kind.ACCEPTED:
        return Decision(Action.SETTLE, state)
    asked = _honor_retry_after(state, verdict, now)
    if asked.not_before > state.not_before:
        asked = replace(asked, last_failure=verdict.message)
    return Decision(Action.RETURN, replace(asked, retry_at=max(asked.retry_at, asked.not_before)))


def decide_probe(
    state: DeliveryState, verdict: Verdict, *, now: float, jitter: float, settings: DeliverySettings
) -> Decision:
    """Decide what a probe of a paused destination means; `verdict` is about one event, or about the account.

    An account that may send again is not told by a transient failure. A rejected event shows that the block is over, unless
    rejections were the reason for it; `verdict` is about a sample then.
    """
    paused = state.paused
    if paused is None:
        raise ValueError("only a paused destination is probed")
    if verdict.kind is Kind.ACCEPTED:
        return Decision(Action.SETTLE, _after_success(resume(state), state.sizes, state.mistakes, settings, now))
    if verdict.kind in _PAUSES:
        reason = _PAUSES[verdict.kind]
        return Decision(Action.RETURN, pause(state, reason, verdict.message, now=now, jitter=jitter, settings=settings))
    if verdict.kind in {Kind.REJECTED, Kind.TOO_LARGE}:
        if paused.reason is not Reason.REJECTIONS:
            return Decision(Action.RETURN, resume(state))
        longer = pause(state, Reason.REJECTIONS, verdict.message, now=now, jitter=jitter, settings=settings)
        return Decision(Action.RETURN, longer)
    later = _honor_retry_after(state, verdict, now)
    return Decision(
        Action.RETURN, pause(later, paused.reason, paused.message, now=now, jitter=jitter, settings=settings)
    )


def decide_sample(
    state: DeliveryState, verdict: Verdict, size: Size, *, now: float, jitter: float, settings: DeliverySettings
) -> Decision:
    """Decide what the answer to a sample means, a single event that was sent because of a doubt."""
    if state.doubt is None or state.paused is not None or verdict.kind not in {Kind.REJECTED, Kind.TOO_LARGE}:
        return decide(state, verdict, size, now=now, jitter=jitter, settings=settings)
    refused = replace(_reached(state, now), doubt=Doubt(verdict.message, state.doubt.samples + 1))
    if state.doubt.samples + 1 < MAX_SAMPLES:
        return Decision(Action.SET_ASIDE, refused)
    return Decision(Action.RETURN, pause_in_doubt(refused, now=now, jitter=jitter, settings=settings))


def dismiss_doubt(state: DeliveryState) -> DeliveryState:
    """Return the state after a doubt for which there is no sample, about events that were refused while others were accepted."""
    return replace(state, doubt=None, rejections=0)


def pause_in_doubt(state: DeliveryState, *, now: float, jitter: float, settings: DeliverySettings) -> DeliveryState:
    """Return the state after a doubt that no sample could remove."""
    said = state.doubt.message if state.doubt is not None else ""
    message = f"{state.rejections} events in a row were rejected, the last one with: {said}"
    return pause(state, Reason.REJECTIONS, message, now=now, jitter=jitter, settings=settings)


def pause(
    state: DeliveryState, reason: Reason, message: str, *, now: float, jitter: float, settings: DeliverySettings
) -> DeliveryState:
    """Return the paused state; each pause without a success between waits twice as long for its probe, with ± 10 %.

    What the server asked for before counts for probes as well.
    """
    wait = min(settings.probe_interval * 2.0 ** min(state.probes, 30), settings.max_probe_interval)
    paused = Paused(reason, message, max(now + wait * (0.9 + 0.2 * jitter), state.not_before))
    said = _reason_to_wait(state, now)
    return replace(state, paused=paused, doubt=None, probes=state.probes + 1, slots=1, failures=0, last_failure=said)


def pause_by_operator(state: DeliveryState) -> DeliveryState:
    """Return the state in which nothing is sent until an operator resumes delivery."""
    return replace(state, paused=Paused(Reason.OPERATOR, "paused by an operator"), slots=1, failures=0)


def resume(state: DeliveryState) -> DeliveryState:
    """Return the state after a pause that has ended by itself: the next rejection in a row raises a doubt at once."""
    return replace(state, paused=None, slots=1)


def reconfigured(state: DeliveryState) -> DeliveryState:
    """Return the state with a new configuration: a fresh start, which leaves an operator's pause as it is.

    As with an operator's resume, a person has decided: what the server asked for before is forgotten, too.
    """
    paused = state.paused if state.paused is not None and state.paused.reason is Reason.OPERATOR else None
    return DeliveryState(paused=paused)


def back_off(
    state: DeliveryState, verdict: Verdict, *, now: float, jitter: float, settings: DeliverySettings
) -> DeliveryState:
    """Return the state after a transient failure; the delay is exponential with full jitter, or what the server asked for."""
    state = _honor_retry_after(replace(state, last_failure=verdict.message, slots=1), verdict, now)
    if now < state.retry_at:  # batches that fail together are one failure
        return replace(state, retry_at=max(state.retry_at, state.not_before))
    since = state.failing_since if state.failures else now
    delay = jitter * min(settings.initial_delay * 2.0 ** min(state.failures, 60), settings.max_delay)
    retry_at = max(now + delay, state.not_before)
    return replace(state, failures=state.failures + 1, failing_since=since, retry_at=retry_at)


def skip_backoff(state: DeliveryState) -> DeliveryState:
    """Return the state in which the next try does not wait for jitter, only for what the server asked."""
    return replace(state, retry_at=state.not_before)


def next_attempt(state: DeliveryState) -> float:
    """Return before when nothing is sent, on the steady clock: the end of the pause, or of the delay after a failure."""
    return state.paused.until if state.paused is not None else state.retry_at


class Description(NamedTuple):
    """What people are told of a state: its name, the reason for it, until when it lasts and since when, where that is known."""

    name: Literal["running", "backing_off", "paused"]
    reason: str | None = None
    until: float | None = None
    since: float | None = None


def is_in_trouble(state: DeliveryState) -> bool:
    """Whether something failed, and nothing has shown yet that it is over."""
    return bool(state.failures or state.last_failure)


def describe(state: DeliveryState, now: float) -> Description:
    """Describe a state; `until` and `since` are on the steady clock. Since when it is paused is not part of the state."""
    if state.paused is not None:
        until = state.paused.until
        return Description(
            "paused", f"{state.paused.reason}: {state.paused.message}", until if until < _NEVER else None
        )
    if state.failures or state.retry_at > now:
        since = state.failing_since if state.failures else None
        reason = state.last_failure or "the server asked to wait"
        return Description("backing_off", reason, max(state.retry_at, now), since)
    return Description("running")


def batch_limit(state: DeliveryState, settings: DeliverySettings, now: float) -> Size:
    """Return how large a batch may be now."""
    return batch_size.limit(state.sizes, _most(settings), now)


class BatchLimit(NamedTuple):
    """What people are told of it; `reason` is what the server said of larger batches, None for the configured size."""

    events: int
    bytes: int
    reason: str | None = None


def describe_batch_limit(state: DeliveryState, settings: DeliverySettings, now: float) -> BatchLimit:
    """Describe how large a batch may be now."""
    limit = batch_limit(state, settings, now)
    return BatchLimit(*limit, state.sizes.message if limit != _most(settings) else None)


def slots(state: DeliveryState, now: float) -> int:
    """Return how many requests may be under way: one while it is to show how large a batch may be."""
    return 1 if batch_size.is_exploring(state.sizes, now) else state.slots


def size_refused(
    state: DeliveryState, size: Size, message: str, *, now: float, settings: DeliverySettings
) -> DeliveryState:
    """Return the state that remembers that a batch was too large, or was refused while both of its halves were accepted.

    A single event teaches nothing; nor does a batch that was sent before the limit was lowered.
    """
    limit = batch_limit(state, settings, now)
    if size.events == 1 or size.events > limit.events or size.bytes > limit.bytes:
        return state
    return replace(state, sizes=batch_size.refused(state.sizes, size, message, now))


def _most(settings: DeliverySettings) -> Size:
    return Size(settings.max_events, settings.max_bytes)


def _honor_retry_after(state: DeliveryState, verdict: Verdict, now: float) -> DeliveryState:
    """Return the state that remembers until when the server does not want to be asked."""
    if verdict.retry_after is None:
        return state
    return replace(state, not_before=max(state.not_before, now + min(verdict.retry_after, MAX_RETRY_AFTER)))


def _after_success(
    state: DeliveryState, sizes: BatchSize, mistakes: int, settings: DeliverySettings, now: float
) -> DeliveryState:
    """Return the state after an acceptance, with what it taught: as a rule nothing, and then it is the state itself."""
    after = replace(
        state,
        failures=0,
        rejections=0,
        doubt=None,
        mistakes=mistakes,
        probes=0,
        retry_at=state.not_before,
        last_failure=_reason_to_wait(state, now),
        slots=min(state.slots + 1, settings.concurrency) if state.failures == 0 else 1,
        sizes=sizes,
    )
    return state if after == state else after


def _after_rejection(
    state: DeliveryState, verdict: Verdict, events: int, refusals: int, *, now: float, settings: DeliverySettings
) -> Decision:
    if events > 1:
        return Decision(Action.SPLIT, _reached(state, now))
    counted = replace(_reached(state, now), rejections=state.rejections + 1)
    if counted.rejections >= settings.rejections_in_a_row:
        action = Action.RETRY if refusals else Action.SET_ASIDE  # in doubt a second refusal does not count
        return Decision(action, replace(counted, doubt=state.doubt or Doubt(verdict.message)))
    if refusals + 1 < min(2 + state.mistakes, MAX_REFUSALS):
        return Decision(Action.SET_ASIDE, counted)
    return Decision(Action.DEAD_LETTER, replace(counted, mistakes=max(state.mistakes - 1, 0)))


def _reached(state: DeliveryState, now: float) -> DeliveryState:
    """Return the state after a refusal of events: whoever answers is there again."""
    return replace(state, failures=0, retry_at=state.not_before, last_failure=_reason_to_wait(state, now))


def _reason_to_wait(state: DeliveryState, now: float) -> str:
    """Return what the server said when it asked to wait, if it is still to be waited for."""
    return state.last_failure if state.not_before > now else ""
