"""`top`: how the daemon is doing, live."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import Duration, ask_daemon, config_option, find_queue
from agent.cli.views.output import is_terminal, show

if TYPE_CHECKING:
    from agent.cli.top.asking import Source

SHORTEST, LONGEST = 0.5, 3600.0
ANSWER_SECONDS = 1.0  # a daemon that hangs must not hold up the keys for long
_COLUMNS_OF_A_PIPE = 100
_NO_SCREEN = frozenset({"dumb", "unknown", ""})


@click.command(short_help="Watch the daemon live: rates, queue, latency, builds.")
@click.option("--once", is_flag=True, help="Print what there is after one interval, and end.")
@click.option(
    "--interval", type=Duration(), default="2s", show_default=True, metavar="DURATION", help="How often to look."
)
@config_option
def top(path: Path | None, once: bool, interval: float) -> int:
    """Watch how the daemon is doing: whether it delivers, rates in and out, the queue, latency and answers of the API, what was
    dropped and why, and the builds of the last minutes with their hit rates.

    \b
    Keys:
        p  pause delivery, or resume it
        r  try now, whatever delivery waits for: a pause, a failure, or the server's wish
        f  flush: deliver what is queued without waiting for batches to fill
        q  quit

    If the daemon stops or hangs it says so, and goes on when another one answers. Where standard output is no terminal it prints
    what there is after one interval, as with --once.

    The builds of all destinations are read from the queues and their history, as far as this user may read them. Nothing is
    written.
    """
    if not SHORTEST <= interval <= LONGEST:
        raise click.BadParameter(f"it has to be from {SHORTEST:g}s to 1h", param_hint="--interval")
    from agent.cli.top.asking import Source

    live = not once and is_terminal() and os.environ.get("TERM", "") not in _NO_SCREEN
    source = Source(ask_daemon(path, ANSWER_SECONDS if live else None), _queues(path))
    return _watch(source, interval) if live else _print_once(source, interval)


def _watch(source: "Source", interval: float) -> int:
    from agent.cli.top.terminal import LiveView

    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    return LiveView(source, source.sample(), interval, keyboard).run()


def _print_once(source: "Source", interval: float) -> int:
    from agent.cli.views.top import Seen, screen

    first = source.sample()
    time.sleep(interval)  # a rate needs two samples
    samples, recent = [first, source.sample()], source.recent()
    width = os.get_terminal_size(sys.stdout.fileno()).columns if is_terminal() else _COLUMNS_OF_A_PIPE
    show(screen(Seen(samples, time.time(), samples[-1].at, first.at, interval, width, recent)))
    return 0


def _queues(path: Path | None) -> Callable[[str], Path] | str:
    """Return what says where the events of a destination are, or why that is not known."""
    from agent.daemon.settings import queue_directory
    from agent.errors import ConfigError
    from agent.rules import DEFAULT
    from agent.spools.identity import DESTINATION

    try:
        settings, _, _ = find_queue(path, DEFAULT)
    except ConfigError as error:
        return " ".join(str(error).split())
    return lambda name: queue_directory(settings, name) / DESTINATION
