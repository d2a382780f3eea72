"""`status`: how the daemon is doing, on one screen."""

from pathlib import Path

import click

from agent.cli.options import config_option, json_option, load_config
from agent.cli.views.output import say, show


@click.command()
@config_option
@json_option
def status(path: Path | None, as_json: bool) -> None:
    """Show how the daemon is doing, on one screen.

    Whether it delivers, and if not, why and until when; how many events are queued, and how old; what was dropped, and why; the
    last delivery; and the ledger: accepted = delivered + dead-lettered + dropped + queued.
    """
    from agent.control.client import ControlClient

    report, text = ControlClient(load_config(path).listen.control).status_and_json()
    if as_json:
        say(text)
        return
    import time

    from agent.cli.views.status import screen

    show(screen(report, time.time()))
