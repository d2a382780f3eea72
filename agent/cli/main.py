"""The commands' group, and the one place where an AgentError becomes a line on standard error and an exit code."""

import os
import sys
from pathlib import Path

import click

from agent import __version__
from agent.errors import AgentError

config_option = click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), envvar="ARTIFACTS_AGENT_CONFIG"
)


@click.group()
@click.version_option(__version__)
def cli() -> None:
    """Keep Remote Cache usage events safe on disk, and deliver them."""


@cli.command()
@config_option
def run(path: Path | None) -> None:
    """Run the daemon."""
    from functools import partial

    from agent import config, daemon

    daemon.run(partial(config.load, path, os.environ), os.environ)


def main() -> None:
    """Run a command, and exit with its code."""
    try:
        cli(standalone_mode=True)
    except* AgentError as errors:
        error = errors.exceptions[0]
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        click.echo(f"artifacts-agent: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))
