"""`flush`: wait until what was written has left the queue."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.options import Duration, config_option, json_option, load_config
from agent.cli.output import say
from agent.errors import AgentError, DeadlineError

if TYPE_CHECKING:
    from rich.progress import Progress

    from agent.cli.control_client import Answer, ControlClient

LONGEST = 86_400.0  # agent.control's MAX_DEADLINE; importing it would take longer than most flushes
_POLL_SECONDS = 0.1


class _Deadline(Duration):
    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if seconds > LONGEST:
            self.fail(f"{value!r} is too long: at most 1d", param, ctx)
        return seconds


@click.command(short_help="Wait until what was written has left the queue.")
@click.option(
    "--deadline",
    type=_Deadline(),
    default="30s",
    show_default=True,
    metavar="DURATION",
    help='How long to wait at most: "500ms", "10s", "5m", or a number of seconds.',
)
@config_option
@json_option
def flush(path: Path | None, deadline: float, as_json: bool) -> None:
    """Wait until everything written before the call has left the queue.

    Delivery does not wait for batches to fill meanwhile. Exit code 0: it has left, which means delivered, dead-lettered or
    dropped (`status` says which). Exit code 3: the deadline passed first; what is left stays in the queue, and delivery
    goes on. While delivery is paused nothing leaves the queue: see `resume`.
    """
    from agent.cli.control_client import ControlClient

    control_path = load_config(path).listen.control
    with ControlClient(control_path) as control, _progress(control_path, wanted=not as_json):
        answer = control.flush(deadline)
    if answer is not None and as_json:
        say(answer.text)
    if answer is None or not answer.value["flushed"]:
        raise DeadlineError(_what_is_left(answer, deadline))
    if not as_json:
        say("Everything that was written before has left the queue.")


def _what_is_left(answer: "Answer | None", deadline: float) -> str:
    passed = f"the deadline of {deadline:g} s passed"
    if answer is None:
        return f"{passed}, and the daemon does not answer: look at its process and its logs"
    queued = sum(answer.value["queued"].values())
    what = "1 event in the queue, where it stays" if queued == 1 else f"{queued:,} events in the queue, where they stay"
    return f"{passed} with {what}: `artifacts-agent status` says why"


@contextmanager
def _progress(path: Path, *, wanted: bool) -> Iterator[None]:
    """Show a bar on a terminal while the block runs; a thread of its own asks for the numbers."""
    if not (wanted and sys.stderr is not None and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("flushing"), BarColumn(), MofNCompleteColumn(), TextColumn("events"), TimeElapsedColumn())
    ended = threading.Event()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        watcher = threading.Thread(target=_watch, args=(path, progress, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join(timeout=1.0)  # a daemon that hangs must not hold up the end


def _watch(path: Path, progress: "Progress", ended: threading.Event) -> None:
    from agent.cli.control_client import ControlClient

    task, before, over = progress.add_task("flush", total=None), None, False
    with ControlClient(path) as control:
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
        destinations: Mapping[str, Any] = control.status().value["destinations"]
    except AgentError:  # the flush meets the same trouble, and reports it
        return None
    ledgers = [destination["ledger"] for destination in destinations.values()]
    queued = sum(ledger["queued"] for ledger in ledgers)
    return sum(ledger["accepted"] for ledger in ledgers) - queued, queued
