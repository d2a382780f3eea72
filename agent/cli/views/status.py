"""What `status` shows to people. Pure: the control socket's JSON and the time in, something that rich renders out.

It knows the keys of `agent.control.routes`'s answer and words for them. It must never know where the answer came from.
"""

import datetime as dt
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.cli.views.words import amount, duration, size

# What `agent.queue.cursor.Outcome` calls them, in the words of an operator.
DROPS = {
    "overflow": "queue.max_bytes was reached",
    "expired": "older than queue.max_age",
    "corrupt": "damaged on disk",
    "disk_full": "the disk was full, or below queue.min_free_bytes",
    "disk_error": "the disk refused the write",
    "stalled": "the disk did not answer",
    "purged": "an operator wanted it gone",
}


def screen(status: Mapping[str, Any], now: float) -> RenderableType:
    """Return the screen for a `GET /status`; `now` is in seconds since the epoch."""
    parts: list[RenderableType] = [_headline(status)]
    for name, destination in status["destinations"].items():
        parts += [Text(), Text(name, style="bold"), _table(_rows(destination, status["rejected"], now))]
    if adopted := status.get("adopted"):
        parts += [Text(), Text("adopted spools", style="bold"), _table(_spools(adopted))]
    return Group(*parts)


def _headline(status: Mapping[str, Any]) -> Text:
    facts = [f"artifacts-agent {status.get('version', '')}".strip()]
    if "pid" in status:
        facts.append(f"pid {status['pid']}")
    if "uptime" in status:
        facts.append(f"up {duration(status['uptime'])}")
    if "connections" in status:
        facts.append(amount(status["connections"], "connection"))
    if http := status.get("http"):  # a daemon of an earlier version does not say
        facts += [f"HTTP on {http[key]}" for key in ("listen", "socket") if http[key]]
        refused = sum(count for answer, count in http["events"].items() if answer >= "400")
        facts += [f"{amount(refused, 'request')} with events refused: see the log"] if refused else []
    return Text(" · ".join(facts))


def _table(rows: Iterable[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(f"  {label}"), text)
    return table


def _rows(destination: Mapping[str, Any], rejected: int, now: float) -> Iterator[tuple[str, Text]]:
    ledger = destination["ledger"]
    yield "delivery", _state(destination)
    if until := _until(destination, now):
        yield "", until
    if error := destination.get("storage_error"):
        yield "storage", Text(f"failing: {error}", style="bold red")
    yield "queued", _queued(destination)
    yield "last delivery", _last_delivery(destination, now)
    yield "dropped", _dropped(ledger["dropped"])
    yield "dead letters", _dead_letters(ledger, destination.get("dead_letters"))
    yield "rejected", _counted(rejected, "line", "not valid, since the daemon started", "none")
    yield "ledger", _equation(ledger)


def _state(destination: Mapping[str, Any]) -> Text:
    match destination["state"]:
        case "paused":
            return Text(_paused(destination["reason"]), style="bold red")
        case "backing_off":
            return Text(f"backing off: {destination['reason']}", style="bold yellow")
        case "running" if destination["ledger"]["queued"]:
            return Text("delivering", style="bold green")
        case "running":
            return Text("delivering: nothing waits", style="bold green")
        case other:  # of a daemon newer than this command
            return Text(str(other))


def _paused(reason: str) -> str:
    kind, _, message = reason.partition(": ")
    return message if kind == "operator" else f"paused: {reason}"


def _until(destination: Mapping[str, Any], now: float) -> Text | None:
    """Say since when and until when, for a state that will end."""
    if destination["state"] not in {"paused", "backing_off"}:
        return None
    since = f"for {_ago(destination['since'], now)}; " if destination.get("since") else ""
    if destination.get("until") is None:
        return Text(f"{since}until `artifacts-agent resume`")
    what = "asks the server again" if destination["state"] == "paused" else "tries again"
    wait = max(_seconds(destination["until"]) - now, 0.0)
    return Text(f"{since}{what} in {duration(wait)}, at {_clock(destination['until'])}")


def _queued(destination: Mapping[str, Any]) -> Text:
    count, age, queue = (
        destination["ledger"]["queued"],
        destination.get("oldest_event_age"),
        destination.get("queue", {}),
    )
    facts = [amount(count, "event") if count else "nothing"]
    if age is not None:
        facts.append(f"the oldest is {duration(age)} old")
    if queue.get("bytes"):
        facts.append(f"{size(queue['bytes'])} on disk")
    if queue.get("quarantined"):
        facts.append(f"{amount(queue['quarantined'], 'damaged piece')} kept in quarantine")
    return Text(", ".join(facts))


def _last_delivery(destination: Mapping[str, Any], now: float) -> Text:
    at, requests = destination.get("last_delivery_at"), destination.get("requests", 0)
    when = f"{_ago(at, now)} ago, at {_clock(at)}" if at else "none since the daemon started"
    return Text(f"{when} ({amount(requests, 'request')})")


def _dropped(dropped: Mapping[str, int]) -> Text:
    total = sum(dropped.values())
    if not total:
        return Text("none")
    reasons = (
        f"{count:,} {reason} ({DROPS.get(reason, 'see the logs')})" for reason, count in dropped.items() if count
    )
    return Text(f"{amount(total, 'event')}: {', '.join(reasons)}", style="yellow")


def _dead_letters(ledger: Mapping[str, Any], kept: int | None) -> Text:
    text = _counted(ledger["dead_lettered"], "event", "refused by the API, one by one", "none")
    if retried := ledger.get("retried"):  # a daemon of an earlier version does not say
        text.append(f"; {amount(retried, 'letter')} put back into the queue")
    if kept or (kept is not None and ledger["dead_lettered"]):
        text.append(f"; {amount(kept, 'letter')} kept now")
    return text


def _counted(count: int, noun: str, meaning: str, nothing: str) -> Text:
    return Text(f"{amount(count, noun)} {meaning}", style="yellow") if count else Text(nothing)


def _spools(adopted: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    for each in adopted["under_way"]:
        waits = f"{amount(each['ledger']['queued'], 'event')} queued"
        state = f"{each['state'].replace('_', ' ')}{': ' if each['reason'] else ''}{each['reason'] or ''}"
        yield "under way", Text(f"{each['directory']}: {waits}, {state}")
    if not adopted["under_way"]:
        yield "under way", Text("none")
    yield "finished", Text(amount(adopted["finished"], "spool"))
    for each in adopted["left"]:
        yield "left alone", Text(f"{each['directory']}: {each['reason']}", style="yellow")
    yield "ledger", _equation(adopted["ledger"])


def _equation(ledger: Mapping[str, Any]) -> Text:
    names = ("delivered", "dead_lettered", "dropped", "queued")
    counts = {name: ledger[name] if name != "dropped" else sum(ledger[name].values()) for name in names}
    sides = " + ".join(f"{count:,} {name.replace('_', '-')}" for name, count in counts.items())
    text = f"{ledger['accepted']:,} accepted = {sides}"
    if sum(counts.values()) == ledger["accepted"]:
        return Text(text)
    return Text(f"{text} does not add up: please report it", style="bold red")


def _seconds(iso: str) -> float:
    return dt.datetime.fromisoformat(iso).timestamp()


def _ago(iso: str, now: float) -> str:
    return duration(max(now - _seconds(iso), 0.0))


def _clock(iso: str) -> str:
    return f"{dt.datetime.fromisoformat(iso).astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
