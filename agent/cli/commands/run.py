"""`run`: the daemon itself."""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import cast

import click

from agent.cli import STARTED
from agent.cli.options import config_option, find_config
from agent.cli.problems import report
from agent.errors import ConfigError

FIRST_PASSED_FD = 3  # see sd_listen_fds(3)
WITH_SOCKETS_SECONDS = 5.0  # far from the start limits of the units in systemd/


@click.command()
@config_option
@click.option("--job", type=click.Path(path_type=Path), hidden=True)
@click.option("--socket", "sockets", multiple=True, hidden=True)
def run(path: Path | None, job: Path | None, sockets: tuple[str, ...]) -> int:
    """Run the daemon in the foreground.

    It accepts events on its sockets, stores them in the queue directory and delivers them to the API. Logs go to standard error.

    SIGTERM or SIGINT: deliver what is queued, for at most shutdown.deadline, and stop; the rest stays on disk for the next start.
    A second one: stop at once, also while requests are under way. SIGHUP: read the configuration and the token again.
    """
    _start_lean(os.environ)
    # First of all, as no other file may take their numbers.
    environ = os.environ if job is None else os.environ | _as_systemd_passes(sockets)
    from agent import config
    from agent.config.apart import LoadingApart

    # Found once: a file that is missing at a reload must be an error, not a reason to fall back on the defaults.
    load = partial(config.load, find_config(path), os.environ)
    loading = LoadingApart(load)  # before the other imports, so that both go on at once
    from agent.daemon import app as daemon

    if job is None:
        return _run(partial(daemon.run, loading.result, load, environ))
    # For `exec`: it has the other end of standard input, and `job` is a directory for sockets, which it has opened.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        daemon.run(loading.result, load, environ, sys.stdin.fileno())
    finally:
        import shutil  # not before it is needed

        shutil.rmtree(job, ignore_errors=True)
    return 0


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


def _as_systemd_passes(sockets: Sequence[str]) -> dict[str, str]:
    """Give descriptors, each as NAME:NUMBER, the numbers that systemd would, and return the variables that it would set."""
    found = sorted((int(number), name) for name, _, number in (text.partition(":") for text in sockets))
    for wanted, (number, _) in enumerate(found, FIRST_PASSED_FD):  # in this order none takes the place of another one
        if number != wanted:
            os.dup2(number, wanted, inheritable=False)
            os.close(number)
    names = ":".join(name for _, name in found)
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(found)), "LISTEN_FDNAMES": names}


def _start_lean(environ: MutableMapping[str, str]) -> None:
    """Keep libraries from importing, only because it is there, what a daemon has no use for: that is memory and time.

    httpx and structlog take rich and pygments if they can, and httpcore takes trio; what is None in `sys.modules` cannot be
    imported (https://docs.python.org/3/reference/import.html#the-module-cache). pydantic looks through all installed packages for
    plugins (https://docs.pydantic.dev/latest/concepts/plugins/).
    """
    for name in ("pygments", "rich", "trio"):
        sys.modules.setdefault(name, cast(ModuleType, None))
    environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()  # until all is imported: of that nothing goes again
