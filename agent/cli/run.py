"""`run`: the daemon itself."""

import os
from functools import partial
from pathlib import Path

import click

from agent.cli.options import config_option, find_config


@click.command()
@config_option
def run(path: Path | None) -> None:
    """Run the daemon in the foreground.

    It takes events on its sockets, keeps them in the queue directory and delivers them. Logs go to standard error.

    SIGTERM and SIGINT stop it when what is queued has been delivered, or after shutdown.deadline: the rest waits on disk
    for the next start. A second one stops it at once. SIGHUP makes it read configuration and token again.
    """
    from agent import config, daemon

    # Found once: a file that is missing at a reload must be an error, not a reason to fall back on the defaults.
    daemon.run(partial(config.load, find_config(path), os.environ), os.environ)
