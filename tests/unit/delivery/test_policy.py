"""The delivery table, row by row, and delays that keep their bounds."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.delivery import batch_size, policy
from agent.delivery.batch_size import PATIENCE, BatchSize, Size
from agent.delivery.policy import (
    MAX_REFUSALS,
    MAX_RETRY_AFTER,
    MAX_SAMPLES,
    Action,
    Decision,
    DeliverySettings,
    DeliveryState,
    Description,
    Doubt,
    Paused,
    Reason,
)
from agent.delivery.transport import Kind, Verdict

NOW = 1000.0
NEVER = float("-inf")
SETTINGS = DeliverySettings(rejections_in_a_row=20)
ANY_SIZE = Size(1000, 960 * 1024)
EVENT_BYTES = 125

RUNNING = DeliveryState(rejections=5, probes=2, slots=3)
BACKING_OFF = replace(RUNNING, failures=3, retry_at=NOW - 1, last_failure="before", slots=1)
IN_DOUBT = DeliveryState(rejections=20, doubt=Doubt("400"))
PAUSED = replace(RUNNING, paused=Paused(Reason.BLOCKED, "402", NOW + 60), slots=1)


def verdict(kind: Kind, retry_after: float | None = None) -> Verdict:
    return Verdict(kind, kind.value, retry_after=retry_after)


def size_of(events: int) -> Size:
    return Size(events, events * EVENT_BYTES)


def limit(state: DeliveryState, now: float = NOW) -> Size:
    return policy.batch_limit(state, SETTINGS, now)


def decide(
    state: DeliveryState,
    kind: Kind,
    events: int = 80,
    *,
    now: float = NOW,
    jitter: float = 0.5,
    retry_after: float | None = None,
    refusals: int = 0,
) -> Decision:
    return policy.decide(
        state, verdict(kind, retry_after), size_of(events), refusals=refusals, now=now, jitter=jitter, settings=SETTINGS
    )


def probe(state: DeliveryState, kind: Kind, *, jitter: float = 0.5, retry_after: float | None = None) -> Decision:
    return policy.decide_probe(state, verdict(kind, retry_after), now=NOW, jitter=jitter, settings=SETTINGS)


def sample(state: DeliveryState, kind: Kind) -> Decision:
    return policy.decide_sample(state, verdict(kind), size_of(1), now=NOW, jitter=0.5, settings=SETTINGS)


def paused_for(reason: Reason, *, probes: int = 1) -> DeliveryState:
    return DeliveryState(probes=probes, rejections=20, paused=Paused(reason, "why", NOW - 1))


# --- the table ----------------------------------------------------------------------------------------------------

SUCCESS: dict[str, Any] = {
    "rejections": 0,
    "probes": 0,
    "retry_at": NEVER,
    "failures": 0,
    "last_failure": "",
}
FAILURE: dict[str, Any] = {"failures": 1, "failing_since": NOW, "retry_at": NOW + 0.5, "slots": 1}
FOURTH_FAILURE: dict[str, Any] = {"failures": 4, "retry_at": NOW + 4, "slots": 1}


def learned(events: int) -> dict[str, Any]:
    return {"sizes": BatchSize(good=size_of(events))}


def too_many(message: str, events: int = 80) -> dict[str, Any]:
    return {"sizes": BatchSize(bad=size_of(events), message=message)}


REACHED: dict[str, Any] = {"failures": 0, "retry_at": NEVER, "last_failure": ""}
PAUSE: dict[str, Any] = {"probes": 3, "slots": 1, "failures": 0, "last_failure": ""}


def pause(reason: Reason) -> dict[str, Any]:
    return PAUSE | {"paused": Paused(reason, reason.value, NOW + 1200)}


@pytest.mark.parametrize(
    ("state", "kind", "events", "action", "changes"),
    [
        (RUNNING, Kind.ACCEPTED, 1, Action.SETTLE, SUCCESS | {"slots": 4} | learned(1)),
        (RUNNING, Kind.ACCEPTED, 80, Action.SETTLE, SUCCESS | {"slots": 4} | learned(80)),
        (RUNNING, Kind.TRANSIENT, 1, Action.RETRY, FAILURE | {"last_failure": "transient"}),
        (RUNNING, Kind.TRANSIENT, 80, Action.RETRY, FAILURE | {"last_failure": "transient"}),
        (RUNNING, Kind.REJECTED, 1, Action.SET_ASIDE, {"rejections": 6}),
        (RUNNING, Kind.REJECTED, 80, Action.SPLIT, {}),
        (RUNNING, Kind.TOO_LARGE, 1, Action.SET_ASIDE, {"rejections": 6}),
        (RUNNING, Kind.TOO_LARGE, 80, Action.SPLIT, too_many("too_large")),
        (RUNNING, Kind.CUT_OFF, 1, Action.RETRY, FAILURE | {"last_failure": "cut_off"}),
        (RUNNING, Kind.CUT_OFF, 80, Action.SPLIT, FAILURE | {"last_failure": "cut_off"} | too_many("cut_off")),
        (RUNNING, Kind.BLOCKED, 1, Action.RETURN, pause(Reason.BLOCKED)),
        (RUNNING, Kind.BLOCKED, 80, Action.RETURN, pause(Reason.BLOCKED)),
        (RUNNING, Kind.MISCONFIGURED, 1, Action.RETURN, pause(Reason.MISCONFIGURED)),
        (RUNNING, Kind.MISCONFIGURED, 80, Action.RETURN, pause(Reason.MISCONFIGURED)),
        (BACKING_OFF, Kind.ACCEPTED, 1, Action.SETTLE, SUCCESS | {"slots": 1} | learned(1)),
        (BACKING_OFF, Kind.ACCEPTED, 80, Action.SETTLE, SUCCESS | {"slots": 1} | learned(80)),
        (BACKING_OFF, Kind.TRANSIENT, 1, Action.RETRY, FOURTH_FAILURE | {"last_failure": "transient"}),
        (BACKING_OFF, Kind.TRANSIENT, 80, Action.RETRY, FOURTH_FAILURE | {"last_failure": "transient"}),
        (BACKING_OFF, Kind.REJECTED, 1, Action.SET_ASIDE, REACHED | {"rejections": 6}),
        (BACKING_OFF, Kind.REJECTED, 80, Action.SPLIT, REACHED),
        (BACKING_OFF, Kind.TOO_LARGE, 1, Action.SET_ASIDE, REACHED | {"rejections": 6}),
        (BACKING_OFF, Kind.TOO_LARGE, 80, Action.SPLIT, REACHED | too_many("too_large")),
        (BACKING_OFF, Kind.CUT_OFF, 1, Action.RETRY, FOURTH_FAILURE | {"last_failure": "cut_off"}),
        (
            BACKING_OFF,
            Kind.CUT_OFF,
            80,
            Action.SPLIT,
            FOURTH_FAILURE | {"last_failure": "cut_off"} | too_many("cut_off"),
        ),
        (BACKING_OFF, Kind.BLOCKED, 1, Action.RETURN, pause(Reason.BLOCKED)),
        (BACKING_OFF, Kind.BLOCKED, 80, Action.RETURN, pause(Reason.BLOCKED)),
        (BACKING_OFF, Kind.MISCONFIGURED, 1, Action.RETURN, pause(Reason.MISCONFIGURED)),
        (BACKING_OFF, Kind.MISCONFIGURED, 80, Action.RETURN, pause(Reason.MISCONFIGURED)),
    ],
)
def test_each_answer_has_its_decision(
    state: DeliveryState, kind: Kind, events: int, action: Action, changes: dict[str, Any]
) -> None:
    assert decide(state, kind, events) == Decision(action, replace(state, **changes))


@pytest.mark.parametrize("events", [1, 80])
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("reason", Reason)
def test_an_answer_that_comes_while_paused_changes_nothing(reason: Reason, kind: Kind, events: int) -> None:
    state = replace(PAUSED, paused=Paused(reason, "why"))
    action = Action.SETTLE if kind is Kind.ACCEPTED else Action.RETURN
    assert decide(state, kind, events, retry_after=5.0) == Decision(action, state)


# --- backing off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "longest"), [(0, 1), (1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (50, 300), (10_000, 300)]
)
def test_the_delay_is_exponential_with_full_jitter(failures: int, longest: float) -> None:
    state = DeliveryState(failures=failures)
    assert decide(state, Kind.TRANSIENT, jitter=0.0).state.retry_at == NOW
    assert decide(state, Kind.TRANSIENT, jitter=0.25).state.retry_at == NOW + longest / 4
    assert NOW < decide(state, Kind.TRANSIENT, jitter=0.999).state.retry_at < NOW + longest


@pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.CUT_OFF])
def test_batches_that_fail_together_are_one_failure_with_one_delay(kind: Kind) -> None:
    first = decide(RUNNING, kind, now=NOW).state
    second = decide(first, kind, now=NOW + 0.1, jitter=0.999).state
    assert (second.failures, second.retry_at) == (first.failures, first.retry_at) == (1, NOW + 0.5)
    third = decide(second, kind, now=second.retry_at).state
    assert (third.failures, third.retry_at) == (2, second.retry_at + 1)


@pytest.mark.parametrize("retry_after", [0.0, 0.1, 5.0, 7200.0])
def test_nothing_is_sent_sooner_than_the_server_asked(retry_after: float) -> None:
    state = decide(RUNNING, Kind.TRANSIENT, retry_after=retry_after).state
    assert state.retry_at == max(NOW + 0.5, NOW + retry_after)
    assert state.not_before == NOW + retry_after


@pytest.mark.parametrize("retry_after", [MAX_RETRY_AFTER, MAX_RETRY_AFTER + 1, 1e300, float("inf")])
def test_no_server_can_ask_for_more_than_a_day(retry_after: float) -> None:
    state = decide(RUNNING, Kind.TRANSIENT, retry_after=retry_after).state
    assert state.retry_at == state.not_before == NOW + 86_400


def test_what_the_server_asked_for_outlives_the_success_of_another_batch() -> None:
    asked = decide(RUNNING, Kind.TRANSIENT, retry_after=60).state
    succeeded = decide(asked, Kind.ACCEPTED, now=NOW + 1).state
    assert (succeeded.failures, succeeded.retry_at, succeeded.not_before) == (0, NOW + 60, NOW + 60)


@pytest.mark.parametrize("kind", [Kind.ACCEPTED, Kind.REJECTED, Kind.TOO_LARGE])
def test_while_a_wait_goes_on_nothing_has_recovered_and_the_reason_is_what_the_server_said(kind: Kind) -> None:
    asked = decide(RUNNING, Kind.TRANSIENT, retry_after=60).state
    waiting = decide(asked, kind, now=NOW + 1).state
    assert policy.is_in_trouble(waiting)
    assert policy.describe(waiting, NOW + 1) == Description("backing_off", "transient", NOW + 60)
    over = decide(waiting, Kind.ACCEPTED, now=NOW + 60).state
    assert not policy.is_in_trouble(over)
    assert policy.describe(over, NOW + 60) == Description("running")


def test_of_two_requests_to_wait_the_longer_one_counts() -> None:
    long = decide(RUNNING, Kind.TRANSIENT, retry_after=60).state
    both = decide(long, Kind.TRANSIENT, now=NOW + 1, retry_after=5).state
    assert both.retry_at == both.not_before == NOW + 60
    short = decide(RUNNING, Kind.TRANSIENT, retry_after=5).state
    longer = decide(short, Kind.TRANSIENT, now=NOW + 1, retry_after=60).state
    assert longer.retry_at == longer.not_before == NOW + 61


def test_a_success_ends_the_jitter_of_a_failure() -> None:
    failed = decide(RUNNING, Kind.TRANSIENT).state
    assert decide(failed, Kind.ACCEPTED, now=NOW + 0.1).state.retry_at == NEVER


def test_one_batch_is_in_flight_while_backing_off_and_concurrency_steps_up_after_it() -> None:
    state = decide(replace(RUNNING, slots=4), Kind.TRANSIENT).state
    assert state.slots == 1
    slots = []
    for _ in range(6):
        state = decide(state, Kind.ACCEPTED).state
        slots.append(state.slots)
    assert slots == [1, 2, 3, 4, 4, 4]


def test_a_concurrency_that_was_configured_lower_is_kept_to() -> None:
    state = policy.decide(
        replace(RUNNING, slots=9), verdict(Kind.ACCEPTED), size_of(1), now=NOW, jitter=0.5, settings=SETTINGS
    ).state
    assert state.slots == SETTINGS.concurrency


@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.TOO_LARGE])
@pytest.mark.parametrize("events", [1, 8])
def test_a_refusal_ends_the_back_off_since_the_server_is_there_again(kind: Kind, events: int) -> None:
    failing = DeliveryState(failures=3, retry_at=50.0, not_before=20.0, last_failure="503")
    after = policy.decide(
        failing, Verdict(kind), size_of(events), now=60.0, jitter=0.5, settings=DeliverySettings()
    ).state
    assert (after.failures, after.retry_at, after.not_before, after.last_failure) == (0, 20.0, 20.0, "")


def test_a_skipped_backoff_forgets_jitter_but_not_what_the_server_asked_for() -> None:
    assert policy.skip_backoff(decide(RUNNING, Kind.TRANSIENT).state).retry_at == NEVER
    assert policy.skip_backoff(decide(RUNNING, Kind.TRANSIENT, retry_after=60).state).retry_at == NOW + 60
    assert policy.skip_backoff(RUNNING) == RUNNING


# --- sizes --------------------------------------------------------------------------------------------------------


def test_a_batch_may_be_as_large_as_the_configuration_says_until_one_is_refused() -> None:
    assert limit(decide(DeliveryState(), Kind.ACCEPTED, 1000).state) == ANY_SIZE
    assert limit(decide(DeliveryState(), Kind.TRANSIENT, 1000).state) == ANY_SIZE
    assert limit(decide(DeliveryState(), Kind.REJECTED, 1000).state) == ANY_SIZE


@pytest.mark.parametrize("kind", [Kind.TOO_LARGE, Kind.CUT_OFF])
def test_a_batch_that_is_too_large_is_halved_and_its_size_asked_for_again_later(kind: Kind) -> None:
    state = decide(DeliveryState(), kind, 1000).state
    assert limit(state) == size_of(500)
    for _ in range(PATIENCE):
        assert limit(state) == size_of(500)
        state = decide(state, Kind.ACCEPTED, 500).state
    assert limit(state).events == 1000
    again = decide(state, kind, 1000).state
    assert limit(again) == size_of(750)
    assert policy.slots(replace(again, slots=4), NOW) == 1
    assert limit(decide(state, Kind.ACCEPTED, 1000).state) == ANY_SIZE


@pytest.mark.parametrize("kind", [Kind.TOO_LARGE, Kind.CUT_OFF])
def test_batches_that_were_under_way_when_the_limit_was_lowered_teach_nothing_more(kind: Kind) -> None:
    state = decide(DeliveryState(), kind, 1000).state
    for events in (1000, 900):
        assert decide(state, kind, events).state.sizes == state.sizes


@pytest.mark.parametrize("kind", [Kind.TOO_LARGE, Kind.CUT_OFF, Kind.REJECTED])
def test_a_single_event_that_is_refused_teaches_nothing_of_sizes(kind: Kind) -> None:
    assert decide(DeliveryState(), kind, 1).state.sizes == BatchSize()


def test_a_batch_that_is_rejected_while_both_of_its_halves_are_accepted_was_too_large() -> None:
    state = DeliveryState()
    for kind, events in ((Kind.REJECTED, 1000), (Kind.ACCEPTED, 500), (Kind.ACCEPTED, 500)):
        state = decide(state, kind, events).state
    state = policy.size_refused(state, size_of(1000), "400", now=NOW, settings=SETTINGS)
    assert policy.describe_batch_limit(state, SETTINGS, NOW) == (*size_of(500), "400")


def test_the_limit_has_a_reason_only_where_it_is_not_the_configured_one() -> None:
    assert policy.describe_batch_limit(DeliveryState(), SETTINGS, NOW) == (*ANY_SIZE, None)
    state = decide(DeliveryState(), Kind.TOO_LARGE, 10).state
    assert policy.describe_batch_limit(state, SETTINGS, NOW) == (*size_of(5), "too_large")
    beyond = replace(state, sizes=BatchSize(bad=Size(10_000, 10**9), message="too_large"))
    assert policy.describe_batch_limit(beyond, SETTINGS, NOW).reason is None


def test_one_event_that_is_too_large_by_itself_does_not_leave_batches_of_one_for_ever() -> None:
    state = DeliveryState()
    for events in (8, 4, 2):
        state = decide(state, Kind.TOO_LARGE, events).state
    state = decide(state, Kind.TOO_LARGE, 1).state
    sizes = []
    while limit(state) != ANY_SIZE:
        sizes.append(limit(state).events)
        state = decide(state, Kind.ACCEPTED, sizes[-1]).state
    assert sizes == [1] * PATIENCE + [2]


def test_one_request_at_a_time_finds_out_how_large_a_batch_may_be() -> None:
    state = replace(decide(DeliveryState(), Kind.TOO_LARGE, 1000).state, slots=4)
    assert policy.slots(state, NOW) == 1
    known = decide(state, Kind.ACCEPTED, 500).state
    assert batch_size.is_exploring(known.sizes, NOW) is False
    assert policy.slots(known, NOW) == 4


def test_a_broken_connection_never_costs_an_event() -> None:
    state = DeliveryState()
    for _ in range(100):
        action, state = (step := decide(state, Kind.CUT_OFF, 1)).action, step.state
        assert action is Action.RETRY
    assert state.paused is None


# --- rejections in a row ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.TOO_LARGE])
def test_many_single_rejections_in_a_row_raise_a_doubt_and_then_cost_no_event(kind: Kind) -> None:
    state, actions = DeliveryState(), []
    for _ in range(22):
        step = decide(state, kind, 1, refusals=1)
        state = step.state
        actions.append(step.action)
    assert actions == [Action.DEAD_LETTER] * 19 + [Action.RETRY] * 3, "in doubt a refusal counts for nothing"
    assert (state.doubt, state.paused) == (Doubt(kind.value), None)


@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.TOO_LARGE])
def test_when_the_samples_are_refused_too_delivery_pauses(kind: Kind) -> None:
    state, actions = IN_DOUBT, []
    for _ in range(MAX_SAMPLES):
        step = sample(state, kind)
        state = step.state
        actions.append(step.action)
    assert actions == [Action.SET_ASIDE] * (MAX_SAMPLES - 1) + [Action.RETURN]
    message = f"20 events in a row were rejected, the last one with: {kind}"
    assert (state.doubt, state.paused) == (None, Paused(Reason.REJECTIONS, message, NOW + 300))


def test_a_sample_that_is_accepted_ends_the_doubt_and_the_streak() -> None:
    step = sample(IN_DOUBT, Kind.ACCEPTED)
    assert step.action is Action.SETTLE
    assert (step.state.doubt, step.state.rejections, step.state.paused) == (None, 0, None)


@pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.CUT_OFF, Kind.BLOCKED, Kind.MISCONFIGURED])
def test_any_other_answer_to_a_sample_is_taken_as_always(kind: Kind) -> None:
    assert sample(IN_DOUBT, kind) == decide(IN_DOUBT, kind, 1)
    assert sample(IN_DOUBT, Kind.TRANSIENT).state.doubt == IN_DOUBT.doubt


@pytest.mark.parametrize("kind", Kind)
def test_a_sample_whose_doubt_is_over_is_an_event_like_others(kind: Kind) -> None:
    assert sample(RUNNING, kind) == decide(RUNNING, kind, 1)
    assert sample(PAUSED, kind) == decide(PAUSED, kind, 1)


def test_another_acceptance_ends_the_doubt() -> None:
    assert decide(IN_DOUBT, Kind.ACCEPTED, 80).state.doubt is None


def test_a_first_refusal_gives_no_event_up_however_many_there_are() -> None:
    state, actions = DeliveryState(), set()
    for _ in range(40):
        step = decide(state, Kind.REJECTED, 1)
        state = step.state
        actions.add(step.action)
    assert actions == {Action.SET_ASIDE}
    assert state.doubt is not None


@pytest.mark.parametrize("kind", [Kind.REJECTED, Kind.TOO_LARGE])
def test_a_second_refusal_gives_an_event_up_unless_refusals_were_accidents_before(kind: Kind) -> None:
    assert decide(DeliveryState(), kind, 1, refusals=1).action is Action.DEAD_LETTER
    flaky = DeliveryState()
    for mistakes in range(1, 20):
        flaky = decide(flaky, Kind.ACCEPTED, 1, refusals=1).state
        needed = min(2 + mistakes, MAX_REFUSALS)
        assert decide(flaky, kind, 1, refusals=needed - 2).action is Action.SET_ASIDE
        assert decide(flaky, kind, 1, refusals=needed - 1).action is Action.DEAD_LETTER
    calm = decide(flaky, kind, 1, refusals=MAX_REFUSALS).state
    assert calm.mistakes == flaky.mistakes - 1


def test_an_event_that_was_refused_waits_twice_as_long_each_time() -> None:
    assert [policy.may_try_again_at(refusals, NOW, SETTINGS) - NOW for refusals in (1, 2, 3, 7)] == [1, 2, 4, 64]


def test_a_doubt_about_events_that_were_refused_while_others_were_accepted_can_be_dismissed() -> None:
    assert policy.dismiss_doubt(IN_DOUBT) == replace(IN_DOUBT, doubt=None, rejections=0)


def test_a_doubt_that_no_sample_can_remove_is_a_pause() -> None:
    state = policy.pause_in_doubt(IN_DOUBT, now=NOW, jitter=0.5, settings=SETTINGS)
    message = "20 events in a row were rejected, the last one with: 400"
    assert (state.doubt, state.paused) == (None, Paused(Reason.REJECTIONS, message, NOW + 300))


def test_an_accepted_batch_ends_the_streak() -> None:
    state = DeliveryState()
    for kind in [Kind.REJECTED] * 19 + [Kind.ACCEPTED] + [Kind.REJECTED] * 19:
        state = decide(state, kind, 1).state
    assert state.doubt is None
    assert decide(state, Kind.REJECTED, 1).state.doubt is not None


@pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.CUT_OFF])
def test_failures_do_not_end_the_streak(kind: Kind) -> None:
    state = decide(DeliveryState(rejections=19), kind, 1).state
    assert decide(state, Kind.REJECTED, 1).state.doubt is not None


def test_halves_that_are_rejected_do_not_count() -> None:
    state = DeliveryState(rejections=19)
    assert decide(state, Kind.REJECTED, 2) == Decision(Action.SPLIT, state)


def test_after_a_pause_that_ended_by_itself_the_next_rejection_in_a_row_raises_a_doubt_at_once() -> None:
    resumed = policy.resume(paused_for(Reason.REJECTIONS))
    assert decide(resumed, Kind.REJECTED, 1).state.doubt is not None
    accepted = decide(resumed, Kind.ACCEPTED, 1).state
    assert decide(accepted, Kind.REJECTED, 1).state.doubt is None


# --- pauses and probes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
@pytest.mark.parametrize(
    ("probes", "wait"), [(0, 300), (1, 600), (2, 1200), (3, 2400), (4, 3600), (5, 3600), (10_000, 3600)]
)
def test_probes_come_after_five_minutes_doubling_to_an_hour_give_or_take_a_tenth(
    probes: int, wait: float, jitter: float
) -> None:
    state = decide(DeliveryState(probes=probes), Kind.BLOCKED, jitter=jitter).state
    assert state.paused is not None
    assert state.paused.until - NOW == pytest.approx(wait * (0.9 + 0.2 * jitter))
    assert state.probes == probes + 1


def test_a_probe_comes_no_sooner_than_the_server_asked_before_the_pause() -> None:
    asked = decide(RUNNING, Kind.TRANSIENT, retry_after=7200).state
    paused = decide(asked, Kind.BLOCKED).state.paused
    assert paused is not None
    assert paused.until == NOW + 7200


BLOCKED_AGAIN = Paused(Reason.BLOCKED, "blocked", NOW + 600)
MISCONFIGURED_AGAIN = Paused(Reason.MISCONFIGURED, "misconfigured", NOW + 600)
REJECTED_AGAIN = Paused(Reason.REJECTIONS, "rejected", NOW + 600)
TOO_LARGE_AGAIN = Paused(Reason.REJECTIONS, "too_large", NOW + 600)


def as_before(reason: Reason) -> Paused:
    return Paused(reason, "why", NOW + 600)


@pytest.mark.parametrize(
    ("reason", "kind", "action", "paused"),
    [
        (Reason.BLOCKED, Kind.ACCEPTED, Action.SETTLE, None),
        (Reason.BLOCKED, Kind.TRANSIENT, Action.RETURN, as_before(Reason.BLOCKED)),
        (Reason.BLOCKED, Kind.CUT_OFF, Action.RETURN, as_before(Reason.BLOCKED)),
        (Reason.BLOCKED, Kind.REJECTED, Action.RETURN, None),
        (Reason.BLOCKED, Kind.TOO_LARGE, Action.RETURN, None),
        (Reason.BLOCKED, Kind.BLOCKED, Action.RETURN, BLOCKED_AGAIN),
        (Reason.BLOCKED, Kind.MISCONFIGURED, Action.RETURN, MISCONFIGURED_AGAIN),
        (Reason.MISCONFIGURED, Kind.ACCEPTED, Action.SETTLE, None),
        (Reason.MISCONFIGURED, Kind.TRANSIENT, Action.RETURN, as_before(Reason.MISCONFIGURED)),
        (Reason.MISCONFIGURED, Kind.CUT_OFF, Action.RETURN, as_before(Reason.MISCONFIGURED)),
        (Reason.MISCONFIGURED, Kind.REJECTED, Action.RETURN, None),
        (Reason.MISCONFIGURED, Kind.TOO_LARGE, Action.RETURN, None),
        (Reason.MISCONFIGURED, Kind.BLOCKED, Action.RETURN, BLOCKED_AGAIN),
        (Reason.MISCONFIGURED, Kind.MISCONFIGURED, Action.RETURN, MISCONFIGURED_AGAIN),
        (Reason.REJECTIONS, Kind.ACCEPTED, Action.SETTLE, None),
        (Reason.REJECTIONS, Kind.TRANSIENT, Action.RETURN, as_before(Reason.REJECTIONS)),
        (Reason.REJECTIONS, Kind.CUT_OFF, Action.RETURN, as_before(Reason.REJECTIONS)),
        (Reason.REJECTIONS, Kind.REJECTED, Action.RETURN, REJECTED_AGAIN),
        (Reason.REJECTIONS, Kind.TOO_LARGE, Action.RETURN, TOO_LARGE_AGAIN),
        (Reason.REJECTIONS, Kind.BLOCKED, Action.RETURN, BLOCKED_AGAIN),
        (Reason.REJECTIONS, Kind.MISCONFIGURED, Action.RETURN, MISCONFIGURED_AGAIN),
    ],
)
def test_each_answer_to_a_probe_has_its_decision(
    reason: Reason, kind: Kind, action: Action, paused: Paused | None
) -> None:
    step = probe(paused_for(reason), kind)
    assert (step.action, step.state.paused) == (action, paused)
    assert step.state.probes == (0 if kind is Kind.ACCEPTED else 1 if paused is None else 2)
    assert step.state.rejections == (0 if kind is Kind.ACCEPTED else 20)
    assert step.state.failures == 0


def test_an_accepted_probe_begins_to_step_up() -> None:
    assert probe(replace(paused_for(Reason.BLOCKED), slots=1), Kind.ACCEPTED).state.slots == 2


def test_the_next_probe_comes_no_sooner_than_the_server_asked() -> None:
    state = probe(paused_for(Reason.BLOCKED), Kind.TRANSIENT, retry_after=7200).state
    assert state.not_before == NOW + 7200
    assert state.paused == Paused(Reason.BLOCKED, "why", NOW + 7200)
    sooner = probe(paused_for(Reason.BLOCKED), Kind.TRANSIENT, retry_after=5).state.paused
    assert sooner == as_before(Reason.BLOCKED)


def test_only_what_is_paused_can_be_probed() -> None:
    with pytest.raises(ValueError, match="only a paused destination is probed"):
        probe(RUNNING, Kind.ACCEPTED)


def test_a_pause_by_an_operator_is_never_probed() -> None:
    state = policy.pause_by_operator(BACKING_OFF)
    assert state.paused == Paused(Reason.OPERATOR, "paused by an operator", float("inf"))
    assert (state.failures, state.slots, state.rejections) == (0, 1, 5)


def test_a_pause_that_ends_by_itself_forgets_only_itself() -> None:
    asked = replace(PAUSED, retry_at=NOW + 9, not_before=NOW + 9)
    assert policy.resume(asked) == replace(asked, paused=None)


# --- configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("state", [RUNNING, BACKING_OFF, PAUSED])
def test_a_late_answer_settles_what_was_accepted_and_changes_nothing_else(state: DeliveryState, kind: Kind) -> None:
    found = policy.decide_late(state, verdict(kind), now=NOW)
    assert found.action is (Action.SETTLE if kind is Kind.ACCEPTED else Action.RETURN)
    assert found.state == state


def test_what_a_late_answer_asks_for_is_honored() -> None:
    after = policy.decide_late(RUNNING, verdict(Kind.TRANSIENT, 60.0), now=NOW).state
    assert (after.retry_at, after.not_before, after.failures) == (NOW + 60, NOW + 60, 0)
    assert policy.describe(after, NOW) == Description("backing_off", "transient", NOW + 60)


@pytest.mark.parametrize("state", [RUNNING, BACKING_OFF, PAUSED, replace(BACKING_OFF, not_before=NOW + 9)])
def test_a_new_configuration_forgets_all_even_what_the_server_asked_for(state: DeliveryState) -> None:
    assert policy.reconfigured(state) == DeliveryState()


def test_a_new_configuration_leaves_an_operators_pause_as_it_is() -> None:
    paused = policy.pause_by_operator(replace(BACKING_OFF, not_before=NOW + 9))
    assert policy.reconfigured(paused) == DeliveryState(paused=paused.paused)


# --- whatever comes -----------------------------------------------------------------------------------------------

steps = st.tuples(
    st.sampled_from(Kind),
    st.integers(1, 1000),
    st.floats(0, 100),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.floats(0, 1e6),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=40))
def test_whatever_the_answers_only_a_refused_single_event_is_given_up(
    answers: list[tuple[Kind, int, float, float, float | None]],
) -> None:
    state, now, in_a_row = DeliveryState(), NOW, 0
    for kind, events, passed, jitter, retry_after in answers:
        now += passed
        before = state
        if state.doubt is not None and state.paused is None:
            step = policy.decide_sample(
                state, verdict(kind, retry_after), size_of(1), now=now, jitter=jitter, settings=SETTINGS
            )

        elif state.paused is None:
            step = decide(state, kind, events, now=now, jitter=jitter, retry_after=retry_after)
        else:
            step = policy.decide_probe(state, verdict(kind, retry_after), now=now, jitter=jitter, settings=SETTINGS)
        state = step.state
        in_a_row = (
            0 if kind is Kind.ACCEPTED else in_a_row + (step.action is Action.DEAD_LETTER and before.paused is None)
        )
        assert (step.action is Action.SETTLE) == (kind is Kind.ACCEPTED)
        assert step.action is not Action.DEAD_LETTER or kind in {Kind.REJECTED, Kind.TOO_LARGE}
        assert step.action is not Action.SPLIT or events > 1
        assert in_a_row < SETTINGS.rejections_in_a_row
        assert 1 <= limit(state, now).events <= SETTINGS.max_events
        assert 1 <= limit(state, now).bytes <= SETTINGS.max_bytes
        assert 1 <= policy.slots(state, now) <= state.slots <= SETTINGS.concurrency
        assert state.not_before >= before.not_before
        assert state.not_before <= now + MAX_RETRY_AFTER
        assert state.paused is None or state.paused.until >= state.not_before
        assert kind not in {Kind.TRANSIENT, Kind.CUT_OFF} or state.paused or state.retry_at >= state.not_before
        assert state.retry_at <= max(state.not_before, now + SETTINGS.max_delay)
