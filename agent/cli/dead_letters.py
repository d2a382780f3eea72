"""`dead-letters`: look at the events that the API refused, give them another try, copy them, remove them.

It knows options and what is printed. It must never know whether a daemon runs: `agent.cli.queue_access` finds the way.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.asking import confirmed
from agent.cli.options import PROGRAM, config_option, json_option, load_config
from agent.cli.output import is_terminal, say, say_json, show
from agent.cli.selecting import letter_options, letter_selection, limit_option, numbers_argument, yes_option
from agent.cli.words import amount
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.cli.queue_access import Access
    from agent.delivery.letters import LetterSelection
    from agent.upkeep.changes import LettersPurged, Retried

LEFT = 1
DECLINED = 1


@click.group("dead-letters", short_help="Look at refused events: ls, show, retry, export, purge.")
def dead_letters() -> None:
    """Look at the events that the API refused one by one, give them another try, copy them, remove them.

    Where the daemon runs, these commands ask it; where none does, they read and write the files themselves. A letter goes by the
    number that its event had in the queue, as `ls` shows it.
    """


@dead_letters.command()
@letter_options
@limit_option
@config_option
@json_option
def ls(path: Path | None, as_json: bool, limit: int | None, **options: object) -> None:
    """List dead letters: number, when it was refused, status, session, hash, and the API's message.

    They come in the order in which they were kept; letters beside one that was removed may have moved to the end.

    With --json, one object a line: seq, rejected_at, status, message, context, event.
    """
    from agent.cli.exporting import encode, standard_output
    from agent.cli.queue_access import access, letters

    with access(load_config(path)) as way:
        found = letters(way, letter_selection(options), limit)
        if as_json:
            with standard_output() as out:
                for letter in found:
                    out.write(encode(letter))
            return
        from agent.cli.letter_screen import letter_table

        show(letter_table(found, narrow=is_terminal()))


@dead_letters.command("show")
@click.argument("seq", type=click.IntRange(min=0))
@config_option
@json_option
def show_letter(path: Path | None, as_json: bool, seq: int) -> None:
    """Print everything of the letter with the number SEQ.

    There is one, unless the queue's cursor was lost meanwhile and numbers began anew: then all of them are printed.
    """
    from agent.cli.queue_access import access, letters

    with access(load_config(path)) as way:
        found = list(letters(way, letter_selection({}, (seq,)), None))
    if not found:
        raise AgentError(f"there is no dead letter {seq}: `{PROGRAM} dead-letters ls` lists those that are there")
    for letter in found:
        if as_json:
            say_json(letter)
        else:
            from agent.cli.letter_screen import letter_lines

            say("\n".join(letter_lines(letter)))


@dead_letters.command()
@numbers_argument
@letter_options
@config_option
@json_option
def retry(path: Path | None, as_json: bool, numbers: tuple[int, ...], **options: object) -> int:
    """Put the events of dead letters back into the queue: all, those with the numbers SEQ, or those that the options select.

    Each is accepted as a new event, with its context. Its letter is removed once the event is on disk: a crash in between leaves
    both. What the API refuses again becomes a letter again, with a new number. Exit code 1: some could not be put back.
    """
    from agent.cli.queue_access import access

    meant = letter_selection(options, numbers)
    with access(load_config(path)) as way:
        _all_there(way, numbers)
        done = way.retry(meant)
    if as_json:
        say_json(done)
    else:
        say(_retried(done))
    if done.refused:
        why = f"{amount(done.left, 'letter')} stayed: the queue takes no more now ({done.refused})"
        click.echo(f"{PROGRAM}: {why}: `{PROGRAM} status` says why", err=True)
    if done.problem:
        why = "their letters could not be removed, so that another retry would send them twice"
        click.echo(f"{PROGRAM}: {why}: {done.problem}", err=True)
    return LEFT if done.refused or done.problem else 0


@dead_letters.command()
@click.argument("target", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@letter_options
@limit_option
@config_option
@json_option
def export(path: Path | None, target: str, force: bool, as_json: bool, limit: int | None, **options: object) -> None:
    """Copy the events of dead letters to FILE, or to standard output for "-", so that they can be sent again.

    FILE is protocol 1: events, and a context line wherever the context changes. With --json the lines are those of
    `dead-letters ls --json`, with the reasons. The letters stay.
    """
    from agent.cli.exporting import writer
    from agent.cli.queue_access import access, letters

    settings = load_config(path)
    with writer(target, force=force, whole=as_json, noun="dead letter") as out, access(settings) as way:
        for letter in letters(way, letter_selection(options), limit):
            out.add(letter)


@dead_letters.command()
@numbers_argument
@letter_options
@yes_option
@config_option
@json_option
def purge(path: Path | None, as_json: bool, yes: bool, numbers: tuple[int, ...], **options: object) -> int:
    """Remove dead letters: all, those with the numbers SEQ, or those that the options select.

    It asks first. The ledger still counts their events as dead-lettered. Exit code 1: the answer was no.
    """
    from agent.cli.queue_access import access

    meant = letter_selection(options, numbers)
    with access(load_config(path)) as way:
        _all_there(way, numbers)
        if not yes and not _agrees(way, meant):
            return DECLINED
        done = way.purge_letters(meant)
    if as_json:
        say_json(done)
    else:
        say(_purged(done))
    return 0


def _all_there(way: "Access", numbers: tuple[int, ...]) -> None:
    """Raise AgentError for a number that no letter has: it is likely a mistake, and then nothing should happen."""
    if not numbers:
        return
    from agent.cli.queue_access import letters

    there = {letter.seq for letter in letters(way, letter_selection({}, numbers), None)}
    if wrong := sorted(set(numbers) - there):
        names = ", ".join(map(str, wrong))
        raise AgentError(f"there is no dead letter {names}, and nothing was done: see `{PROGRAM} dead-letters ls`")


def _agrees(way: "Access", meant: "LetterSelection") -> bool:
    from agent.cli.queue_access import letters

    count = sum(1 for _ in letters(way, meant, None))
    what = amount(count, "dead letter")
    if confirmed(f"Remove {what} for good? (`{PROGRAM} dead-letters export` makes a copy)", yes=False):
        return True
    click.echo("Nothing was removed.", err=True)
    return False


def _retried(done: "Retried") -> str:
    return (
        f"{amount(done.retried, 'event')} of dead letters put back into the queue"
        if done.retried
        else "No event was put back"
    )


def _purged(done: "LettersPurged") -> str:
    text = f"{amount(done.purged, 'dead letter')} removed" if done.purged else "No dead letter was removed"
    if done.damaged:
        text += f"; {amount(done.damaged, 'damaged one')} went too, and their bytes are in dead-letters/quarantine"
    return text
