"""What the `queue` commands show to people. Pure: their answers and the time in, text out."""

from collections.abc import Iterator

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.cli.views.rendered import rendered
from agent.cli.views.words import PROGRAM, amount, duration, size
from agent.queue.maintenance.audit import Audit, Finding
from agent.queue.maintenance.browse import Listing, SegmentReport
from agent.queue.maintenance.purge import Purged
from agent.queue.maintenance.repair import Repaired
from agent.timestamps import seconds_of

_COLUMNS = ("segment", "records", "events", "queued", "oldest", "newest", "size", "damage")
_UNREADABLE = "cannot be read"


def listing_screen(listing: Listing, now: float) -> RenderableType:
    """Return a line for each segment, and the totals."""
    table = Table.grid(padding=(0, 2))
    for name in _COLUMNS:
        table.add_column(justify="left" if name in {"segment", "damage"} else "right", no_wrap=name != "damage")
    table.add_row(*(rendered(name, style="dim") for name in _COLUMNS))
    for each in listing.segments:
        damage = _damage(each)
        facts = (each.file, f"{each.records:,}", f"{each.events:,}", f"{each.queued:,}")
        ages = (_age(each.oldest, now), _age(each.newest, now), size(each.bytes))
        table.add_row(*(rendered(fact) for fact in (*facts, *ages)), rendered(damage, style="red"))
    return Group(table, Text(), *_totals(listing)) if listing.segments else Group(*_totals(listing))


def _damage(each: SegmentReport) -> str:
    if each.problem is not None:
        return f"{_UNREADABLE}: {each.problem}"
    facts = [f"{each.damaged:,} bytes"] if each.damaged else []
    if each.unreadable:
        facts.append(
            f"{amount(each.unreadable, 'queued event')} in them" if each.damaged else f"{each.unreadable:,} missing"
        )
    return ", ".join(facts)


def _age(at: str | None, now: float) -> str:
    return "" if at is None else duration(max(now - seconds_of(at), 0.0))


def _totals(listing: Listing) -> Iterator[Text]:
    yield rendered(
        f"{amount(listing.queued, 'event')} queued; {amount(len(listing.segments), 'segment')} with "
        f"{amount(listing.records, 'record')} of {amount(listing.events, 'event')}, {size(listing.bytes)}"
    )
    if listing.unreadable:
        what = f"{amount(listing.unreadable, 'queued event')} cannot be read: `{PROGRAM} queue verify` says why"
        yield rendered(what, style="bold red")


def audit_lines(found: Audit) -> Iterator[str]:
    """Yield each finding, problems first, and the sum of it."""
    for finding in found.problems:
        yield from _finding("problem", finding)
    for finding in found.notes:
        yield from _finding("note   ", finding)
    looked_at = (
        f"{amount(found.segments, 'segment')}, {amount(found.records, 'record')}, {amount(found.events, 'event')}, "
        f"{amount(found.dead_letters, 'dead letter')}"
    )
    verdict = "no problem" if found.ok else amount(len(found.problems), "problem")
    yield f"{verdict} in {looked_at}"


def _finding(word: str, finding: Finding) -> Iterator[str]:
    place = finding.file if finding.offset is None else f"{finding.file}, offset {finding.offset:,}"
    noun = "dead letter" if finding.file.startswith("dead-letters/") else "queued event"
    yield f"{word}  {place}: {finding.what}"
    if word == "problem":
        yield f"         costs: {amount(finding.costs, noun) if finding.costs else 'no ' + noun}"
    if finding.remedy:
        yield f"         to do: {finding.remedy}"


def repair_lines(done: Repaired) -> Iterator[str]:
    """Yield what a repair did, and only that; it writes the cursor anew whether or not that was damaged."""
    if not any(msgspec.structs.astuple(done)):
        yield "no damage was found outside the cursor, which is always written anew"
        return
    if done.restored:
        yield f"restored the permissions of {_files(done.restored)}"
    if done.quarantined:
        yield f"copied {amount(done.quarantined, 'damaged piece')} to quarantine"
    if done.not_kept:
        yield f"could not copy {amount(done.not_kept, 'damaged piece')} to quarantine: it is full, or the disk refused the write"
    if done.corrupt:
        yield f"counted {amount(done.corrupt, 'event')} as dropped: corrupt"
    if done.dead_letters:
        yield f"removed {amount(done.dead_letters, 'damaged dead letter')}"
    if done.removed:
        yield f"removed {_files(done.removed)}, left by interrupted writes"
    yield "wrote the cursor anew"


def _files(names: list[str]) -> str:
    return ", ".join("the queue's directory" if name == "." else name for name in names)


def purge_question(listing: Listing, now: float) -> str:
    """Return what to ask before a purge."""
    times = [each.oldest for each in listing.segments if each.queued and each.oldest is not None]
    age = f", up to {_age(min(times), now)} old," if times else ""
    return f"Drop {amount(listing.queued, 'queued event')}{age} for good? (`{PROGRAM} queue export FILE` makes a copy)"


def purge_lines(done: Purged) -> Iterator[str]:
    """Yield what a purge did."""
    yield f"{amount(done.purged, 'event')} dropped: purged; {size(done.freed_bytes)} freed"
    if done.problem is not None:
        yield f"more space is freed later: {done.problem}"
