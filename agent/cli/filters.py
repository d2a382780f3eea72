"""The options that select events or dead letters, and the filters that they make."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.options import Duration

if TYPE_CHECKING:
    from agent.queue.maintenance.browse import EventFilter
    from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter

F = TypeVar("F", bound=Callable[..., Any])

_EVENT_OPTIONS = (
    click.option("--session", metavar="ID", help="Only events of this session."),
    click.option("--source", type=click.Choice(["LOCAL", "REMOTE"]), help="Only events with this source."),
    click.option("--event", type=click.Choice(["HIT", "MISS"]), help="Only hits, or only misses."),
    click.option("--older-than", type=Duration(), metavar="AGE", help='Only events older than this: "2h", "7d".'),
    click.option("--newer-than", type=Duration(), metavar="AGE", help='Only events newer than this: "10m".'),
)
_LETTER_OPTIONS = (
    click.option("--status", type=int, metavar="CODE", help="Only dead letters refused with this HTTP status."),
    click.option(
        "--message",
        metavar="TEXT",
        help="Only dead letters whose message contains this; upper and lower case are the same.",
    ),
)
limit_option = click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N of them.")
numbers_argument = click.argument("numbers", nargs=-1, type=click.IntRange(min=0), metavar="[SEQ]...")
yes_option = click.option("--yes", is_flag=True, help="Do not ask first.")


def event_options(command: F) -> F:
    """Add the options that select events."""
    for option in reversed(_EVENT_OPTIONS):
        command = option(command)
    return command


def letter_options(command: F) -> F:
    """Add the options that select dead letters."""
    for option in reversed(_EVENT_OPTIONS + _LETTER_OPTIONS):
        command = option(command)
    return command


def selection(options: Mapping[str, object]) -> "EventFilter":
    """Return what the event options select; ages become times here, once, however long the command takes."""
    from agent.queue.maintenance.browse import EventFilter

    return EventFilter(**_given(options))


def letter_selection(options: Mapping[str, object], numbers: tuple[int, ...] = ()) -> "DeadLetterFilter":
    """Return what the letter options and numbers select."""
    from agent.queue.maintenance.browse_dead_letters import DeadLetterFilter

    given = _given(options)
    if numbers:
        given["numbers"] = frozenset(numbers)
    return DeadLetterFilter(**given)


def _given(options: Mapping[str, object]) -> dict[str, Any]:
    now = time.time()
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for age, bound in (("older_than", "before"), ("newer_than", "after")):
        if age in given:
            given[bound] = now - given.pop(age)
    return given
