"""`status`: how the daemon is doing, on one screen."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import ask_daemon, config_option, find_queue, json_option
from agent.cli.views.output import say, say_json, show

if TYPE_CHECKING:
    from agent.config import Config
    from agent.control.client import ControlClient
    from agent.usage.day import Day

# Of several problems the first one here decides.
_EXIT_CODES = {"storage": 7, "paused": 9, "backing_off": 10}


@click.command()
@click.option("--check", is_flag=True, help="Say only whether events can be delivered now, also by the exit code.")
@config_option
@json_option
def status(path: Path | None, check: bool, as_json: bool) -> int:
    """Show how the daemon is doing, on one screen.

    Whether it delivers, and if not, why and until when; how many events are queued, and how old; what was dropped, and why; the
    last delivery; the ledger: accepted = delivered + dead-lettered + dropped + queued; and what the cache did during the last
    24 hours, as far as `report` has counted it.

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

    from agent.cli.checks.local import left_spools
    from agent.cli.views.status import screen

    now, settings = time.time(), _settings(path)
    if settings is None:
        show(screen(report, now))
    else:
        show(screen(report, now, _last_days(settings, now), _tokens(settings), left_spools(settings, os.environ)))
    return 0


def _settings(path: Path | None) -> "Config | None":
    """Return the configuration; None where something in it is wrong, which is no reason to show less of the daemon."""
    from agent.errors import ConfigError
    from agent.rules import DEFAULT

    try:
        return find_queue(path, DEFAULT)[0]
    except ConfigError:
        return None


def _last_days(settings: "Config", now: float) -> "dict[str, Day | str]":
    """Return, by destination, what has been folded of the last day, if anything has, or why it cannot be read."""
    from agent.daemon.settings import queue_directory
    from agent.errors import StorageError
    from agent.usage.day import last_day

    found: dict[str, Day | str] = {}
    for name in settings.accounts:
        try:
            day = last_day(queue_directory(settings, name), now)
        except StorageError as error:
            found[name] = str(error)
        else:
            if day is not None:
                found[name] = day
    return found


def _tokens(settings: "Config") -> dict[str, str]:
    """Return, by destination, which file its token is in, unless the path may be the token itself."""
    from agent.rules import DEFAULT

    files = {name: account.api.token_file for name, account in settings.accounts.items()}
    return {
        name: f"{'api' if name == DEFAULT else f'destinations.{name}'}.token_file, {file}"
        for name, file in files.items()
        if file is not None and os.path.lexists(file)
    }


def _check(control: "ControlClient", *, as_json: bool) -> int:
    readiness = control.readiness()
    if as_json:
        say_json(readiness)
    else:
        problems = [f"{each.destination}: {each.kind}: {each.message}" for each in readiness.problems]
        say(*(problems or ["ready"]))
    kinds = {each.kind for each in readiness.problems}
    return next((code for kind, code in _EXIT_CODES.items() if kind in kinds), 0 if readiness.ready else 1)
