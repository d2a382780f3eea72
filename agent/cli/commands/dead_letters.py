"""`dead-letters`: inspect, retry, export and purge the events that the API refused, with a daemon or without: see
`agent.cli.queue.access`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.filters import letter_options, letter_selection, limit_option, numbers_argument, yes_option
from agent.cli.options import config_option, destination_option, find_queue, json_option
from agent.cli.prompts import confirmed
from agent.cli.views.output import complain, is_terminal, say, say_json, show
from agent.cli.views.words import PROGRAM, amount
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.cli.queue.access import Access, DeadLetterPages
    from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter
    from agent.queue.maintenance.purge import DeadLettersPurged
    from agent.queue.maintenance.retry import Retried

LEFT = 1
DECLINED = 1
UNREADABLE = 1


@click.group("dead-letters", short_help="Inspect and retry refused events: ls, show, retry, export, purge.")
def dead_letters() -> None:
    """Inspect the events that the API refused individually, retry them, export them, purge them.

    If the daemon is running, these commands ask it. If not, they lock the queue and use its files. SEQ is the number that the
    event had in the queue, as `ls` shows it.
    """


@dead_letters.command(short_help="List dead letters, and why the API refused them.")
@letter_options
@limit_option
@destination_option
@config_option
@json_option
def ls(path: Path | None, destination: str | None, as_json: bool, limit: int | None, **options: object) -> int:
    """List dead letters: number, when it was refused, status, session, hash, and the API's message.

    The oldest come first. (When one is removed, others that were stored beside it may move to the end.)

    With --json, one object a line: seq, rejected_at, status, message, context, event. Exit code 1: some dead letters cannot be
    read; `queue verify` says why.
    """
    from agent.cli.queue.access import DeadLetterPages, access

    with access(*find_queue(path, destination)) as way:
        found = DeadLetterPages(way, letter_selection(options), limit)
        if as_json:
            _print_lines(found)
        else:
            _print_table(found)
    return _warn_of(found.unreadable)


@dead_letters.command("show")
@click.argument("seq", type=click.IntRange(min=0))
@destination_option
@config_option
@json_option
def show_letter(path: Path | None, destination: str | None, as_json: bool, seq: int) -> None:
    """Print all that is known of the dead letter SEQ.

    If the queue's cursor was lost, and numbering began again, several can have this number: then all of them are printed.
    """
    from agent.cli.queue.access import DeadLetterPages, access

    with access(*find_queue(path, destination)) as way:
        letters = DeadLetterPages(way, letter_selection({}, (seq,)))
        found = list(letters)
    if not found:
        where = _unread(letters.unreadable) or f"`{PROGRAM} dead-letters ls` lists those that are there"
        raise AgentError(f"there is no dead letter {seq}: {where}")
    for letter in found:
        if as_json:
            say_json(letter)
        else:
            from agent.cli.views.dead_letters import letter_lines

            say(*letter_lines(letter))


@dead_letters.command(short_help="Queue the events of dead letters again.")
@numbers_argument
@letter_options
@destination_option
@config_option
@json_option
def retry(
    path: Path | None, destination: str | None, as_json: bool, numbers: tuple[int, ...], **options: object
) -> int:
    """Queue the events of dead letters again: all, those with the numbers SEQ, or those that the options select.

    Each is accepted as a new event, with its context. The dead letter is removed when the event is on disk; a crash in between
    leaves both. If the API refuses the event again, it becomes a dead letter with a new number. Exit code 1: some could not be
    queued or read.
    """
    from agent.cli.queue.access import access
    from agent.control.queue_client import QueueClient

    meant = letter_selection(options, numbers)
    with access(*find_queue(path, destination)) as way:
        _all_there(way, numbers)
        done = way.retry(meant)
    if as_json:
        say_json(done)
    else:
        say(_retried(done))
    if done.refused:
        why = f"{amount(done.left, 'letter')} stayed: the queue takes no more now ({done.refused})"
        where = (
            f"`{PROGRAM} status` says why" if isinstance(way, QueueClient) else "no daemon runs that would make room"
        )
        complain(f"{why}: {where}")
    if done.problem:
        why = "their letters could not be removed, so that another retry would send them twice"
        complain(f"{why}: {done.problem}")
    return _warn_of(done.unreadable) or (LEFT if done.refused or done.problem or done.damaged else 0)


@dead_letters.command(short_help="Copy their events, so that they can be sent again.")
@click.argument("target", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@letter_options
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
    """Copy the events of dead letters to FILE, or to standard output for "-", in a form that can be sent again.

    FILE is in the format of the stream socket (protocol 1): events, and a context line where the context changes. With --json,
    the lines are those of `dead-letters ls --json`, with the reasons. The dead letters stay. Exit code 1: some cannot be read,
    and are not in FILE.
    """
    from agent.cli.queue.access import DeadLetterPages, access
    from agent.cli.queue.export import writer

    queue = find_queue(path, destination)
    with writer(target, force=force, whole=as_json, noun="dead letter") as out, access(*queue) as way:
        found = DeadLetterPages(way, letter_selection(options), limit)
        for letter in found:
            out.add(letter)
    return _warn_of(found.unreadable)


@dead_letters.command(short_help="Remove dead letters.")
@numbers_argument
@letter_options
@yes_option
@destination_option
@config_option
@json_option
def purge(
    path: Path | None,
    destination: str | None,
    as_json: bool,
    yes: bool,
    numbers: tuple[int, ...],
    **options: object,
) -> int:
    """Remove dead letters: all, those with the numbers SEQ, or those that the options select.

    It asks first. The ledger still counts their events as dead-lettered. Exit code 1: the answer was no, or some dead letters
    cannot be read and were not removed.
    """
    from agent.cli.queue.access import access

    meant = letter_selection(options, numbers)
    with access(*find_queue(path, destination)) as way:
        _all_there(way, numbers)
        if not yes and not _agrees(way, meant):
            return DECLINED
        done = way.purge_dead_letters(meant)
    if as_json:
        say_json(done)
    else:
        say(_purged(done))
    return _warn_of(done.unreadable)


def _print_lines(found: "DeadLetterPages") -> None:
    from agent.cli.queue.export import encode, standard_output

    with standard_output() as out:
        for letter in found:
            out.write(encode(letter))


def _print_table(found: "DeadLetterPages") -> None:
    from agent.cli.views.dead_letters import letter_table

    letters = list(found)
    if letters or not found.unreadable:  # "none" would be wrong where some cannot be read
        show(letter_table(letters, narrow=is_terminal()))


def _unread(count: int) -> str:
    return f"{amount(count, 'dead letter')} cannot be read: `{PROGRAM} queue verify` says why" if count else ""


def _warn_of(unreadable: int) -> int:
    if not unreadable:
        return 0
    complain(_unread(unreadable))
    return UNREADABLE


def _all_there(way: "Access", numbers: tuple[int, ...]) -> None:
    """Raise AgentError for a number that no letter has: it is likely a mistake, and then nothing should happen."""
    if not numbers:
        return
    from agent.cli.queue.access import DeadLetterPages

    letters = DeadLetterPages(way, letter_selection({}, numbers))
    there = {letter.seq for letter in letters}
    if wrong := sorted(set(numbers) - there):
        names = ", ".join(map(str, wrong))
        where = _unread(letters.unreadable) or f"see `{PROGRAM} dead-letters ls`"
        raise AgentError(f"there is no dead letter {names}, and nothing was done: {where}")


def _agrees(way: "Access", meant: "DeadLetterFilter") -> bool:
    from agent.cli.queue.access import DeadLetterPages

    count = sum(1 for _ in DeadLetterPages(way, meant))
    what = amount(count, "dead letter")
    if confirmed(f"Remove {what} for good? (`{PROGRAM} dead-letters export` makes a copy)"):
        return True
    complain("nothing was removed")
    return False


def _retried(done: "Retried") -> str:
    text = (
        f"{amount(done.retried, 'event')} of dead letters put back into the queue"
        if done.retried
        else "No event was put back"
    )
    return text + _gone_too(done.damaged)


def _purged(done: "DeadLettersPurged") -> str:
    text = f"{amount(done.purged, 'dead letter')} removed" if done.purged else "No dead letter was removed"
    return text + _gone_too(done.damaged)


def _gone_too(damaged: int) -> str:
    if not damaged:
        return ""
    return f"; {amount(damaged, 'damaged letter')} went too: the bytes are in dead-letters/quarantine"
