"""`report`: what builds got out of the cache."""

import datetime as dt
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from agent.cli.options import config_option, find_queue
from agent.cli.views.output import complain, say_json, show, write
from agent.units import parse_duration

if TYPE_CHECKING:
    from agent.config import Config
    from agent.usage.report import By, Period, Question, Report

BELOW = 9
_HOUR_SECONDS = 3600
_DEFAULT = "7d"
_LAST = 253_402_300_800 - _HOUR_SECONDS  # the year 10000


class Moment(click.ParamType[float]):
    """A time, in seconds since the epoch: so long ago, or a date and perhaps a time (ISO 8601), which is UTC unless it says."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            found = _moment(text, time.time())
        except (ValueError, OverflowError):
            found = -1.0
        if not 0 <= found < _LAST:
            what = 'is not a time: write it like "7d" (ago), "2026-11-20" or "2026-11-20T14:00"'
            self.fail(f"{text!r} {what}", param, ctx)
        return found


def _moment(text: str, now: float) -> float:
    """Return the seconds since the epoch. Raises ValueError or OverflowError."""
    if text[-1:].isalpha() and not text.endswith("Z"):
        return now - parse_duration(text)
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


@click.command(short_help="Show what the cache did: hit rate, task time saved, worst builds.")
@click.option(
    "--since", type=Moment(), metavar="TIME", help=f'From then on: "7d" ago, or a date.  [default: {_DEFAULT}]'
)
@click.option("--until", type=Moment(), metavar="TIME", help='Up to then: "1d" ago, or a date.  [default: now]')
@click.option("--session", metavar="ID", help="Only this session, whenever it was.")
@click.option("--by", type=click.Choice(["hour", "day", "session", "ci", "job"]), help="Break it down.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "github", "json", "html", "csv"]),
    default="text",
    show_default=True,
    help="github is Markdown, for a job summary.",
)
@click.option(
    "--fail-under", type=click.FloatRange(0, 100), metavar="PERCENT", help="End with exit code 9 below this hit rate."
)
@config_option
def report(
    path: Path | None,
    since: float | None,
    until: float | None,
    session: str | None,
    by: "By | None",
    form: Literal["text", "github", "json", "html", "csv"],
    fail_under: float | None,
) -> int:
    """Show what builds got out of the cache: hit rate, task time saved, worst builds, hashes that were built again.

    It counts tasks, not events: a hash in a session is one task, and the best answer to it counts. A task without any answer of
    the remote cache, and no local hit, is "unanswered": the remote cache is off, or failing. Task time is not build time: tasks
    run in parallel, so that builds get shorter by less. Times are whole hours, in UTC.

    It reads the queue and its history, while the daemon runs and without asking it, and keeps what it has counted in
    usage.sqlite3 in the queue directory. Run it as the daemon's user, or as root. What it cannot know it says.

    Exit code 9: the hit rate is below --fail-under. It is 0 where there were no tasks.
    """
    from agent.cli.views import report as view
    from agent.cli.views import report_files, report_page
    from agent.usage.report import Question

    now = time.time()
    found = _ask(find_queue(path)[0], Question(_period(since, until, session, now), by), now)
    match form:
        case "json":
            say_json(found)
        case "csv":
            write(report_files.csv_text(found))
        case "github":
            write(report_files.markdown(found))
        case "html":
            write(report_page.page(found, now))
        case _:
            show(view.screen(found))
    if fail_under is not None and found.hit_rate is not None and 100 * found.hit_rate < fail_under:
        complain(f"the hit rate is {100 * found.hit_rate:.1f} %, below {fail_under:g} %")
        return BELOW
    return 0


def _period(since: float | None, until: float | None, session: str | None, now: float) -> "Period":
    """Return the whole hours that are asked for."""
    from agent.usage.report import Period

    if since is None and session is None:
        since = now - parse_duration(_DEFAULT)
    return Period(
        since=None if since is None else math.floor(since / _HOUR_SECONDS),
        until=None if until is None else math.ceil(until / _HOUR_SECONDS),
        session=session,
    )


def _ask(settings: "Config", question: "Question", now: float) -> "Report":
    """Fold what is new, and answer. Raises StorageError."""
    import msgspec

    from agent.cli.queue.owner import as_owner
    from agent.queue.filesystem import OsFilesystem
    from agent.spools.identity import DESTINATION, read_adopted
    from agent.usage.fold import Keeping, query
    from agent.usage.reading import KeptEvents
    from agent.usage.report import report as answer

    fs, directory = OsFilesystem(), settings.queue.directory
    with as_owner(directory):
        kept = KeptEvents.read(fs, directory / DESTINATION)
        keeping = Keeping(tasks=max(settings.history.max_age, _HOUR_SECONDS))
        has_room = fs.free_bytes(directory) >= settings.queue.min_free_bytes  # it is the queue's, to the last byte
        found, folded = query(
            fs, directory, kept, keeping, now, lambda store: answer(store, question), may_write=has_room
        )
        adopted = sum(each.ledger.accepted for each in read_adopted(fs, directory).values())
    unknown = msgspec.structs.replace(
        found.unknown,
        dropped=kept.shed,
        adopted=adopted,
        history=settings.history.max_bytes > 0,
        problems=[*folded.problems],
    )
    return msgspec.structs.replace(found, unknown=unknown)
