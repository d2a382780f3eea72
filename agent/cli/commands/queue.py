"""`queue`: inspect, check, repair, export and purge the queue, with a daemon or without: see `agent.cli.queue.access`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.filters import event_options, limit_option, selection, yes_option
from agent.cli.options import config_option, destination_option, find_queue, json_option
from agent.cli.prompts import confirmed, require_somebody
from agent.cli.views.output import complain, say, say_json, show
from agent.cli.views.words import PROGRAM

if TYPE_CHECKING:
    from agent.cli.queue.access import Access
    from agent.cli.queue.export import EventWriter
    from agent.queue.maintenance.browse import EventFilter
    from agent.queue.maintenance.purge import Purged

UNREADABLE = 1
FOUND_PROBLEMS = 1
DECLINED = 1


@click.group(short_help="Inspect and repair the queue: ls, cat, verify, repair, export, purge.")
def queue() -> None:
    """Inspect the queue on disk, check it, repair it, export it, purge it.

    If the daemon is running, these commands ask it. If not, they lock the queue, so that no daemon can start meanwhile, and use
    its files. The answers are the same. ls, cat, verify and export change nothing.
    """


@queue.command(short_help="List the segments: records, events, ages, damage.")
@destination_option
@config_option
@json_option
def ls(path: Path | None, destination: str | None, as_json: bool) -> None:
    """List the queue's segments: records, events, how many of them are still queued, their age, and damage."""
    import time

    from agent.cli.queue.access import access

    with access(*find_queue(path, destination)) as way:
        listing = way.listing()
    if as_json:
        say_json(listing)
        return
    from agent.cli.views.queue import listing_screen

    show(listing_screen(listing, time.time()))


@queue.command(short_help="Print the queued events, one JSON object a line.")
@event_options
@limit_option
@destination_option
@config_option
@json_option
def cat(path: Path | None, destination: str | None, as_json: bool, limit: int | None, **options: object) -> int:
    """Print the queued events, oldest first, one JSON object a line, as they will be delivered.

    With --json, each line has the event's number, the time when it was accepted, its context and the event: seq, enqueued_at,
    context, event. Exit code 1: some events cannot be read; `queue verify` says why.
    """
    from agent.cli.queue.access import access, events
    from agent.cli.queue.export import encode, standard_output

    unreadable = 0
    with access(*find_queue(path, destination)) as way, standard_output() as out:
        for item in events(way, selection(options), limit):
            if isinstance(item, int):
                unreadable += item
            else:
                out.write(encode(item if as_json else item.event))
    return _warn_of(unreadable)


@queue.command(short_help="Check every byte and every rule of the queue.")
@destination_option
@config_option
@json_option
def verify(path: Path | None, destination: str | None, as_json: bool) -> int:
    """Check everything: headers, CRCs, numbers, records, both slots of the cursor, the ledger, permissions, dead letters.

    For each problem it prints file and offset, how many events are affected, and what to do. A note needs no action, such as
    damage that is accounted for already. Nothing is changed. Exit code 0: no problem; 1: there are problems.
    """
    from agent.cli.queue.access import access

    with access(*find_queue(path, destination)) as way:
        found = way.audit()
    if as_json:
        say_json(found)
    else:
        from agent.cli.views.queue import audit_lines

        say(*audit_lines(found))
    return 0 if found.ok else FOUND_PROBLEMS


@queue.command()
@destination_option
@config_option
@json_option
def repair(path: Path | None, destination: str | None, as_json: bool) -> int:
    """Account for all damage now.

    Damaged bytes are copied to quarantine/, and their events are counted as dropped: corrupt. The cursor is written anew, files
    of interrupted writes are removed, and permissions are restored. What can be read stays as it is. At the end the queue is
    verified. Exit code 1: there are still problems.
    """
    from agent.cli.queue.access import access

    with access(*find_queue(path, destination)) as way:
        done = way.repair()
        found = way.audit()
    if as_json:
        say_json({"repaired": done, "verified": found})
    else:
        from agent.cli.views.queue import audit_lines, repair_lines

        say(*repair_lines(done), *audit_lines(found))
    return 0 if found.ok else FOUND_PROBLEMS


@queue.command(short_help="Copy the queued events, so that they can be sent again.")
@click.argument("target", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@event_options
@limit_option
@destination_option
@config_option
@json_option
def export(
    path: Path | None,
    destination: str | None,
    target: str,
    force: bool,
    as_json: bool,
    limit: int | None,
    **options: object,
) -> int:
    """Copy the queued events to FILE, or to standard output for "-", in a form that can be sent again.

    \b
    artifacts-agent queue export backlog.ndjson
    artifacts-agent emit --strict - < backlog.ndjson          (on another machine, say)

    FILE is in the format of the stream socket (protocol 1): events, and a context line where the context changes. It has mode
    0600, and appears only when it is complete. With --json, the lines are those of `queue cat --json`, which cannot be sent.
    The queue stays as it is.
    """
    from agent.cli.queue.access import access
    from agent.cli.queue.export import writer

    found = find_queue(path, destination)
    with writer(target, force=force, whole=as_json, noun="event") as out, access(*found) as way:
        unreadable = _copy(way, selection(options), limit, out)
    return _warn_of(unreadable)


@queue.command()
@yes_option
@destination_option
@config_option
@json_option
def purge(path: Path | None, destination: str | None, as_json: bool, yes: bool) -> int:
    """Drop all queued events. They will not be delivered, and are counted as dropped: purged.

    It asks first. `queue export` makes a copy. A running daemon first finishes the requests that are in flight; what the API
    accepts of them counts as delivered. Exit code 1: the answer was no; 3: the requests in flight took too long.
    """
    from agent.cli.queue.access import access

    with access(*find_queue(path, destination)) as way:
        done = way.purge() if yes else _purge_if_told(way)
    if done is None:
        return DECLINED
    if as_json:
        say_json(done)
    else:
        from agent.cli.views.queue import purge_lines

        say(*purge_lines(done))
    return 0


def _purge_if_told(way: "Access") -> "Purged | None":
    """Ask, and purge; None if the answer is no. Where nothing waits there is nothing to ask, and nothing is done."""
    import time

    from agent.cli.views.queue import purge_question
    from agent.queue.maintenance.purge import Purged

    require_somebody()
    listing = way.listing()
    if not listing.queued:
        return Purged(0, 0, None)
    if confirmed(purge_question(listing, time.time())):
        return way.purge()
    complain("nothing was purged")
    return None


def _copy(way: "Access", meant: "EventFilter", limit: int | None, writer: "EventWriter") -> int:
    from agent.cli.queue.access import events

    unreadable = 0
    for item in events(way, meant, limit):
        if isinstance(item, int):
            unreadable += item
        else:
            writer.add(item)
    return unreadable


def _warn_of(unreadable: int) -> int:
    if not unreadable:
        return 0
    noun = "1 queued event" if unreadable == 1 else f"{unreadable:,} queued events"
    complain(f"{noun} cannot be read: `{PROGRAM} queue verify` says why")
    return UNREADABLE
