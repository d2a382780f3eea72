"""What `top` shows. Pure: samples of the daemon and the time in, something that rich renders out.

What changes first is at the top: where a terminal is too short, the end is cut off.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from agent.cli.top.samples import (
    Measured,
    Sample,
    gained,
    quantile,
    rates,
    recent_buckets,
    same_daemon,
    sparkline,
    within,
)
from agent.cli.views.rendered import labelled, rendered
from agent.cli.views.status import dead_letters, delivery, dropped, headline, last_answer, last_delivery, queued
from agent.cli.views.tables import Column, FittedTable
from agent.cli.views.words import amount, clock, duration, percent, size
from agent.control.schema import DestinationStatus
from agent.queue.cursor import Ledger
from agent.usage.recent import Recent, RecentSession

LATELY_SECONDS = 60.0
LATE_SECONDS = 2.0
"""How much later than expected an answer may be before that is said."""
MOST_BUILDS = 30
_MOST_BARS = 60
_BESIDE_BARS = 32  # columns: the label and the rate
_GAUGE_CELLS = 10
_FEW = 10.0
_NEARLY_FULL = 0.8  # as for the alert


class Seen(NamedTuple):
    """All that has been seen at one moment. There is one sample at least, the newest last.

    `now` is in seconds since the epoch; `clock`, and `began`, the time of the first of all samples, are by the clock of the
    samples, which come every `interval` seconds. `recent` is what is known of sessions, or why that is nothing. `trouble`
    says why there is no newer sample, `notice` what the last key did; `keys` whether keys are read. `width` is in columns.
    """

    samples: Sequence[Sample]
    now: float
    clock: float
    began: float
    interval: float
    width: int
    recent: Recent | str
    trouble: str | None = None
    notice: str | None = None
    keys: bool = False


def screen(seen: Seen) -> RenderableType:
    """Return all of it."""
    status = seen.samples[-1].status
    parts: list[RenderableType] = [headline(status)]
    if seen.keys:
        parts.append(_keys(status.destinations.values()))
    parts += _news(seen)
    for name, destination in status.destinations.items():
        parts += [Text(), rendered(name, style="bold"), labelled(_rows(seen, name, destination))]
    return Group(*parts, Text(), *_builds(seen))


def is_paused(destinations: Iterable[DestinationStatus]) -> bool:
    """Tell whether the key p resumes, and does not pause."""
    return any(each.state == "paused" for each in destinations)


def _keys(destinations: Iterable[DestinationStatus]) -> Text:
    pause = "resume" if is_paused(destinations) else "pause"
    return rendered(f"p {pause} · r try now · f flush · q quit", style="cyan")


def _news(seen: Seen) -> Iterator[Text]:
    """Yield what is wrong with the answers, and what a key has done."""
    age = seen.clock - seen.samples[-1].at
    if seen.trouble is not None:
        yield rendered(seen.trouble, style="bold red")
    if seen.trouble is not None or age > seen.interval + LATE_SECONDS:
        yield rendered(f"what follows is {duration(age)} old", style="bold red")
    for before, after in pairwise(reversed(within(seen.samples, LATELY_SECONDS))):
        if not same_daemon(after, before):
            pids = f"pid {before.status.pid}, before it pid {after.status.pid}"
            yield rendered(f"the daemon was restarted, or is another one: {pids}", style="yellow")
            break
    if seen.notice is not None:
        yield rendered(seen.notice, style="cyan")


def _rows(seen: Seen, name: str, destination: DestinationStatus) -> Iterator[tuple[str, Text]]:
    ledger, lately = destination.ledger, within(seen.samples, LATELY_SECONDS)
    is_new = seen.samples[-1].at - seen.began < LATELY_SECONDS
    when = "since top began" if is_new else "in the last minute"
    yield from delivery(destination, seen.now)
    yield "in", _flow(seen, name, lambda found: found.accepted)
    yield "out", _flow(seen, name, lambda found: found.delivered + found.forwarded)
    yield "queued", queued(destination)
    yield "disk", _disk(destination)
    yield "requests", _requests(lately, name, when)
    yield "answers", _answers(seen.samples[-1].measured.get(name, Measured()))
    yield "last delivery", last_delivery(destination, seen.now)
    if answer := last_answer(destination, seen.now):
        yield "last answer", answer
    yield "dead letters", _growing(dead_letters(ledger, destination.dead_letters), lately, name, _dead_lettered, when)
    yield "dropped", _growing(dropped(ledger.dropped), lately, name, _all_dropped, when)
    if rejected := seen.samples[-1].status.rejected:
        yield "rejected", rendered(f"{amount(rejected, 'line')} not valid, since the daemon started", style="yellow")


def _dead_lettered(ledger: Ledger) -> int:
    return ledger.dead_lettered


def _all_dropped(ledger: Ledger) -> int:
    return sum(ledger.dropped.values())


def _of(name: str, count: Callable[[Ledger], int]) -> Callable[[Sample], float]:
    """Return a counter of the ledger of a destination."""

    def counter(sample: Sample) -> float:
        destination = sample.status.destinations.get(name)
        return 0.0 if destination is None else float(count(destination.ledger))

    return counter


def _flow(seen: Seen, name: str, count: Callable[[Ledger], int]) -> Text:
    found = rates(seen.samples, _of(name, count))
    newest = found[-1] if found else None
    bars = sparkline(found, min(seen.width - _BESIDE_BARS, _MOST_BARS))
    return rendered(f"{'-' if newest is None else f'{_number(newest)}/s':<14}{bars}".rstrip())


def _number(value: float) -> str:
    return f"{value:,.1f}" if 0 < value < _FEW else f"{value:,.0f}"


def _disk(destination: DestinationStatus) -> Text:
    queue = destination.queue
    if not queue.max_bytes:  # an older daemon does not say
        return rendered(size(queue.bytes))
    share = queue.bytes / queue.max_bytes
    filled = min(math.ceil(share * _GAUGE_CELLS), _GAUGE_CELLS)
    text = rendered(f"{'█' * filled}{'░' * (_GAUGE_CELLS - filled)} ", "yellow" if share > _NEARLY_FULL else "green")
    return text.append_text(rendered(f"{percent(share)} of {size(queue.max_bytes)}"))


def _requests(lately: Sequence[Sample], name: str, when: str) -> Text:
    """Return how many requests there were lately, which is `when`, and how long they took."""
    found = recent_buckets(lately, name)
    if not found:
        return rendered(f"none {when}")
    half, most = (_bound(found, share) for share in (0.5, 0.95))
    return rendered(f"{found[-1][1]:,.0f} {when}: half {half}, 95 % {most}")


def _bound(buckets: Sequence[tuple[float, float]], share: float) -> str:
    bound = quantile(buckets, share)
    if math.isinf(bound):
        return f"above {buckets[-2][0]:g} s" if len(buckets) > 1 else "of unknown length"
    return f"within {bound:g} s" if bound >= 1 else f"within {bound * 1000:g} ms"


def _answers(measured: Measured) -> Text:
    answers = {status: count for status, count in measured.responses.items() if count}
    if not answers:
        return rendered("none since the daemon started")
    text = rendered("")
    for status, count in answers.items():
        what = "without an answer" if status == "none" else f"with {status}"
        text.append_text(rendered(", ")) if text else None
        text.append_text(rendered(f"{count:,.0f} {what}", "" if status.startswith("2") else "yellow"))
    return text


def _growing(text: Text, lately: Sequence[Sample], name: str, count: Callable[[Ledger], int], when: str) -> Text:
    """Return a text to which is added how much a counter rose lately, which is `when`."""
    if more := gained(lately, _of(name, count)):
        text.append_text(rendered(f"; {more:,.0f} of them {when}", "bold red"))
    return text


def _builds(seen: Seen) -> Iterator[RenderableType]:
    recent = seen.recent
    if isinstance(recent, str):
        yield rendered("builds", style="bold")
        yield rendered(f"  not known: {recent}", style="yellow")
        return
    yield rendered(f"builds of the last {duration(recent.seconds)}: {recent.number:,}", style="bold")
    if not recent.complete:
        yield rendered("  more came than is counted here: see `artifacts-agent report`", style="yellow")
    if recent.problem is not None:
        yield rendered(f"  {recent.problem}", style="yellow")
    if recent.sessions:
        destinations = seen.samples[-1].status.destinations
        yield _table(recent.sessions, seen.now, with_destinations=len(destinations) > 1)


def _table(sessions: Sequence[RecentSession], now: float, *, with_destinations: bool) -> FittedTable:
    shown = sessions[:MOST_BUILDS]
    totals = [each.totals for each in shown]
    destinations = [Column("destination", [each.destination for each in shown], is_name=True)]
    return FittedTable(
        Column("session", [each.name for each in shown], is_name=True),
        *(destinations if with_destinations else []),
        Column("hit rate", [percent(each.hit_rate) for each in totals]),
        Column("tasks", [f"{each.tasks:,}" for each in totals]),
        Column("missed", [f"{each.misses:,}" for each in totals]),
        Column("unanswered", [f"{each.unanswered:,}" for each in totals]),
        Column("saved", [clock(each.saved_ms / 1000) for each in totals]),
        Column("last event", [f"{duration(max(now - each.last, 0.0))} ago" for each in shown]),
        Column("ci", [each.ci or "none" for each in shown], is_name=True),
        styles=["yellow" if each.unanswered else "" for each in totals],
    )
