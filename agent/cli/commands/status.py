"""`status`: how the daemon is doing, on one screen."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import ask_daemon, config_option, json_option
from agent.cli.views.output import say, say_json, show

if TYPE_CHECKING:
    from agent.control.client import ControlClient


# Of several problems the first one here decides.
_EXIT_CODES = {"storage": 7, "paused": 9, "backing_off": 10}


@click.command()
@click.option("--check", is_flag=True, help="Say only whether events can be delivered now, also by the exit code.")
@config_option
@json_option
def status(path: Path | None, check: bool, as_json: bool) -> int:
    """Show how the daemon is doing, on one screen.

    Whether it delivers, and if not, why and until when; how many events are queued, and how old; what was dropped, and why; the
    last delivery; and the ledger: accepted = delivered + dead-lettered + dropped + queued.

    With --check, for cron and probes, it prints one line for each problem. Exit code 0: events can be delivered; 4: no daemon
    is running; 7: the queue cannot be read or written; 9: delivery is paused; 10: it has been backing off for more than a minute,
    or is going to.
    """
    import msgspec

    control = ask_daemon(path)
    if check:
        return _check(control, as_json=as_json)
    report, text = control.status_and_json()
    if as_json:
        say_json(msgspec.Raw(text))
        return 0
    import time

    from agent.cli.views.status import screen

    show(screen(report, time.time()))
    return 0


def _check(control: "ControlClient", *, as_json: bool) -> int:
    readiness = control.readiness()
    if as_json:
        say_json(readiness)
    else:
        problems = [f"{each.destination}: {each.kind}: {each.message}" for each in readiness.problems]
        say(*(problems or ["ready"]))
    kinds = {each.kind for each in readiness.problems}
    return next((code for kind, code in _EXIT_CODES.items() if kind in kinds), 0 if readiness.ready else 1)
