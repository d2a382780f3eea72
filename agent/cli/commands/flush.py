"""`flush`: wait until everything that was sent before has left the queue."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from agent.cli.options import (
    JOB_LABEL,
    Duration,
    ask_daemon,
    changed_label,
    config_option,
    destinations_option,
    json_option,
)
from agent.cli.views.output import complain, say, say_json
from agent.cli.views.words import amount, delivered
from agent.errors import AgentError, DeadlineError, UndeliveredError

if TYPE_CHECKING:
    from rich.progress import Progress

    from agent.control.client import ControlClient
    from agent.control.schema import FlushVerdict
    from agent.queue.barrier import FlushReport

LONGEST = 86_400.0  # agent.control.flush_routes's MAX_DEADLINE; importing it would take longer than most flushes
_POLL_SECONDS = 0.1
_MOST_VARIABLES = 64 * 1024


class _Deadline(Duration):
    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if seconds > LONGEST:
            self.fail(f"{value!r} is too long: at most 1d", param, ctx)
        return seconds


def _sendable(_ctx: click.Context, _param: click.Parameter, session: str | None) -> str | None:
    if session == "":
        raise click.BadParameter("the session is empty: is a variable not set?")
    try:
        (session or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("the session is not UTF-8") from error
    return session


@click.command(short_help="Wait until everything that was sent before is delivered.")
@click.option(
    "--deadline",
    type=_Deadline(),
    default="30s",
    show_default=True,
    metavar="DURATION",
    help='How long to wait at most: "500ms", "10s", "5m", or a number of seconds.',
)
@click.option(
    "--session",
    metavar="ID",
    callback=_sendable,
    help="Wait for the events of this session only, and report on them only.",
)
@click.option(
    "--job",
    metavar="LABEL",
    help=f"Wait only where this job's events go, and say in a last line what the cache did for it. {JOB_LABEL} "
    "With '-' its variables are read from standard input.",
)
@destinations_option
@config_option
@json_option
def flush(
    path: Path | None,
    destinations: tuple[str, ...],
    deadline: float,
    session: str | None,
    job: str | None,
    as_json: bool,
) -> None:
    """Wait until every event that was sent before the call has left the queue, and report what became of them.

    Meanwhile delivery does not wait for batches to fill. --json prints one line with the counts of all events that were accepted
    before the call, since the queue began: {"delivered": N, "queued": N, "dead_lettered": N, "dropped": {REASON: N},
    "forwarded": N}. Events that are accepted later are not counted. With [forward], `forwarded` has those that a fleet took.

    With --session, the counts are of that session, as far as the queue and its history (history.max_bytes) hold its events.

    \b
    Exit codes:
        0  everything that was queued has been delivered or forwarded, or nothing was queued
        3  the deadline passed first, or nothing can be delivered before it: the rest stays in the queue
        4  no daemon is running
        8  some of these events, or of the session's, were dead-lettered or dropped

    With --job it waits only for the destinations to which events with this label have come since the daemon's start: what holds
    up others is not the job's trouble. If there are none, it is all; with `--job -`, all to which the rules let its user send.
    The last line is such as "cache: 120 of 130 tasks (92 %), 11m02s of task time saved". It comes from the queue's
    files, as far as this user may read them. There is none where the job has too many events to count them at once.
    `--job -` takes lines of NAME=VALUE, as `env` prints them, so that one user can ask for another one's job.

    If both 3 and 8 apply, it is 8. It ends at once while delivery is paused, or waits after a failure, beyond the deadline, and
    says why.
    """
    label = _label(job)
    whose = (
        _Whose(destinations) if destinations or job is None else _Whose(_reachable(path) if job == "-" else (), label)
    )
    try:
        _flush(path, whose, deadline, session, as_json=as_json)
    finally:
        if label is not None and not as_json:
            _say_usage(path, label, named=job != "-")


class _Whose(NamedTuple):
    """Which destinations a flush is about: those of a job, or else those that are named, or all."""

    destinations: Sequence[str] = ()
    job: str | None = None


def _reachable(path: Path | None) -> Sequence[str]:
    """Return the destinations to which the user of a job may send, who may have asked with sudo; none if it may be any.

    Not those that are no more, or cannot be opened.
    """
    from agent.cli.options import find_queue
    from agent.rules import DEFAULT, SOCKETS

    try:
        settings, _, control = find_queue(path, DEFAULT)
        if len(settings.accounts) == 1 or settings.tokens_choose:
            return ()
        sockets = [each for each in SOCKETS if each != "tcp" or settings.http.listen is not None]
        may_be = settings.routing.reachable(*_user(), sockets)
        open_ones = control.status().destinations.items()
        return [name for name, each in open_ones if name in may_be and each.state != "failed"]
    except AgentError:  # the flush meets the same trouble, or does without
        return ()


def _user() -> tuple[int, frozenset[int]]:
    """Return whose job it is, and the groups: who has called sudo, or this process's user."""
    import pwd

    uid = os.environ.get("SUDO_UID", "")
    with suppress(KeyError, OverflowError):
        if uid.isascii() and uid.isdigit():
            entry = pwd.getpwuid(int(uid))
            return entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return os.geteuid(), frozenset({os.getegid(), *os.getgroups()})


