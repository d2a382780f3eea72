"""What a worker measures of its requests and deliveries: histograms and counts, a few additions a batch."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus

from agent.delivery.batching import Batch
from agent.delivery.transport import Kind, Verdict

# Upper bounds of the buckets, in seconds. A request ends within `api.timeout`; an event may wait for as long as `queue.max_age`.
REQUEST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
DELAY_BOUNDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0, 604800.0)
NO_STATUS = "none"
_KNOWN = frozenset(HTTPStatus)


class Histogram:
    """Counts of values up to each of `bounds`, and of larger ones; `total` is the sum of all values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, which `count` things have in common."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count


class Measures:
    """What was measured since the start; `last_delivery_at` is in seconds since the epoch.

    `last_answer_at` is when a server answered last, whatever it said, to events or to a probe; `last_answer` is what.

    `request_seconds` has every request with events, `delay_seconds` every delivered event: the time from when it was accepted.
    Of a batch all events count with the delay of its first, the oldest. `responses` counts answers by status, a word for those
    that HTTP does not know.
    """

    def __init__(self) -> None:
        self.request_seconds = Histogram(REQUEST_BOUNDS)
        self.delay_seconds = Histogram(DELAY_BOUNDS)
        self.responses: Counter[str] = Counter({"200": 0})
        self.last_delivery_at: float | None = None
        self.last_answer_at: float | None = None
        self.last_answer: str | None = None

    def note_answer(self, batch: Batch, verdict: Verdict, seconds: float, now: float) -> None:
        """Count an answer that came after so many seconds, at `now` in seconds since the epoch."""
        self.request_seconds.observe(seconds)
        self.responses[_status_label(verdict.status)] += 1
        self.note_last(verdict, now)
        if verdict.kind is not Kind.ACCEPTED:
            return
        self.last_delivery_at = now
        if batch.enqueued_at is not None:
            self.delay_seconds.observe(max(now - batch.enqueued_at, 0.0), batch.event_count)

    def note_last(self, verdict: Verdict, now: float) -> None:
        """Remember an answer as the last one, if it is a server's."""
        if verdict.status is not None:
            self.last_answer_at, self.last_answer = now, verdict.message or str(verdict.status)


def _status_label(status: int | None) -> str:
    """Return a status as a label with few values, whatever a server sends."""
    if status is None:
        return NO_STATUS
    return str(status) if status in _KNOWN else "other"
