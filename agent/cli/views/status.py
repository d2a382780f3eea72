"""What `status` shows to people. Pure: the daemon's answer and the time in, something that rich renders out."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from agent.cli.views.rendered import labelled, rendered
from agent.cli.views.words import amount, clock, duration, percent, size
from agent.control.schema import AdoptionStatus, DestinationStatus, OverQuotaStatus, StatusReport
from agent.queue.cursor import Ledger
from agent.rules import DEFAULT

if TYPE_CHECKING:
    from agent.usage.day import Day

# What `agent.queue.cursor.Outcome` calls them, in the words of an operator.
DROPS = {
    "overflow": "queue.max_bytes was reached",
    "quota": "beyond their sender's share",
    "expired": "older than queue.max_age",
    "corrupt": "damaged on disk",
    "disk_full": "full, or below queue.min_free_bytes",
    "disk_error": "the disk refused the write",
    "stalled": "the disk did not answer",
    "rate_limited": "beyond a rule's limit",
    "purged": "by an operator",
}
# What `agent.delivery.policy` says of a token that the server does not take.
_REFUSED_TOKEN = ("blocked: 401", "blocked: 403")


def screen(
    status: StatusReport,
    now: float,
    usages: "Mapping[str, Day | str]" = MappingProxyType({}),
    tokens: Mapping[str, str] = MappingProxyType({}),
    left_spools: str | None = None,
) -> RenderableType:
    """Return the screen for a `GET /status`; `now` is in seconds since the epoch.

    By destination, `usages` are what is known of the last day, or why it cannot be read, and `tokens` say where its token is.
    What belongs to no destination stands with the only one, or below several. `left_spools` says what waits in spools of nobody.
    """
    parts: list[RenderableType] = [headline(status)]
    for title, rows in sections(status, now, tokens):
        parts += [Text(), rendered(title, style="bold"), labelled(rows)]
    is_alone = len(status.destinations) == 1
    if usages:
        rows = (row for name, usage in usages.items() for row in _usage("" if is_alone else name, usage, now))
        parts += [Text(), rendered("cache", style="bold"), labelled(rows)]
    if left_spools is not None:
        parts += [Text(), labelled(iter([("spools", rendered(left_spools, style="yellow"))]))]
    return Group(*parts)


def sections(
    status: StatusReport, now: float, tokens: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[str, Iterator[tuple[str, Text]]]]:
    """Yield what there is to say of each destination, of events of none, of adopted spools: a title, and texts with labels."""
    is_alone = len(status.destinations) == 1
    for name, destination in status.destinations.items():
        of_none = _of_none(status) if is_alone else iter(())
        yield name, chain(_rows(name, destination, now, tokens.get(name)), of_none, _ledger(destination))
    if not is_alone:
        yield "of no destination", _of_none(status)
    if status.adopted is not None:
        yield "adopted spools", _spools(status.adopted)


def headline(status: StatusReport) -> Text:
    """Return which daemon it is, and who is connected."""
    facts = [f"artifacts-agent {status.version}".strip()]
    if status.pid:  # an answer of another version may leave it out
        facts += [f"pid {status.pid}", f"up {duration(status.uptime)}", amount(status.connections, "connection")]
    if http := status.http:
        facts += [f"HTTP on {address}" for address in (http.listen, http.socket) if address]
        refused = sum(count for answer, count in http.events.items() if answer >= 400)
        facts += [f"{amount(refused, 'request')} with events refused: see the log"] if refused else []
    return rendered(" · ".join(facts))


def _rows(name: str, destination: DestinationStatus, now: float, token: str | None) -> Iterator[tuple[str, Text]]:
    ledger = destination.ledger
    if token is None and name != DEFAULT:
        token = f"destinations.{name}.token_file, the service's credential token.{name}, or a variable"
    yield from delivery(destination, now, token)
    if (forward := destination.forward) is not None:
        yield "forwarded to", rendered(f"team {forward.team}, pool {forward.pool}, at {', '.join(forward.servers)}")
    if destination.token_error:
        yield "token", rendered(f"refused: {destination.token_error}", style="bold red")
    if destination.state == "failed":
        return
    yield "queued", queued(destination)
    if (limit := destination.batch_limit) and limit.reason:
        most = f"{amount(limit.events, 'event')}, {size(limit.bytes)}"
        yield "batch limit", rendered(f"{most}, since the server refuses more: {limit.reason}", style="yellow")
    yield "last delivery", last_delivery(destination, now)
    if answer := last_answer(destination, now):
        yield "last answer", answer
    yield "dropped", dropped(ledger.dropped)
    if destination.over_quota:
        yield "", _over_quota(destination.over_quota)
    yield "dead letters", dead_letters(ledger, destination.dead_letters)


def _ledger(destination: DestinationStatus) -> Iterator[tuple[str, Text]]:
    if destination.state != "failed":
        yield "ledger", _equation(destination.ledger)


def _of_none(status: StatusReport) -> Iterator[tuple[str, Text]]:
    """Yield what of all that clients sent never came to a destination."""
    yield "rejected", _counted(status.rejected, "line", "not valid, since the daemon started", "none")
    if status.denied:
        yield "denied", _counted(status.denied, "event", "that no rule lets in: the log says whose", "none")


def _over_quota(found: Sequence[OverQuotaStatus]) -> Text:
    """Name those who sent most beyond their share."""
    named = [f"{'TCP' if each.uid is None else f'uid {each.uid}'} ({size(each.bytes)})" for each in found[:3]]
    more = [f"{amount(len(found) - 3, 'other')}"] if len(found) > 3 else []
    return rendered(f"beyond their share: {', '.join(named + more)}", style="yellow")


def delivery(destination: DestinationStatus, now: float, token: str | None = None) -> Iterator[tuple[str, Text]]:
    """Yield whether it delivers, and if not, why, until when, and what to do about it; see `screen`."""
    yield "delivery", _state(destination)
    if destination.retired:
        yield "", rendered("retired: it takes no new events, and ends when none waits", style="yellow")
    if destination.state == "failed":
        yield "", rendered("its events are denied; when that is mended: `artifacts-agent reload`", style="yellow")
    if ends := _until(destination, now):
        yield "", ends
    if destination.state == "paused" and (destination.reason or "").startswith(_REFUSED_TOKEN):
        where = token or "api.token_file, the service's credential, or a variable"
        advice = f"look at the token ({where}) and the team, and ask with `artifacts-agent check --online`"
        yield "", rendered(f"{advice}; a new token in its file is tried at once", style="yellow")
    if destination.storage_error:
        yield "storage", rendered(f"failing: {destination.storage_error}", style="bold red")


def _state(destination: DestinationStatus) -> Text:
    match destination.state:
        case "paused":
            return rendered(_paused(destination.reason or ""), style="bold red")
        case "backing_off":
            return rendered(f"backing off: {destination.reason}", style="bold yellow")
        case "running":
            doing = "delivering" if destination.forward is None else "forwarding"
            waits = "" if destination.ledger.queued else ": nothing waits"
            return rendered(f"{doing}{waits}", style="bold green")
        case "failed":
            return rendered(f"failed: {destination.reason}", style="bold red")
        case other:  # of a daemon newer than this command
            return rendered(other)


def _paused(reason: str) -> str:
    kind, _, message = reason.partition(": ")
    return message if kind == "operator" else f"paused: {reason}"


def _until(destination: DestinationStatus, now: float) -> Text | None:
    """Say since when and until when, for a state that will end."""
    if destination.state not in {"paused", "backing_off"}:
        return None
    since = f"for {_ago(destination.since, now)}{_or_longer(destination, now)}; " if destination.since else ""
    if destination.until is None:
        return rendered(f"{since}until `artifacts-agent resume`")
    what = "asks the server again" if destination.state == "paused" else "tries again"
    wait = max(_seconds(destination.until) - now, 0.0)
    return rendered(f"{since}{what} in {duration(wait)}, at {_clock(destination.until)}")


def _or_longer(destination: DestinationStatus, now: float) -> str:
    """Say so if it may have failed before the daemon's start: a failure is not remembered across that, as a pause is."""
    age = destination.oldest_event_age
    if destination.state != "backing_off" or destination.since is None or destination.last_delivery_at or age is None:
        return ""
    return " or longer, as none was delivered since the start" if age > now - _seconds(destination.since) + 60 else ""