def _label(job: str | None) -> str | None:
    """Return the label of the job that is asked for."""
    from agent.client.ci import detect_job, to_label

    if job is None:
        return None
    if job != "-" or sys.stdin is None:
        if (notice := changed_label(job)) is not None:
            complain(notice)
        return to_label(job)
    lines = sys.stdin.buffer.read(_MOST_VARIABLES).decode(errors="replace").splitlines()
    return detect_job(dict(line.split("=", 1) for line in lines if "=" in line))


def _say_usage(path: Path | None, job: str, *, named: bool) -> None:
    """Say what the cache did for a job; that nothing is known of it only if somebody has named it."""
    from agent.cli.options import find_queue
    from agent.cli.views.job import job_line
    from agent.queue.filesystem import OsFilesystem
    from agent.rules import DEFAULT
    from agent.spools.identity import queues_in
    from agent.usage.job import count_job

    with suppress(AgentError, OSError):  # a line less
        fs = OsFilesystem()
        total = count_job(fs, queues_in(fs, find_queue(path, DEFAULT)[0].queue.directory), job)
        if total is not None and total.tasks:
            say(job_line(total))
        elif total is not None and named:
            say(f"cache: no events with the label {job!r} are in the queue or its newest history")


def _flush(path: Path | None, whose: "_Whose", deadline: float, session: str | None, *, as_json: bool) -> None:
    """Flush and report. Raises AgentError for what has an exit code of its own."""
    control = ask_daemon(path)
    began = time.monotonic()
    with _progress(control, wanted=not as_json):
        flushed = control.flush(deadline, session, destinations=whose.destinations, job=whose.job)
    if flushed is None:
        raise DeadlineError(
            f"the deadline of {deadline:g} s passed, and the daemon does not answer: look at its process and its logs"
        )
    if as_json:
        import msgspec

        say_json(msgspec.Raw(flushed.text))
    if flushed.verdict.lost:
        raise UndeliveredError(_what_is_lost(flushed.verdict))
    if not flushed.in_time:
        raise DeadlineError(_what_is_left(flushed.verdict, deadline, passed=time.monotonic() - began >= deadline))
    if not as_json:
        say(_what_has_left(session, flushed.verdict))


def _what_has_left(session: str | None, report: "FlushReport") -> str:
    if session is not None and not (report.delivered or report.forwarded):
        return f"Session {session!r} has no queued events, and none that the daemon remembers."
    what = "Everything that was sent before" if session is None else f"Everything of session {session!r}"
    some = report.delivered or report.forwarded
    end = delivered(report.delivered, report.forwarded) if some else "nothing was waiting"
    return f"{what} has left the queue: {end}."


def _what_is_lost(report: "FlushReport") -> str:
    ends = [delivered(report.delivered, report.forwarded)]
    if report.queued:
        ends.append(f"{report.queued:,} still queued")
    if report.dead_lettered:
        ends.append(f"{report.dead_lettered:,} dead-lettered (see `artifacts-agent dead-letters`)")
    ends += [f"{count:,} dropped as {reason}" for reason, count in report.dropped.items()]
    return f"not everything was delivered: {', '.join(ends)}"


def _what_is_left(verdict: "FlushVerdict", deadline: float, *, passed: bool) -> str:
    queued = verdict.queued
    if not queued:
        return f"the deadline of {deadline:g} s passed before everything that was sent had been read from the sockets"
    why = verdict.held_up or "`artifacts-agent status` says why"
    if not passed:
        stay = f"{amount(queued, 'event')} {'stays' if queued == 1 else 'stay'} in the queue"
        return f"nothing can be delivered before the deadline of {deadline:g} s, and {stay}: {why}"
    what = "1 event in the queue, where it stays" if queued == 1 else f"{queued:,} events in the queue, where they stay"
    return f"the deadline of {deadline:g} s passed with {what}: {why}"


@contextmanager
def _progress(control: "ControlClient", *, wanted: bool) -> Iterator[None]:
    """Show a bar on a terminal while the block runs; a thread of its own asks for the numbers."""
    if not (wanted and sys.stderr is not None and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("flushing"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeElapsedColumn())
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        watcher = threading.Thread(target=_watch, args=(control, progress, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join(timeout=1.0)  # a daemon that hangs must not hold up the end


def _watch(control: "ControlClient", progress: "Progress", ended: threading.Event) -> None:
    task, before, over = progress.add_task("flush", total=None), None, False
    while True:
        if (counts := _counts(control)) is not None:
            left, queued = counts
            before = left if before is None else before
            progress.update(task, completed=left - before, total=left - before + queued)
        if over:
            return
        over = ended.wait(_POLL_SECONDS)


def _counts(control: "ControlClient") -> tuple[int, int] | None:
    """Return how many events have left the queues so far, and how many are in them; None if the daemon does not say."""
    try:
        destinations = control.status().destinations.values()
    except AgentError:  # the flush meets the same trouble, and reports it
        return None
    queued = sum(each.ledger.queued for each in destinations)
    return sum(each.ledger.accepted for each in destinations) - queued, queued
