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
    registry.register(Fixed([*_own(relay), *_of_fleet(relay), *measured({DEFAULT: relay.measures})]))
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
    ledger = relay.follower.ledger
    text = (
        "Events of the team that are settled, by outcome, whichever relay did it; forwarded are all that are known of."
    )
    events = CounterMetricFamily(_PREFIX + "fleet_events", text, labels=["outcome"])
    for outcome in _OUTCOMES:
        events.add_metric([outcome], ledger.sums[outcome])
    events.add_metric(["forwarded"], ledger.forwarded)
    yield events
    text = "Events that may have been delivered a second time; of requests that are under way, all."
    yield GaugeMetricFamily(_PREFIX + "fleet_events_in_doubt", text, value=ledger.in_doubt)
