"""What `fleet status` shows to people. Pure: what was found and the time in, text out."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.cli.views.rendered import rendered
from agent.cli.views.tables import Column, FittedTable
from agent.cli.views.words import PROGRAM, amount, duration
from agent.fleet.engine import ConsumerState
from agent.fleet.inspection import TeamStatus
from agent.fleet.names import pool_of
from agent.fleet.nats_setup import Found
from agent.fleet.overview import RelayAtWork
from agent.queue.cursor import Pause

_NUMBERS = ("forwarded", "delivered", "dead_lettered", "expired", "in_stream", "lost", "queued", "dropped")


def fleet_screen(team: str, status: TeamStatus, now: float) -> RenderableType:
    """Return a line for each pool, the sum, and what is wrong."""
    found = status.overview
    pools = sorted(found.pools.items())
    rows = [(_pool(subject), pool.counts) for subject, pool in pools] + [("all", found.counts)]
    seen = [_age(pool.seen_at, now) for _, pool in pools] + [""]
    queues = [f"{pool.queues:,}" for _, pool in pools] + [f"{sum(pool.queues for _, pool in pools):,}"]
    columns = [Column("pool", [name for name, _ in rows], is_name=True), Column("queues", queues)]
    columns += [
        Column(name.replace("_", "-"), [f"{getattr(counts, name):,}" for _, counts in rows]) for name in _NUMBERS
    ]
    return Group(rendered(f"team {team}"), FittedTable(*columns, Column("seen", seen)), *_notes(status, now))


def found_lines(found: Found, *, would_update: bool) -> Iterator[str]:
    """Yield what `fleet init` says of one thing; `would_update` is --update together with --dry-run."""
    hint = "this would be changed" if would_update else f"`{PROGRAM} fleet init --update` changes it"
    yield f"{found.name}: {found.state}"
    for each in found.updated:
        yield f"  {each.key} was {each.found}, is {each.wanted}"
    for each in found.differences:
        can_be = each.updatable and each.reason is None
        yield f"  {each}{f': {hint}' if can_be else ''}"


HOUR = 3600.0
SHOWN_RELAYS = 10

SILENT_SECONDS = 60.0
"""If nobody has taken a message for so long, and nobody asks for one, perhaps no relay runs."""

_LISTED = ("number", "subject", "queue", "seq", "rejected_at", "status", "message")


def dead_letter_table(found: Sequence[Mapping[str, object]]) -> RenderableType:
    """Return a line for each dead letter, as `agent.fleet.inspection.described` has it."""
    if not found:
        return rendered("No dead letters.")
    table = Table.grid(padding=(0, 2))
    for name in _LISTED:
        table.add_column(justify="right" if name in {"number", "seq"} else "left", overflow="fold")
    table.add_row(*(rendered(name.replace("_", " "), style="dim") for name in _LISTED))
    for each in found:
        table.add_row(*(rendered("" if each[name] is None else str(each[name])) for name in _LISTED))
    return table


def _notes(status: TeamStatus, now: float) -> Iterator[Text]:
    found, pause = status.overview, status.pause
    yield rendered(f"{amount(found.messages, 'message')} in the stream{_oldest(found.oldest_event_at, now)}")
    yield _consumer(status.consumer, now)
    yield from _relays(found.relays, now)
    if found.in_doubt:
        yield rendered(f"{amount(found.in_doubt, 'event')} in doubt: under way, or delivered perhaps once more")
    if pause is not None:
        said = f"paused for {duration(now - pause.since)}: {pause.message or pause.reason}; {_next_probe(pause, now)}"
        yield rendered(said, style="yellow")
    if found.counts.lost:
        yield rendered(f"{amount(found.counts.lost, 'event')} lost in the engine", style="bold red")
    for subject, pool in sorted(found.pools.items()):
        if pool.forgotten_early:
            text = f"{_pool(subject)} had too much to be kept: {amount(pool.forgotten_early, 'queue')} forgotten early"
            yield rendered(text, style="yellow")
    if found.unreadable:
        yield rendered(f"{amount(found.unreadable, 'message')} that no agent wrote", style="yellow")
    if not found.is_whole:
        yield rendered("the stream holds more than was looked at: the sums are too low", style="yellow")


def _next_probe(pause: Pause, now: float) -> str:
    if pause.probe_at == float("inf"):
        return "it is not probed"
    if pause.probe_at <= now:
        return "a probe is due, or under way"
    return f"the next probe is in {duration(pause.probe_at - now)}, or at once with `{PROGRAM} fleet resume`"


def _consumer(consumer: ConsumerState, now: float) -> Text:
    given = f"{consumer.waiting:,} wait, {consumer.held:,} held by relays"
    last = (
        "none was taken yet" if consumer.taken_at is None else f"the last one was taken {_age(consumer.taken_at, now)}"
    )
    asking = f"{amount(consumer.asking, 'request')} for more"
    is_idle = consumer.taken_at is None or now - consumer.taken_at > SILENT_SECONDS
    left_alone = consumer.waiting + consumer.held > 0 and not consumer.asking and is_idle
    return rendered(f"{given}; {last}; {asking}", style="yellow" if left_alone else "")


def _relays(relays: Mapping[str, RelayAtWork], now: float) -> Iterator[Text]:
    """Yield what is known of the relays that made a request within the hour, the last one first."""
    for name, each in [*relays.items()][: -SHOWN_RELAYS - 1 : -1]:
        if now - each.last_at < HOUR:
            text = f"relay {name}: first request {_age(each.first_at, now)}, last one {_age(each.last_at, now)}"
            yield rendered(f"{text}, {each.open_requests} under way or in doubt")


def _oldest(at: float | None, now: float) -> str:
    return "" if at is None else f", the oldest event {duration(max(now - at, 0.0))} old"


def _age(at: float | None, now: float) -> str:
    return "" if at is None else f"{duration(max(now - at, 0.0))} ago"


def _pool(subject: str) -> str:
    found = pool_of(subject)
    return found[1] if found is not None else subject