def queued(destination: DestinationStatus) -> Text:
    """Return how much waits, and for how long."""
    count, age, queue = destination.ledger.queued, destination.oldest_event_age, destination.queue
    facts = [amount(count, "event") if count else "nothing"]
    if age is not None:
        facts.append(f"the oldest is {duration(age)} old")
    if queue.bytes:
        facts.append(f"{size(queue.bytes)} on disk")
    if queue.quarantined:
        facts.append(f"{amount(queue.quarantined, 'damaged piece')} kept in quarantine")
    return rendered(", ".join(facts))


def last_delivery(destination: DestinationStatus, now: float) -> Text:
    """Return when events were delivered last."""
    at, requests = destination.last_delivery_at, destination.requests
    when = f"{_ago(at, now)} ago, at {_clock(at)}" if at else "none since the daemon started"
    return rendered(f"{when} ({amount(requests, 'request')})")


def last_answer(destination: DestinationStatus, now: float) -> Text | None:
    """Return when a server answered last, and what, where delivery fails; None where the last delivery says it."""
    at = destination.last_answer_at
    if destination.state not in {"paused", "backing_off"} or at is None or at == destination.last_delivery_at:
        return None
    return rendered(f"{_ago(at, now)} ago, at {_clock(at)}: {destination.last_answer}")


