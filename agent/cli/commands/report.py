"""`report`: what builds got out of the cache."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from agent.cli.options import config_option, destination_option, find_queue
from agent.cli.periods import DEFAULT_SINCE, period
from agent.cli.views.output import complain, say_json, show, write
from agent.cli.views.words import amount
from agent.errors import AgentError

if TYPE_CHECKING:
    from agent.config import Config
    from agent.usage.report import By, Question, Report, Timeline
    from agent.usage.store import UsageStore

BELOW = 9
_HOUR_SECONDS = 3600


@click.command(short_help="Show what the cache did: hit rate, task time saved, worst builds.")
@click.option("--since", metavar="TIME", help=f'From then on: "7d" ago, or a date.  [default: {DEFAULT_SINCE}]')
@click.option("--until", metavar="TIME", help='Up to then: "1d" ago, or a date.  [default: now]')
@click.option("--session", metavar="ID", help="Only this session, whenever it was; the first 4 characters or more do.")
@click.option(
    "--by", type=click.Choice(["hour", "day", "session", "ci", "job"]), help="Break it down; by job is by label."
)
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
@click.option(
    "--runs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where `turbo --summarize` has written its runs, for the names of tasks.  [default: .turbo/runs here or above]",
)
@destination_option
@config_option
def report(
    path: Path | None,
    destination: str | None,
    since: str | None,
    until: str | None,
    session: str | None,
    by: "By | None",
    form: Literal["text", "github", "json", "html", "csv"],
    fail_under: float | None,
    runs: Path | None,
) -> int:
    """Show what builds got out of the cache: hit rate, task time saved, worst builds, hashes that were built again.

    It counts tasks, not events: a hash in a session is one task, and the best answer to it counts. A task without any answer of
    the remote cache, and no local hit, is "unanswered": the remote cache was off, or failing. Task time is not build time: tasks
    run in parallel, so that builds get shorter by less. Times are whole hours, in UTC.

    It reads the queue and its history, while the daemon runs and without asking it, and keeps what it has counted in
    usage.sqlite3 in the destination's queue directory. Run it as the daemon's user, or as root. What it cannot know it says.

    Exit code 9: the hit rate is below --fail-under. It is 0 where there were no tasks.
    """
    from agent.cli.views import report as view
    from agent.cli.views import report_files, report_page
    from agent.usage.report import AmbiguousError, Question

    now = time.time()
    try:
        question = Question(period(since, until, session, now), by)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    settings, destination, _ = find_queue(path, destination)
    try:
        found, when = _ask(settings, destination, question, now, with_timeline=form == "html")
    except AmbiguousError as error:
        raise click.UsageError(str(error)) from error
    found = _with_names(found, runs)
    match form:
        case "json":
            say_json(found)
        case "csv":
            write(report_files.csv_text(found))
        case "github":
            write(report_files.markdown(found))
        case "html":
            write(report_page.page(found, when, now))
        case _:
            show(view.screen(found))
    if fail_under is not None and found.hit_rate is not None and 100 * found.hit_rate < fail_under:
        complain(f"the hit rate is {100 * found.hit_rate:.1f} %, below {fail_under:g} %")
        return BELOW
    return 0


def _with_names(found: "Report", runs: Path | None) -> "Report":
    """Name the tasks that were built again, as far as turbo has written which they are."""
    import msgspec

    from agent.usage.runs import runs_above, task_names

    runs = runs or runs_above(Path.cwd())
    if runs is None or not found.missed_again:
        return found
    try:
        known = task_names(runs, [each.hash for each in found.missed_again])
    except OSError as error:
        raise AgentError(f"{runs}: cannot be read: {error.strerror}") from error
    named = [msgspec.structs.replace(each, task=known.names.get(each.hash)) for each in found.missed_again]
    unknown = found.unknown
    if known.unreadable:
        problem = f"{runs}: {amount(known.unreadable, 'file')} of turbo's cannot be read: some tasks may have no names"
        unknown = msgspec.structs.replace(unknown, problems=[*unknown.problems, problem])
    return msgspec.structs.replace(found, missed_again=named, unknown=unknown)


def _ask(
    settings: "Config", destination: str, question: "Question", now: float, *, with_timeline: bool
) -> "tuple[Report, Timeline]":
    """Fold what is new, and answer; the timeline is empty unless it is asked for. Raises StorageError."""
    import msgspec

    from agent.cli.queue.owner import as_owner
    from agent.daemon.settings import queue_directory
    from agent.queue.filesystem import OsFilesystem
    from agent.spools.identity import DESTINATION, read_adopted
    from agent.usage.fold import Keeping, query
    from agent.usage.reading import KeptEvents
    from agent.usage.report import Timeline, timeline, whole_session
    from agent.usage.report import report as answer

    def ask(store: "UsageStore") -> "tuple[Report, Timeline]":
        nonlocal question
        if question.period.session is not None:
            whole = whole_session(store, question.period.session)
            question = question._replace(period=question.period._replace(session=whole))
        hour = int(now // _HOUR_SECONDS)
        when = timeline(store, question.period, hour) if with_timeline else Timeline("hour", [], [])
        return answer(store, question), when

    fs, directory = OsFilesystem(), queue_directory(settings, destination)
    with as_owner(directory):
        kept = KeptEvents.read(fs, directory / DESTINATION)
        history = settings.history
        keeping = Keeping(tasks=max(history.max_age, _HOUR_SECONDS), usage=history.keep_usage)
        has_room = fs.free_bytes(directory) >= settings.queue.min_free_bytes  # it is the queue's, to the last byte
        (found, when), folded = query(fs, directory, kept, keeping, now, ask, may_write=has_room)
        adopted = sum(each.ledger.accepted for each in read_adopted(fs, directory).values())
    unknown = msgspec.structs.replace(
        found.unknown,
        dropped=kept.shed,
        adopted=max(adopted - found.unknown.handed_over, 0),
        history=history.max_bytes > 0,
        problems=[*folded.problems],
    )
    return msgspec.structs.replace(found, unknown=unknown), when
