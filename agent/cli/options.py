"""What several commands share: the options for the configuration file and for JSON, and how the file is found."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.units import parse_duration

if TYPE_CHECKING:
    from agent.config import Config
    from agent.control.client import ControlClient

SYSTEM_CONFIG = Path("/etc/artifacts-agent/config.toml")

config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),  # what is wrong with it is for each command to say
    envvar="ARTIFACTS_AGENT_CONFIG",
    show_envvar=True,
    metavar="FILE",
    help=f"The configuration file.  [default: {SYSTEM_CONFIG} if it exists]",
)

destination_option = click.option(
    "--destination",
    metavar="NAME",
    help="Whose queue: the name in [destinations.NAME], even if that is configured no more, or default for that of [api].",
)
destinations_option = click.option(
    "--destination",
    "destinations",
    multiple=True,
    metavar="NAME",
    help="Only for this destination, which may be repeated.  [default: all]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


JOB_LABEL = "At most 200 printable ASCII characters."


def changed_label(given: str) -> str | None:
    """Return what to say of a job's label that events cannot have as it was given; None if they can."""
    from agent.client.ci import to_label

    label = to_label(given)
    if label == (given.strip() or None):
        return None
    return f"the job's label is {label!r} and not as it was given: it may have at most 200 printable ASCII characters"


class Duration(click.ParamType[float]):
    """A length of time, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


def find_config(path: Path | None, system: Path = SYSTEM_CONFIG) -> Path | None:
    """Return the configuration file to read; None if it is variables and defaults alone."""
    if path is not None:
        return path
    return system if os.path.lexists(system) else None


def ask_daemon(path: Path | None, seconds: float | None = None) -> "ControlClient":
    """Return what asks the daemon that a command is about, for which only its control socket has to be known.

    `seconds` is how long a short answer may take, if not as usual. Raises ConfigError.
    """
    from agent import config
    from agent.control.client import TIMEOUT_SECONDS, ControlClient

    directories = config.Directories.of_daemon(os.environ, os.geteuid())
    control = config.control_socket(find_config(path), os.environ, directories)
    return ControlClient(control, seconds or TIMEOUT_SECONDS, passed_over=directories.passed_over_for(control))


def find_queue(path: Path | None, destination: str | None) -> tuple["Config", str, "ControlClient"]:
    """Return the configuration of the daemon that a command is about, the destination, and what asks the daemon.

    It may be one that is configured no more, of which the queue is left on disk. Raises ConfigError, and click.UsageError where
    there are several destinations and none is named, or one that is not there.
    """
    from agent import config
    from agent.control.client import ControlClient

    directories = config.Directories.of_daemon(os.environ, os.geteuid())
    settings = config.load(find_config(path), os.environ, directories=directories)
    names, control = [*settings.accounts], settings.listen.control
    if destination is None and len(names) > 1:
        raise click.UsageError(f"there are several destinations: name one with --destination: {_named(settings)}")
    if destination is not None and destination not in {*names, *_left_on_disk(settings)}:
        raise click.UsageError(f"there is no destination {destination!r}, only {_named(settings)}")
    return settings, destination or names[0], ControlClient(control, passed_over=directories.passed_over_for(control))


def _named(settings: "Config") -> str:
    """Return the names of all destinations, for a message."""
    left = _left_on_disk(settings)
    return ", ".join(settings.accounts) + (f", and no longer configured: {', '.join(left)}" if left else "")


def _left_on_disk(settings: "Config") -> list[str]:
    """Return the destinations that are configured no more, and whose directory is still there, as far as this user may see."""
    from agent.daemon.settings import destinations_directory
    from agent.spools.identity import DESTINATION

    parent = destinations_directory(settings)
    try:
        found = sorted(each.name for each in os.scandir(parent) if (parent / each.name / DESTINATION).is_dir())
    except OSError:
        return []
    return [name for name in found if name not in settings.accounts]
