"""What a relay measures, and what it knows of the fleet, as Prometheus text."""

import platform
from collections.abc import Iterator

import anyio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from agent import __version__
from agent.control.metrics import CONTENT_TYPE, Fixed, measured
from agent.delivery import policy
from agent.fleet.relay import Relay
from agent.queue.cursor import Outcome
from agent.rules import DEFAULT

__all__ = ["CONTENT_TYPE", "render"]

_PREFIX = "artifacts_agent_"
_STATES = ("running", "backing_off", "paused")
_OUTCOMES = (Outcome.DELIVERED, Outcome.DEAD_LETTERED, Outcome.EXPIRED, Outcome.PURGED)


def render(relay: Relay) -> bytes:
    """Return every counter and gauge of a relay; those of requests have the names that they have on one machine."""
    registry = CollectorRegistry(auto_describe=False)
    families = [*_own(relay), *_of_fleet(relay), *_of_engine(relay), *measured({DEFAULT: relay.measures})]
    registry.register(Fixed(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _own(relay: Relay) -> Iterator[Metric]:
    backlog = relay.backlog
    build = {"version": __version__, "python": platform.python_version()}
    yield InfoMetricFamily(_PREFIX + "build", "The agent's version, and that of Python.", value=build)
    text = "Events that this relay has settled since its start, by outcome."
    settled = CounterMetricFamily(_PREFIX + "relay_events_settled", text, labels=["outcome"])
    for outcome in _OUTCOMES:
        settled.add_metric([outcome], backlog.settled[outcome])
    yield settled
    yield GaugeMetricFamily(_PREFIX + "relay_events_held", "Events that this relay holds.", value=backlog.held_events)
    text = "Messages that no agent wrote, which this relay has moved to AA_DEAD."
    yield CounterMetricFamily(_PREFIX + "relay_messages_unreadable", text, value=backlog.unreadable)
    text = "Dead letters and unreadable messages that this relay could not keep, because AA_DEAD is full."
    yield CounterMetricFamily(_PREFIX + "relay_dead_letters_not_kept", text, value=backlog.dead_not_kept)
    text = "1 while the engine refuses something, or does not answer."
    failing = backlog.storage_error is not None
    yield GaugeMetricFamily(_PREFIX + "relay_engine_failing", text, value=failing)
    state = GaugeMetricFamily(_PREFIX + "relay_state", "1 for the state that delivery is in.", labels=["state"])
    now = policy.describe(relay.worker.state, anyio.current_time()).name if relay.worker is not None else None
    for each in _STATES:
        state.add_metric([each], each == now)
    yield state


def _of_fleet(relay: Relay) -> Iterator[Metric]:
    if relay.worker is None:  # the ledger is not read yet: counters would begin below what they were
        return
    ledger = relay.follower.ledger
    text = (
        "Events of the team that are settled, by outcome, whichever relay did it; forwarded are all that are known of."
    )
    events = CounterMetricFamily(_PREFIX + "fleet_events", text, labels=["team", "outcome"])
    for outcome in _OUTCOMES:
        events.add_metric([relay.team, outcome], ledger.sums[outcome])
    events.add_metric([relay.team, "forwarded"], ledger.forwarded)
    yield events
    text = "Events that may have been delivered a second time; of requests that are under way, all."
    yield _of_team(relay, GaugeMetricFamily(_PREFIX + "fleet_events_in_doubt", text, labels=["team"]), ledger.in_doubt)
    if relay.max_requests_per_minute is not None:
        text = "How many requests all relays of the team may begin in a minute; absent without a limit."
        limit = GaugeMetricFamily(_PREFIX + "fleet_max_requests_per_minute", text, labels=["team"])
        yield _of_team(relay, limit, relay.max_requests_per_minute)


def _of_engine(relay: Relay) -> Iterator[Metric]:
    """Yield what the engine said last of what waits in it; nothing while it does not answer."""
    levels = relay.gauges.levels
    if levels is None:
        return
    text = "Messages of the team that wait in the engine, and no relay holds."
    waiting = GaugeMetricFamily(_PREFIX + "fleet_messages_waiting", text, labels=["team"])
    yield _of_team(relay, waiting, levels.consumer.waiting)
    text = "Messages of the team that relays hold, or held when they ended, if nobody else has taken them."
    held = GaugeMetricFamily(_PREFIX + "fleet_messages_held", text, labels=["team"])
    yield _of_team(relay, held, levels.consumer.held)
    text = "How long ago the events of the team's first message in the engine were accepted; 0 when nothing waits."
    oldest = GaugeMetricFamily(_PREFIX + "fleet_oldest_event_age_seconds", text, labels=["team"])
    yield _of_team(relay, oldest, levels.oldest_age)
    size = GaugeMetricFamily(_PREFIX + "fleet_stream_bytes", "Bytes of a stream, of all teams.", labels=["stream"])
    text = "The most bytes that a stream may have; absent without a limit."
    limit = GaugeMetricFamily(_PREFIX + "fleet_stream_limit_bytes", text, labels=["stream"])
    for name, state in levels.streams.items():
        size.add_metric([name], state.bytes)
        if state.max_bytes:
            limit.add_metric([name], state.max_bytes)
    yield from (size, limit)


def _of_team(relay: Relay, family: GaugeMetricFamily, value: float) -> GaugeMetricFamily:
    family.add_metric([relay.team], value)
    return family
