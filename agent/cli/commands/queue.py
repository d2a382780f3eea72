"""`queue`: look into the queue, check it, mend it, copy it, empty it.

It knows options and what is printed. It must never know whether a daemon runs: `agent.cli.queue.access` finds the way.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.filters import event_options, limit_option, selection, yes_option
from agent.cli.options import config_option, json_option, load_config
from agent.cli.prompts import confirmed, require_somebody
from agent.cli.views.output import say, say_json, show
from agent.cli.views.words import PROGRAM

if TYPE_CHECKING:
    from agent.cli.queue.access import Access
    from agent.cli.queue.export import Writer
    from agent.queue.maintenance.browse import EventFilter
    from agent.queue.maintenance.purge import Purged

UNREADABLE = 1
FOUND_PROBLEMS = 1
DECLINED = 1


@click.group(short_help="Look into the queue: ls, cat, verify, repair, export, purge.")
def queue() -> None:
    """Look into the queue on disk, check it, mend it, copy it, empty it.

    Where the daemon runs, these commands ask it. Where none does, they read and write the queue's files themselves, under the
    lock that keeps a daemon out meanwhile. Both give the same answers. ls, cat, verify and export change nothing.
    """


@queue.command()
@config_option
@json_option
def ls(path: Path | None, as_json: bool) -> None:
    """List the queue's segments: what they hold, how much of it still waits, how old it is, and what is damaged."""
    import time

    from agent.cli.queue.access import access

    with access(load_config(path)) as way:
        listing = way.listing()
    if as_json:
        say_json(listing)
        return
    from agent.cli.views.queue import listing_screen

    show(listing_screen(listing, time.time()))


@queue.command()
@event_options
@limit_option
@config_option
@json_option
def cat(path: Path | None, as_json: bool, limit: int | None, **options: object) -> int:
    """Print the events that wait, oldest first, one JSON object a line, as they will be delivered.

    With --json a line also has the event's number, when it was accepted, and the context: seq, enqueued_at, context, event.
    Exit code 1: some events cannot be read, which `queue verify` explains.
    """
    from agent.cli.queue.access import access, events
    from agent.cli.queue.export import encode, standard_output

    unreadable = 0
    with access(load_config(path)) as way, standard_output() as out:
        for item in events(way, selection(options), limit):
            if isinstance(item, int):
                unreadable += item
            else:
                out.write(encode(item if as_json else item.event))
    return _warn_of(unreadable)


@queue.command()
@config_option
@json_option
def verify(path: Path | None, as_json: bool) -> int:
    """Check everything: headers, CRCs, numbers, records, both slots of the cursor, the ledger, permissions, dead letters.

    Each problem is named with its file and offset, what it costs, and what to do. Notes ask for nothing: such as damage that is
    accounted for already. It changes nothing. Exit code 0: no problem; 1: there are some.
    """
    from agent.cli.queue.access import access

    with access(load_config(path)) as way:
        found = way.audit()
    if as_json:
        say_json(found)
    else:
        from agent.cli.views.queue import audit_lines

        say("\n".join(audit_lines(found)))
    return 0 if found.ok else FOUND_PROBLEMS


@queue.command()
@config_option
@json_option
def repair(path: Path | None, as_json: bool) -> int:
    """Account for all damage, now.

    Damaged bytes are copied to quarantine/, and the events that were in them are counted as dropped: corrupt. The cursor is
    written anew, leftovers of interrupted writes are removed, permissions are restored. What can be read stays as it is.
    Then it verifies. Exit code 1: some problem is left.
    """
    from agent.cli.queue.access import access

    with access(load_config(path)) as way:
        done = way.repair()
        found = way.audit()
    if as_json:
        say_json({"repaired": done, "verified": found})
    else:
        from agent.cli.views.queue import audit_lines, repair_lines

        say("\n".join([*repair_lines(done), *audit_lines(found)]))
    return 0 if found.ok else FOUND_PROBLEMS


@queue.command()
@click.argument("target", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@event_options
@limit_option
@config_option
@json_option
def export(path: Path | None, target: str, force: bool, as_json: bool, limit: int | None, **options: object) -> int:
    """Copy the events that wait to FILE, or to standard output for "-", so that they can be sent again.

    \b
    artifacts-agent queue export backlog.ndjson
    artifacts-agent emit --strict - < backlog.ndjson          (on another machine, say)

    FILE is protocol 1: events, and a context line wherever the context changes. It has mode 0600 and is whole or not there. With
    --json the lines are those of `queue cat --json`, which can not be sent. The queue stays as it is.
    """
    from agent.cli.queue.access import access
    from agent.cli.queue.export import writer

    settings = load_config(path)
    with writer(target, force=force, whole=as_json, noun="event") as out, access(settings) as way:
        unreadable = _copy(way, selection(options), limit, out)
    return _warn_of(unreadable)


@queue.command()
@yes_option
@config_option
@json_option
def purge(path: Path | None, as_json: bool, yes: bool) -> int:
    """Drop every event that waits. They will not be delivered, and are counted as dropped: purged.

    It asks first if something waits. `queue export` makes a copy. A running daemon finishes the requests that are under way
    before, and what the API takes of them counts as delivered. Exit code 1: the answer was no; 3: requests were under way for too
    long.
    """
    from agent.cli.queue.access import access

    with access(load_config(path)) as way:
        done = way.purge() if yes else _purge_if_told(way)
    if done is None:
        return DECLINED
    if as_json:
        say_json(done)
    else:
        from agent.cli.views.queue import purge_lines

        say("\n".join(purge_lines(done)))
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
    click.echo("Nothing was purged.", err=True)
    return None


def _copy(way: "Access", meant: "EventFilter", limit: int | None, writer: "Writer") -> int:
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
    click.echo(f"{PROGRAM}: {noun} cannot be read: `{PROGRAM} queue verify` says why", err=True)
    return UNREADABLE
