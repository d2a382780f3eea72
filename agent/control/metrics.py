"""The status as Prometheus text."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.control.schema import AdoptionStatus, DestinationStatus, HttpStatus, StatusReport
from agent.queue.cursor import DROP_REASONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("running", "backing_off", "paused")
_PREFIX = "artifacts_agent_"


def render(report: StatusReport) -> bytes:
    """Return every counter and gauge of a status. Without adoption there are none of spools."""
    http = report.http or HttpStatus()
    families = [
        CounterMetricFamily(
            _PREFIX + "lines_rejected", "Lines that were not valid, since the start.", value=report.rejected
        ),
        GaugeMetricFamily(_PREFIX + "connections", "Open connections on the stream socket.", value=report.connections),
        CounterMetricFamily(
            _PREFIX + "connections_evicted",
            "Connections that had to make room, since the start.",
            value=report.evicted,
        ),
        GaugeMetricFamily(_PREFIX + "http_connections", "Open HTTP connections.", value=http.connections),
        _answers({"events": http.events, "front": http.front}),
        *_ledgers(report.destinations),
        *_gauges(report.destinations),
        *(_spools(report.adopted) if report.adopted is not None else ()),
    ]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fixed(families))
    return generate_latest(registry)


def _answers(answered: Mapping[str, Mapping[int, int]]) -> Metric:
    text = "HTTP requests answered since the start, by what they were about and by status."
    family = CounterMetricFamily(_PREFIX + "http_requests", text, labels=["about", "status"])
    for about, statuses in answered.items():
        for status, count in sorted(statuses.items()):
            family.add_metric([about, str(status)], count)
    return family


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _ledgers(statuses: Mapping[str, DestinationStatus]) -> Iterator[Metric]:
    accepted = _counter("events_accepted", "Events taken from clients.")
    delivered = _counter("events_delivered", "Events the API took.")
    retried = _counter("events_retried", "Of the accepted events, those that came back from dead letters.")
    dead = _counter("events_dead_lettered", "Events the API refused one by one.")
    discarded = _counter("dead_letters_discarded", "Dead letters that made room for younger ones, since the start.")
    dropped = _counter("events_dropped", "Events dropped, by reason.", "reason")
    held = _gauge("dead_letters", "Dead letters that are kept; absent while that cannot be told.")
    queued = _gauge("events_queued", "Events on disk that wait for delivery.")
    requests = _counter("requests", "Requests to the API since the start.")
    for name, status in statuses.items():
        accepted.add_metric([name], status.ledger.accepted)
        delivered.add_metric([name], status.ledger.delivered)
        dead.add_metric([name], status.ledger.dead_lettered)
        retried.add_metric([name], status.ledger.retried)
        queued.add_metric([name], status.ledger.queued)
        requests.add_metric([name], status.requests)
        discarded.add_metric([name], status.dead_letters_discarded)
        if status.dead_letters is not None:
            held.add_metric([name], status.dead_letters)
        for reason in DROP_REASONS:  # zeros too: an alert on a series that does not exist yet would miss its first drop
            dropped.add_metric([name, reason], status.ledger.dropped.get(reason, 0))
    yield from (accepted, retried, delivered, dead, held, discarded, dropped, queued, requests)


def _gauges(statuses: Mapping[str, DestinationStatus]) -> Iterator[Metric]:
    size = _gauge("queue_bytes", "Bytes of the queue's segments.")
    age = _gauge("oldest_event_age_seconds", "Age of the oldest queued event; 0 when nothing is queued.")
    state = _gauge("delivery_state", "1 for the state that delivery is in.", "state")
    failing = _gauge("storage_failing", "1 while the queue cannot be written or read.")
    for name, status in statuses.items():
        size.add_metric([name], status.queue.bytes)
        age.add_metric([name], status.oldest_event_age or 0.0)
        failing.add_metric([name], status.storage_error is not None)
        for each in _STATES:
            state.add_metric([name, each], each == status.state)
    yield from (size, age, state, failing)


def _spools(adopted: AdoptionStatus) -> Iterator[Metric]:
    ledger = adopted.ledger
    counts = {"delivered": ledger.delivered, "dead_lettered": ledger.dead_lettered}
    settled = CounterMetricFamily(
        _PREFIX + "adopted_events",
        "Events of adopted spools that are finished, by what became of them.",
        labels=["outcome"],
    )
    for outcome, count in (counts | {reason: ledger.dropped.get(reason, 0) for reason in DROP_REASONS}).items():
        settled.add_metric([outcome], count)
    yield settled
    finished = "Adopted spools of which nothing waits any more."
    yield CounterMetricFamily(_PREFIX + "adopted_spools_finished", finished, value=adopted.finished)
    waiting = "Events that wait in adopted spools."
    yield GaugeMetricFamily(_PREFIX + "adopted_events_queued", waiting, value=adopted.queued)
    open_now = len(adopted.under_way)
    yield GaugeMetricFamily(_PREFIX + "adopted_spools_open", "Spools that are being delivered.", value=open_now)
    left = "Directories among the spools that are left alone; the status says why."
    yield GaugeMetricFamily(_PREFIX + "adopted_spools_left", left, value=len(adopted.left))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, text, labels=["destination", *labels])


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=["destination", *labels])
