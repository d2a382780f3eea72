"""The status, and what is measured besides, as Prometheus text."""

import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from operator import attrgetter

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agent.cache_use import CacheUse
from agent.control.schema import AdoptionStatus, DestinationStatus, HttpStatus, StatusReport
from agent.delivery.measures import Histogram, Measures
from agent.queue.cursor import DROP_REASONS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("running", "backing_off", "paused", "failed")
_PREFIX = "artifacts_agent_"
_EVENTS = (
    ("LOCAL", "HIT", attrgetter("local_hits")),
    ("LOCAL", "MISS", attrgetter("local_misses")),
    ("REMOTE", "HIT", attrgetter("remote_hits")),
    ("REMOTE", "MISS", attrgetter("remote_misses")),
)


def render(report: StatusReport, measures: Mapping[str, Measures], uses: Mapping[str, CacheUse]) -> bytes:
    """Return every counter and gauge of a status, what was measured by destination, and what was used of the cache by CI system.

    Without adoption there are none of spools. The process is described by the names that Prometheus gives to any process.
    """
    http = report.http or HttpStatus()
    families = [
        InfoMetricFamily(
            _PREFIX + "build",
            "The agent's version, and that of Python.",
            value={"version": report.version, "python": platform.python_version()},
        ),
        *_cache(uses),
        CounterMetricFamily(
            _PREFIX + "lines_rejected", "Lines that were not valid, since the start.", value=report.rejected
        ),
        CounterMetricFamily(
            _PREFIX + "events_denied", "Events that no rule lets in, since the start.", value=report.denied
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
        *measured(measures),
        *(_spools(report.adopted) if report.adopted is not None else ()),
    ]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed(families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _answers(answered: Mapping[str, Mapping[int, int]]) -> Metric:
    text = "HTTP requests answered since the start, by what they were about and by status."
    family = CounterMetricFamily(_PREFIX + "http_requests", text, labels=["about", "status"])
    for about, statuses in answered.items():
        for status, count in sorted(statuses.items()):
            family.add_metric([about, str(status)], count)
    return family


def _cache(uses: Mapping[str, CacheUse]) -> Iterator[Metric]:
    text = "Events taken from clients since the start, by source, event and CI system. A task may have two of them."
    events = CounterMetricFamily(_PREFIX + "cache_events", text, labels=["source", "event", "ci"])
    text = (
        "Task time that hits saved, since the start. Tasks run in parallel, so it may be more than builds were shorter."
    )
    saved = CounterMetricFamily(_PREFIX + "cache_time_saved_seconds", text, labels=["source", "ci"])
    for ci, use in sorted(uses.items()):
        for source, event, count in _EVENTS:
            events.add_metric([source, event, ci], count(use))
        saved.add_metric(["LOCAL", ci], use.local_saved / 1000)
        saved.add_metric(["REMOTE", ci], use.remote_saved / 1000)
    yield from (events, saved)


class Fixed(Collector):
    """A collector of what was collected before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Return it."""
        return self._families


def _ledgers(statuses: Mapping[str, DestinationStatus]) -> Iterator[Metric]:
    accepted = _counter("events_accepted", "Events taken from clients.")
    delivered = _counter("events_delivered", "Events the API took.")
    forwarded = _counter("events_forwarded", "Events the engine of a fleet took, whose relays deliver them.")
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
        forwarded.add_metric([name], status.ledger.forwarded)
        dead.add_metric([name], status.ledger.dead_lettered)
        retried.add_metric([name], status.ledger.retried)
        queued.add_metric([name], status.ledger.queued)
        requests.add_metric([name], status.requests)
        discarded.add_metric([name], status.dead_letters_discarded)
        if status.dead_letters is not None:
            held.add_metric([name], status.dead_letters)
        for reason in DROP_REASONS:  # zeros too: an alert on a series that does not exist yet would miss its first drop
            dropped.add_metric([name, reason], status.ledger.dropped.get(reason, 0))
    yield from (accepted, retried, delivered, forwarded, dead, held, discarded, dropped, queued, requests)


def _gauges(statuses: Mapping[str, DestinationStatus]) -> Iterator[Metric]:
    size = _gauge("queue_bytes", "Bytes of the queue's segments.")
    limit = _gauge("queue_limit_bytes", "The most bytes that the queue may have.")
    age = _gauge("oldest_event_age_seconds", "Age of the oldest queued event; 0 when nothing is queued.")
    state = _gauge("delivery_state", "1 for the state that delivery is in.", "state")
    failing = _gauge("storage_failing", "1 while the queue cannot be written or read.")
    for name, status in statuses.items():
        size.add_metric([name], status.queue.bytes)
        limit.add_metric([name], status.queue.max_bytes)
        age.add_metric([name], status.oldest_event_age or 0.0)
        failing.add_metric([name], status.storage_error is not None)
        for each in _STATES:
            state.add_metric([name, each], each == status.state)
    yield from (size, limit, age, state, failing)


def measured(measures: Mapping[str, Measures]) -> Iterator[Metric]:
    """Return what workers have measured, by destination."""
    seconds = _histogram("request_duration_seconds", "How long requests with events took, answered or not.")
    delays = _histogram("event_delay_seconds", "From when events were accepted to when they were delivered.")
    responses = _counter("responses", "Answers to requests with events since the start, by status.", "status")
    last = _gauge("last_delivery_timestamp_seconds", "When events were delivered last; absent before the first time.")
    for name, each in measures.items():
        seconds.add_metric([name], _buckets(each.request_seconds), each.request_seconds.total)
        delays.add_metric([name], _buckets(each.delay_seconds), each.delay_seconds.total)
        for status, count in sorted(each.responses.items()):
            responses.add_metric([name, status], count)
        if each.last_delivery_at is not None:
            last.add_metric([name], each.last_delivery_at)
    yield from (seconds, delays, responses, last)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the upper bounds, and how many values are no larger."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _spools(adopted: AdoptionStatus) -> Iterator[Metric]:
    ledger = adopted.ledger
    counts = {
        "delivered": ledger.delivered,
        "forwarded": ledger.forwarded,
        "dead_lettered": ledger.dead_lettered,
    }
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


def _histogram(name: str, text: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(_PREFIX + name, text, labels=["destination"])


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=["destination", *labels])