def dropped(counts: Mapping[str, int]) -> Text:
    """Return how many events were dropped, by reason."""
    total = sum(counts.values())
    if not total:
        return rendered("none")
    reasons = (f"{count:,} {reason} ({DROPS.get(reason, 'see the logs')})" for reason, count in counts.items() if count)
    return rendered(f"{amount(total, 'event')}: {', '.join(reasons)}", style="yellow")


def dead_letters(ledger: Ledger, kept: int | None) -> Text:
    """Return how many events became dead letters, and what has become of these."""
    text = _counted(ledger.dead_lettered, "event", "refused by the API, one by one", "none")
    if ledger.retried:
        text.append(f"; {amount(ledger.retried, 'letter')} put back into the queue")
    if kept or (kept is not None and ledger.dead_lettered):
        text.append(f"; {amount(kept, 'letter')} kept now")
    return text


def _counted(count: int, noun: str, meaning: str, nothing: str) -> Text:
    return rendered(f"{amount(count, noun)} {meaning}", style="yellow") if count else rendered(nothing)


def _spools(adopted: AdoptionStatus) -> Iterator[tuple[str, Text]]:
    for spool in adopted.under_way:
        waits = f"{amount(spool.ledger.queued, 'event')} queued"
        state = spool.state.replace("_", " ") + (f": {spool.reason}" if spool.reason else "")
        yield "under way", rendered(f"{spool.directory}: {waits}, {state}")
    if not adopted.under_way:
        yield "under way", rendered("none")
    yield "finished", rendered(amount(adopted.finished, "spool"))
    for left in adopted.left:
        yield "left alone", rendered(f"{left.directory}: {left.reason}", style="yellow")
    yield "ledger", _equation(adopted.ledger)


def _usage(name: str, usage: "Day | str", now: float) -> Iterator[tuple[str, Text]]:
    label = f"{name} last 24 h".lstrip()
    if isinstance(usage, str):
        yield label, rendered(f"not known: {usage}", style="yellow")
        return
    totals = usage.totals
    saved = f"{clock(totals.saved_ms / 1000)} of task time saved"
    silent = f", {totals.unanswered:,} unanswered" if totals.unanswered else ""
    rate = f"{percent(totals.hit_rate)} hits: {totals.hits:,} of {amount(totals.tasks, 'task')}, {saved}{silent}"
    counted = f"counted {duration(max(now - usage.folded_at, 0.0))} ago; `artifacts-agent report` counts what is new"
    yield label, rendered(f"{rate if totals.tasks else 'no tasks'} ({counted})")
    if usage.remote_is_silent:
        most = f"{totals.unanswered:,} of {amount(usage.asked_remote, 'task')} that the local cache did not have"
        why = "it was off in these builds, or failing; ask it with `artifacts-agent check --online`"
        yield "", rendered(f"{most} got no answer from the remote cache: {why}", style="bold yellow")


def _equation(ledger: Ledger) -> Text:
    counts = {
        "delivered": ledger.delivered,
        **({"forwarded": ledger.forwarded} if ledger.forwarded else {}),
        "dead-lettered": ledger.dead_lettered,
        "dropped": sum(ledger.dropped.values()),
        "queued": ledger.queued,
    }
    sides = " + ".join(f"{count:,} {name}" for name, count in counts.items())
    text = f"{ledger.accepted:,} accepted = {sides}"
    if sum(counts.values()) == ledger.accepted:
        return rendered(text)
    return rendered(f"{text} does not add up: please report it", style="bold red")


def _seconds(iso: str) -> float:
    return dt.datetime.fromisoformat(iso).timestamp()


def _ago(iso: str, now: float) -> str:
    return duration(max(now - _seconds(iso), 0.0))


def _clock(iso: str) -> str:
    return f"{dt.datetime.fromisoformat(iso).astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
