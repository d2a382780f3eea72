"""`run`: the daemon itself."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from agent.cli import STARTED, daemon_process
from agent.cli.options import config_option, find_config
from agent.cli.problems import report
from agent.errors import ConfigError

WITH_SOCKETS_SECONDS = 5.0  # far from the start limits of the units in systemd/


@click.command()
@config_option
def run(path: Path | None) -> int:
    """Run the daemon in the foreground.

    It accepts events on its sockets, stores them in the queue directory and delivers them to the API. Logs go to standard error.

    SIGTERM or SIGINT: deliver what is queued, for at most shutdown.deadline, and stop; the rest stays on disk for the next start.
    A second one: stop at once, also while requests are under way. SIGHUP: read the configuration and the token again.
    """
    # Found once: a file that is missing at a reload must be an error, not a reason to fall back on the defaults.
    return _run(partial(daemon_process.prepare(find_config(path)), os.environ, None))


def _run(run_daemon: Callable[[], None]) -> int:
    """Run a daemon. One with sockets of systemd's that cannot start says so at once, and ends a little later.

    systemd starts it again for each client that waits there. If that happens too often it closes the sockets, and what waits in
    them is lost.
    """
    try:
        run_daemon()
    except ConfigError as error:
        if os.environ.get("LISTEN_PID") != str(os.getpid()):
            raise
        code = report(error)
    else:
        return 0
    from agent.daemon.systemd import Notifier

    Notifier(os.environ).enter("Not started: configuration or token is wrong, see the log")
    time.sleep(max(0.0, STARTED + WITH_SOCKETS_SECONDS - time.monotonic()))  # a signal ends it at once
    return code
